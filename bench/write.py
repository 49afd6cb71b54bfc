"""Writing shards against a tight loop over the same films on the same cores, and the workers' memory.

    python -m bench.write                 both, on this machine, in some minutes
    python -m bench.write --memory-only

The tight loop does what cannot be left out, decode + resize + encode, in as many processes as there are cores. Ours
also reads and checks the listing, cleans and checks the report, hashes, indexes and writes. Rounds alternate.
"""

import json
import logging
import multiprocessing
import os
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import ray
import typer
from PIL import Image

from shards.films.raw import enough, open_film
from shards.films.stored import encode, shrink
from shards.sources.iu_xray.source import IuXray
from shards.tars.format import SIZE
from shards.tars.shards import write_shards

QUALITY = 95
MIMIC_FILMS, MIMIC_PX = 377_110, (2544, 3056)
FILMS = 40
"""Distinct films drawn; a listing names them again and again."""


def draw_films(root: Path, width: int, height: int, count: int) -> None:
    """`count` grey JPEGs with the smooth shapes and the noise of a radiograph."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    for number in range(count):
        rng = np.random.default_rng(number)
        waves = sum(np.sin(rng.uniform(2, 30) * (x * rng.normal() + y * rng.normal())) for _ in range(6))
        film = 120 + 25 * waves + rng.normal(0, 4, x.shape)
        (root / "images" / f"film{number}").mkdir(parents=True)
        Image.fromarray(film.clip(0, 255).astype(np.uint8)).save(
            root / "images" / f"film{number}" / "0.jpg", quality=95
        )


def write_listing(root: Path, studies: int) -> Path:
    """An annotation.json of `studies` studies of one film each; a tenth is for validation and a tenth for testing."""
    listing: dict[str, list[dict]] = {"train": [], "val": [], "test": []}
    for number in range(studies):
        split = {0: "val", 1: "test"}.get(number % 10, "train")
        report = f"The heart is normal in size. The lungs are clear. No effusion in study {number}."
        film = f"film{number % FILMS}/0.jpg"
        listing[split].append({"id": f"CXR{number}_IM-{number:06d}", "report": report, "image_path": [film]})
    path = root / "annotation.json"
    path.write_text(json.dumps(listing))
    return path


def _convert(paths: list[str], size: int, whole: bool) -> int:
    with enough(0 if whole else size):
        return sum(len(encode(shrink(open_film(Path(path)), size), QUALITY)) for path in paths)


def tight_loop(films: list[str], size: int, cores: int, whole: bool = False) -> float:
    """Films per second of the bare loop; `whole`: every film is decoded whole before it is shrunk."""
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        pool.starmap(_convert, [(films[:1], size, whole)] * cores)  # processes and modules are there when it begins
        began = time.perf_counter()
        pool.starmap(_convert, [(films[core::cores], size, whole) for core in range(cores)])
        return len(films) / (time.perf_counter() - began)


def ours(root: Path, studies: int, size: int, per_shard: int) -> float:
    """Films per second of `write_shards`, its start-up included."""
    out = root / "shards"
    shutil.rmtree(out, ignore_errors=True)
    began = time.perf_counter()
    write_shards(IuXray(raw=root), out, size=size, studies_per_shard=per_shard)
    return studies / (time.perf_counter() - began)


class WorkerMemory:
    """The largest private memory of any Ray worker of this machine while the block runs, in bytes."""

    def __enter__(self) -> "WorkerMemory":
        self.peak, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            for process in psutil.process_iter(["cmdline"]):
                if " ".join(process.info["cmdline"] or ()).startswith("ray::"):
                    try:
                        self.peak = max(self.peak, process.memory_full_info().uss)
                    except psutil.Error:
                        continue


def compare_speed(root: Path, px: tuple[int, int], studies: int, rounds: int, cores: int) -> tuple[float, float]:
    """Median films/s of ours and the median ratio to the tight loop, both at the short side of our default.

    Beside them stands a loop that decodes films whole.
    """
    draw_films(root, *px, FILMS)
    write_listing(root, studies)
    films = [str(root / "images" / f"film{number % FILMS}" / "0.jpg") for number in range(studies)]
    ours(root, min(studies, 40), SIZE, 20)  # workers are started and modules imported
    per_shard, found = -(-studies // (16 * cores)), []
    for _ in range(rounds):
        limit, own = tight_loop(films, SIZE, cores), ours(root, studies, SIZE, per_shard)
        whole = tight_loop(films, SIZE, cores, whole=True)
        found.append((own, own / limit))
        print(
            f"  {px[0]}x{px[1]} px: tight loop {limit:.1f} films/s, ours {own:.1f}, ratio {own / limit:.2f}; "
            f"films decoded whole {whole:.1f}, ratio {own / whole:.2f}"
        )
    return statistics.median(own for own, _ in found), statistics.median(ratio for _, ratio in found)


def compare_memory(root: Path, sizes: tuple[int, int] = (2_000, 20_000)) -> float:
    """Peak of a worker's private memory at the larger number of studies over that at the smaller."""
    draw_films(root, 256, 256, FILMS)
    peaks = []
    for studies in sizes:
        write_listing(root, studies)
        ray.shutdown()
        start_ray()
        with WorkerMemory() as memory:
            speed = ours(root, studies, 256, 250)
        peaks.append(memory.peak)
        print(f"  {studies:,} studies of 256 px: {speed:.0f}/s, a worker's peak {memory.peak / 2**20:.0f} MiB")
    return peaks[1] / peaks[0]


def start_ray() -> None:
    """A local session that keeps quiet."""
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    ray.init(object_store_memory=300 * 2**20, include_dashboard=False, log_to_driver=False, logging_level="error")


def main(
    rounds: Annotated[int, typer.Option(help="rounds of tight loop, ours")] = 3,
    memory_only: Annotated[bool, typer.Option(help="skip the comparison of speed")] = False,
) -> None:
    """Print the ratios and what they mean for the films of MIMIC-CXR."""
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="bench-write") as folder:
        start_ray()
        if not memory_only:
            _, small = compare_speed(Path(folder) / "small", (1024, 1024), 4000, rounds, cores)
            own, large = compare_speed(Path(folder) / "large", MIMIC_PX, 800, rounds, cores)
            print(f"ratio_to_tight_loop={small:.2f} at 1024x1024 px, {large:.2f} at {MIMIC_PX[0]}x{MIMIC_PX[1]} px")
            per_core = own / cores
            hours = MIMIC_FILMS / per_core / 3600
            print(f"{per_core:.2f} films/s/core: {MIMIC_FILMS:,} films take {hours:.1f} core-hours")
        print(f"worker_memory_20000_over_2000={compare_memory(Path(folder) / 'memory'):.3f}")
        ray.shutdown()


if __name__ == "__main__":
    typer.run(main)
