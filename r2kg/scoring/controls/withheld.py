"""Controls: each study with what is written about another one's films, or without films or its own texts."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from r2kg.config.run import Run
from shards.errors import ConfigError
from shards.stream.blocks import Rows
from shards.stream.order import Indices
from shards.tars.kinds import KINDS

WRITTEN = ("prediction", "tokens", "truncated", "extra")
"""Fields of a prediction line that a system gives; the others are the study's own."""


def refuse_withheld(run: Run) -> None:
    """ConfigError where `model.decoding.withhold` names what the system does not read, or not in a form that can be."""
    inputs, withhold = run.inputs, run.model.decoding.withhold
    if "report" in withhold and not inputs.text:
        raise ConfigError(f"model.decoding.withhold=report: {run.model.system} reads no text, so none can be withheld")
    if "film" in withhold and inputs.image_px is None:
        raise ConfigError(f"model.decoding.withhold=film: {run.model.system} reads no films, so none can be withheld")
    if "film" in withhold and run.data.features:
        raise ConfigError(
            "model.decoding.withhold=film shows black films, which have no features: set data.features= to show films"
        )


def shown(run: Run, rows: Rows) -> Rows:
    """What of the stream's rows a generating model gets in another form: records without what it must not be told.

    What `model.decoding.withhold` names is not in them: films are black, and sides that are made of them empty.
    """
    inputs, withhold = run.inputs, run.model.decoding.withhold
    if "report" in withhold:
        inputs = replace(inputs, text=())
    changed = {"record": np.array([inputs.shown(record) for record in rows["record"]], object)}
    if "film" in withhold:
        changed["images"] = np.zeros_like(rows["images"])
        for kind in inputs.sides:
            if KINDS[kind].of_films:
                changed[KINDS[kind].column] = np.full(len(rows["record"]), b"", object)
    return changed


def derangement(n: int, seed: int) -> Indices:
    """For each of n another one, each taken once: int64 [n]; of fewer than two empty."""
    if n < 2:
        return np.empty(0, np.int64)
    order = np.random.default_rng(seed).permutation(n)
    donor = np.empty(n, np.int64)
    donor[order] = np.roll(order, 1)
    return donor


def shuffled(predictions: Path, offsets: Indices, donors: Indices) -> Iterator[dict]:
    """Every study with the report written for another study's films; `offsets` as `joined` gives them.

    A system that sees nothing but films writes the same report whichever study it is asked about, so its control is a
    derangement of its own predictions.
    """
    with predictions.open("rb") as own, predictions.open("rb") as others:
        for line, donor in zip(own, donors, strict=True):
            others.seek(offsets[donor])
            other, kept = json.loads(others.readline()), json.loads(line)
            kept.pop("extra", None)
            yield kept | {field: other[field] for field in WRITTEN if field in other}
