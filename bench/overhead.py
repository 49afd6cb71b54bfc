"""What our training loop costs over a bare DeepSpeed loop: time of our steps ÷ time of its steps, same batches.

Both train copies of the tiny recipe's model in one process, one micro-batch a step, so the fixed costs of a step weigh
as much as they ever do. They take blocks of steps in turn, and only ratios within a round are compared: machines are
shared. Ours is `Worker.fit` itself with rows held in memory: collate, `Engine.step`, its checks and its log.
Checkpoints and validation are occasional and left out.

    python -m bench.overhead
"""

import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import deepspeed
import ray
import torch
import torch.distributed as dist
import typer
from deepspeed.accelerator import get_accelerator
from ray.data import DataContext, ExecutionResources
from rich.console import Console
from rich.table import Table
from torch import nn

from bench.ingest import machine, start_ray
from jobs.cli import run as run_job
from r2kg.config.run import Run
from r2kg.modules.config import TinyLm
from r2kg.modules.tiny_lm import write_tiny_lm
from r2kg.recipes import find_recipe
from r2kg.systems.contract import build_model
from r2kg.tracking import Tracker
from r2kg.training.engine import Engine, deepspeed_config
from r2kg.training.loop import UnreadStudies, Worker
from r2kg.training.plan import Plan
from shards.sources.phantom.source import Phantom
from shards.stream.blocks import Rows, read_batches, read_block, stream_blocks
from shards.stream.index import Index, read_targets
from shards.stream.order import sequential_blocks
from shards.tars.shards import write_shards

MICRO_BATCH = 8
STREAM_BLOCK_STEPS = 5
STREAM_AHEAD_BYTES = 8 << 20
"""What the stream may hold: so little that it reads on only while our loop takes rows, as in a long run."""
BARE, OURS, STREAMED = "bare DeepSpeed loop", "our loop, rows in memory", "our loop, Ray stream"


class MemoryWorker(Worker):
    """The loop of `Worker` outside a Ray Train group: rows come from `feed`; nothing is saved."""

    def __init__(self, run: Run, plan: Plan, model: nn.Module, engine: Engine):
        """Rank 0 of 1, with the tracker and the list of unread studies that a real worker has."""
        self.run, self.plan, self.model, self.engine, self.frozen = run, plan, model, engine, {}
        self.rank, self.world = 0, 1
        self.tracker: Tracker | None = Tracker(run)
        self.unread = UnreadStudies(run.directory, self.rank)
        self.validation_loss = self.probe = None
        self.validated_at = self.saved_at = -1
        self.lowest_loss, self.since_lowest = float("inf"), 0
        self.skipped, self.in_a_row = 0, 0
        self.feed: Iterator[Rows] = iter(())

    def save(self, step: int) -> None:
        """Leave checkpoints out."""

    def finish(self, step: int, metrics: dict) -> dict:
        """Keep the tracker open for the next block of steps."""
        return metrics

    def _steps(self, first: int, stream: Iterator[Rows]) -> Iterator[tuple[int, list[Rows]]]:
        for step, rows in enumerate(stream, first):
            self.unread.add(rows["bad"])
            yield step, [rows]


def make_run(root: Path, shards: Path, studies: int) -> Run:
    """The tiny recipe for one worker and one micro-batch a step, its language model trained for one short epoch."""
    changes = {
        "name": "overhead",
        "root": str(root),
        "train.workers": 1,
        "train.global_batch": MICRO_BATCH,
        "train.micro_batch": MICRO_BATCH,
        "train.gpus": torch.cuda.is_available(),
        "data.shards": str(shards),
    }
    run = find_recipe("r2gengpt.tiny").change(changes)
    source = Phantom(studies=studies, size=run.model.vision.image_px, val_fraction=0, test_fraction=0)
    write_shards(source, shards, size=run.model.vision.image_px, studies_per_shard=64)
    lm = write_tiny_lm(read_targets(shards, "train"), root / "lm", TinyLm(epochs=1), run.train.seed, run.model.prompt)
    run.directory.mkdir(parents=True)
    return run.change({"model.llm.source": str(lm)})


def start_group() -> None:
    """A process group of this process alone, on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": f"{port}",
    }
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def new_model(run: Run) -> nn.Module:
    """The same weights every time."""
    torch.manual_seed(run.train.seed)
    return build_model(run.model)


def bare_loop(run: Run, rows: list[Rows]) -> Callable[[], None]:
    """A block of steps as DeepSpeed's documentation writes them, on batches that are collated already."""
    model = new_model(run)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=run.optim.lr, weight_decay=run.optim.weight_decay)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=deepspeed_config(run), dist_init_required=False
    )
    batches = [model.collate(micro) for micro in rows]

    def block() -> None:
        for batch in batches:
            (term,) = engine({name: value.to(engine.device) for name, value in batch.items()}).values()
            engine.backward(term.sum / term.count)
            engine.step()

    return block


def new_worker(run: Run, steps: int, studies: int) -> MemoryWorker:
    """Our loop over a copy of the model, for at most `steps` steps."""
    per_epoch = studies / MICRO_BATCH
    model = new_model(run)
    plan = Plan(
        studies,
        0,
        steps,
        per_epoch,
        shards="",
        licence="synthetic",
        trained={},
        parameters=0,
        artefacts={},
        checkpoint_bytes=0,
    )
    return MemoryWorker(run, plan, model, Engine(model, run, steps, per_epoch))


def our_block(worker: MemoryWorker, feed: Iterator[Rows]) -> None:
    """The steps of one block through `Worker.fit`."""
    worker.feed = feed
    worker.fit(worker.engine.step_number, worker.feed)


def rows_in_memory(run: Run, index: Index) -> list[Rows]:
    """One micro-batch per step, as the stream would give them."""
    image_px, views = run.model.vision.image_px, run.data.views
    blocks = sequential_blocks(len(index), 1, MICRO_BATCH, rows_per_block=MICRO_BATCH)
    return [read_block(index, block, image_px, views) for block in blocks]


def streamed(run: Run, index: Index, passes: int) -> Iterator[Rows]:
    """The same micro-batches from one Ray stream, `passes` times over."""
    blocks = sequential_blocks(len(index), 1, MICRO_BATCH, STREAM_BLOCK_STEPS * MICRO_BATCH) * passes
    image_px, views = run.model.vision.image_px, run.data.views
    limits = ExecutionResources(object_store_memory=STREAM_AHEAD_BYTES)
    DataContext.get_current().execution_options.resource_limits = limits
    stream = stream_blocks(Path(run.data.shards), "train", blocks, image_px, views, index=index)
    return read_batches(stream, MICRO_BATCH)


def wait_for_tracking(tracker: Tracker, patience_s: float = 60.0) -> None:
    """Let MLflow make its database, which a long run does once, before the next round is timed."""
    until = time.monotonic() + patience_s
    while tracker.unsent() and time.monotonic() < until:
        time.sleep(0.2)


def seconds(block: Callable[[], None]) -> float:
    """Wall-clock time of a block of steps, to the end of what it left on the device."""
    start = time.perf_counter()
    block()
    get_accelerator().synchronize()
    return time.perf_counter() - start


def measure(run: Run, index: Index, rounds: int, film_stream: bool) -> list[dict[str, float]]:
    """Seconds per block of every contender and round; the first contender changes from round to round."""
    rows = rows_in_memory(run, index)
    bare, worker = bare_loop(run, rows), new_worker(run, 3 * (rounds + 1) * len(rows), len(index))

    contenders = {BARE: lambda: seconds(bare), OURS: lambda: seconds(lambda: our_block(worker, iter(rows)))}
    if film_stream:
        feed = streamed(run, index, rounds + 1)
        contenders[STREAMED] = lambda: seconds(lambda: our_block(worker, islice(feed, len(rows))))
    found = []
    for number in range(rounds + 1):
        order = list(contenders)[:: 1 if number % 2 else -1]
        found.append({name: contenders[name]() for name in order})
        wait_for_tracking(worker.tracker)
    worker.tracker.close(patience=20.0)
    return found[1:]  # in the first, optimisers make their moments


def report(found: list[dict[str, float]], steps: int) -> None:
    """A table of milliseconds per step, then the ratios; the one to the bare loop is the last line."""
    table = Table("ms/step", "median", "min–max", "ratio to bare: median", "min–max")
    ratios = {name: [times[name] / times[BARE] for times in found] for name in found[0]}
    for name in sorted(ratios, key=[BARE, OURS, STREAMED].index):
        ms = [1e3 * times[name] / steps for times in found]
        cells = f"{statistics.median(ms):.1f}", f"{min(ms):.1f}–{max(ms):.1f}"
        spread = f"{min(ratios[name]):.2f}–{max(ratios[name]):.2f}"
        table.add_row(name, *cells, f"{statistics.median(ratios[name]):.3f}", spread)
    Console(width=110).print(table)
    if STREAMED in ratios:
        print(f"ratio_of_stream_to_bare={statistics.median(ratios[STREAMED]):.2f}")
    print(f"ratio_to_bare={statistics.median(ratios[OURS]):.2f}")


def main(
    rounds: Annotated[int, typer.Option(help="rounds of all loops")] = 11,
    steps: Annotated[int, typer.Option(help="steps of one loop in a round")] = 20,
    cores: Annotated[int, typer.Option(help="cores for all of it")] = 2,
    film_stream: Annotated[bool, typer.Option(help="also feed our loop by the Ray stream")] = False,
) -> None:
    """Measure; the last line is the median over the rounds of our time ÷ the bare loop's."""
    facts = machine()
    start_ray(cores)
    torch.set_num_threads(1)
    with TemporaryDirectory(prefix="r2kg-overhead-") as folder:
        root = Path(folder)
        run = make_run(root, root / "shards", steps * MICRO_BATCH)
        if not film_stream:
            ray.shutdown()
        start_group()
        found = measure(run, Index.open(root / "shards", "train"), rounds, film_stream)
    ray.shutdown()
    dist.destroy_process_group()
    print(
        f"{facts}, deepspeed {deepspeed.__version__}; {steps} steps of {MICRO_BATCH} studies a block, one torch thread"
    )
    report(found, steps)


if __name__ == "__main__":
    run_job(main)
