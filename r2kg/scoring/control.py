"""The control: each study with what is written about another one's films."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from shards.stream.order import Indices

WRITTEN = ("prediction", "tokens", "truncated", "extra")
"""Fields of a prediction line that a system gives; the others are the study's own."""


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
