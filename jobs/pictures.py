"""Draw what films and words of reports took of the knowledge matrix."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import run, without_gpu_warning
from r2kg.rundir import newest_predictions


def main(
    predictions: Annotated[
        Path,
        typer.Argument(help="predictions.jsonl of CKNet, or a directory, as RUN, for the newest one below it"),
    ],
    study: Annotated[list[str] | None, typer.Option(help="key; may be given more than once")] = None,
    count: Annotated[int, typer.Option(min=1, help="studies that are drawn where none is named")] = 4,
    shards: Annotated[str, typer.Option(help="those of the predictions; default: the run's own")] = "",
    nodes: Annotated[int, typer.Option(min=1, help="nodes that are drawn over the films")] = 6,
) -> None:
    """Write KEY.png for each study beside the predictions; MLflow gets them too, of open data alone."""
    without_gpu_warning(False)
    from r2kg.scoring.pages.pictures import draw_taken  # seconds of torch
    from r2kg.tracking import track_pictures

    predictions = newest_predictions(predictions)
    pictures = draw_taken(predictions, study or (), count, nodes, shards)
    print("\n".join(map(str, pictures)))
    if note := track_pictures(predictions, pictures):
        print(note)


if __name__ == "__main__":
    run(main)
