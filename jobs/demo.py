"""Drawn films → shards → two workers → reports → scores, on this machine, in some minutes."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from jobs.cli import run, without_gpu_warning
from r2kg.recipes import find_recipe
from r2kg.rundir import saved_run
from r2kg.tracking import track_scores
from shards.sources import open_source


def main(
    root: Annotated[Path, typer.Option(help="directory of shards and runs")] = Path("runs"),
    studies: Annotated[int, typer.Option(help="studies to draw")] = 1600,
    steps: Annotated[int | None, typer.Option(help="optimiser steps; default: the recipe's epochs")] = None,
) -> None:
    """Print ours beside the constant-report floor and the shuffled-film control; the last line names scores.json."""
    began, shards = time.monotonic(), root / "phantom"
    changes = {"name": "demo", "root": str(root), "data.shards": str(shards.resolve()), "train.steps": steps}
    resolved, source = find_recipe("r2gengpt.tiny").change(changes), open_source("phantom", studies=studies)
    without_gpu_warning(resolved.train.gpus)
    # torch, Ray and DeepSpeed take seconds: help and what is refused without them come first
    from r2kg.scoring.choose import choose_checkpoint
    from r2kg.scoring.evaluate import evaluate, scores_table
    from r2kg.scoring.generate import generate
    from r2kg.training.launch import train
    from shards.session import connect_ray
    from shards.tars.shards import write_shards

    connect_ray()
    manifest = write_shards(source, shards, size=128, studies_per_shard=64)
    print(f"{manifest.given} drawn studies in {len(manifest.shards)} shards under {shards}.")
    train(resolved)
    choose_checkpoint(resolved.directory)
    predictions = generate(saved_run(resolved.directory), shards)
    scores = evaluate(predictions, resolved.protocols)
    Console(width=110).print(scores_table(scores))
    print(track_scores(predictions, scores))
    print(f"Compare runs: mlflow ui --backend-store-uri sqlite:///{root.resolve() / 'mlflow.db'}")
    print(f"{time.monotonic() - began:.0f} s in all.")
    print(predictions.with_name("scores.json").resolve())


if __name__ == "__main__":
    run(main)
