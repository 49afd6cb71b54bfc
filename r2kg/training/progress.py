"""What the driver prints while workers train."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from r2kg.rundir import RunFiles, record_of


@contextmanager
def progress(files: RunFiles, steps: int) -> Iterator[None]:
    """Print the run's log as it grows, and on a terminal a bar with the time left under it, while the block runs."""
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
        task, ended = bar.add_task("training", total=steps, loss=""), False
        while not ended:
            ended = done.wait(1.0)
            step, loss = newest_loss(files.metrics)
            bar.update(task, completed=step, loss=f"loss {loss:.3f}")
            if files.log.exists():
                with files.log.open("rb") as log:
                    log.seek(printed)
                    new = log.read()
                whole = new[: new.rfind(b"\n") + 1]
                printed += len(whole)
                print(whole.decode(), end="", flush=True)


def newest_loss(records: Path) -> tuple[int, float]:
    """(step, training loss) of the newest record that has one, torn ones passed over; (0, nan) before the first."""
    if not records.exists():
        return 0, float("nan")
    with records.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 10_000))
        lines = file.read().splitlines()[-5:]
    for line in reversed(lines):
        row = record_of(line)
        if row and "train.loss" in row["metrics"]:
            return row["step"], row["metrics"]["train.loss"]
    return 0, float("nan")
