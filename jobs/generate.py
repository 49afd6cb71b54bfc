"""Write a trained run's reports on a split."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import run
from r2kg.rundir import saved_run
from shards.tars.format import read_manifest
from shards.tars.place import place


def main(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN", help="directory of a run (the one with run.json)")],
    shards: Annotated[str | None, typer.Option(help="shards to write about; default: those it was trained on")] = None,
    split: Annotated[str, typer.Option(help="train, val or test")] = "test",
    checkpoint: Annotated[str, typer.Option(help="best, last or a step number")] = "best",
    writers: Annotated[int, typer.Option(min=1, help="actors that hold the model")] = 1,
) -> None:
    """Write RUN/predictions/SPLIT/predictions.jsonl, and beside it what scoring needs."""
    trained = saved_run(run_directory)
    where = place(shards or trained.data.shards)
    read_manifest(where)
    from r2kg.scoring.generate import generate  # seconds of torch and Ray, after what is refused without them

    print(generate(trained, where, split, checkpoint, writers))


if __name__ == "__main__":
    run(main)
