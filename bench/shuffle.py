"""How well the stream's order keeps a patient's studies apart, beside a full shuffle.

The listing of a dataset is drawn: as many patients, studies and films as MIMIC-CXR has, listed by patient as its owner
does. Of every batch the pairs of rows are counted that are of one patient, and the batches with two studies of one
stretch of the raw listing; a full shuffle of the same studies is the measure. No film is made or read.

    python -m bench.shuffle
"""

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from jobs.cli import run
from shards.sources import Item
from shards.stream.order import CHUNK, WINDOW, epoch_order
from shards.tars.shards import mixed

PATIENTS, STUDIES, FILMS = 64_586, 222_758, 368_960
"""Of MIMIC-CXR's training split (Johnson et al. 2019, MIMIC-CXR-JPG 2.0.0; its split table)."""


def main(batch: int = 64, epochs: int = 3, seed: int = 0) -> None:
    """Print the shares for studies and for films as samples, in the order of the source and mixed."""
    table = Table("samples", "order in the tars", "batches of 16 with one raw chunk twice", "same patient", "to full")
    for kind, count in (("studies", STUDIES), ("films", FILMS)):
        patients = drawn_patients(count, seed)
        items = [Item(id=f"{kind}-{row}", split="train", payload={"row": row}) for row in range(count)]
        stored = {"the source's": np.arange(count), "mixed": np.array([item.payload["row"] for item in mixed(items)])}
        full = same_patient(patients, batch, epochs, seed, np.arange(count), chunk=1)
        for name, rows in stored.items():
            share = same_patient(patients, batch, epochs, seed, rows, CHUNK)
            twice = same_chunk(batch=16, epochs=epochs, seed=seed, rows=rows)
            table.add_row(kind, name, f"{twice:.1%}", f"{share:.3e}", f"{share / full:.2f}")
    Console(width=120).print(table)
    print(f"same patient: share of the pairs in a batch of {batch}; chunk {CHUNK}, window {WINDOW}, {epochs} epochs")


def drawn_patients(count: int, seed: int) -> NDArray[np.int64]:
    """Patient of each of `count` samples, [count], listed by patient; few have many, as in a hospital."""
    drawn = np.random.default_rng(seed).lognormal(0.0, 1.0, PATIENTS)
    each = np.maximum(1, np.round(drawn * count / drawn.sum())).astype(np.int64)
    return np.resize(np.repeat(np.arange(PATIENTS), each), count)


def same_patient(
    patients: NDArray[np.int64], batch: int, epochs: int, seed: int, rows: NDArray[np.int64], chunk: int
) -> float:
    """Share of pairs in a batch that are of one patient; `rows` are the raw rows in the order of the tars."""
    pairs = together = 0
    for epoch in range(epochs):
        order = patients[rows[epoch_order(len(rows), seed, epoch, chunk)]]
        batches = np.sort(order[: len(order) // batch * batch].reshape(-1, batch))
        for distance in range(1, batch):
            together += int((batches[:, distance:] == batches[:, :-distance]).sum())
        pairs += len(batches) * batch * (batch - 1) // 2
    return together / pairs


def same_chunk(batch: int, epochs: int, seed: int, rows: NDArray[np.int64]) -> float:
    """Share of batches with two samples of one stretch of `CHUNK` rows of the raw listing."""
    found = count = 0
    for epoch in range(epochs):
        order = rows[epoch_order(len(rows), seed, epoch)] // CHUNK
        batches = np.sort(order[: len(order) // batch * batch].reshape(-1, batch))
        found, count = found + int((np.diff(batches) == 0).any(1).sum()), count + len(batches)
    return found / count


if __name__ == "__main__":
    run(main)
