"""Does a small run read real films? tiny_iu on IU X-Ray in R2Gen's form, from raw films to findings that reports name.

Beside every figure of the run stand two controls that cannot have looked: the reports that the run wrote about other
studies' films, and the one training report that scores best on validation, given to all. A difference is told with its
95 % interval over test studies that are drawn with replacement, both sides of a pair together. Findings are disorders
and devices that the rules extractor takes from a text as present or uncertain: all names of its lexicon, not the
observations of the rule labeler in scores.json.

With --probes it is told where the films' content is lost: how well a linear model tells the findings (AUROC) from the
encoder's features, from the soft tokens that the language model is shown, and from its own last state before it writes.

    python -m bench.real_films IU_XRAY --root runs/real-films --seeds 42,43
    python -m bench.real_films IU_XRAY --root runs/real-films --recipe r2genkg.tiny_iu
    python -m bench.real_films IU_XRAY --root runs/real-films --recipe r2genkg.tiny_iu --graph-table mesh.csv

A recipe with a graph gets it made: of the training reports by the rules, with a part of it for every film; or of a
table of MeSH codes (`bench.mesh`). Nobody can tell from a table whose reports speak in it, and no film's part is made
of it: there levels alone are shown.
"""

import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bench.mesh import write_published
from jobs.cli import run as run_job
from jobs.train import resolve
from r2kg.config.protocol import protocol_named
from r2kg.config.run import Run
from r2kg.graph.build.published import read_published
from r2kg.graph.build.reports import build_graph
from r2kg.graph.card import card_lines
from r2kg.graph.extract.annotate import write_annotations
from r2kg.graph.extract.rules import Rules
from r2kg.graph.film import FILMS
from r2kg.graph.film.write import FilmSettings, write_film_subgraphs
from r2kg.rundir import read_json, saved_run
from r2kg.scoring.choose import train
from r2kg.scoring.evaluate import read_predictions
from r2kg.scoring.generate import generate
from r2kg.scoring.metrics.nlg import cider_d
from r2kg.training.artefacts import trained_model
from r2kg.training.checkpoint import find_checkpoint
from r2kg.training.features import NAME, write_features
from shards.session import connect_ray
from shards.sources.iu_xray.source import IuXray
from shards.stream.blocks import micro_batches, read_block
from shards.stream.index import Index
from shards.stream.order import sequential_blocks
from shards.stream.side import Side
from shards.tars.format import Manifest, read_manifest
from shards.tars.shards import write_shards

KINDS = {"disorder", "device"}
"""What counts as a finding of the rules extractor's entities."""
LEAST = 5
"""References that name a finding for it to count in macro-F1 and in probes."""
DRAWS = 5000
PROTOCOL = "full-text"
Counts = NDArray[np.int64]
"""[studies, findings, 3]: named by both, by the report, by the reference."""


def findings_in(texts: Sequence[str]) -> list[set[str]]:
    """Names of the disorders and devices that each text has present or uncertain."""
    return [
        {entity.name for entity in annotation.entities if entity.kind in KINDS and entity.certainty != "absent"}
        for annotation in Rules().annotate(texts)
    ]


def counts(said: Sequence[set[str]], wanted: Sequence[set[str]], names: Sequence[str]) -> Counts:
    """What F1 is made of, by study and finding."""
    here, there = (np.array([[name in found for name in names] for found in side]) for side in (said, wanted))
    return np.stack((here & there, here, there), axis=-1).astype(np.int64)


def micro_f1(summed: NDArray[Any]) -> NDArray[Any]:
    """F1 over all findings from counts that are summed over studies, [..., findings, 3] → [...]."""
    both, here, there = np.moveaxis(summed.sum(-2), -1, 0)
    return 2 * both / np.maximum(1, here + there)


def macro_f1(summed: NDArray[Any], common: NDArray[np.bool_]) -> NDArray[Any]:
    """The mean of the commoner findings' own F1, [..., findings, 3] → [...]."""
    both, here, there = np.moveaxis(summed[..., common, :], -1, 0)
    return (2 * both / np.maximum(1, here + there)).mean(-1)


def compared(lines: list[dict], shuffled: list[dict], floor: str, cleaning: str) -> dict[str, dict[str, Any]]:
    """Metric → ours, of both controls, and the intervals of the differences."""
    protocol = protocol_named(PROTOCOL)
    references = [protocol.reference(line) for line in lines]
    wanted, other = findings_in(references), {line["id"]: line["prediction"] for line in shuffled}
    texts = {
        "ours": [line["prediction"] for line in lines],
        "shuffled": [other[line["id"]] for line in lines],
        "floor": [floor] * len(lines),
    }
    written = {
        who: [protocol.hypothesis({"prediction": text}, cleaning) for text in told] for who, told in texts.items()
    }
    said = {who: findings_in(told) for who, told in written.items()}
    names = sorted(set[str]().union(*wanted, *(found for each in said.values() for found in each)))
    tables = {who: counts(each, wanted, names) for who, each in said.items()}
    common = tables["ours"][..., 2].sum(0) >= LEAST
    cider = {who: cider_d(references, told) for who, told in written.items()}
    weights = np.random.default_rng(0).multinomial(len(lines), np.full(len(lines), 1 / len(lines)), DRAWS)  # [draws, n]
    drawn = {who: np.tensordot(weights, table, axes=1) for who, table in tables.items()}  # [draws, findings, 3]
    samples = {
        "finding F1, micro": {who: (micro_f1(t.sum(0)), micro_f1(drawn[who])) for who, t in tables.items()},
        f"finding F1, macro over {common.sum()}": {
            who: (macro_f1(t.sum(0), common), macro_f1(drawn[who], common)) for who, t in tables.items()
        },
        "CIDEr-D": {who: (each.mean(), weights @ each / len(lines)) for who, each in cider.items()},
    }
    return {metric: _with_intervals(sides) for metric, sides in samples.items()} | {
        "findings a report": {who: float(t[..., 1].sum(1).mean()) for who, t in tables.items()}
        | {"references": float(tables["ours"][..., 2].sum(1).mean())},
        "different reports": {"ours": len(set(written["ours"])) / len(lines)},
    }


def _with_intervals(sides: dict[str, tuple[Any, NDArray[Any]]]) -> dict[str, Any]:
    told: dict[str, Any] = {who: float(value) for who, (value, _) in sides.items()}
    for control in ("shuffled", "floor"):
        low, high = np.percentile(sides["ours"][1] - sides[control][1], (2.5, 97.5))
        told[f"above {control}"] = [float(low), float(high)]
    return told


def probed(run: Run, checkpoint: Path) -> dict[str, dict[str, float]]:
    """Place in the model → mean AUROC over test studies of a ridge that is fitted on training studies.

    Shapes of what is probed, a study each: features [D_v], soft tokens [D_l], both the mean over what is there; the
    language model's last state at the end of the prompt [D_l], from which it writes its first word.
    """
    model: Any = trained_model(run, checkpoint, "cpu")
    manifest, seen, wanted = read_manifest(run.data.shards), dict[str, dict[str, Any]](), dict[str, list[set[str]]]()
    for split in ("train", "test"):
        index = Index.open(run.data.shards, split)
        size, targets = run.train.micro_batch, list[str]()
        places: dict[str, list[torch.Tensor]] = {"encoder": [], "soft tokens": [], "language model": []}
        side = {"features": Side.open(run.data.features, index, manifest, "features")}
        for block in sequential_blocks(len(index), 1, size, 8 * size):
            for rows in micro_batches(read_block(index, block, None, run.data.views, "fail", side), size):
                real = torch.tensor(rows["index"] >= 0)
                targets += [json.loads(record)["target"] for record in rows["record"][real.numpy()]]
                batch = model.collate(rows)
                with torch.inference_mode():
                    films, _ = model.vision.merge(batch["features"].float(), batch["view_mask"])
                    soft, present = model.soft_tokens(batch)
                    prompt, mask = model.writer.prompt(soft), model.writer.prompt_mask(soft, present)
                    states = model.writer.llm(inputs_embeds=prompt, attention_mask=mask, output_hidden_states=True)
                for place, tokens in zip(
                    places, (films.mean(1), soft.mean(1), states.hidden_states[-1][:, -1]), strict=True
                ):
                    places[place].append(tokens.float()[real])
        seen[split] = {place: torch.cat(parts).numpy() for place, parts in places.items()}
        wanted[split] = findings_in(targets)
    told = Counter(name for found in wanted["test"] for name in found)
    names = sorted(name for name, count in told.items() if count >= LEAST)
    truth = {split: np.array([[name in found for name in names] for found in wanted[split]], float) for split in wanted}
    result = dict[str, dict[str, float]]()
    for place, values in seen["train"].items():
        probe = make_pipeline(StandardScaler(), Ridge(alpha=10.0 * len(values[0]))).fit(values, truth["train"])
        scores = probe.predict(seen["test"][place])
        areas = {name: float(roc_auc_score(truth["test"][:, at], scores[:, at])) for at, name in enumerate(names)}
        result[place] = {"mean": float(np.mean(list(areas.values())))} | areas
    return result


def with_graph(run: Run, manifest: Manifest, features: Path, root: Path, table: Path | None) -> Run:
    """The run with a graph of its shards, and parts of it for their films; or with levels of a table's graph alone."""
    shards, place = Path(run.data.shards), root / ("graph-of-table" if table else "graph")
    if table:
        print(f"{table.name}: {write_published(table, root / 'published.csv')}")
        graph = read_published(root / "published.csv", place, manifest.licence)
        run = run.change({"model.graph.source": "levels"})
    else:
        said, films = shards / "side" / "annotations-rules", shards / "side" / FILMS
        write_annotations(shards, said, Rules())
        graph = build_graph(shards, said, place)
        write_film_subgraphs(shards, place, features, said, films, FilmSettings(nodes=24, triples=48))
    print("\n".join(card_lines(graph)))
    return run.change({"model.graph.place": str(place)})


def one_run(run: Run, probes: bool) -> dict[str, Any]:
    """Train, write, score; what came out, with the seconds of each."""
    seconds, at = dict[str, float](), time.monotonic()

    def clocked(step: str) -> None:
        nonlocal at
        seconds[step], at = time.monotonic() - at, time.monotonic()

    train(run)
    clocked("train")
    run = saved_run(run.absolute().directory)
    predictions = generate(run, run.data.shards)
    clocked("generate")
    context = read_json(predictions.with_name("context.json"))
    lines, shuffled = (read_predictions(predictions.with_name(f"{name}.jsonl")) for name in ("predictions", "shuffled"))
    told = {"scores": compared(lines, shuffled, context["floor"][PROTOCOL], context["cleaning"])}
    clocked("scores")
    if probes:
        told["probes"] = probed(run, find_checkpoint(run.directory, "best"))
        clocked("probes")
    return told | {"seconds": seconds}


def show(told: dict[str, Any]) -> None:
    """A line a metric: figures only, no text of a report."""
    for metric, values in told["scores"].items():
        figures = [
            f"{who} [{value[0]:+.3f}, {value[1]:+.3f}]" if isinstance(value, list) else f"{who} {value:.3f}"
            for who, value in values.items()
        ]
        print(f"{metric}: {', '.join(figures)}")
    for place, areas in told.get("probes", {}).items():
        print(f"AUROC, {place}: " + ", ".join(f"{name} {area:.2f}" for name, area in areas.items()))
    print("seconds: " + ", ".join(f"{step} {value:.0f}" for step, value in told["seconds"].items()))


def main(
    raw: Annotated[Path, typer.Argument(help="IU X-Ray in R2Gen's form, or its annotation.json beside images/")],
    root: Annotated[Path, typer.Option(help="where shards, features and runs are kept")] = Path("runs/real-films"),
    seeds: Annotated[str, typer.Option(help="seeds of the runs, with commas")] = "42",
    probes: Annotated[bool, typer.Option(help="also tell where the films' content is lost")] = False,
    recipe: Annotated[str, typer.Option(help="of real films; r2genkg.tiny_iu: with a graph")] = "r2gengpt.tiny_iu",
    graph_table: Annotated[
        Path | None, typer.Option(help="CSV of MeSH triples (head, relation, tail, count) in place of the rules' graph")
    ] = None,
    change: Annotated[list[str] | None, typer.Option(help="key=value of the recipe, any number")] = None,
) -> None:
    """Everything from raw films to figures; whole steps are kept, so that a second call goes on."""
    root, start = root.resolve(), time.monotonic()
    shards = root / "shards"
    run = resolve(recipe, change or []).change({"root": str(root / "runs"), "data.shards": str(shards)})
    connect_ray(root)
    manifest = write_shards(IuXray(raw=raw.resolve()), shards, size=256)
    features = shards / "side" / NAME.format(run.model.vision.name)
    write_features(run, manifest, features)
    print(
        f"{manifest.splits['train'].studies} training studies, {manifest.splits['test'].studies} to test; shards and "
        f"features took {time.monotonic() - start:.0f} s"
    )
    kind = "" if recipe == "r2gengpt.tiny_iu" else f"{recipe}{'-table' if graph_table else ''}-".replace(".", "-")
    if graph_table or getattr(run.model, "graph", None):
        began = time.monotonic()
        run = with_graph(run, manifest, features, root, graph_table)
        print(f"The graph and what is made of it took {time.monotonic() - began:.0f} s")
    results = dict[str, Any]()
    for seed in map(int, seeds.split(",")):
        name = f"{kind}seed-{seed}"
        changed = {"name": name, "train.seed": seed, "data.features": str(features)}
        results[name] = one_run(run.change(changed), probes)
        print(f"{name}:")
        show(results[name])
    (root / f"{kind}figures.json").write_text(json.dumps(results, indent=1))
    print(root / f"{kind}figures.json")


if __name__ == "__main__":
    run_job(main)
