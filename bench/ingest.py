"""Studies per second of our stream beside WebDataset's loader, Ray Data's own reader and the limit of the machine.

All contenders read the same tars on the same cores in one run, in turn, and only ratios within a round are compared:
machines are shared, and what slows one contender of a round slows the others too. "Steady" is measured between 10 % and
90 % of a contender's rows, "whole" from the first call to the last row.

    python -m bench.ingest
"""

import functools
import logging
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
import ray
import ray.data
import typer
import webdataset
from PIL import Image
from rich.console import Console
from rich.table import Table

from jobs.cli import run
from shards.films.stored import decode
from shards.sources import Item, Listing, Source
from shards.sources.phantom.source import Phantom
from shards.stream.blocks import read_batches, rows_per_block, stream_blocks
from shards.stream.index import Index
from shards.stream.order import plan
from shards.study import Study, key_of
from shards.tars.format import SHARDS_FILE, SIZE, read_manifest
from shards.tars.shards import write_shards

IMAGE_PX, VIEWS, MICRO_BATCH, LARGER_PX = 224, 2, 8, 512
SHARDS = 16
OURS, WEBLOADER, RAY_DEFAULT, TIGHT = "ours", "webdataset.WebLoader", "ray.data.read_webdataset", "tight loop"
LARGER = f"ours, films of {LARGER_PX} px"
SHIFT_PX, SHORTEST_S = 8, 3.0


class Speed(NamedTuple):
    """Studies per second."""

    steady: float
    whole: float


_newest: dict[tuple[int, int, int], tuple[Study, list[np.ndarray]]] = {}
"""The drawing read last in this process. No lru_cache: Ray cannot carry one out of `python -m bench.ingest`."""


class RepeatedPhantom(Source):
    """`distinct` drawn studies, each repeated with small shifts and noise: many realistic films in little time."""

    name: ClassVar[str] = "repeated-phantom"
    licence: ClassVar[str] = "synthetic"
    cleaning: ClassVar[str] = "r2gen-2020-iu"

    studies: int
    """Copies in all."""
    distinct: int
    """Drawings among them."""
    size: int = SIZE
    """Side of the square film, pixels."""

    def listing(self) -> Listing:
        """Training studies only; copies of a drawing stand together, so that a worker draws few."""
        drawing = [i * self.distinct // self.studies for i in range(self.studies)]
        return Listing([Item(id=f"film-{i:06d}", split="train", payload={"index": d}) for i, d in enumerate(drawing)])

    def read(self, item: Item) -> tuple[Study, list[np.ndarray]]:
        """The drawing's record under the copy's own name, and films uint8 [size, size]."""
        drawing = self.distinct, self.size, int(item.payload["index"])
        if drawing not in _newest:
            _newest.clear()
            _newest[drawing] = Phantom(studies=self.distinct, size=self.size).read(item)
        study, films = _newest[drawing]
        rng = np.random.default_rng(int(item.id.removeprefix("film-")))
        names = {"id": item.id, "key": key_of(item.id), "patient": item.id}
        return study.model_copy(update=names), [_disturbed(film, rng) for film in films]


def _disturbed(film: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    moved = np.roll(film, rng.integers(-SHIFT_PX, SHIFT_PX + 1, 2), (0, 1)).astype(np.int16)
    return (moved + rng.integers(-1, 2, film.shape, np.int8)).clip(0, 255).astype(np.uint8)


def make_films(root: Path, studies: int, distinct: int, px: int) -> Path:
    """Shards of `studies` studies below `root`, films of `px` pixels a side, written unless they are there."""
    out = root / f"{studies}x{VIEWS}-{distinct}-{px}px"
    if (out / SHARDS_FILE).is_file() and read_manifest(out).splits["train"].studies == studies:
        return out
    source = RepeatedPhantom(studies=studies, distinct=distinct, size=px)
    write_shards(source, out, px, studies_per_shard=-(-studies // SHARDS))
    return out


def timed(batches: Callable[[], Iterator[int]], rows: int) -> Speed:
    """Speed of an iterator over the row counts of batches; it must give `rows` rows in all."""
    start, done, marks = time.perf_counter(), 0, []
    for count in batches():
        done += count
        marks.append((time.perf_counter(), done))
    if done != rows:
        raise RuntimeError(f"a contender gave {done} rows instead of {rows}: its speed would mean nothing")
    (t0, n0), (t1, n1) = (next(mark for mark in marks if mark[1] >= rows * part) for part in (0.1, 0.9))
    if t1 - t0 < SHORTEST_S:
        print(
            f"The steady part lasted {t1 - t0:.2f} s, its speed is not to be trusted: use more --studies or --epochs."
        )
    return Speed((n1 - n0) / max(t1 - t0, 1e-9), rows / (marks[-1][0] - start))


def ours(root: Path, index: Index, epochs: int) -> Iterator[int]:
    """One stream of several epochs in the planned order, one rank."""
    rows = len(index) * epochs
    blocks = plan(len(index), 0, 0, rows // MICRO_BATCH, MICRO_BATCH, 1, rows_per_block(IMAGE_PX, VIEWS, rows))
    stream = stream_blocks(root, "train", blocks, IMAGE_PX, VIEWS, index=index)
    for batch in read_batches(stream, MICRO_BATCH):
        yield len(batch["valid"])


def webloader(tars: list[str], epochs: int, workers: int) -> Iterator[int]:
    """The documented WebDataset pipeline: worker processes that decode and batch, unshuffled, which favours it."""
    films = webdataset.WebDataset(tars, shardshuffle=False).map(_decoded).batched(MICRO_BATCH).repeat(epochs)
    for batch in webdataset.WebLoader(films, batch_size=None, num_workers=workers, timeout=120):
        yield len(batch["images"])


def _decoded(sample: dict[str, Any]) -> dict[str, Any]:
    images = np.stack([decode(sample[f"{view}.jpg"], IMAGE_PX) for view in range(VIEWS)])
    return {"images": images, "record": str(sample["json"], "utf-8")}


def ray_default(tars: list[str]) -> Iterator[int]:
    """Ray Data's WebDataset reader with its default decoder, then a resize."""
    dataset = ray.data.read_webdataset(tars).map_batches(_resized, batch_size=32)
    for batch in dataset.iter_batches(batch_size=MICRO_BATCH, batch_format="numpy"):
        yield len(batch["images"])


def _resized(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    def small(film: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(film).resize((IMAGE_PX, IMAGE_PX), Image.Resampling.BICUBIC))

    views = [[small(film) for film in batch[f"{view}.jpg"]] for view in range(VIEWS)]
    return {"images": np.stack(views, axis=1), "key": batch["__key__"]}


def tight(pool: Pool, root: Path, epochs: int, processes: int) -> Speed:
    """What the cores can do at most: one `pread` and the decoding of each study, in every process of the pool."""
    start = time.perf_counter()
    done = pool.map(_read_and_decode, [(str(root), rank, processes, epochs) for rank in range(processes)], chunksize=1)
    whole = sum(count for count, _ in done) / (time.perf_counter() - start)
    return Speed(sum(count / seconds for count, seconds in done), whole)


@functools.cache
def _index(root: str) -> Index:
    return Index.open(Path(root), "train")


def _read_and_decode(job: tuple[str, int, int, int]) -> tuple[int, float]:
    root, rank, processes, epochs = job
    index, out = _index(root), np.zeros((MICRO_BATCH, VIEWS, IMAGE_PX, IMAGE_PX), np.uint8)
    rows, start = range(rank, len(index), processes), time.perf_counter()
    for _ in range(epochs):
        for row in rows:
            films, _ = index.read(row)
            for view, film in enumerate(films):
                out[row % MICRO_BATCH, view] = decode(film, IMAGE_PX)
    return len(rows) * epochs, time.perf_counter() - start


def start_ray(cores: int) -> None:
    """A local Ray session of its own on the first `cores` cores that this process may use, as have all its children."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:cores]))
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.init(
        address="local",
        num_cpus=cores,
        object_store_memory=2**30,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False


def machine() -> str:
    """CPUs, their model, the load of others, the versions that matter."""
    model = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[:1]
    versions = ", ".join(f"{name} {version(name)}" for name in ("ray", "webdataset", "torch", "pillow", "numpy"))
    return f"{os.cpu_count()} CPUs {model}, load {os.getloadavg()[0]:.2f} before the start; {versions}"


def table(rounds: list[dict[str, Speed]]) -> Table:
    """Median and range over the rounds."""
    out = Table("studies/s", "steady: median", "min–max", "with start: median", "min–max")
    for name in (TIGHT, OURS, LARGER, WEBLOADER, RAY_DEFAULT):
        cells = []
        for kind in Speed._fields:
            values = [getattr(speeds[name], kind) for speeds in rounds]
            cells += [f"{statistics.median(values):,.0f}", f"{min(values):,.0f}–{max(values):,.0f}"]
        out.add_row(name, *cells)
    return out


def main(
    shards: Annotated[Path, typer.Option(help="directory in which the films are kept")] = Path("runs/bench-films"),
    studies: Annotated[int, typer.Option(help="studies of two films; a multiple of 8")] = 2000,
    distinct: Annotated[int, typer.Option(help="different drawings among them")] = 64,
    epochs: Annotated[int, typer.Option(help="passes of a round; Ray's default reader makes one")] = 4,
    rounds: Annotated[int, typer.Option(help="rounds of all contenders")] = 5,
    cores: Annotated[int, typer.Option(help="cores that every contender gets")] = 2,
) -> None:
    """Measure; the last lines are ours to each other contender, medians of the rounds' steady ratios."""
    facts, measured = machine(), []
    start_ray(cores)
    root, larger = (make_films(shards.resolve(), studies, distinct, px) for px in (SIZE, LARGER_PX))
    larger_index = Index.open(larger, "train")
    index, tars = Index.open(root, "train"), sorted(str(path) for path in root.glob("*.tar"))
    with get_context("spawn").Pool(cores) as pool:
        tight(pool, root, 1, cores)
        contenders: dict[str, Callable[[], Speed]] = {
            TIGHT: lambda: tight(pool, root, epochs, cores),
            OURS: lambda: timed(lambda: ours(root, index, epochs), studies * epochs),
            LARGER: lambda: timed(lambda: ours(larger, larger_index, epochs), studies * epochs),
            WEBLOADER: lambda: timed(lambda: webloader(tars, epochs, cores), studies * epochs),
            RAY_DEFAULT: lambda: timed(lambda: ray_default(tars), studies),
        }
        for number in range(rounds):
            order = list(contenders)[:: 1 if number % 2 == 0 else -1]
            measured.append({name: contenders[name]() for name in order})
            print(
                f"round {number + 1}: "
                + ", ".join(f"{name} {speed.steady:,.0f}" for name, speed in measured[-1].items())
            )
    ray.shutdown()
    print(f"{facts}; {studies * VIEWS:,} films of {SIZE} px to {IMAGE_PX} px on {cores} cores, {epochs} epochs")
    Console(width=110).print(table(measured))
    for name, other in (("limit", TIGHT), ("webloader", WEBLOADER), (f"{LARGER_PX}px", LARGER)):
        ratio = statistics.median(speeds[OURS].steady / speeds[other].steady for speeds in measured)
        print(f"ratio_to_{name}={ratio:.2f}")


if __name__ == "__main__":
    run(main)
