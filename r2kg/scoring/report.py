"""The report of one study whose films are at hand: no shards, no Ray."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from r2kg.config.run import Run
from r2kg.modules.beams import Generated
from r2kg.systems.contract import to_device
from r2kg.training.artefacts import trained_model
from r2kg.training.checkpoint import find_checkpoint, read_state
from shards.errors import ConfigError
from shards.films.limits import Film
from shards.films.raw import enough, open_film, refuse_missing
from shards.films.stored import decode, encode, shrink
from shards.study import Study, View
from shards.tars.kinds import KINDS


def report(run: Run, films: Sequence[str | Path | Film] | str | Path | Film, checkpoint: str = "best") -> Generated:
    """What a trained run writes about the films of one study, the frontal one first.

    The films go the way that those of shards go: to grey, to the size and the JPEG of the shards that the run was
    trained on, and from there to the encoder.

    Args:
        films: paths of PNG, JPEG, DICOM, ... (`shards.films.raw.open_film`), or arrays uint8 [H, W]; or one of them.
        checkpoint: "best", "last" or a step number.

    Raises:
        ConfigError: no films, a path that is no file, or more than `data.views`; a system that reads more of a study
            than films.
        DataError: a film that cannot be read.
        CheckpointError: no such checkpoint, a damaged one, or other frozen weights than it was trained over.
    """
    run = run.change({"data.features": ""}).absolute()
    inputs = run.inputs
    if inputs.image_px is None or inputs.text or inputs.sides:
        reads = ", ".join((*inputs.text, *inputs.sides)) or "no film"
        how = "".join(f", write {kind} with {KINDS[kind].how}" for kind in inputs.sides)
        raise ConfigError(f"{run.name} reads {reads}: put the study into shards{how}, and say `r2kg generate`")
    films = [films] if isinstance(films, str | Path | np.ndarray) else films
    refuse_missing([film for film in films if not isinstance(film, np.ndarray)])
    if not 1 <= len(films) <= inputs.views:
        raise ConfigError(f"{len(films)} films: {run.name} reads 1 to {inputs.views} of a study (data.views)")
    where = find_checkpoint(run.directory, checkpoint)
    stored = read_state(where)["films"]
    size, quality = stored["size_px"], stored["quality"]
    images = np.zeros((1, inputs.views, inputs.image_px, inputs.image_px), np.uint8)
    for view, film in enumerate(films):
        with enough(size):
            pixels = film if isinstance(film, np.ndarray) else open_film(Path(film))
        images[0, view] = decode(encode(shrink(pixels, size), quality), inputs.image_px, fit=inputs.fit)
    study = Study(key="film", id="film", split="test", views=(View(),) * len(films), report="", target="")
    rows = {
        "images": images,
        "view_mask": np.arange(inputs.views)[None] < len(films),
        "valid": np.ones(1, bool),
        "index": np.zeros(1, np.int64),
        "record": np.array([inputs.shown(study.model_dump_json())], object),
    }
    device = "cuda" if run.train.gpus and torch.cuda.is_available() else "cpu"
    with torch.inference_mode():
        model = trained_model(run, where, device)
        (written,) = model.generate(to_device(model.collate(rows), device), run.model.decoding)
    return written
