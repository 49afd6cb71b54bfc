"""Pictures of reports: which nodes of the knowledge matrix each place of the films and each word took."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from r2kg.rundir import directory_of, read_json, saved_run
from r2kg.scoring.evaluate import read_predictions
from r2kg.scoring.pages import PICTURES
from r2kg.training.artefacts import trained_model
from r2kg.training.checkpoint import MANIFEST, find_checkpoint
from shards.errors import CheckpointError, ConfigError, DataError
from shards.privacy import fence
from shards.stream.blocks import read_block
from shards.stream.index import Index
from shards.stream.order import Block
from shards.tars.place import sha256_of

FIGURE_INCHES, DPI = 2.2, 110


def draw_taken(
    predictions: Path, keys: Sequence[str] = (), count: int = 4, nodes: int = 6, shards: str = ""
) -> list[Path]:
    """Draw studies of a predictions file that a run of CKNet wrote, and return the pictures' files.

    Args:
        predictions: RUN/predictions/SPLIT/HOW/predictions.jsonl.
        shards: of the predictions; default: the run's own.
        keys: of studies; none: the first `count`.
        nodes: that are drawn over the films, those that were taken most.

    Raises:
        ConfigError: the file is outside a run, or the run's model asks no knowledge matrix.
        DataError: no such study, a study that cannot be read, shards that are not those of the predictions.
        CheckpointError: the checkpoint that wrote them is gone, or another by now.
    """
    directory = directory_of(predictions)
    if directory is None:
        raise ConfigError(f"{predictions} lies in no run (RUN/predictions/SPLIT/HOW/predictions.jsonl)")
    if not predictions.with_name("context.json").is_file():
        raise DataError(f"{predictions} has no context.json beside it: write both again with `r2kg generate`")
    run, context = saved_run(directory).change({"data.features": ""}), read_json(predictions.with_name("context.json"))
    run = run.change({"data.shards": shards}) if shards else run
    lines = {line["key"]: line for line in read_predictions(predictions)}
    if strange := [key for key in keys if key not in lines]:
        raise DataError(f"no study {strange[0]!r} in {predictions}: its {len(lines)} keys begin with {[*lines][:3]}")
    manifest = run.manifest()
    if manifest.fingerprint != context["shards"]:
        theirs, ours = context["shards"][:12], manifest.fingerprint[:12]
        raise DataError(f"{predictions} is of shards {theirs}, those at {run.data.shards} have {ours}: --shards DIR")
    checkpoint = find_checkpoint(directory, str(context["step"]))
    if sha256_of(checkpoint / MANIFEST) != context["checkpoint_sha256"]:
        raise CheckpointError(f"{checkpoint} is not the one that wrote {predictions}: generate the reports again")
    index = Index.open(run.data.shards, context["split"])
    rows_of = {key.decode(): row for row, key in enumerate(index.keys)}
    with fence(manifest.licence), torch.inference_mode():
        model: Any = trained_model(run, checkpoint, "cpu")
        if not hasattr(model, "look"):
            raise ConfigError(f"{run.name} is of the system {run.model.system}, which asks no knowledge matrix")
        made = []
        for key in list(keys) or [*lines][:count]:
            at, inputs = np.array([[rows_of[key]]]), run.inputs
            rows = read_block(index, Block(0, 0, at, at * 0), inputs.image_px, inputs.views, "fail", fit=inputs.fit)
            rows["record"][0] = inputs.shown(rows["record"][0])
            taken = model.look(model.collate(rows), lines[key]["prediction"])
            films = rows["images"][0][rows["view_mask"][0]]
            out = predictions.with_name(PICTURES) / f"{key}.png"
            out.parent.mkdir(exist_ok=True)
            weights = (taken.film.float().numpy(), taken.of_words.float().numpy())
            draw(films, *weights, taken.words, taken.names, nodes, out)
            made.append(out)
    return made


def draw(
    films: NDArray[np.uint8],
    film: NDArray[np.float32],
    of_words: NDArray[np.float32],
    words: Sequence[str],
    names: Sequence[str],
    nodes: int,
    out: Path,
) -> None:
    """One picture: the films under the shares of the nodes that were taken most, then words by all nodes.

    Args:
        films: [V, S, S], those that are there.
        film: [V·P, N], a film's P places in rows of a square grid, one film after the other; or [P, N] of their mean.
        of_words: [T, N], or [0, N].
        names: N names; "" for vectors that have none, which are numbered.

    Raises:
        ConfigError: the encoder's places are no square grid.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    called = [name or f"vector {at}" for at, name in enumerate(names)]
    there = film[film.sum(1) > 0]
    squares = [views for views in (len(films), 1) if math.isqrt(len(there) // views) ** 2 * views == len(there)]
    views = squares[0] if squares else 1  # 1: the films' places were averaged
    side = math.isqrt(len(there) // views)
    if not squares:
        raise ConfigError(f"{len(there)} places of {len(films)} films are no square grids: nothing to draw over")
    grids = there.reshape(views, side, side, len(called))
    most = np.argsort(-film.sum(0), kind="stable")[:nodes]
    height = views * FIGURE_INCHES + (0.6 + 0.16 * len(called) if len(words) else 0)
    figure = pyplot.figure(figsize=(FIGURE_INCHES * max(len(most), 1 + len(words) // 10), height), layout="constrained")
    above, below = figure.subfigures(  # type: ignore[misc]  # of more than one row it is an array
        2, 1, height_ratios=[views * FIGURE_INCHES, height - views * FIGURE_INCHES + 0.01]
    )
    axes = above.subplots(views, len(most), squeeze=False)
    for view in range(views):
        for column, node in enumerate(most):
            axis = axes[view, column]
            axis.imshow(films[view], cmap="gray", vmin=0, vmax=255)
            size = films.shape[-1]
            heat = grids[view, :, :, node]
            if side:
                shown = {"cmap": "inferno", "alpha": 0.45, "extent": (0, size, size, 0), "vmin": 0}
                axis.imshow(heat, vmax=max(film.max(), 1e-9), **shown)
            axis.set_axis_off()
            if view == 0:
                axis.set_title(f"{called[node]} {film[:, node].sum() / max(film.sum(), 1e-9):.0%}", fontsize=7)
    if len(words):
        axis = below.subplots()
        axis.imshow(of_words.T, cmap="inferno", aspect="auto", vmin=0)
        axis.set_yticks(range(len(called)), called, fontsize=6)
        axis.set_xticks(range(len(words)), words, rotation=90, fontsize=6)
    figure.savefig(out, dpi=DPI, metadata={"Software": None})
    pyplot.close(figure)
