"""Features stand in for films exactly, for the encoder and the films they were made from and for no others."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from r2kg.config.parts import Decoding
from r2kg.config.run import Run
from r2kg.rundir import saved_run
from r2kg.scoring.evaluate import read_predictions
from r2kg.scoring.generate import generate
from r2kg.systems.contract import build_model
from r2kg.training.features import (
    FilmEncoder,
    ahead,
    check_features,
    describe,
    features_or_films,
    frozen_encoder,
    write_features,
)
from r2kg.training.launch import train
from r2kg.training.plan import preflight
from r2kg.training.remote import film_bytes
from shards.errors import ConfigError, DataError
from shards.sources.phantom.source import Phantom
from shards.stream.blocks import BLOCK_BYTES, read_batches, read_block, rows_per_block, stream_blocks
from shards.stream.index import Index, open_splits
from shards.stream.order import sequential_blocks
from shards.stream.side import Side
from shards.tars.format import read_manifest
from shards.tars.kinds import UNREAD, read_side, without_member
from shards.tars.place import sha256_of
from shards.tars.shards import write_shards
from shards.tars.sides import plan_side, write_side_tar

slow = pytest.mark.slow
BF16 = 2.0**-8
"""Largest relative rounding of bf16."""


@pytest.fixture(scope="module")
def recipe(small_run) -> Run:
    """A frozen random encoder, two steps of eight films on two workers."""
    return small_run(
        {
            "model.vision.tuning": "frozen",
            "model.llm.tuning": "frozen",
            "model.decoding.beams": 1,
            "train.steps": 2,
            "train.global_batch": 8,
            "train.micro_batch": 4,
            "train.validation_studies": 6,
            "train.checkpoint_every": 2,
        }
    )


@pytest.fixture(scope="module")
def side(recipe: Run, phantom_shards: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("side") / "features"
    write_features(recipe, read_manifest(phantom_shards), out)
    return out


@pytest.fixture(scope="module")
def run(recipe: Run, side: Path) -> Run:
    return recipe.change({"data.features": str(side)})


def rows_of(run: Run, features: Path | None, name: str = "test", on_bad: str = "fail") -> dict[str, np.ndarray]:
    root, index = run.data.shards, Index.open(run.data.shards, name)
    opened = Side.open(features, index, read_manifest(root), "features", on_bad) if features else None
    block = sequential_blocks(len(index), 1, len(index))[0]
    return read_block(
        index, block, run.model.vision.image_px, run.data.views, on_bad, {"features": opened} if opened else None
    )


def as_float(bits: np.ndarray) -> torch.Tensor:
    return torch.tensor(bits).view(torch.bfloat16).float()


def test_features_are_what_the_models_own_encoder_makes(run: Run, recipe: Run, side: Path) -> None:
    torch.manual_seed(recipe.train.seed)
    vision = build_model(recipe.model).vision.eval()
    assert describe(recipe, vision) == describe(recipe, frozen_encoder(recipe))
    films, features = rows_of(recipe, None), rows_of(recipe, side)
    for name in ("view_mask", "record", "index", "valid"):
        assert films[name].tolist() == features[name].tolist()
    assert features["features"].dtype == np.uint16 and "images" not in features
    with torch.no_grad():
        wanted = vision.encode(torch.tensor(films["images"][films["view_mask"]]))
    torch.testing.assert_close(as_float(features["features"][films["view_mask"]]), wanted, rtol=BF16, atol=1e-6)
    assert film_bytes(recipe) == 0 and film_bytes(run) == 2 * vision.patches * vision.width
    assert rows_per_block(64, 2, 10**6, film_bytes(run)) == BLOCK_BYTES // (4 * vision.patches * vision.width)


def test_loss_and_reports_from_features_are_those_from_films(recipe: Run, side: Path) -> None:
    torch.manual_seed(recipe.train.seed)
    model = build_model(recipe.model).eval()
    films, features = (model.collate(rows_of(recipe, where)) for where in (None, side))
    assert features["features"].dtype == torch.bfloat16 and "images" not in features
    one, two = model.loss(films)["report"].sum, model.loss(features)["report"].sum
    assert two.item() == pytest.approx(one.item(), rel=1e-3)
    two.backward()
    assert model.projection.weight.grad.abs().sum() > 0
    reports = [
        [said.text for said in model.generate(batch, Decoding(beams=1, max_new_tokens=8))]
        for batch in (films, features)
    ]
    assert sum(a == b for a, b in zip(*reports, strict=True)) >= len(reports[0]) - 1
    wrong = rows_of(recipe, side)
    with pytest.raises(ConfigError, match=r"features are \(\d+, 3\) a film, this encoder makes"):
        model.collate(wrong | {"features": wrong["features"][..., :3]})


def test_bytes_do_not_depend_on_who_encodes(recipe: Run, side: Path, tmp_path: Path) -> None:
    manifest, description = read_manifest(recipe.data.shards), read_side(side).description
    indices, maker = open_splits(recipe.data.shards, manifest), FilmEncoder(recipe, description["encoder"])
    jobs = plan_side(indices, "features", description)[::-1]
    for job in jobs[:2]:
        write_side_tar(tmp_path, job, indices[job.split], maker)
        for name in (job.name, job.name.replace(".tar", ".index.json")):
            assert sha256_of(tmp_path / name) == sha256_of(side / name)
    with pytest.raises(ConfigError, match="give all nodes the same model.vision.weights"):
        FilmEncoder(recipe, "0" * 64)


def test_films_are_not_read_where_features_are(recipe: Run, side: Path, tmp_path: Path) -> None:
    rows = rows_of(recipe.change({"data.shards": str(blanked(recipe, tmp_path))}), side)
    assert rows["valid"].all() and np.array_equal(rows["features"], rows_of(recipe, side)["features"])


def blanked(run: Run, folder: Path) -> Path:
    """A copy of the shards in which no film can be read, though no size changed."""
    root = Path(shutil.copytree(run.data.shards, folder / "shards"))
    for path in root.glob("*.tar"):
        entries = json.loads(path.with_suffix(".index.json").read_text())["studies"]
        with path.open("r+b") as tar:
            for at, size, _ in (span for e in entries for name, span in e["members"].items() if name != "json"):
                tar.seek(at)
                tar.write(b"\0" * size)
    return root


def test_the_stream_carries_features_and_fills_with_invalid_rows(recipe: Run, side: Path) -> None:
    index = Index.open(recipe.data.shards, "test")
    blocks = sequential_blocks(len(index), 1, 4, 8)
    stream = stream_blocks(recipe.data.shards, "test", blocks, 64, 3, index=index, sides={"features": side})
    batches = list(read_batches(stream, 4))
    found = np.concatenate([rows["features"] for rows in batches])
    valid = np.concatenate([rows["valid"] for rows in batches])
    assert found.shape[1] == 3 and valid.sum() == len(index) < len(valid)
    assert np.array_equal(found[valid][:, :2], rows_of(recipe, side)["features"])
    assert not found[~valid].any() and not found[:, 2].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.vision.tuning": "full"},
            "model.vision.tuning=full changes it: set model.vision.tuning=frozen, or data.f",
        ),
        (
            {"model.vision.augment.flip": 0.5},
            r"films as they are, and model.vision.augment .* set model.vision.augment=",
        ),
        ({"train.seed": 7}, r"encoder: [0-9a-f]{12} there, [0-9a-f]{12} here\)"),
        ({"model.vision.options": {"init_values": 0.1}}, "encoder: "),
        ({"model.vision.name": "test_vit2"}, 'name: "test_vit" there, "test_vit2" here'),
        ({"model.vision.image_px": 80}, r'transform: {"image_px": 64.*there, {"image_px": 80.*write them again'),
        ({"model.vision.fit": "pad"}, 'transform: .*"bicubic to a square"} there, .*"bicubic of a black square with'),
        ({"model.vision.grey": [0.5, 0.25]}, r"transform: .* there, .*\[\[0.5, 0.25\], \[0.5, 0.25\], \[0.5, 0.25\]\]"),
        ({"data.views": 3}, "of 2 views a study, data.views=3: lower it"),
    ],
)
def test_features_of_another_encoder_or_transform_are_refused(run: Run, changes: dict, message: str) -> None:
    manifest = read_manifest(run.data.shards)
    with pytest.raises(ConfigError, match=message):
        preflight(run.change(changes), manifest, {})


def test_fitting_features_pass_and_fewer_views_are_fine(run: Run) -> None:
    manifest = read_manifest(run.data.shards)
    assert preflight(run, manifest, {}).studies == manifest.splits["train"].studies
    assert check_features(run.change({"data.views": 1}), manifest).kind == "features"
    assert features_or_films(run, manifest) == run
    with pytest.raises(ConfigError, match="encoder: "):
        features_or_films(run.change({"train.seed": 7}), manifest)
    one, two = (rows_of(run.change({"data.views": n}), Path(run.data.features))["features"] for n in (1, 2))
    assert one.shape[1] == 1 and np.array_equal(one, two[:, :1])


def test_features_of_other_shards_are_refused_and_reports_read_films(
    run: Run, tmp_path: Path, capsys, ray_session
) -> None:
    other = write_shards(Phantom(studies=12, size=64, seed=5), tmp_path, size=64)
    with pytest.raises(DataError, match=rf"the shards given have {other.fingerprint[:12]}"):
        preflight(run, other, {})
    assert features_or_films(run, other).data.features == ""
    assert "Films are read instead." in capsys.readouterr().out


def test_damaged_features_stop_or_are_told(run: Run, tmp_path: Path, capsys) -> None:
    copied = Path(shutil.copytree(run.data.features, tmp_path / "copied"))
    (copied / "test-00000.tar").unlink()
    damaged, manifest = run.change({"data.features": str(copied)}), read_manifest(run.data.shards)
    with pytest.raises(DataError, match="test-00000.tar is missing. Way out: write them again"):
        preflight(damaged.change({"data.on_bad": "fail"}), manifest, {})
    check_features(damaged.change({"data.on_bad": "skip"}), manifest)
    assert "test-00000.tar is missing. Studies that cannot be read are skipped" in capsys.readouterr().out
    rows = rows_of(run, copied, on_bad="skip")
    assert not rows["valid"].any() and not rows["features"].any() and "cannot be read" in rows["bad"][0]


def test_a_film_that_does_not_decode_has_no_features_and_a_name(recipe: Run, tmp_path: Path) -> None:
    root = Path(shutil.copytree(recipe.data.shards, tmp_path / "shards"))
    entry = json.loads((root / "test-00000.index.json").read_text())["studies"][1]
    with (root / "test-00000.tar").open("r+b") as tar:
        tar.seek(entry["members"]["0.jpg"][0])
        tar.write(b"\0" * 400)
    holed = recipe.change({"data.shards": str(root), "data.on_bad": "skip"})
    written = write_features(holed, read_manifest(root), tmp_path / "side")
    assert written.without == {UNREAD: 1}
    [(key, cause)] = without_member(tmp_path / "side", written)
    assert key == entry["key"] and "checksum" in cause
    rows = rows_of(holed, tmp_path / "side", on_bad="skip")
    assert rows["valid"].tolist().count(False) == 1 and rows["bad"][1].endswith("the side holds no features of it")
    strict = FilmEncoder(holed.change({"data.on_bad": "fail"}), written.description["encoder"])
    with pytest.raises(DataError, match=entry["key"]):
        list(strict(Index.open(root, "test"), range(3), b""))


def test_a_tuned_encoder_has_no_features(recipe: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tuning=lora changes it"):
        write_features(recipe.change({"model.vision.tuning": "lora"}), read_manifest(recipe.data.shards), tmp_path)
    assert not list(tmp_path.iterdir())


def test_places_become_absolute(recipe: Run) -> None:
    assert recipe.change({"data.features": "here"}).absolute().data.features == str(Path("here").resolve())
    assert recipe.change({"data.features": "s3://a/b"}).absolute().data.features == "s3://a/b"
    assert recipe.absolute().data.features == ""


def test_work_done_ahead_keeps_its_order() -> None:
    assert list(ahead(lambda x: x * x, range(23))) == [x * x for x in range(23)]


@slow
def test_a_run_from_features_is_the_run_from_films(run: Run, recipe: Run, tmp_path: Path) -> None:
    losses, texts = [], []
    filmless = run.change({"data.shards": str(blanked(recipe, tmp_path)), "data.verify": "size"})
    for name, each in (("films", recipe), ("features", filmless)):
        chosen = each.change({"name": name})
        summary = train(chosen)
        assert summary["step"] == 2 and summary["unread"] == {}
        losses.append([summary["loss"], summary["validation_loss"]])
        lines = read_predictions(generate(saved_run(chosen.directory), chosen.data.shards))
        texts.append([line["prediction"] for line in lines])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3) and losses[0][0] > 1
    assert len(texts[0]) == read_manifest(recipe.data.shards).splits["test"].studies
    assert sum(a == b for a, b in zip(*texts, strict=True)) >= len(texts[0]) - 1
