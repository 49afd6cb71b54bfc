"""The order in which studies are met: pure arithmetic on indices, the same for every number of workers.

A run is one infinite sequence of study indices. Epoch e fills positions [e*n, (e+1)*n) with a permutation of the
split's n studies; global step s is positions [s*G, (s+1)*G) for global batch G. So every step is full, a step may
straddle two epochs, and a run's cursor is the single integer `samples_seen`. World size, micro-batch and the size of a
block only decide who reads which slice of a step.

The permutations come from the raw words of Philox, whose stream NumPy keeps fixed between versions; the stream of
`Generator.permutation` is not promised.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.errors import ConfigError

CHUNK = 32
"""Contiguous studies that stay together when chunks are shuffled; 1 is a full shuffle."""
WINDOW = 64
"""Chunks among which studies are then shuffled: 64 x 32 = 2,048 studies."""

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Block:
    """What one task reads: the slices of `steps` consecutive global steps that belong to one rank."""

    rank: int
    step: int
    """First global step of the block."""
    index: Indices
    """[K, rows per step and rank], in consumption order; -1 is a row that only fills the step."""
    position: Indices
    """[K, rows per step and rank] of each row in the infinite sequence: what is drawn for a row is drawn from it."""
    films: Indices | None = None
    """As `index`: whose films a row shows, all else being its own study's. None: its own."""

    @property
    def steps(self) -> int:
        """K, the number of global steps."""
        return len(self.index)


def epoch_order(n: int, seed: int, epoch: int, chunk: int = CHUNK, window: int = WINDOW) -> Indices:
    """The permutation of 0..n-1 of one epoch.

    Chunks of `chunk` contiguous studies are shuffled, then the studies inside every window of `window` shuffled chunks,
    so that reads stay near-sequential on disks and object stores. chunk=1 shuffles all studies at once.
    """
    if n < 1 or seed < 0 or epoch < 0 or chunk < 1 or window < 1:
        raise ConfigError(
            f"order needs n, chunk, window >= 1 and seed, epoch >= 0; got {n=} {chunk=} {window=} {seed=} {epoch=}"
        )
    words = np.random.Philox(np.random.SeedSequence([seed, epoch]))
    if chunk == 1:
        return np.argsort(words.random_raw(n), kind="stable").astype(np.int64)
    chunks = np.argsort(words.random_raw(-(-n // chunk)), kind="stable")
    studies = (chunks[:, None] * chunk + np.arange(chunk)).ravel()
    studies = studies[studies < n]
    return studies[np.lexsort((words.random_raw(n), np.arange(n) // (chunk * window)))].astype(np.int64)


def step_indices(n: int, seed: int, start: int, count: int, chunk: int = CHUNK, window: int = WINDOW) -> Indices:
    """Positions [start, start + count) of the infinite sequence over n studies: int64 [count]."""
    if count < 1:
        return np.empty(0, np.int64)
    first, last = start // n, (start + count - 1) // n
    epochs = [epoch_order(n, seed, epoch, chunk, window) for epoch in range(first, last + 1)]
    return np.concatenate(epochs)[start - first * n : start - first * n + count]


def rank_rows(global_batch: int, world: int) -> int:
    """Rows of one global step that one rank reads; ConfigError naming what would work when it is not a whole number."""
    if global_batch < 1 or world < 1:
        raise ConfigError(f"global batch {global_batch} over {world} workers: both must be at least 1")
    if global_batch % world:
        below = global_batch // world * world
        sizes = [size for size in (below, below + world) if size]
        worlds = [count for count in range(1, global_batch + 1) if global_batch % count == 0]
        raise ConfigError(
            f"global batch {global_batch} cannot be split over {world} workers: use a global batch that is a multiple "
            f"of {world}, such as {_or(sizes)}, or {_or(worlds)} workers"
        )
    return global_batch // world


def _or(values: list[int]) -> str:
    shown = [str(value) for value in (values if len(values) <= 9 else values[:8] + values[-1:])]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} or {shown[-1]}"


def plan(
    n: int,
    seed: int,
    samples_seen: int,
    steps: int,
    global_batch: int,
    world: int,
    rows_per_block: int,
    chunk: int = CHUNK,
    window: int = WINDOW,
) -> list[Block]:
    """Blocks of the next `steps` global steps of a run that has seen `samples_seen` studies.

    Block j belongs to rank j % world; a rank's blocks are consecutive steps. A block holds as many whole steps as fit
    into `rows_per_block` rows, at least one; the last round of blocks may hold fewer, the same for all ranks.
    """
    rank_rows(global_batch, world)
    if samples_seen < 0 or samples_seen % global_batch:
        raise ConfigError(
            f"a run that has seen {samples_seen} studies cannot go on with global batch {global_batch}: the cursor "
            "must be a multiple of it. Continue with the global batch the run began with"
        )
    index = step_indices(n, seed, samples_seen, steps * global_batch, chunk, window)
    return _deal(index, samples_seen // global_batch, global_batch, world, rows_per_block)


def sequential_blocks(n: int, world: int, micro_batch: int, rows_per_block: int = 256) -> list[Block]:
    """Blocks that visit studies 0..n-1 in order, each exactly once, for validation and tests.

    One step is `micro_batch` rows on every rank. The last step is filled with index -1, which the stream turns into
    rows with valid=False, so that all ranks get the same number of rows.
    """
    if n < 1 or world < 1 or micro_batch < 1:
        raise ConfigError(f"{n} studies over {world} workers with micro-batch {micro_batch}: all must be at least 1")
    rows = world * micro_batch
    index = np.full(-(-n // rows) * rows, -1, np.int64)
    index[:n] = np.arange(n)
    return _deal(index, 0, rows, world, rows_per_block)


def _deal(index: Indices, first_step: int, global_batch: int, world: int, rows_per_block: int) -> list[Block]:
    rows = rank_rows(global_batch, world)
    by_step = index.reshape(-1, world, rows)
    position = (first_step * global_batch + np.arange(len(index), dtype=np.int64)).reshape(by_step.shape)
    k = max(1, rows_per_block // rows)
    return [
        Block(rank, first_step + at, *(np.ascontiguousarray(of[at : at + k, rank]) for of in (by_step, position)))
        for at in range(0, len(by_step), k)
        for rank in range(world)
    ]
