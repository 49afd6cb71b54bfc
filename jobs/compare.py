"""Compare runs on the same studies."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from jobs.cli import run
from shards.tars.place import write_atomic


def main(
    runs: Annotated[
        list[str], typer.Argument(help="runs, or predictions files; the first is the baseline. A pattern is allowed")
    ],
    protocol: Annotated[
        list[str] | None, typer.Option(help="may be given more than once; default: the first one's first")
    ] = None,
    metric: Annotated[list[str] | None, typer.Option(help="only these; may be given more than once")] = None,
    each: Annotated[
        bool, typer.Option("--each", help="runs that differ in train.seed alone stand each by itself")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="write the result as JSON")] = None,
    track: Annotated[bool, typer.Option(help="note it beside the runs that are compared, and in MLflow")] = True,
) -> None:
    """Print differences to the first run with paired intervals and p-values; runs that differ in train.seed are one."""
    # numpy and scipy take a second, for which help need not wait
    from tune.compare import compare, comparison_table, track_comparison

    result = compare(runs, tuple(protocol or ()), tuple(metric or ()), each)
    Console(width=140).print(comparison_table(result))
    if out:
        write_atomic(out.resolve(), (json.dumps(result, indent=1, sort_keys=True) + "\n").encode())
    for note in track_comparison(runs, result, each) if track else ():
        print(note)
    if out:
        print(out.resolve())


if __name__ == "__main__":
    run(main)
