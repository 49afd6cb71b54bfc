"""What a frozen encoder makes of every film, written once as a side of the shards and streamed in place of the films.

A frozen encoder gives the same tokens in every epoch; R2GenGPT's shallow mode spends most of its time on them. Features
are stored per film, so that averaging and everything after it stay the run's own, as bf16: a run in fp32 sees them
rounded, a run in bf16 sees what it would have computed.
"""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np
import ray
import torch

from r2kg.config.run import Run
from r2kg.modules.config import Vision
from r2kg.modules.vision import VisionEncoder
from r2kg.systems.contract import to_bf16
from r2kg.training.artefacts import begin, with_init
from shards.errors import ConfigError, DataError
from shards.films.augment import OFF
from shards.films.stored import Fit
from shards.stream.blocks import read_block
from shards.stream.index import Index, open_splits
from shards.stream.order import Block
from shards.tars.format import Manifest
from shards.tars.kinds import KINDS, UNREAD, SideManifest, read_side, refuse_other
from shards.tars.place import Place
from shards.tars.sides import write_side
from shards.tars.verify import faults_of
from shards.tars.write import Made

FEATURES = KINDS["features"]
NAME = "features-{}"
"""Place below SHARDS/side, by the encoder's name."""
RESIZE: dict[Fit, str] = {"squash": "bicubic to a square", "pad": "bicubic of a black square with the film in it"}
DTYPE = "bf16"
DECIDING = ("encoder", "name", "transform", "dtype", "patches", "width")
"""Fields of the description that a run's own encoder must agree with."""
READERS = 2
AHEAD = 4
"""Batches that are read and decoded while one is encoded."""
Item = TypeVar("Item")
Result = TypeVar("Result")


def write_features(run: Run, manifest: Manifest, out: str | Place, actors: int = 1) -> SideManifest:
    """Encode every film of `run.data.shards` with the run's encoder into `out`.

    `actors` processes hold the encoder, with one GPU each where the cluster has them. What is written depends on the
    encoder, `data.views`, `train.micro_batch` (last bits) and the kind of device, not on the number of actors.

    Raises:
        ConfigError: the encoder is not frozen or cannot be built.
        DataError: under data.on_bad="fail" the first film that cannot be read; torn indices of the shards.
    """
    refuse_tuned(run)
    run = with_init(run)
    indices = open_splits(run.data.shards, manifest)
    description = describe(run, frozen_encoder(run))
    build = partial(FilmEncoder, run, description["encoder"])
    return write_side(run.data.shards, out, "features", manifest, indices, description, build, actors=actors)


def refuse_tuned(run: Run) -> None:
    """ConfigError when training would change the encoder, or the films before it sees them."""
    if (tuning := encoder_of(run).tuning) != "frozen":
        raise ConfigError(
            f"features are what an encoder makes that never changes, and model.vision.tuning={tuning} changes it: set "
            'model.vision.tuning=frozen, or data.features="" to read the films'
        )
    if run.inputs.augment != OFF:
        raise ConfigError(
            "features are of films as they are, and model.vision.augment changes films anew every time: set "
            'model.vision.augment={}, or data.features="" to read the films'
        )


def check_features(run: Run, manifest: Manifest) -> SideManifest:
    """The side at `run.data.features`, after comparing it with the shards and with the run's own encoder.

    Damage is a DataError under data.on_bad=fail, and printed under skip.

    Raises:
        ConfigError: the encoder is tuned, or the features are another encoder's or of other or fewer films.
        DataError: no side, of another kind, or of other shards.
    """
    refuse_tuned(run)
    where = run.data.features
    side = read_side(where, "features")
    refuse_other(where, side, manifest, "features")
    theirs, ours = side.description, describe(run, frozen_encoder(run))
    differing = [
        f"{field}: {_brief(theirs.get(field))} there, {_brief(ours[field])} here"
        for field in DECIDING
        if theirs.get(field) != ours[field]
    ]
    if differing:
        raise ConfigError(
            f"the features at {where} are not what this run's encoder makes of the films ({'; '.join(differing)}): the "
            f"model would be trained on another encoder's tokens. Way out: write them again with {FEATURES.how}, "
            'give the encoder they were made with, or set data.features="" to read the films'
        )
    if (held := side.extent[0]) < run.data.views:
        raise ConfigError(
            f"the features at {where} are of {held} views a study, data.views={run.data.views}: lower it, or write "
            f"them again with {FEATURES.how}"
        )
    refuse_damage(run, where, side)
    return side


def refuse_damage(run: Run, where: str, side: SideManifest) -> None:
    """DataError for a side that is not what its manifest says; printed under data.on_bad=skip."""
    if faults := faults_of(where, side.shards, run.data.verify):
        damage = f"{side.kind} at {where} are damaged: {'; '.join(faults)}"
        if run.data.on_bad == "fail":
            raise DataError(f"{damage}. Way out: write them again with {KINDS[side.kind].how}, whole tars are kept")
        print(f"{damage}. Studies that cannot be read are skipped and named.")


def features_or_films(run: Run, manifest: Manifest) -> Run:
    """The run as it can read these shards: without features that are gone, damaged or of other shards, which is said.

    Its encoder makes the same of the films but for rounding; ConfigError where it does not, as in `check_features`.
    """
    if run.data.features:
        try:
            check_features(run, manifest)
        except DataError as error:
            print(f"{error}. Films are read instead.")
            return run.change({"data.features": ""})
    return run


def _brief(value: Any) -> str:
    """A field as an error shows it: of a fingerprint its beginning."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else json.dumps(value)


def encoder_of(run: Run) -> Vision:
    """The configuration of the run's image encoder; ConfigError where features cannot stand in for films."""
    encoder = run.inputs.encoder
    if not isinstance(encoder, Vision):
        raise ConfigError(
            f'{run.model.system} has no image encoder whose features could stand in: set data.features=""'
        )
    return encoder


def frozen_encoder(run: Run) -> VisionEncoder:
    """The encoder as the run's own model has it, on the CPU: built first, with the same seed and start."""
    torch.manual_seed(run.train.seed)
    begin(vision := VisionEncoder(encoder_of(run)), run, inside="vision")
    return vision


def describe(run: Run, vision: VisionEncoder) -> dict[str, Any]:
    """What decides the features, for side.json."""
    config = encoder_of(run)
    grey = [list(pair) for pair in vision.scale]
    return {
        "encoder": vision.fingerprint(),
        "name": config.name,
        "transform": {"image_px": config.image_px, "grey": grey, "resize": RESIZE[config.fit]},
        "dtype": DTYPE,
        "patches": vision.patches,
        "width": vision.width,
        "views": run.data.views,
        "precision": run.engine.precision,
    }


def refuse_other_weights(vision: VisionEncoder, fingerprint: str, whose: str) -> None:
    """ConfigError when an encoder's weights are not here what they were where `fingerprint` was taken."""
    if (found := vision.fingerprint()) != fingerprint:
        raise ConfigError(
            f"the weights of {vision.config.name} on this node have fingerprint {found[:12]}, {whose} "
            f"{fingerprint[:12]}: give all nodes the same model.vision.weights, and the same timm"
        )


class FilmEncoder:
    """The maker of a side of features: holds the encoder, takes the studies of one tar."""

    def __init__(self, run: Run, fingerprint: str):
        """Build the encoder; ConfigError when its weights are not here what they are where `fingerprint` was taken."""
        self.run, self.config = run, encoder_of(run)
        self.device = "cuda" if torch.cuda.is_available() and ray.get_gpu_ids() else "cpu"
        self.vision = frozen_encoder(run).eval()
        refuse_other_weights(self.vision, fingerprint, "the driver has")
        if run.engine.precision == "bf16":
            to_bf16(self.vision)
        self.vision.to(self.device)

    def __call__(self, index: Index, rows: range, given: bytes) -> Iterator[Made]:
        """KEY.features of every study: its films' tokens, bf16 [V, P, D], for the films that are streamed."""
        size, data = self.run.train.micro_batch, self.run.data
        parts = [np.arange(at, min(at + size, rows.stop)) for at in range(rows.start, rows.stop, size)]

        def read(part: np.ndarray) -> dict[str, np.ndarray]:
            block = Block(0, 0, part[None], part[None])
            return read_block(index, block, self.config.image_px, data.views, data.on_bad, fit=self.config.fit)

        for films in ahead(read, parts):
            mask = films["view_mask"]
            with torch.inference_mode():
                images = torch.from_numpy(films["images"][mask]).to(self.device)
                tokens = self.vision.encode(images) if len(images) else torch.zeros(0)
            stored = tokens.to(torch.bfloat16).cpu().view(torch.uint16).numpy().astype("<u2", copy=False)
            ends = mask.sum(1).cumsum()
            for end, views, bad in zip(ends.tolist(), mask.sum(1).tolist(), films["bad"], strict=True):
                if bad:
                    yield Made(cause=UNREAD, detail=bad.partition(": ")[2])
                else:
                    yield Made({FEATURES.suffix: stored[end - views : end].tobytes()}, totals={"films": views})


def ahead(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map` whose next `AHEAD` results are made by threads meanwhile: reading and decoding release the interpreter."""
    with ThreadPoolExecutor(READERS) as pool:
        waiting: deque = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
