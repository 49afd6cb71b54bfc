"""R2GenKG from films to reports: graph and films' parts made, two workers, ZeRO-2 and 3, and what is refused before."""

import json
from pathlib import Path

import pytest

from r2kg.graph.build.reports import build_graph
from r2kg.graph.extract.annotate import write_annotations
from r2kg.graph.extract.rules import Rules
from r2kg.graph.levels import read_levels
from r2kg.recipes import find_recipe
from r2kg.recipes.classifier import DRAWN
from r2kg.rundir import saved_run
from r2kg.scoring.evaluate import read_predictions
from r2kg.scoring.generate import generate
from r2kg.training.artefacts import prepared
from r2kg.training.launch import train
from shards.errors import ConfigError, DataError
from shards.stream.index import read_studies
from shards.tars.format import read_manifest

SMALL = {
    "model.llm.tiny": {"width": 32, "layers": 1, "heads": 2, "vocabulary": 400, "epochs": 1},
    "model.vision.image_px": 32,
    "model.graph.width": 32,
    "model.graph.sizes": [10, 20, 30],
    "model.graph.places": 64,
    "model.decoding.max_new_tokens": 8,
    "model.decoding.beams": 1,
    "train.steps": 3,
    "train.global_batch": 8,
    "train.micro_batch": 2,
    "train.cpus_per_worker": 0.4,
    "train.checkpoint_every": 3,
    "train.validation_studies": 6,
}


def recipe(shards: Path, beside: Path, root: Path, **changes):
    base = {"data.shards": str(shards), "root": str(root), "model.graph.place": str(beside / "graph")}
    base |= {"model.queries.bank.place": str(beside / "bank")}
    return find_recipe("r2genkg.tiny").change(base | SMALL | changes)


@pytest.mark.slow
@pytest.mark.parametrize(("zero", "source"), [(2, "levels"), (3, "both")])
def test_reports_are_written_with_the_graph(phantom_shards, beside, tmp_path, zero, source):
    sides = {"film_subgraphs": str(beside / "films")} if source == "both" else {}
    changes = {"engine.zero": zero, "model.graph.source": source, "data.sides": sides}
    run = recipe(phantom_shards, beside, tmp_path, **changes)
    assert train(run)["step"] == 3
    saved = saved_run(run.directory)
    assert Path(saved.model.graph.levels_at).is_dir() and not saved.model.graph.levels_at.startswith(str(beside))
    state = json.loads((next((run.directory / "checkpoints").glob("step-*")) / "state.json").read_text())
    assert set(state["artefacts"]) == {"tiny-lm", "graph", "bank"} and set(state["sides"]) == set(sides)
    predictions = read_predictions(generate(saved, phantom_shards, "test"))
    assert len(predictions) == read_manifest(phantom_shards).splits["test"].studies
    names = set(read_levels(Path(saved.model.graph.levels_at)).names)
    training = {study.key for study in read_studies(phantom_shards, "train")}
    for line in predictions:
        evidence = line["extra"]["evidence"]
        assert len(evidence["nodes"]) == len(evidence["bank"]) == 5
        assert all(name in names and set(studies) <= training for name, _, studies in evidence["nodes"])
        assert all(finding in DRAWN and study in training for finding, study, _ in evidence["bank"])


def test_a_bank_of_another_width_is_refused_before_anything_is_made(phantom_shards, beside, tmp_path):
    run = recipe(phantom_shards, beside, tmp_path).change({"model.queries.width": 32})
    with pytest.raises(ConfigError, match="have 64 channels, model.queries.width=32: make them equal"):
        prepared(run, read_manifest(phantom_shards))
    assert not (tmp_path / "artefacts").exists()


def test_a_graph_that_is_not_the_runs_is_refused_before_any_worker(phantom_shards, beside, tmp_path):
    manifest = read_manifest(phantom_shards)
    with pytest.raises(DataError, match="no graph at .*make it with `r2kg graph build SHARDS`"):
        prepared(recipe(phantom_shards, tmp_path, tmp_path), manifest)
    write_annotations(phantom_shards, tmp_path / "all", Rules(), splits=("train", "val", "test"))
    build_graph(phantom_shards, tmp_path / "all", tmp_path / "graph", force=True)
    with pytest.raises(DataError, match="statements in the graph are of studies outside the training split"):
        prepared(recipe(phantom_shards, tmp_path, tmp_path), manifest)
    other = recipe(phantom_shards, beside, tmp_path).change({"model.graph.source": "film"})
    build_graph(phantom_shards, beside / "said", tmp_path / "other", force=False)
    with pytest.raises(DataError, match="no side at"):
        prepared(other, manifest)
