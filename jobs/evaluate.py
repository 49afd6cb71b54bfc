"""Score a predictions file."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from jobs.cli import run
from r2kg.rundir import newest_predictions
from r2kg.tracking import track_scores
from shards.errors import DataError
from shards.tars.format import read_manifest


def main(
    predictions: Annotated[
        Path, typer.Argument(help="predictions.jsonl, or a directory, as RUN, for the newest one below it")
    ],
    protocol: Annotated[
        list[str] | None, typer.Option(help="may be given more than once; default: those of the run")
    ] = None,
    shards: Annotated[str | None, typer.Option(help="take vocabulary and floor from these shards")] = None,
) -> None:
    """Write scores.json beside the predictions and print ours beside the floor and the shuffled control."""
    # numpy and scipy take a second, for which help need not wait
    from r2kg.scoring.context import References, scoring_context
    from r2kg.scoring.evaluate import context_beside, evaluate, nearest_beside, protocols_beside
    from r2kg.scoring.metrics.table import scores_table

    predictions = newest_predictions(predictions)
    names = tuple(protocol or protocols_beside(predictions))
    context = None
    if shards:
        manifest, beside = read_manifest(shards), context_beside(predictions)
        references = References.of(beside.get("reference_at") or {}, manifest)
        if references and references.named != beside.get("reference"):
            raise DataError(
                f"the {references.kind} at {references.where} are not those that the predictions were compared with: "
                "score without --shards, or generate the predictions again"
            )
        context = scoring_context(shards, manifest, names, references=references)
    scores = evaluate(predictions, names, context)
    Console(width=130).print(scores_table(scores, nearest_beside(predictions)))
    note = track_scores(predictions, scores)
    if note:
        print(note)
    print(predictions.with_name("scores.json").resolve())


if __name__ == "__main__":
    run(main)
