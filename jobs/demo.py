"""Drawn films → shards → two workers → reports → scores, on this machine, in some minutes."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from jobs.cli import run
from r2kg.config import Run, saved_run
from r2kg.recipes import find_recipe
from r2kg.scoring.evaluate import evaluate, scores_table
from r2kg.scoring.generate import generate
from r2kg.tracking import track_scores
from r2kg.training.launch import train
from shards.session import connect_ray
from shards.sources import open_source
from shards.tars.write import write_shards


def main(
    root: Annotated[Path, typer.Option(help="directory of shards and runs")] = Path("runs"),
    studies: Annotated[int, typer.Option(help="studies to draw")] = 1600,
    steps: Annotated[int | None, typer.Option(help="optimiser steps; default: the recipe's epochs")] = None,
) -> None:
    """Print ours beside the constant-report floor and the shuffled-film control; the last line names scores.json."""
    began, shards = time.monotonic(), root / "phantom"
    connect_ray()
    manifest = write_shards(open_source("phantom", studies=studies), shards, size=128, studies_per_shard=64)
    print(f"{manifest.given} drawn studies in {len(manifest.shards)} shards under {shards}.")
    chosen = demo_run(root, shards, steps)
    train(chosen)
    predictions = generate(saved_run(chosen.directory), shards)
    scores = evaluate(predictions, chosen.protocols)
    Console(width=110).print(scores_table(scores))
    print(track_scores(predictions, scores))
    print(f"Compare runs: mlflow ui --backend-store-uri sqlite:///{root.resolve() / 'mlflow.db'}")
    print(f"{time.monotonic() - began:.0f} s in all.")
    print(predictions.with_name("scores.json").resolve())


def demo_run(root: Path, shards: Path, steps: int | None) -> Run:
    """The tiny recipe on the drawn films."""
    changes = {"name": "demo", "root": str(root), "data.shards": str(shards.resolve()), "train.steps": steps}
    return find_recipe("r2gengpt.tiny").change(changes)


if __name__ == "__main__":
    run(main)
