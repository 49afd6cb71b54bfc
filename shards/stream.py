"""Blocks of the plan → rows of numpy arrays, by Ray Data, at the speed of reading and decoding.

One task reads one block: `pread` per study, decode straight into the block's image array, one output block. No
shuffle, no regrouping, no object per row. With `preserve_order` and blocks of equal rows, `streaming_split` deals block
j to rank j % world whatever the consumers' speed, so the plan alone decides what every rank sees.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray
import ray.data
from ray.data import DataIterator, Dataset
from ray.exceptions import RayTaskError

from shards.decode import decode
from shards.errors import DataError
from shards.index import Index
from shards.order import Block

BLOCK_BYTES = 32 << 20
"""Largest block unless one step alone is larger: a dozen blocks must fit an object store of a few hundred MB."""
BLOCKS_PER_RANK = 4
TASK_CPUS = 0.5
"""Two tasks per core: the executor sees a finished task up to 0.1 s late; with one task the core would idle."""
PREFETCH_BLOCKS = 2

Rows = dict[str, np.ndarray]
OnBad = Literal["skip", "fail"]


def rows_per_block(image_size: int, views: int, rows_per_rank: int) -> int:
    """Rows of a block: at most `BLOCK_BYTES` of pixels, and `BLOCKS_PER_RANK` blocks or more for a rank's share."""
    return max(1, min(BLOCK_BYTES // (views * image_size**2), -(-rows_per_rank // BLOCKS_PER_RANK)))


def stream_blocks(
    root: Path,
    split: str,
    blocks: Iterable[Block],
    image_size: int,
    views: int,
    on_bad: OnBad = "skip",
    index: Index | None = None,
) -> Dataset:
    """Dataset of the blocks' rows in order; see `read_block` for a row's fields. Giving `index` spares reading it."""
    ref = ray.put(index or Index.open(root, split))

    def read(batch: Rows) -> Rows:
        block = Block(int(batch["rank"][0]), int(batch["step"][0]), np.asarray(batch["index"][0]))
        return read_block(ray.get(ref), block, image_size, views, on_bad)

    items = [{"rank": block.rank, "step": block.step, "index": block.index} for block in blocks]
    dataset = ray.data.from_items(items, override_num_blocks=max(1, len(items))).map_batches(
        read, batch_size=None, num_cpus=TASK_CPUS
    )
    dataset.context.execution_options.preserve_order = True
    dataset.context.raise_original_map_exception = True
    dataset.context.enable_progress_bars = False
    return dataset


def read_block(index: Index, block: Block, image_size: int, views: int, on_bad: OnBad = "skip") -> Rows:
    """The n rows of one block.

    images uint8 [n, V, S, S] grey, zero where `view_mask` bool [n, V] is False; index, step int64 [n]; record: n JSON
    strings of `Study`; valid bool [n]: False for a row that fills a step and, under on_bad="skip", for a study that
    cannot be read, whose `bad` then says why (else ""). Under "fail" such a study raises DataError.
    """
    at = block.index.ravel()
    rows: Rows = {
        "images": np.zeros((len(at), views, image_size, image_size), np.uint8),
        "view_mask": np.zeros((len(at), views), bool),
        "valid": at >= 0,
        "index": at,
        "step": np.repeat(np.arange(block.step, block.step + block.steps), block.index.shape[1]),
        "record": np.full(len(at), "", object),
        "bad": np.full(len(at), "", object),
    }
    for row in np.flatnonzero(rows["valid"]).tolist():
        try:
            _read_study(index, int(at[row]), rows, row)
        except DataError as error:
            if on_bad == "fail":
                raise
            rows["images"][row], rows["view_mask"][row], rows["valid"][row] = 0, False, False
            rows["record"][row], rows["bad"][row] = "", f"{index.keys[at[row]].decode()}: {error}"
    return rows


def _read_study(index: Index, study: int, rows: Rows, row: int) -> None:
    films, record = index.read(study)
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
    try:
        whole_blocks: Any = None
        for block in iterator.iter_batches(
            batch_size=whole_blocks, batch_format="numpy", prefetch_batches=PREFETCH_BLOCKS
        ):
            for start in range(0, len(block["valid"]), micro_batch):
                yield {name: column[start : start + micro_batch] for name, column in block.items()}
    except RayTaskError as error:
        if isinstance(error.cause, DataError):
            raise error.cause from None
        raise
