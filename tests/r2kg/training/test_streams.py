"""The streams of a run read what its system says it reads, and change films in training only."""

import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from ray.exceptions import RayActorError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from r2kg.config.needs import Inputs
from r2kg.config.parts import Data, Engine, Train
from r2kg.config.run import Run, System
from r2kg.modules.config import Vision
from r2kg.rundir import RunFiles
from r2kg.scoring.generate import probe_of
from r2kg.systems.classifier.config import ClassifierConfig
from r2kg.systems.r2genkg.config import R2GenKGConfig
from r2kg.training.features import FilmEncoder, check_features, describe, frozen_encoder, write_features
from r2kg.training.remote import Losses, Ranks, film_bytes, film_streams
from shards.errors import ConfigError
from shards.films.stored import decode
from shards.sources import Item
from shards.sources.phantom.source import Phantom
from shards.stream.blocks import Rows, read_batches
from shards.stream.index import Index
from shards.stream.order import step_indices
from shards.study import Study
from shards.tars.format import read_manifest
from shards.tars.shards import write_shards

TRAIN = Train(global_batch=6, micro_batch=3, workers=2, gpus=False, seed=11)


class Reader(System):
    """A system that reads the words of a study and none of its films."""

    build: ClassVar[str] = "nowhere:Model"
    system: str = f"{__name__}:Reader"

    def inputs(self, data: Data) -> Inputs:
        return Inputs(text=("indication",))


def test_rays_processes_import_no_library_of_models():
    """Its controller at every start of a run: five seconds."""
    asked = "import sys, r2kg.training.remote; print({'transformers', 'timm', 'peft', 'deepspeed'} & {*sys.modules})"
    told = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, timeout=120, check=True)
    assert told.stdout.strip() == "set()"


@pytest.mark.parametrize("preempted", [True, False])
def test_a_group_that_a_preemption_ended_is_not_counted_as_lost(tmp_path, preempted):
    files, told = RunFiles(tmp_path), Losses(tmp_path, "one")
    files.note_group("one")
    gone = RayActorError(error_msg="its node went", preempted=preempted)
    told.after_exception(
        None, {0: RuntimeError("connection closed by peer"), 1: WorkerHealthCheckFailedError("", gone)}
    )
    files.note_group("one")
    assert files.losses_of("one") == (1 if preempted else 2)


def streamed(run: Run, name: str, steps: int) -> Rows:
    """All rows of a stream, by (step, rank)."""
    batches = list(read_batches(film_streams(run, 45, 6, steps)[name](), 3))
    return {column: np.concatenate([rows[column] for rows in batches]) for column in batches[0]}


def test_a_system_that_reads_no_films_gets_records_alone(phantom_shards: Path, tmp_path: Path) -> None:
    run = Run(name="words", root=str(tmp_path), data=Data(shards=str(phantom_shards)), model=Reader(), train=TRAIN)
    assert film_bytes(run) == 0
    for name, rows in (("train", 36), ("val", 6)):
        got = streamed(run, name, 6)
        assert "images" not in got and got["valid"].sum() == rows and all(got["record"][got["valid"]])
    featured = Run(**{**dict(run), "data": Data(shards=str(phantom_shards), features=str(tmp_path))})
    for refuse in (check_features, lambda run, manifest: write_features(run, manifest, tmp_path / "side")):
        with pytest.raises(ConfigError, match='Reader has no image encoder.*set data.features=""'):
            refuse(featured, read_manifest(phantom_shards))


def test_training_films_are_augmented_as_the_run_says_and_validation_films_are_not(
    phantom_shards: Path, tmp_path: Path
) -> None:
    def run(seed: int = 11, **augment: float) -> Run:
        model = R2GenKGConfig(vision=Vision(image_px=32, augment=augment))
        train = TRAIN.model_copy(update={"seed": seed})
        return Run(name="films", root=str(tmp_path), data=Data(shards=str(phantom_shards)), model=model, train=train)

    plain, changed, again = (streamed(each, "train", 8) for each in (run(), run(flip=1), run(flip=1)))
    assert (changed["index"] == plain["index"]).all()
    assert (changed["images"] == plain["images"][..., ::-1]).all() and (changed["images"] == again["images"]).all()
    assert (streamed(run(flip=1), "val", 8)["images"] == streamed(run(), "val", 8)["images"]).all()
    cut = {"resize_px": 40, "flip": 0.5, "rotate": 5, "brightness": 0.2}
    one, two = (streamed(run(seed, **cut), "train", 15) for seed in (11, 12))
    studies = {
        seed: dict(zip(rows["index"].tolist(), rows["images"], strict=True)) for seed, rows in ((1, one), (2, two))
    }
    assert len(studies[1]) == len(Index.open(phantom_shards, "train"))
    assert sum((studies[1][at] != studies[2][at]).any() for at in studies[1]) > 40
    assert Run(name="x").inputs.augment == Vision().augment


class Tall(Phantom):
    """Films of 64 x 48 px: drawn ones, cut at the sides."""

    def read(self, item: Item) -> tuple[Study, list[np.ndarray]]:
        study, films = super().read(item)
        return study, [film[:, 8:56] for film in films]


@pytest.mark.slow
def test_films_are_padded_wherever_they_are_read(tmp_path: Path, ray_session: None) -> None:
    """In training, validation, the features of a frozen encoder, and where a checkpoint's loss is checked."""
    shards = tmp_path / "shards"
    manifest = write_shards(Tall(studies=24, size=64), shards, size=48)
    seen = {"image_px": 32, "fit": "pad", "grey": (0.6, 0.3)}
    model = ClassifierConfig(vision=Vision(name="test_vit", weights="random", tuning="frozen", **seen))
    data, engine = Data(shards=str(shards)), Engine(precision="fp32")
    run = Run(name="tall", root=str(tmp_path), data=data, model=model, train=TRAIN, engine=engine)

    def wanted(index: Index, at: int) -> np.ndarray:
        return np.stack([decode(film, 32, fit="pad") for film in index.read(at)[0]])

    for name in ("train", "val"):
        index = Index.open(shards, name)
        (rows,) = read_batches(film_streams(run.change({"train.workers": 1}), 12, 2, 1)[name](), 6)
        for at, images in zip(rows["index"][rows["valid"]].tolist(), rows["images"][rows["valid"]], strict=True):
            assert (images == wanted(index, at)).all() and not images[:, :, :3].any() and images[:, :, 16].any()
    state = {"probe": {"studies": 2, "loss": 1.0}, "shards": manifest.fingerprint}
    rows, _ = probe_of(run, manifest, state)  # type: ignore[misc]
    assert all((images == wanted(index, at)).all() for at, images in enumerate(rows["images"]))
    encoder = frozen_encoder(run)
    made = next(FilmEncoder(run, encoder.fingerprint())(index, range(1), b""))
    with torch.no_grad():
        tokens = encoder.eval().encode(torch.tensor(wanted(index, 0)))
    assert made.members["features"] == tokens.to(torch.bfloat16).view(torch.uint16).numpy().tobytes()
    told = describe(run, encoder)["transform"]
    assert told == {"image_px": 32, "grey": [[0.6, 0.3]] * 3, "resize": "bicubic of a black square with the film in it"}


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_ranks_are_given_streams_of_their_own_blocks(phantom_shards: Path, tmp_path: Path, world: int) -> None:
    """Read by one rank after the other: none waits for another."""
    train = TRAIN.model_copy(update={"workers": world, "micro_batch": 1})
    run = Run(name="words", root=str(tmp_path), data=Data(shards=str(phantom_shards)), model=Reader(), train=train)
    streams = {name: make() for name, make in film_streams(run, 45, 6, 10).items()}
    given = Ranks().configure(streams, world_size=world, worker_handles=None, worker_node_ids=None)
    assert [set(own) for own in given] == [{"train", "val"}] * world
    order = step_indices(45, TRAIN.seed, 0, 60, run.data.chunk, run.data.window).reshape(10, world, 6 // world)
    for rank in (0, world - 1):
        for _ in range(2):  # validation is read again and again
            rows = list(read_batches(given[rank]["val"], 1))
            assert [int(row["index"][0]) for row in rows if row["valid"][0]] == list(range(rank, 6, world))
        seen = np.concatenate([row["index"] for row in read_batches(given[rank]["train"], 1)])
        assert seen.tolist() == order[:, rank].ravel().tolist()
