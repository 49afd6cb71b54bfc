"""The vision-token bank as files: written, read, drawn.

Shapes: M tokens, W width.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from safetensors.numpy import load, save

from r2kg.graph.artefact import read_hashed, reading
from shards.errors import DataError
from shards.study import key_of
from shards.tars.format import Manifest, SealedManifest, Sha256, read_sealed, write_sealed
from shards.tars.place import Place, make_directory, place, sha256_of, write_atomic

FILE, ARRAYS, CELLS = "bank.json", "bank.safetensors", "cells.parquet"
HOW = "make it with `r2kg graph bank SHARDS --classifier RUN`"
SCHEMA = pa.schema(
    [("study", pa.string()), ("label", pa.int32()), ("row", pa.int32()), ("column", pa.int32()), ("heat", pa.float32())]
)
"""Provenance, a row a token: key of the study whose first film it is of; finding; place in the grid; mean heat."""
MAX_BYTES = 1 << 30


class BankManifest(SealedManifest):
    """bank.json: what the bank was made from, and the hashes of its files."""

    parent: Sha256
    """Fingerprint of the shards whose training films it is of."""
    labels: tuple[str, ...]
    """The classifier's findings."""
    description: dict[str, Any]
    """What decides the content: classifier and settings."""
    counts: dict[str, int]
    """Finding → tokens."""
    files: dict[str, Sha256]
    warnings: dict[str, int] = Field(default_factory=dict)
    """What was left out → how often."""


class Bank(NamedTuple):
    """A bank in memory."""

    manifest: BankManifest
    tokens: NDArray[np.float32]
    """[M, W], finding after finding; of each in the order in which they were drawn, so that fewer are the first."""
    label: NDArray[np.int64]
    """[M], places in `manifest.labels`."""
    crops: NDArray[np.uint8]
    """[M, cell, cell], what they are of."""
    cells: pa.Table
    """`SCHEMA`."""

    def first(self, most: int) -> NDArray[np.int64]:
        """Rows of the tokens that a bank with at most so many of each finding would have."""
        begins = np.searchsorted(self.label, self.label)
        return np.flatnonzero(np.arange(len(self.label)) - begins < most)


def save_bank(where: Place, manifest: BankManifest, arrays: dict[str, NDArray[Any]], cells: pa.Table) -> Bank:
    """Write the files, then bank.json, which seals them; returns what was written."""
    make_directory(where)
    sink = io.BytesIO()
    pq.write_table(cells, sink, compression="zstd")
    contents = {ARRAYS: save(arrays), CELLS: sink.getvalue()}
    for name, content in contents.items():
        write_atomic(where / name, content)
    files = {name: sha256_of(where / name) for name in contents}
    return load_bank(where, write_sealed(where / FILE, manifest.model_copy(update={"files": files})))


def load_bank(where: str | Place, manifest: BankManifest | None = None) -> Bank:
    """The bank at `where`, each file compared with its hash.

    Raises:
        DataError: something is missing, changed, or contradicts itself.
    """
    where = place(where)
    told = manifest or read_sealed(where / FILE, BankManifest, f"no bank at {where}", HOW)
    with reading(f"the bank at {where}", HOW):
        contents = [read_hashed(where / name, told.files.get(name), FILE, HOW, MAX_BYTES) for name in (ARRAYS, CELLS)]
        arrays, cells = load(contents[0]), pq.read_table(io.BytesIO(contents[1])).cast(SCHEMA)
        bank = Bank(told, arrays["tokens"], arrays["label"], arrays["crops"], cells)
        sizes = {len(bank.tokens), len(bank.label), len(bank.crops), cells.num_rows, sum(told.counts.values())}
        if (
            len(sizes) != 1
            or bank.tokens.ndim != 2
            or (np.diff(bank.label) < 0).any()
            or not np.isfinite(bank.tokens).all()
        ):
            raise DataError(f"the bank at {where} contradicts itself: {HOW}")
    return bank


def load_training_bank(where: str | Place, manifest: Manifest) -> Bank:
    """The bank at `where`; DataError unless it is of the training films of these shards."""
    bank = load_bank(where)
    if bank.manifest.parent != manifest.fingerprint:
        raise DataError(
            f"the bank at {where} is of shards {bank.manifest.parent[:12]}, these have {manifest.fingerprint[:12]}: "
            f"their films are not its training films. {HOW}, or name another"
        )
    return bank


def contact_sheets(bank: Bank, folder: Path, scale: int = 3, across: int = 25) -> Iterator[Path]:
    """Draw a picture of every finding's cells, those with the highest heat first; gives their files."""
    folder.mkdir(parents=True, exist_ok=True)
    heat = bank.cells["heat"].to_numpy()
    for number, name in enumerate(bank.manifest.labels):
        those = np.flatnonzero(bank.label == number)
        if not len(those):
            continue
        those = those[np.argsort(-heat[those], kind="stable")]
        side, rows = bank.crops.shape[1] + 1, -(-len(those) // across)
        sheet = np.full((rows * side, min(across, len(those)) * side), 255, np.uint8)
        for at, crop in enumerate(bank.crops[those]):
            row, column = divmod(at, across)
            sheet[row * side : row * side + side - 1, column * side : column * side + side - 1] = crop
        path = folder / f"{key_of(name)}.png"
        Image.fromarray(sheet.repeat(scale, 0).repeat(scale, 1)).save(path)
        yield path
