"""Blocks of the plan → rows of numpy arrays, by Ray Data, at the speed of reading and decoding.

One task reads one block: `pread` per study, decode straight into the block's image array, one output block. No
shuffle, no regrouping, no object per row. The plan names every rank's blocks, so every rank reads a dataset of its own
and nothing deals blocks between them; Ray shares the cores that are free evenly among the datasets being read.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
import ray.data
from ray.data import Dataset

from shards.errors import ConfigError, DataError, OnBad
from shards.films.augment import OFF, Augment
from shards.films.stored import Fit, decode
from shards.session import in_our_words, quiet
from shards.stream.index import Index
from shards.stream.order import Block
from shards.stream.side import Side
from shards.tars.format import read_manifest
from shards.tars.place import Place

BLOCK_BYTES = 32 << 20
"""Largest block unless one step alone is larger: a dozen blocks must fit an object store of a few hundred MB."""
BLOCKS_PER_RANK = 4
TASK_CPUS = 0.5
"""Two tasks per core: the executor sees a finished task up to 0.1 s late; with one task the core would idle."""
PREFETCH_BLOCKS = 2
RECORD_BYTES = 8 << 10
"""What a row takes, generously, where it has no films: its record and what lies beside it."""

Rows = dict[str, np.ndarray]


def rows_per_block(image_size: int | None, views: int, rows_per_rank: int, film_bytes: int = 0) -> int:
    """Rows of a block: at most `BLOCK_BYTES` of pixels, and `BLOCKS_PER_RANK` blocks or more for a rank's share.

    `film_bytes`: size of one film's features where these are streamed in place of pixels. Where no film is read
    (`image_size` None), a row is taken for `RECORD_BYTES`.
    """
    row_bytes = views * (film_bytes or (image_size or 0) ** 2) or RECORD_BYTES
    return max(1, min(BLOCK_BYTES // row_bytes, -(-rows_per_rank // BLOCKS_PER_RANK)))


def stream_blocks(
    root: str | Place,
    split: str,
    blocks: Iterable[Block],
    image_size: int | None,
    views: int,
    on_bad: OnBad = "skip",
    index: Index | None = None,
    sides: Mapping[str, str | Place] | None = None,
    augment: Augment = OFF,
    seed: int = 0,
    fit: Fit = "squash",
) -> "Stream":
    """The blocks' rows in order; see `read_block` for a row's fields. Giving `index` spares reading it.

    `sides`: kind → place of a side of these shards. ConfigError where one stands for films that are to be augmented.
    """
    index = index or Index.open(root, split, on_bad)
    parent = read_manifest(root) if sides else None
    opened = {kind: Side.open(at, index, parent, kind, on_bad) for kind, at in (sides or {}).items() if parent}
    if augment != OFF and (stored := [kind for kind, side in opened.items() if side.entry.per_film]):
        raise ConfigError(f"{stored[0]} were made of films as they are, so films cannot be augmented: drop one of both")
    ref = ray.put((index, opened))

    def read(batch: Rows) -> Rows:
        arrays = {name: np.asarray(batch[name][0]) for name in ("index", "position", "films") if name in batch}
        block = Block(int(batch["rank"][0]), int(batch["step"][0]), **arrays)
        pointers, beside = ray.get(ref)
        return read_block(pointers, block, image_size, views, on_bad, beside, augment, seed, fit)

    return Stream(tuple(blocks), read)


@dataclass(frozen=True, eq=False)
class Stream:
    """Blocks to be read, by whatever process asks for them, as often as it does."""

    blocks: tuple[Block, ...]
    read: Callable[[Rows], Rows]
    """A block as a batch of one → its rows."""

    def of(self, rank: int) -> "Stream":
        """The blocks of one rank."""
        return replace(self, blocks=tuple(block for block in self.blocks if block.rank == rank))

    def dataset(self) -> Dataset:
        """Their rows in the order of the blocks, read and decoded in Ray's tasks."""
        items = [
            {"rank": block.rank, "step": block.step, "index": block.index, "position": block.position}
            | ({} if block.films is None else {"films": block.films})
            for block in self.blocks
        ]
        dataset = ray.data.from_items(items, override_num_blocks=max(1, len(items))).map_batches(
            self.read, batch_size=None, num_cpus=TASK_CPUS
        )
        dataset.context.execution_options.preserve_order = True
        return quiet(dataset)


def read_block(
    index: Index,
    block: Block,
    image_size: int | None,
    views: int,
    on_bad: OnBad = "skip",
    sides: Mapping[str, Side] | None = None,
    augment: Augment = OFF,
    seed: int = 0,
    fit: Fit = "squash",
) -> Rows:
    """The n rows of one block.

    images uint8 [n, V, S, S] grey, made square as `fit` says (`shards.films.stored.decode`; not there where
    `image_size` is None: no film is read), zero where `view_mask` bool [n, V] is False; index, step int64 [n]; record:
    n JSON strings of `Study`; valid bool [n]: False for a row that fills a step and, under on_bad="skip", for a study
    that cannot be read, whose `bad` then says why (else ""). Under "fail" such a study raises DataError.

    A side adds its column (`Kind.column`): n bytes, b"" for a study without. One that is stored per film stands in
    place of the images, which are not read: features uint16 [n, V, P, D], the bit patterns of bf16.

    `augment` changes images by what `seed`, the row's position in the run and the view decide. Where `block.films`
    names other studies, images (or features), `view_mask` and sides that are made of films are theirs.
    """
    sides, at, position = sides or {}, block.index.ravel(), block.position.ravel().tolist()
    films = next((side for side in sides.values() if side.entry.per_film), None)
    pixels = "images" if films is None else films.entry.column
    shows, size = films is not None or image_size is not None, image_size or 0
    shape, dtype = ((size, size), np.uint8) if films is None else (films.extent[1:], np.uint16)
    rows: Rows = {
        **({pixels: np.zeros((len(at), views, *shape), dtype)} if shows else {}),
        "view_mask": np.zeros((len(at), views), bool),
        "valid": at >= 0,
        "index": at,
        "step": np.repeat(np.arange(block.step, block.step + block.steps), block.index.shape[1]),
        "record": np.full(len(at), "", object),
        "bad": np.full(len(at), "", object),
    }
    rows |= {side.entry.column: np.full(len(at), b"", object) for side in sides.values() if side is not films}
    wanted = np.flatnonzero(rows["valid"]).tolist()
    studies = rows["index"][wanted].tolist()
    givers = studies if block.films is None else block.films.ravel()[wanted].tolist()
    stored = index.fetch(givers) if films is None and shows else index.fetch_records(studies)
    beside = {kind: side.fetch(givers if side.entry.of_films else studies) for kind, side in sides.items()}
    shown: Any
    for row, study, giver in zip(wanted, studies, givers, strict=True):
        try:
            if not shows:
                record, shown = index.read_record(study, stored.get(study)), []
            elif films is None:
                encoded, record = index.read(giver, stored.get(giver))
                record = record if giver == study else index.read_record(study)
                name = index.tars[int(index.tar[giver])]
                side_px = max(size, augment.resize_px or 0)
                shown = [decode(film, side_px, f"{name}, view {v}", fit) for v, film in enumerate(encoded[:views])]
                if augment != OFF:
                    shown = [augment.apply(film, size, seed, position[row], v) for v, film in enumerate(shown)]
            else:
                record = index.read_record(study, stored.get(study))
                shown = films.read_films(giver, index.films(giver), beside[films.kind].get(giver))[:views]
            rows["record"][row] = index.record_of(study, record)
            for view, film in enumerate(shown):
                rows[pixels][row, view], rows["view_mask"][row, view] = film, True
            for kind, side in sides.items():
                if side is not films:
                    whose = giver if side.entry.of_films else study
                    rows[side.entry.column][row] = bytes(side.read(whose, beside[kind].get(whose)) or b"")
        except DataError as error:
            if on_bad == "fail":
                raise
            key = index.keys[study].decode()
            if shows:
                rows[pixels][row] = 0
            rows["view_mask"][row], rows["valid"][row], rows["record"][row] = False, False, ""
            rows["bad"][row] = f"{key}: {str(error).removeprefix(f'study {key}: ')}"
    return rows


def read_batches(stream: Stream, micro_batch: int) -> Iterator[Rows]:
    """A rank's micro-batches in order: read-only views into whole blocks, nothing is copied.

    A micro-batch never straddles two blocks; it is smaller than asked only where it does not divide a block's rows.
    """
    with in_our_words():
        whole_blocks: Any = None
        for block in stream.dataset().iter_batches(
            batch_size=whole_blocks, batch_format="numpy", prefetch_batches=PREFETCH_BLOCKS
        ):
            yield from micro_batches(block, micro_batch)


def micro_batches(block: Rows, size: int) -> Iterator[Rows]:
    """Views of `size` rows of a block at a time, the last of what is left."""
    for start in range(0, len(block["valid"]), size):
        yield {name: column[start : start + size] for name, column in block.items()}
