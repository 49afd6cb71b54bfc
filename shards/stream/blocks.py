"""Blocks of the plan → rows of numpy arrays, by Ray Data, at the speed of reading and decoding.

One task reads one block: `pread` per study, decode straight into the block's image array, one output block. No
shuffle, no regrouping, no object per row. With `preserve_order` and blocks of equal rows, `streaming_split` deals block
j to rank j % world whatever the consumers' speed, so the plan alone decides what every rank sees.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import ray
import ray.data
from ray.data import DataIterator, Dataset

from shards.errors import DataError, OnBad
from shards.films.stored import decode
from shards.graphs.subgraph import read_subgraph
from shards.session import in_our_words, quiet
from shards.stream.index import Index
from shards.stream.order import Block
from shards.stream.side import Side, read_features
from shards.tars.manifest import read_manifest
from shards.tars.place import Place
from shards.tars.side_manifest import Kind

BLOCK_BYTES = 32 << 20
"""Largest block unless one step alone is larger: a dozen blocks must fit an object store of a few hundred MB."""
BLOCKS_PER_RANK = 4
TASK_CPUS = 0.5
"""Two tasks per core: the executor sees a finished task up to 0.1 s late; with one task the core would idle."""
PREFETCH_BLOCKS = 2

Rows = dict[str, np.ndarray]


def rows_per_block(image_size: int, views: int, rows_per_rank: int, film_bytes: int = 0) -> int:
    """Rows of a block: at most `BLOCK_BYTES` of pixels, and `BLOCKS_PER_RANK` blocks or more for a rank's share.

    `film_bytes`: size of one film's features where these are streamed in place of pixels.
    """
    film_bytes = film_bytes or image_size**2
    return max(1, min(BLOCK_BYTES // (views * film_bytes), -(-rows_per_rank // BLOCKS_PER_RANK)))


def stream_blocks(
    root: str | Place,
    split: str,
    blocks: Iterable[Block],
    image_size: int,
    views: int,
    on_bad: OnBad = "skip",
    index: Index | None = None,
    subgraphs: str | Place | None = None,
    features: str | Place | None = None,
) -> Dataset:
    """Dataset of the blocks' rows in order; see `read_block` for a row's fields. Giving `index` spares reading it.

    `subgraphs` and `features` are the places of sides of these shards.
    """
    index = index or Index.open(root, split, on_bad)
    places: dict[Kind, str | Place | None] = {"subgraphs": subgraphs, "features": features}
    parent = read_manifest(root) if subgraphs or features else None
    sides = {kind: Side.open(at, index, parent, kind, on_bad) for kind, at in places.items() if at and parent}
    ref = ray.put((index, sides))

    def read(batch: Rows) -> Rows:
        block = Block(int(batch["rank"][0]), int(batch["step"][0]), np.asarray(batch["index"][0]))
        opened, beside = ray.get(ref)
        return read_block(opened, block, image_size, views, on_bad, **beside)

    items = [{"rank": block.rank, "step": block.step, "index": block.index} for block in blocks]
    dataset = ray.data.from_items(items, override_num_blocks=max(1, len(items))).map_batches(
        read, batch_size=None, num_cpus=TASK_CPUS
    )
    dataset.context.execution_options.preserve_order = True
    return quiet(dataset)


def read_block(
    index: Index,
    block: Block,
    image_size: int,
    views: int,
    on_bad: OnBad = "skip",
    subgraphs: Side | None = None,
    features: Side | None = None,
) -> Rows:
    """The n rows of one block.

    images uint8 [n, V, S, S] grey, zero where `view_mask` bool [n, V] is False; index, step int64 [n]; record: n JSON
    strings of `Study`; valid bool [n]: False for a row that fills a step and, under on_bad="skip", for a study that
    cannot be read, whose `bad` then says why (else ""). Under "fail" such a study raises DataError.

    With `features` the films are not read: features uint16 [n, V, P, D], the bit patterns of bf16, stand in place of
    images. With `subgraphs`: subgraph, n bytes for `shards.graphs.subgraph.unpack`, b"" for a study without one.
    """
    rows = _empty_rows(block, image_size, views, subgraphs, features)
    wanted = np.flatnonzero(rows["valid"]).tolist()
    studies = rows["index"][wanted].tolist()
    fetched = index.fetch(studies) if features is None else index.fetch_records(studies)
    stored = features.fetch(studies) if features else {}
    graphs = subgraphs.fetch(studies) if subgraphs else {}
    for row, study in zip(wanted, studies, strict=True):
        try:
            if features:
                _read_features(index, features, study, rows, row, fetched.get(study), stored.get(study))
            else:
                _read_study(index, study, rows, row, fetched.get(study))
            if subgraphs:
                rows["subgraph"][row] = read_subgraph(subgraphs, study, graphs.get(study))
        except DataError as error:
            if on_bad == "fail":
                raise
            _mark_bad(rows, row, index.keys[study].decode(), error)
    return rows


def _empty_rows(block: Block, image_size: int, views: int, subgraphs: Side | None, features: Side | None) -> Rows:
    at = block.index.ravel()
    rows: Rows = {
        "images" if features is None else "features": _empty_films(len(at), views, image_size, features),
        "view_mask": np.zeros((len(at), views), bool),
        "valid": at >= 0,
        "index": at,
        "step": np.repeat(np.arange(block.step, block.step + block.steps), block.index.shape[1]),
        "record": np.full(len(at), "", object),
        "bad": np.full(len(at), "", object),
    }
    return rows if subgraphs is None else rows | {"subgraph": np.full(len(at), b"", object)}


def _mark_bad(rows: Rows, row: int, key: str, error: DataError) -> None:
    for name in rows.keys() & {"images", "features", "view_mask", "valid"}:
        rows[name][row] = 0
    rows["record"][row], rows["bad"][row] = "", f"{key}: {str(error).removeprefix(f'study {key}: ')}"


def _empty_films(n: int, views: int, image_size: int, features: Side | None) -> np.ndarray:
    if features is None:
        return np.zeros((n, views, image_size, image_size), np.uint8)
    return np.zeros((n, views, *features.extent[1:]), np.uint16)


def _read_features(index: Index, side: Side, study: int, rows: Rows, row: int, record, stored) -> None:
    """As `_read_study`, from the record and the side; `record` and `stored` are what was fetched of them."""
    rows["record"][row] = index.record_of(study, index.read_record(study, record))
    found = read_features(side, study, int((index.films[study, :, 0] >= 0).sum()), stored)
    views = min(len(found), rows["features"].shape[1])
    rows["features"][row, :views], rows["view_mask"][row, :views] = found[:views], True


def _read_study(index: Index, study: int, rows: Rows, row: int, span: memoryview | DataError | None) -> None:
    films, record = index.read(study, span)
    views, size = rows["images"].shape[1:3]
    rows["record"][row] = index.record_of(study, record)
    for view, film in enumerate(films[:views]):
        rows["images"][row, view] = decode(film, size, f"{index.tars[index.tar[study]]}, view {view}")
        rows["view_mask"][row, view] = True


def split(dataset: Dataset, world: int) -> list[DataIterator]:
    """One iterator per rank: rank r gets blocks r, r + world, ... All ranks must read at the same time."""
    return dataset.streaming_split(world, equal=True)


def read_batches(iterator: DataIterator, micro_batch: int) -> Iterator[Rows]:
    """A rank's micro-batches in order: read-only views into whole blocks, nothing is copied.

    A micro-batch never straddles two blocks; it is smaller than asked only where it does not divide a block's rows.
    """
    with in_our_words():
        whole_blocks: Any = None
        for block in iterator.iter_batches(
            batch_size=whole_blocks, batch_format="numpy", prefetch_batches=PREFETCH_BLOCKS
        ):
            for start in range(0, len(block["valid"]), micro_batch):
                yield {name: column[start : start + micro_batch] for name, column in block.items()}
