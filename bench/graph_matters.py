"""Does the graph matter? R2GenGPT, R2GenKG and its controls on drawn films, over seeds, at equal numbers of steps.

Every row is an ablation of `tune/ablations/r2genkg.py` over r2genkg.tiny, trained, decoded and scored as any run; the
last copies the nearest training film's report. All begin with the encoder of the classifier that the bank was cut by,
as the papers' have seen films before. What is made stays: the same command again goes on with what is lacking. A row's
interval is that of the mean over seeds (Student's t, 95 %). Finding F1 is micro-F1 of what `rules` finds in both texts.

    python -m bench.graph_matters --seeds 3
"""

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import ray
import typer
from scipy import stats

from bench.ingest import machine
from bench.real_films import PROTOCOL, compared
from jobs.cli import run
from jobs.demo import make_what_r2genkg_needs, study
from r2kg.config.run import Run
from r2kg.graph.film import OTHERS
from r2kg.graph.film.write import FilmSettings, write_film_subgraphs
from r2kg.rundir import read_json
from r2kg.scoring.evaluate import evaluate, read_predictions
from r2kg.scoring.nearest import write_nearest
from shards.session import connect_ray
from shards.sources import open_source
from shards.tars.shards import write_shards
from tune.ablations import find_ablation

ROWS = (
    *("base", "full", "no-graph", "no-bank", "film", "both", "film-words"),
    *("control-empty", "control-edges", "control-features", "control-film"),
)
NEAREST = "nearest report"
METRICS = ("bleu4", "rouge_l", "cider_d", "finding_f1")
WHO = {"score": "ours", "shuffled": "shuffled", "floor": "floor"}


def prepared(root: Path, studies: int) -> Path:
    """Shards and all that the rows need beside them."""
    shards = root / "phantom"
    write_shards(open_source("phantom", studies=studies), shards, size=128, studies_per_shard=64)
    make_what_r2genkg_needs(root, shards)
    side, settings = shards / "side", FilmSettings(nodes=24, triples=48)
    said, seen = side / "annotations-rules", side / "features-classifier"
    write_film_subgraphs(shards, shards / "graph", seen, said, side / OTHERS, settings, of_another=True)
    return shards


def run_of(row: str, seed: int, root: Path, shards: Path, steps: int) -> Run:
    """An ablation with a seed of its own."""
    changes = {"root": str(root), "data.shards": str(shards.resolve()), "train.steps": steps, "train.seed": seed}
    start = {"train.init_from": "demo-classifier@best", "train.init_map": {"head": None}, "name": f"{row}-seed{seed}"}
    return find_ablation(f"ablation:r2genkg.tiny:{row}").change(changes | start)


def values_of(scores: dict[str, Any], predictions: Path) -> dict[str, list[float]]:
    """score, shuffled, floor → the metrics: of the first protocol, and F1 of findings."""
    context = read_json(predictions.with_name("context.json"))
    lines = read_predictions(predictions)
    others = read_predictions(other) if (other := predictions.with_name("shuffled.jsonl")).is_file() else lines
    findings = compared(lines, others, context["floor"][PROTOCOL], context["cleaning"])["finding F1, micro"]
    first = next(iter(scores["protocols"].values()))
    return {
        system: [first[system][name] for name in METRICS[:-1]] + [findings[who]]
        for system, who in WHO.items()
        if first.get(system)
    }


def cell(values: list[float]) -> str:
    """Mean and half the width of its interval over seeds; of one seed the value alone."""
    if len(values) < 2:
        return f"{mean(values):.3f}"
    half = stats.t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return f"{mean(values):.3f} ± {half:.3f}"


def main(
    root: Annotated[Path, typer.Option(help="directory of shards and runs")] = Path("runs/graph-matters"),
    studies: Annotated[int, typer.Option(help="studies to draw")] = 1600,
    steps: Annotated[int, typer.Option(help="optimiser steps of every run")] = 400,
    seeds: Annotated[int, typer.Option(help="runs of each row")] = 3,
    row: Annotated[list[str] | None, typer.Option(help="these rows alone; may be given more than once")] = None,
) -> None:
    """Train what is lacking, and print the table."""
    root.mkdir(parents=True, exist_ok=True)
    connect_ray(root)
    shards, table = prepared(root, studies), dict[str, list[list[float]]]()
    for seed in range(seeds):  # one of each first, so that a table of fewer seeds comes early
        for name in row or ROWS:
            done = root / f"{name}-seed{seed}.json"
            if not done.is_file():
                scores = study(run_of(name, seed, root, shards, steps), shards, 0.0)
                done.write_text(json.dumps(values_of(scores, scores["path"].with_name("predictions.jsonl"))))
            table.setdefault(name, []).append(json.loads(done.read_text())["score"])
            print(
                f"{name}: {', '.join(cell([one[at] for one in table[name]]) for at in range(len(METRICS)))}", flush=True
            )
    predictions = write_nearest(shards, shards / "side" / "features-classifier", root / "nearest")
    copied = values_of(evaluate(predictions), predictions)
    table[NEAREST], table["one report for all"] = [copied["score"]], [copied["floor"]]
    ray.shutdown()
    print(f"{machine()}; {studies} drawn studies, {steps} steps of 16, {seeds} seeds")
    print(f"| row | {' | '.join(METRICS)} |\n|{'---|' * (1 + len(METRICS))}")
    for name, values in table.items():
        print(f"| {name} | {' | '.join(cell([one[at] for one in values]) for at in range(len(METRICS)))} |")


if __name__ == "__main__":
    run(main)
