"""Write a page of studies with their films, their reports and what these say."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import run
from r2kg.config.overrides import parse_overrides
from r2kg.rundir import newest_predictions
from shards.errors import ConfigError

MOST = 5_000


def main(
    predictions: Annotated[
        Path, typer.Argument(help="predictions.jsonl, or a directory, as RUN, for the newest one below it")
    ],
    shards: Annotated[str, typer.Option(help="those of the predictions; default: the run's own")] = "",
    out: Annotated[Path | None, typer.Option(help="directory; default: beside the predictions")] = None,
    most: Annotated[
        int, typer.Option(min=1, max=MOST, help="studies: of more the worst, the best and a sample of the others")
    ] = 200,
    seed: Annotated[int, typer.Option(help="of that sample")] = 0,
    changes: Annotated[
        list[str] | None, typer.Argument(help="privacy.allow_text=true: credentialed data may go to --out")
    ] = None,
) -> None:
    """Write cases.html: one file that a browser opens by itself; MLflow gets it too, of open data alone."""
    given = parse_overrides(changes or [])
    if given.keys() - {"privacy.allow_text"} or not all(type(value) is bool for value in given.values()):
        raise ConfigError(f"{' '.join(changes or [])}: nothing but privacy.allow_text=true or false can be said here")
    from r2kg.scoring.pages.cases import write_cases  # scipy and spaCy take a second, for which help need not wait
    from r2kg.tracking import track_pictures

    predictions = newest_predictions(predictions)
    page = write_cases(predictions, shards, out, most, seed, given.get("privacy.allow_text", False))
    print(*page.notes, sep="\n", end="\n" if page.notes else "")
    if note := track_pictures(predictions, [page.path], page.credentialed):
        print(note)
    print(page.path)


if __name__ == "__main__":
    run(main)
