"""Look at shards: are they what their manifest says, and what does one study hold?"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from jobs.cli import run
from shards.errors import DataError
from shards.stream.show import find_study, study_lines, write_films
from shards.tars.format import read_manifest
from shards.tars.report import counts_table, receipt_lines
from shards.tars.verify import contents_faults


def verify(shards: Annotated[str, typer.Argument(help="directory or URL of the shards")]) -> None:
    """Compare hashes, indices and counts with the manifest, and print the receipt again."""
    manifest = read_manifest(shards)
    Console(width=110).print(counts_table(manifest))
    print("\n".join(receipt_lines(shards, manifest)))
    if faults := contents_faults(shards, manifest):
        raise DataError(f"{len(faults)} faults: " + "; ".join(faults))
    print(f"{len(manifest.shards)} tars and their indices are what the manifest says.")


def show(
    shards: Annotated[str, typer.Argument(help="directory or URL of the shards")],
    key: Annotated[str, typer.Argument(help="key or id of a study")],
    films: Annotated[Path | None, typer.Option(help="directory for its films as PNG; default: none written")] = None,
) -> None:
    """Print one study: where it is, its sections, target, labels and triples; write its films."""
    index, row = find_study(shards, key)
    print("\n".join(study_lines(index, row)))
    for path in write_films(index, row, films) if films else ():
        print(path)


JOBS = (verify, show)

if __name__ == "__main__":
    run(*JOBS)
