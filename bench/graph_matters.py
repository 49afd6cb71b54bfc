"""Does the graph matter? A system, what it is built over and its controls on drawn films, over seeds, at equal steps.

Every row is an ablation of `tune/ablations/SYSTEM.py` over SYSTEM.tiny, trained, decoded and scored as any run; of
R2GenKG the last copies the nearest training film's report. All rows begin with the encoder of the classifier that the
bank was cut by, or the knowledge matrix made by, as the papers' have seen films before. What is made stays: the same
command again goes on with what is lacking. A row's interval is that of the mean over seeds (Student's t, 95 %).
Finding F1 is micro-F1 of what `rules` finds in both texts, and not the finding_f1 of the rule labeler in scores.json.

Of VLM-KG the question is whether the film matters beside the report: "llm" is its first stage, which begins every
other row of its seed; black films and withheld reports are the trained model's, decoded again.

    python -m bench.graph_matters --seeds 3
    python -m bench.graph_matters --system cknet --seeds 3
    python -m bench.graph_matters --system vlm_kg --seeds 3
"""

import json
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any, Literal

import ray
import typer
from scipy import stats

from bench.ingest import machine
from bench.real_films import PROTOCOL, compared
from jobs.cli import run
from jobs.demo import study
from r2kg.config.run import Run
from r2kg.graph.film import OTHERS
from r2kg.graph.film.write import FilmSettings, write_film_subgraphs
from r2kg.recipes import find_recipe
from r2kg.rundir import read_json, saved_run
from r2kg.scoring.controls.nearest import write_nearest
from r2kg.scoring.evaluate import evaluate, read_predictions
from r2kg.scoring.generate import generate
from shards.session import connect_ray
from tune import prepare
from tune.ablations import find_ablation

ROWS = {
    "r2genkg": (
        *("base", "full", "no-graph", "no-bank", "film", "both", "film-words"),
        *("control-empty", "control-edges", "control-features", "control-film"),
    ),
    "cknet": ("base", "men", "men-trained", "cmn", "full", "gamma-2", "code", "control-values", "control-other"),
    "vlm_kg": ("llm", "full", "no-film", "frozen", "image-only"),
}
START = {
    "r2genkg": {"train.init_from": "demo-classifier@best", "train.init_map": {"head": None}},
    "cknet": {"train.init_from": "gcn-kg40-train@best", "train.init_map": {"*": None, "vision": "vision"}},
}
"""The encoder that every row begins with."""
NEAREST = "nearest report"
METRICS = {
    "report": ("bleu4", "rouge_l", "cider_d", "finding_f1"),
    "triples": ("triple_f1", "entity_f1", "relation_f1", "bleu4"),
}
SHUFFLED = {"report": ("cider_d", "finding_f1"), "triples": ("triple_f1", "entity_f1")}
"""Those that the table also tells of what is written for other studies' films."""
WITHHELD = {"full": ("film", "report")}
"""Row of VLM-KG → what it is decoded again without."""
WHO = {"score": "ours", "shuffled": "shuffled", "floor": "floor"}


def r2genkg(root: Path, shards: Path) -> None:
    """Graph, classifier, bank, films' own parts of the graph, and another's."""
    prepare.r2genkg(root, shards)
    side, settings = shards / "side", FilmSettings(nodes=24, triples=48)
    said, seen = side / "annotations-rules", side / "features-classifier"
    write_film_subgraphs(shards, shards / "graph", seen, said, side / OTHERS, settings, of_another=True)


def run_of(system: str, row: str, seed: int, root: Path, shards: Path, steps: int) -> Run:
    """An ablation with a seed of its own."""
    changes = {"root": str(root), "data.shards": str(shards.resolve()), "train.steps": steps, "train.seed": seed}
    changes |= START.get(system, {}) | {"name": f"{row}-seed{seed}"}
    if row == "llm":
        return find_recipe("vlm_kg.llm_tiny").change(changes)
    run = find_ablation(f"ablation:{system}.tiny:{row}")
    if system == "vlm_kg":
        changes["train.init_from"] = f"llm-seed{seed}@best"
        changes |= {} if row == "no-film" else {"model.vision.weights": str((root / prepare.ENCODER).resolve())}
    return run.change(changes)


def values_of(scores: dict[str, Any], predictions: Path) -> dict[str, list[float]]:
    """score, shuffled, floor → the metrics: of the first protocol and, for reports, F1 of findings."""
    context = read_json(predictions.with_name("context.json"))
    found = {system: dict(first[system]) for system in WHO if (first := first_of(scores)).get(system)}
    if context["task"] == "report":
        lines = read_predictions(predictions)
        others = read_predictions(other) if (other := predictions.with_name("shuffled.jsonl")).is_file() else lines
        findings = compared(lines, others, context["floor"][PROTOCOL], context["cleaning"])["finding F1, micro"]
        for system, told in found.items():
            told["finding_f1"] = findings[WHO[system]]
    return {system: [told[name] for name in METRICS[context["task"]]] for system, told in found.items()}


def first_of(scores: dict[str, Any]) -> dict[str, Any]:
    """What the first protocol says."""
    return next(iter(scores["protocols"].values()))


def scored(system: str, row: str, seed: int, root: Path, shards: Path, steps: int) -> None:
    """Train and score a row, and leave its values in ROOT/NAME.json; those of what is withheld beside it."""
    run = run_of(system, row, seed, root, shards, steps)
    scores = study(run, shards, 0.0)
    for what in WITHHELD.get(row, ()) if system == "vlm_kg" else ():
        again = generate(saved_run(run.directory).change({"model.decoding.withhold": [what]}), shards)
        values = values_of(evaluate(again), again)
        (root / f"{row}, no {what}-seed{seed}.json").write_text(json.dumps(values))
    values = values_of(scores, scores["path"].with_name("predictions.jsonl"))
    (root / f"{row}-seed{seed}.json").write_text(json.dumps(values))


def cell(values: list[float]) -> str:
    """Mean and half the width of its interval over seeds; of one seed the value alone."""
    if len(values) < 2:
        return f"{mean(values):.3f}"
    half = stats.t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return f"{mean(values):.3f} ± {half:.3f}"


def main(
    system: Annotated[Literal["r2genkg", "cknet", "vlm_kg"], typer.Option(help="whose ablations")] = "r2genkg",
    root: Annotated[Path | None, typer.Option(help="of shards and runs; default: runs/SYSTEM-matters")] = None,
    studies: Annotated[int, typer.Option(help="studies to draw")] = 1600,
    steps: Annotated[int, typer.Option(help="optimiser steps of every run")] = 400,
    seeds: Annotated[int, typer.Option(help="runs of each row")] = 3,
    row: Annotated[list[str] | None, typer.Option(help="these rows alone; may be given more than once")] = None,
) -> None:
    """Train what is lacking, and print the table."""
    root = root or Path("runs") / f"{system}-matters"
    root.mkdir(parents=True, exist_ok=True)
    connect_ray(root)
    shards, table = root / "phantom", dict[str, list[dict[str, list[float]]]]()
    prepare.drawn(shards, studies)
    needs = {"r2genkg": r2genkg, "cknet": partial(prepare.cknet, other=True), "vlm_kg": prepare.vlm_kg}
    needs[system](root, shards)
    task = find_recipe(f"{system}.tiny").model.task
    for seed in range(seeds):  # one of each first, so that a table of fewer seeds comes early
        for name in row or ROWS[system]:
            if not (root / f"{name}-seed{seed}.json").is_file():
                scored(system, name, seed, root, shards, steps)
            for told in (name, *(f"{name}, no {what}" for what in WITHHELD.get(name, ()))):
                if (done := root / f"{told}-seed{seed}.json").is_file():
                    table.setdefault(told, []).append(json.loads(done.read_text()))
                    print(line(told, table[told], task), flush=True)
    (floor,) = {tuple(one["floor"]) for one in table[name]}
    table["one answer for all"] = [{"score": [*floor]}]
    if system == "r2genkg":
        predictions = write_nearest(shards, shards / "side" / "features-classifier", root / "nearest")
        table[NEAREST] = [values_of(evaluate(predictions), predictions)]
    ray.shutdown()
    print(f"{machine()}; {studies} drawn studies, {steps} steps of 16, {seeds} seeds")
    print(f"| row | {' | '.join((*METRICS[task], *(f'{name}, other films' for name in SHUFFLED[task])))} |")
    print(f"|{'---|' * (1 + len(METRICS[task]) + len(SHUFFLED[task]))}")
    for name, values in table.items():
        print(line(name, values, task))


def line(name: str, seeds: list[dict[str, list[float]]], task: str) -> str:
    """A row of the table."""
    cells = [cell([one["score"][at] for one in seeds]) for at in range(len(METRICS[task]))]
    others = [one["shuffled"] for one in seeds if "shuffled" in one]
    cells += [cell([one[METRICS[task].index(metric)] for one in others]) if others else "" for metric in SHUFFLED[task]]
    return f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    run(main)
