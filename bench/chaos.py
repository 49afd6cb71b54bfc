"""A run under fire: `r2kg train` loses processes at random moments and must end with the weights of one that lost none.

`python -m bench.chaos --seed 0 --kills 20` takes about a minute for each kill on two cores. It kills training workers
(also while they start), Ray Train's controller, its giver of streams, the raylet, Ray's head (GCS), the attempt's
process and `r2kg train` itself, which is then submitted again. Exit code 0: nothing was lost but time.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from r2kg.modules.config import TinyLm
from r2kg.modules.tiny_lm import write_tiny_lm
from r2kg.recipes import find_recipe
from r2kg.rundir import RunFiles
from r2kg.training.checkpoint import newest_checkpoint, read_state, read_tensors
from shards.sources.phantom.source import Phantom
from shards.stream.index import read_targets
from shards.tars.shards import write_shards

MARK = "R2KG_CHAOS"
PROCESSES = {
    "worker": "ray::RayTrainWorker",
    "controller": "ray::TrainController",
    "giver": "ray::DatasetManager",
    "raylet": "raylet/raylet",
    "head": "gcs/gcs_server",
    "attempt": "multiprocessing.spawn import spawn_main",
    "r2kg train": "from jobs.cli import main",
}
"""What is killed → what its command line holds."""
UNNOTICED = 50
"""Steps after which a kill has ended nothing that the run needed, so that no group will start for it."""
STARTING = ("worker", "controller", "raylet", "head", "attempt")
"""What is there while workers start."""


class Storm:
    """`r2kg train` of one run, submitted again whenever it ends with 75 or was killed."""

    def __init__(self, saved: Path, directory: Path, seed: int):
        """`saved` is the run's JSON, `directory` the run's own."""
        self.saved, self.files, self.random = saved, RunFiles(directory), random.Random(seed)
        self.mark = f"{os.getpid()}-{seed}"
        self.process: subprocess.Popen | None = None
        self.codes: list[int] = []

    def submit(self) -> None:
        """Start `r2kg train`; its output goes to a file beside the run."""
        environment = os.environ | {MARK: self.mark, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", "from jobs.cli import main; main()", "train", str(self.saved)]
        with self.files.directory.with_suffix(".out").open("ab") as out:
            self.process = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)

    def ended(self) -> int | None:
        """The exit code, once."""
        assert self.process
        if (code := self.process.poll()) is not None:
            self.codes.append(code)
        return code

    def mine(self) -> Iterator[tuple[psutil.Process, str]]:
        """Every process that this storm's runs have started, with its command line."""
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    yield process, " ".join(process.cmdline())
            except psutil.Error:
                continue

    def kill(self, what: str) -> bool:
        """kill -9 of one such process; False when there is none at this moment."""
        if pids := self.pids(what):
            os.kill(self.random.choice(pids), signal.SIGKILL)
        return bool(pids)

    def pids(self, what: str) -> list[int]:
        """Such processes, as they stand at this moment."""
        return sorted(process.pid for process, command in self.mine() if PROCESSES[what] in command)

    def step(self) -> int:
        """The newest step of which a record is there."""
        if not self.files.metrics.exists():
            return 0
        lines = self.files.metrics.read_text().splitlines()
        return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)

    def groups(self) -> int:
        """Groups of workers that have started so far."""
        return self.files.groups.read_text().count(" started") if self.files.groups.exists() else 0

    def rage(self, kills: list[str], patience: float = 900.0) -> None:
        """Kill each in its turn: two in three at a random moment of the running phase, one in three in the first 12 s.

        Raises:
            RuntimeError: the run ended otherwise than by 75 or our own kill, or took no step in `patience` seconds.
        """
        self.submit()
        for number, what in enumerate(kills, 1):
            groups, step, deadline = self.groups(), self.step(), time.monotonic() + patience
            early = what in STARTING and self.random.random() < 1 / 3
            while not (self.groups() > groups and self.pids("worker") if early else self.step() > step):
                self.go_on(deadline)
                early = early and self.step() <= step + UNNOTICED  # what was killed last was of no use any more
            time.sleep(self.random.uniform(0, 10 if early else 3))
            while not self.kill(what):
                self.go_on(deadline)
            print(f"{number:2}: {what} killed {'early' if early else f'at step {self.step()}'}.", flush=True)
        deadline = time.monotonic() + patience
        while self.ended() != 0:
            self.go_on(deadline)

    def go_on(self, deadline: float) -> None:
        """A moment of the run; submit it again where it has ended."""
        if time.monotonic() > deadline:
            raise RuntimeError(f"nothing happens any more: see {self.files.directory.with_suffix('.out')}")
        if (code := self.ended()) in (75, -9):
            self.submit()
        elif code is not None:
            more = ", before all kills: raise --steps" if not code else ""
            raise RuntimeError(f"it ended with {code}{more}: see {self.files.directory.with_suffix('.out')}")
        time.sleep(0.1)

    def left(self) -> list[str]:
        """Command lines of processes that are there 15 s after the end."""
        for _ in range(30):
            if not (there := [command for _, command in self.mine()]):
                return []
            time.sleep(0.5)
        return there


def studies(directory: Path) -> dict[int, list[int]]:
    """Step → studies of the global batch, sorted. RuntimeError when a step that was repeated took others."""
    parts: dict[int, dict[str, list[int]]] = {}
    for file in sorted(RunFiles(directory).consumed.glob("*.jsonl")):
        for line in file.read_text().splitlines():
            if line.endswith("}"):  # else a kill cut it
                row = json.loads(line)
                if parts.setdefault(row["step"], {}).setdefault(file.name, row["index"]) != row["index"]:
                    raise RuntimeError(f"step {row['step']} was repeated with other studies")
    return {step: sorted(i for index in by_rank.values() for i in index) for step, by_rank in sorted(parts.items())}


def largest_difference(one: Path, two: Path) -> float:
    """Of all weights and moments of the newest checkpoints; RuntimeError when their steps differ."""
    paths = [newest_checkpoint(directory) for directory in (one, two)]
    steps = [read_state(path)["step"] for path in paths if path]
    if len(set(steps)) != 1 or len(steps) != 2:
        raise RuntimeError(f"the newest checkpoints are of steps {steps}")
    a, b = (read_tensors(path) for path in paths if path)
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a if a[name].numel())


def main() -> None:
    """Print what was killed, how it ended, and what differs from an undisturbed run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--only", default="", help="comma-separated: what to kill, in this order, instead of at random")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    write_shards(Phantom(studies=60, size=64), folder / "shards", size=64, studies_per_shard=16)
    small = TinyLm(width=32, layers=1, heads=2, vocabulary=320, epochs=1)
    lm = write_tiny_lm(read_targets(folder / "shards", "train"), folder / "lm", small, seed=0)
    changes = {
        "root": str(folder / "runs"), "data.shards": str(folder / "shards"), "train.workers": 2,
        "model.vision": {"name": "test_vit", "weights": "random", "image_px": 64}, "model.llm.source": str(lm),
        "train.cpus_per_worker": 0.4, "train.global_batch": 8, "train.micro_batch": 4, "train.log_every": 1,
        "train.checkpoint_every": 25, "train.validation_studies": 6, "train.steps": asked.steps,
        "train.record_studies": True, "train.max_restarts": -1,
    }  # fmt: skip
    run = find_recipe("r2gengpt.tiny").change(changes)
    draw, kills = random.Random(asked.seed), list[str]()
    while len(kills) < asked.kills:
        kills += draw.sample(list(PROCESSES), len(PROCESSES))
    runs = {}
    for name, killed in {"calm": [], "stormy": asked.only.split(",") if asked.only else kills[: asked.kills]}.items():
        (folder / "runs").mkdir(exist_ok=True)
        saved = folder / f"{name}.json"
        run.change({"name": name}).save(saved)
        runs[name] = Storm(saved, folder / "runs" / name, asked.seed)
        began = time.monotonic()
        runs[name].rage(killed)
        print(f"{name}: {time.monotonic() - began:.0f} s, exit codes {runs[name].codes}", flush=True)
    same = studies(folder / "runs" / "calm") == studies(folder / "runs" / "stormy")
    difference = largest_difference(folder / "runs" / "calm", folder / "runs" / "stormy")
    left = [command[:100] for storm in runs.values() for command in storm.left()]
    print(f"same_studies={same} largest_difference={difference} groups={runs['stormy'].groups()} left={left}")
    if same and difference == 0 and not left:
        shutil.rmtree(folder)
    else:
        sys.exit(f"see {folder}")


if __name__ == "__main__":
    main()
