"""CKNet from films to reports: the matrix taken, two workers, ZeRO-2 and 3, a killed worker, and its ablations."""

import json
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from r2kg.graph.matrix.artefact import MatrixManifest, save_matrix
from r2kg.recipes import find_recipe
from r2kg.rundir import saved_run
from r2kg.scoring.evaluate import read_predictions
from r2kg.scoring.generate import generate
from r2kg.scoring.pages.pictures import draw_taken
from r2kg.tracking import track_pictures, tracking_uri
from r2kg.training.checkpoint import newest_checkpoint, read_tensors
from r2kg.training.launch import train
from shards.errors import DataError
from shards.tars.format import read_manifest
from tests.r2kg.killing import train_killed
from tune.ablations import find_ablation

NODES = ("cardiomegaly", "pleural effusion", "pneumothorax", "opacity", "edema", "fracture", "nodule", "normal", "scar")
SMALL = {
    "model.vision.image_px": 32,
    "model.vision.augment": {"resize_px": 36, "flip": 0.5},
    "model.transformer.width": 32,
    "model.transformer.hidden": 32,
    "model.transformer.layers": 1,
    "model.decoding.max_new_tokens": 8,
    "model.decoding.beams": 2,
    "train.steps": 6,
    "train.global_batch": 8,
    "train.micro_batch": 2,
    "train.cpus_per_worker": 0.4,
    "train.checkpoint_every": 2,
    "train.validation_studies": 6,
}


@pytest.fixture(scope="module")
def matrix(phantom_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A knowledge matrix of the shards."""
    place, manifest = tmp_path_factory.mktemp("matrix"), read_manifest(phantom_shards)
    told = MatrixManifest(
        licence=manifest.licence, parent=manifest.fingerprint, graph="0" * 64, nodes=NODES, description={}
    )
    save_matrix(place, told, np.random.default_rng(0).normal(size=(len(NODES), 24)))
    return place


def changes(shards: Path, root: Path, matrix: Path, **more) -> dict:
    base = {"data.shards": str(shards), "root": str(root), "model.knowledge.place": str(matrix)}
    return base | SMALL | more


@pytest.fixture(scope="module")
def undisturbed(phantom_shards, matrix, tmp_path_factory):
    run = find_recipe("cknet.tiny").change(changes(phantom_shards, tmp_path_factory.mktemp("runs"), matrix))
    assert train(run)["step"] == 6
    return run


@pytest.mark.slow
def test_reports_are_written_with_the_matrix(phantom_shards, undisturbed):
    saved = saved_run(undisturbed.directory)
    state = json.loads((newest_checkpoint(undisturbed.directory) / "state.json").read_text())
    assert set(state["artefacts"]) == {"words", "knowledge"} and set(state["frozen"]) == {
        "vision",
        "words",
        "knowledge",
    }
    written = generate(saved, phantom_shards, "test")
    predictions = read_predictions(written)
    assert len(predictions) == read_manifest(phantom_shards).splits["test"].studies
    for line in predictions:
        assert all({name for name, _ in told} <= {*NODES} for told in line["extra"]["knowledge"].values())
    key = predictions[1]["key"]
    (picture,) = draw_taken(written, [key], nodes=3)
    with Image.open(picture) as drawn:
        assert drawn.format == "PNG" and np.asarray(drawn.convert("L")).std() > 10
    assert picture.name == f"{key}.png" and "holds all records" in track_pictures(written, [picture])
    client = MlflowClient(tracking_uri(saved))
    (run,) = client.search_runs([client.get_experiment_by_name("r2kg").experiment_id])
    kept = client.list_artifacts(run.info.run_id, picture.parent.relative_to(saved.directory).as_posix())
    assert [Path(one.path).name for one in kept] == [picture.name]
    with pytest.raises(DataError, match="no study 'nobody'"):
        draw_taken(written, ["nobody"])
    context = json.loads(written.with_name("context.json").read_text())
    written.with_name("context.json").write_text(json.dumps(context | {"licence": "physionet-credentialed-1.5.0"}))
    assert "MLflow gets none of these" in track_pictures(written, [picture])


@pytest.mark.slow
def test_a_killed_worker_costs_nothing_with_augmented_films(undisturbed):
    killed = undisturbed.change({"name": "killed"})
    train_killed(killed, 2)
    ours, theirs = (read_tensors(newest_checkpoint(run.directory)) for run in (killed, undisturbed))
    assert ours.keys() == theirs.keys()
    worst = max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)
    assert worst == 0.0, worst


@pytest.mark.long
@pytest.mark.slow
def test_a_trained_memory_learns_at_zero_3_as_at_zero_2(phantom_shards, matrix, tmp_path):
    """R2GenCMN's memory, which is a parameter: the same weights, whether they are sharded or not."""
    found = {}
    for zero in (2, 3):
        run = find_ablation("ablation:cknet.tiny:cmn").change(
            changes(phantom_shards, tmp_path, matrix, name=f"zero-{zero}")
            | {"engine.zero": zero, "train.steps": 2, "model.knowledge.place": "", "model.knowledge.rows": 48}
        )
        assert train(run)["step"] == 2
        found[zero] = read_tensors(newest_checkpoint(run.directory))
    assert found[2]["knowledge.matrix"].shape == (48, 512)
    for name, values in found[2].items():
        np.testing.assert_allclose(found[3][name].float(), values.float(), atol=1e-5, err_msg=name)
    assert read_predictions(generate(saved_run(run.directory), phantom_shards, "test"))


@pytest.mark.slow
def test_reports_are_written_as_by_the_released_code(phantom_shards, tmp_path):
    """What it draws anew in training stays the same in inference, else a writer would refuse the checkpoint."""
    small = {name: value for name, value in SMALL.items() if name != "model.transformer.width"}
    base = {"data.shards": str(phantom_shards), "root": str(tmp_path), "train.steps": 2}
    run = find_ablation("ablation:cknet.tiny:code").change(small | base)
    assert train(run)["step"] == 2
    state = json.loads((newest_checkpoint(run.directory) / "state.json").read_text())
    assert "released" in state["frozen"]
    assert read_predictions(generate(saved_run(run.directory), phantom_shards, "test"))


@pytest.mark.long
@pytest.mark.slow
def test_a_language_model_asks_the_matrix_at_zero_3(phantom_shards, matrix, tmp_path):
    lm = {"width": 32, "layers": 1, "heads": 2, "vocabulary": 400, "epochs": 1}
    small = {name: value for name, value in SMALL.items() if not name.startswith("model.transformer")}
    more = {"engine.zero": 3, "train.steps": 2, "model.llm.tiny": lm, "model.width": 32}
    base = {"data.shards": str(phantom_shards), "root": str(tmp_path), "model.knowledge.place": str(matrix)}
    run = find_recipe("cknet.llm_tiny").change(base | small | more)
    assert train(run)["step"] == 2
    kept = read_tensors(newest_checkpoint(run.directory))
    assert any("embed_tokens.up.weight" in name for name in kept) and "knowledge.matrix" not in kept
    predictions = read_predictions(generate(saved_run(run.directory), phantom_shards, "test"))
    assert all({name for name, _ in line["extra"]["knowledge"]["film"]} <= {*NODES} for line in predictions)
