"""Drawn films → shards → two workers → reports → scores, on this machine, in some minutes.

With --system r2genkg also what that needs, in the order in which a user makes it: graph, classifier, bank, each film's
own part of the graph; and its scores stand beside R2GenGPT's after as many steps.
"""

import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from jobs.cli import run, without_gpu_warning
from r2kg.config.run import Run
from r2kg.recipes import find_recipe
from shards.sources import open_source


def main(
    root: Annotated[Path, typer.Option(help="directory of shards and runs")] = Path("runs"),
    studies: Annotated[int, typer.Option(help="studies to draw")] = 1600,
    steps: Annotated[int | None, typer.Option(help="optimiser steps; default: the recipe's epochs, or 400")] = None,
    system: Annotated[Literal["r2gengpt", "r2genkg"], typer.Option(help="r2genkg: with what it needs")] = "r2gengpt",
) -> None:
    """Print ours beside the constant-report floor and the shuffled-film control; the last line names scores.json."""
    began, shards = time.monotonic(), root / "phantom"
    source = open_source("phantom", studies=studies)
    steps = 400 if steps is None and system == "r2genkg" else steps
    changes = {"root": str(root), "data.shards": str(shards.resolve()), "train.steps": steps}
    name = "demo-r2gengpt" if system == "r2genkg" else "demo"  # another run: its encoder begins as the classifier's
    base = find_recipe("r2gengpt.tiny").change(changes | {"name": name})
    without_gpu_warning(base.train.gpus)
    # torch, Ray and DeepSpeed take seconds: help and what is refused without them come first
    from shards.session import connect_ray
    from shards.tars.shards import write_shards

    connect_ray()
    manifest = write_shards(source, shards, size=128, studies_per_shard=64)
    print(f"{manifest.given} drawn studies in {len(manifest.shards)} shards under {shards}.")
    runs = [base]
    if system == "r2genkg":
        from tune.prepare import r2genkg

        r2genkg(root, shards)
        start = {"train.init_from": "demo-classifier@best", "train.init_map": {"head": None}}
        graph = find_recipe("r2genkg.tiny").change(changes | {"name": "demo-r2genkg", "model.graph.source": "both"})
        runs = [one.change(start) for one in (base, graph)]  # as the papers', both encoders have seen films before
    scores = {one.name: study(one, shards, began) for one in runs}
    if len(scores) > 1:
        Console(width=110).print(side_by_side(scores))
    print(f"Compare runs: mlflow ui --backend-store-uri sqlite:///{root.resolve() / 'mlflow.db'}")
    print(f"{time.monotonic() - began:.0f} s in all.")
    print(scores[runs[-1].name]["path"])


def study(one: Run, shards: Path, began: float) -> dict[str, Any]:
    """Train a run, write its reports on the test split, score them; scores.json, and its "path"."""
    from r2kg.scoring.metrics.table import scores_table
    from tune.trial import train_and_score

    scores = train_and_score(one, shards)
    Console(width=110).print(scores_table(scores))
    print(f"{one.name} has its scores after {time.monotonic() - began:.0f} s.")
    return scores


def side_by_side(scores: dict[str, dict[str, Any]]) -> Table:
    """The runs' scores in columns."""
    table = Table(
        title="At the same number of steps",
        caption="One seed, few steps: `python -m bench.graph_matters` asks over seeds whether the graph matters.",
    )
    for column in ("protocol", "metric", *scores):
        table.add_column(column, justify="left" if column in ("protocol", "metric") else "right")
    first = next(iter(scores.values()))
    for protocol, result in first["protocols"].items():
        for metric in result["score"]:
            values = [own["protocols"][protocol]["score"][metric] for own in scores.values()]
            table.add_row(protocol, metric, *("" if value is None else f"{value:.4f}" for value in values))
    return table


if __name__ == "__main__":
    run(main)
