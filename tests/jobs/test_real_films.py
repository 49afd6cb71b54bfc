"""Real films and real radiologists' reports through every job, on a part of IU X-Ray."""

import json
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench.real_films import with_graph
from r2kg.config.protocol import METRICS
from r2kg.config.run import Run
from r2kg.modules.config import TinyLm
from r2kg.modules.packaged import TEXT, VISION
from r2kg.recipes import find_recipe
from r2kg.rundir import saved_run
from r2kg.scoring.evaluate import evaluate, read_predictions
from r2kg.scoring.generate import generate
from r2kg.training.features import write_features
from r2kg.training.launch import train
from shards.sources.iu_xray.source import IuXray
from shards.tars.shards import write_shards

WEIGHTS = VISION["tf_efficientnet_lite0"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not find_spec(WEIGHTS.module), reason=f"{WEIGHTS.package} is not installed: no encoder"),
    pytest.mark.skipif("R2KG_REAL_DATA" not in os.environ, reason="R2KG_REAL_DATA is not set: no real films"),
]
PART = {"train": 48, "val": 12, "test": 15}

SMALL = {
    "model.llm.tiny": TinyLm(width=64, layers=1, heads=2, vocabulary=600, epochs=1).model_dump(),
    "train.steps": 6,
    "train.global_batch": 8,
    "train.micro_batch": 4,
    "train.cpus_per_worker": 0.4,
    "train.choose": "loss",
    "model.decoding.max_new_tokens": 24,
}


def small_run(recipe: str, root: Path) -> Run:
    places = {"root": root / "runs", "data.shards": root / "shards", "data.features": root / "features"}
    return find_recipe(recipe).change({"name": "real"} | SMALL | {field: str(at) for field, at in places.items()})


@pytest.fixture(scope="module")
def part(ray_session, tmp_path_factory) -> Path:
    """The first studies of every split, and one whose film is missing."""
    raw, iu = tmp_path_factory.mktemp("iu"), Path(os.environ["R2KG_REAL_DATA"]) / "iu_xray"
    listing = json.loads((iu / "annotation.json").read_text())
    few = {split: listing[split][:count] for split, count in PART.items()}
    few["test"].append(listing["test"][PART["test"]] | {"image_path": ["nowhere/0.jpg", "nowhere/1.jpg"]})
    (raw / "annotation.json").write_text(json.dumps(few))
    (raw / "images").symlink_to(iu / "images")
    return raw


def test_every_real_test_study_is_scored_exactly_once(part, tmp_path):
    manifest = write_shards(IuXray(raw=part), tmp_path / "shards", size=128, studies_per_shard=20)
    assert {split: count.studies for split, count in manifest.splits.items()} == PART
    assert manifest.given == sum(PART.values()) + 1 and manifest.dropped == 1
    run = small_run("r2gengpt.tiny_iu", tmp_path)
    side = write_features(run, manifest, tmp_path / "features")
    assert side.description["width"] == 1280 and side.extent == (2, 49, 1280), "EfficientNet-Lite0's last grid"
    assert train(run)["step"] == 6
    predictions = generate(saved_run(run.directory), tmp_path / "shards")
    ids = [line["id"] for line in read_predictions(predictions)]
    expected = [row["id"] for row in json.loads((part / "annotation.json").read_text())["test"][: PART["test"]]]
    assert sorted(ids) == sorted(expected)
    scores = evaluate(predictions, run.protocols)
    assert scores["predictions"]["n"] == PART["test"]
    for result in scores["protocols"].values():
        for system in ("score", "floor", "shuffled"):
            assert set(result[system]) == set(METRICS["report"])
        assert result["floor"]["bleu4"] > 0.02, "one real report for all must share words with the others"


@pytest.mark.skipif(not find_spec(TEXT["all-minilm-l6-v2"].module), reason="no text encoder: r2kg[weights]")
@pytest.mark.long
@pytest.mark.parametrize("table", [None, "mesh_triples_train.csv"])
def test_real_films_meet_a_graph_of_their_reports_or_of_mesh(part, tmp_path, table):
    manifest = write_shards(IuXray(raw=part), tmp_path / "shards", size=128, studies_per_shard=20)
    run = small_run("r2genkg.tiny_iu", tmp_path).change({"train.steps": 2, "model.graph.sizes": [5, 10, 20]})
    write_features(run, manifest, tmp_path / "features")
    mesh = Path(os.environ["R2KG_REAL_DATA"]) / "iu_xray" / table if table else None
    run = with_graph(run, manifest, tmp_path / "features", tmp_path, mesh)
    assert run.model.graph.source == ("levels" if table else "both")
    assert train(run)["step"] == 2
    lines = read_predictions(generate(saved_run(run.directory), tmp_path / "shards"))
    assert len(lines) == PART["test"] and all(line["extra"]["evidence"]["nodes"] for line in lines)
