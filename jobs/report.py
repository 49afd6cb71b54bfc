"""Print the report of one study's films."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import run, without_gpu_warning
from r2kg.config.overrides import parse_overrides
from r2kg.rundir import saved_run
from shards.films.raw import refuse_missing


def main(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN", help="directory of a run (the one with run.json)")],
    films: Annotated[
        list[str], typer.Argument(help="PNG, JPEG, DICOM, ..., the frontal one first; and key=value of model.decoding")
    ],
    checkpoint: Annotated[str, typer.Option(help="best, last or a step number")] = "best",
) -> None:
    """Print what a trained run writes about the films of one study, and what it gives as evidence, if it gives any."""
    words = [word for word in films if word.startswith("model.decoding.")]
    paths = [film for film in films if film not in words]
    refuse_missing(paths)
    trained = saved_run(run_directory).change(parse_overrides(words))
    without_gpu_warning(trained.train.gpus)
    from r2kg.scoring.report import report  # seconds of torch, after what is refused without it

    written = report(trained, paths, checkpoint)
    print(written.text)
    if written.extra:
        print(json.dumps(dict(written.extra), indent=1, default=str))
    if written.truncated:
        print(f"The report was not at its end after {written.tokens} tokens.", file=sys.stderr)


if __name__ == "__main__":
    run(main)
