"""What the driver prints while workers train: the run's log, and how far it is."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from r2kg.rundir import RunFiles, record_of

SECONDS = 10.0
"""Between two lines."""


@contextmanager
def progress(files: RunFiles, steps: int) -> Iterator[None]:
    """Print the run's log as it grows, while the block runs, and how far it is.

    On a terminal that is a bar below the log, elsewhere a line for the newest record of the loss, one in ten seconds.
    """
    done = threading.Event()
    start = files.log.stat().st_size if files.log.exists() else 0
    thread = threading.Thread(target=_follow, args=(files, steps, start, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _follow(files: RunFiles, steps: int, printed: int, done: threading.Event) -> None:
    """Once a second and once when it is `done`; the first `printed` bytes of the log are older than this call."""
    columns = TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, TextColumn("{task.fields[loss]}"), disable=not sys.stdout.isatty()) as bar:
        task, ended, lines = bar.add_task("training", total=steps, loss=""), False, Lines(steps)
        while not ended:
            ended = done.wait(1.0)
            if newest := newest_record(files.metrics):
                bar.update(task, completed=newest[0], loss=f"loss {newest[1]['train.loss']:.3f}")
                if bar.disable and (line := lines.next(*newest, time.monotonic())):
                    print(line, flush=True)
            if files.log.exists():
                with files.log.open("rb") as log:
                    log.seek(printed)
                    new = log.read()
                whole = new[: new.rfind(b"\n") + 1]
                printed += len(whole)
                print(whole.decode(), end="", flush=True)


class Lines:
    """Sentences on how far training is, for where no bar can be drawn."""

    def __init__(self, steps: int):
        """`steps` in all."""
        self.steps, self.said, self.seen, self.told = steps, -SECONDS, 0, 0
        self.first: tuple[int, float] | None = None

    def next(self, step: int, metrics: dict[str, float], now: float) -> str:
        """What to print of the newest record, seen at `now` seconds; "" where it was seen before, or a line has just
        been printed."""
        if self.first is None or step < self.seen:  # a run that goes on begins with a record of what was lost
            self.first, self.told = (step, now), step
        self.seen = step
        if step <= self.told or now - self.said < SECONDS:
            return ""
        self.said, self.told = now, step
        left = (self.steps - step) * (now - self.first[1]) / (step - self.first[0])
        time_left = f"{left / 3600:.1f} h" if left > 5400 else f"{left / 60:.0f} min" if left > 90 else f"{left:.0f} s"
        speed = f", {metrics['train.studies_per_s']:.3g} studies/s" if "train.studies_per_s" in metrics else ""
        rate = f", lr {metrics['train.lr']:.2g}" if "train.lr" in metrics else ""
        peak = f", at most {metrics['train.peak_gb']:.3g} GB" if "train.peak_gb" in metrics else ""
        idle = f", {100 * metrics['train.padding']:.0f} % padding" if "train.padding" in metrics else ""
        return (
            f"step {step} of {self.steps}: loss {metrics['train.loss']:.3f}{rate}{speed}{peak}{idle}, {time_left} left"
        )


def newest_record(records: Path) -> tuple[int, dict[str, float]] | None:
    """(step, metrics) of the newest record with a training loss, torn ones passed over; None before the first."""
    if not records.exists():
        return None
    with records.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 10_000))
        lines = file.read().splitlines()[-5:]
    for line in reversed(lines):
        row = record_of(line)
        if row and "train.loss" in row["metrics"]:
            return row["step"], row["metrics"]
    return None
