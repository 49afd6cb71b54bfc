"""A stream for every rank beside one dataset that Ray deals to all of them (`Dataset.streaming_split`).

Both give every rank the same blocks. Ranks are processes that read micro-batches and do nothing else; what is compared
is the time from the first call to the last row of the slowest rank, in pairs, in turn, in one run.

    python -m bench.ranks
"""

import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import ray
import typer

from bench.ingest import IMAGE_PX, MICRO_BATCH, SIZE, VIEWS, machine, make_films, start_ray
from jobs.cli import run
from shards.stream.blocks import PREFETCH_BLOCKS, Stream, micro_batches, read_batches, rows_per_block, stream_blocks
from shards.stream.index import Index
from shards.stream.order import plan


@ray.remote(num_cpus=0)
class Rank:
    """One consumer."""

    def ready(self) -> None:
        """Answers when the process is there."""

    def read(self, stream: Any) -> tuple[float, int]:
        """(seconds to the first row, rows) of a stream of its own or of a split that it was dealt."""
        start, first, rows = time.perf_counter(), 0.0, 0
        for batch in read_batches(stream, MICRO_BATCH) if isinstance(stream, Stream) else _dealt(stream):
            first = first or time.perf_counter() - start
            rows += len(batch["valid"])
        return first, rows


def _dealt(iterator: Any) -> Any:
    for block in iterator.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=PREFETCH_BLOCKS):
        yield from micro_batches(block, MICRO_BATCH)


def whole(root: Path, index: Index, world: int, own: bool, epochs: int) -> tuple[float, float]:
    """(studies per second, seconds until the last rank had its first row) of some epochs."""
    rows = len(index) * epochs // (MICRO_BATCH * world) * MICRO_BATCH * world
    size = rows_per_block(IMAGE_PX, VIEWS, rows // world)
    blocks = plan(len(index), 0, 0, rows // (MICRO_BATCH * world), MICRO_BATCH * world, world, size)
    ranks = [Rank.remote() for _ in range(world)]  # type: ignore[attr-defined]
    ray.get([rank.ready.remote() for rank in ranks])
    start, stream = time.perf_counter(), stream_blocks(root, "train", blocks, IMAGE_PX, VIEWS, index=index)
    if own:
        given: list[Any] = [stream.of(rank) for rank in range(world)]
    else:
        given = stream.dataset().streaming_split(world, equal=True)
    read = ray.get([rank.read.remote(part) for rank, part in zip(ranks, given, strict=True)])
    seconds = time.perf_counter() - start
    for rank in ranks:
        ray.kill(rank)
    if (seen := sum(count for _, count in read)) != rows:
        raise RuntimeError(f"{seen} rows came instead of {rows}")
    return rows / seconds, max(first for first, _ in read)


def main(
    shards: Annotated[Path, typer.Option(help="directory in which the films are kept")] = Path("runs/bench-films"),
    studies: Annotated[int, typer.Option(help="studies of two films; a multiple of 8")] = 2000,
    distinct: Annotated[int, typer.Option(help="different drawings among them")] = 64,
    epochs: Annotated[int, typer.Option(help="passes of a round")] = 4,
    rounds: Annotated[int, typer.Option(help="pairs for each number of ranks")] = 3,
    cores: Annotated[int, typer.Option(help="cores for all")] = 2,
) -> None:
    """Measure; the last lines are own to dealt for each number of ranks: median of the ratios, and their range."""
    facts = machine()
    start_ray(cores)
    root = make_films(shards.resolve(), studies, distinct, SIZE)
    index = Index.open(root, "train")
    whole(root, index, 1, True, 1)
    ratios: dict[int, list[float]] = {1: [], 2: [], 4: []}
    for number in range(rounds):
        for world, found in ratios.items():
            pair = {own: whole(root, index, world, own, epochs) for own in ((True, False), (False, True))[number % 2]}
            found.append(pair[True][0] / pair[False][0])
            own, dealt = (f"{speed:,.0f} ({first:.1f} s to the first)" for speed, first in (pair[True], pair[False]))
            print(f"round {number + 1}, {world} ranks: own {own}, dealt {dealt} studies/s")
    ray.shutdown()
    print(facts)
    for world, found in ratios.items():
        print(f"own_to_dealt_{world}={statistics.median(found):.2f} ({min(found):.2f}-{max(found):.2f})")


if __name__ == "__main__":
    run(main)
