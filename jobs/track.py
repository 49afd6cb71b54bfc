"""Send a run's records to MLflow."""

import time
from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import run
from r2kg.rundir import RunFiles, saved_run
from r2kg.tracking import Tracker, tracking_note
from shards.errors import ConfigError, RetryableError

PAUSE_SECONDS = 5.0


def main(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN", help="directory of a run (the one with run.json)")],
    uri: Annotated[str, typer.Option(help="tracking server; default: the run's own")] = "",
    patience: Annotated[float, typer.Option(help="seconds to wait for the server")] = 600.0,
) -> None:
    """Send what MLflow has not taken yet of a run that has ended, and its status."""
    saved = saved_run(run_directory).change({"tracking.uri": uri} if uri else {})
    if not RunFiles(saved.directory).metrics.exists():
        raise ConfigError(f"{saved.name} has no records yet: {RunFiles(saved.directory).metrics} is missing")
    deadline, waiting = time.monotonic() + patience, True
    while waiting:
        tracker = Tracker(saved)
        unsent = tracker.close(patience=max(1.0, deadline - time.monotonic()))
        note, waiting = tracking_note(unsent, tracker), bool(unsent or tracker.missing)
        if waiting and time.monotonic() > deadline:
            raise RetryableError(note)
        time.sleep(PAUSE_SECONDS if waiting else 0)
    print(note)


if __name__ == "__main__":
    run(main)
