"""Write a trained run's reports on a split."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import run, without_gpu_warning
from r2kg.config.overrides import parse_overrides
from r2kg.config.protocol import protocols_of
from r2kg.rundir import saved_run
from shards.errors import ConfigError
from shards.tars.format import read_manifest
from shards.tars.place import place

MAY_CHANGE = (
    *("model.decoding", "data.on_bad", "data.verify", "data.features", "data.sides"),
    *("train.micro_batch", "train.gpus", "train.wait_minutes", "protocols"),
)


def main(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN", help="directory of a run (the one with run.json)")],
    shards: Annotated[str | None, typer.Option(help="shards to write about; default: those it was trained on")] = None,
    split: Annotated[str, typer.Option(help="train, val or test")] = "test",
    checkpoint: Annotated[str, typer.Option(help="best, last or a step number")] = "best",
    writers: Annotated[
        int, typer.Option(min=0, help="actors that hold the model; 0: one per GPU, without GPUs as many as trained it")
    ] = 0,
    unscored: Annotated[
        bool, typer.Option("--unscored", help="write about all studies, also those of which nothing right is known")
    ] = False,
    changes: Annotated[
        list[str] | None,
        typer.Argument(help="key=value of model.decoding, data and protocols, e.g. model.decoding.beams=5"),
    ] = None,
) -> None:
    """Write predictions.jsonl below RUN/predictions/SPLIT, and beside it what scoring needs; goes on after a kill.

    The directory is named after the checkpoint and the decoding, so that those of another stand beside it.
    """
    given = parse_overrides(changes or [])
    if strange := sorted(key for key in given if not key.startswith(MAY_CHANGE)):
        raise ConfigError(
            f"{', '.join(strange)} cannot be changed for a run that is trained: {', '.join(MAY_CHANGE)} can"
        )
    trained = saved_run(run_directory).change(given)
    protocols_of(trained.protocols, trained.model.task)
    without_gpu_warning(trained.train.gpus)
    where = place(shards or trained.data.shards)
    read_manifest(where)
    from r2kg.scoring.generate import generate  # seconds of torch and Ray, after what is refused without them

    print(generate(trained, where, split, checkpoint, writers, scored=not unscored))


if __name__ == "__main__":
    run(main)
