"""The demo as a newcomer runs it: the model must read the films, or the numbers mean nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from r2kg.config.protocol import METRICS

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
NAMES = set(METRICS["report"])


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[list[str], Path]:
    root = tmp_path_factory.mktemp("demo")
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    ended = subprocess.run(
        [sys.executable, "-m", "jobs.demo", "--root", str(root)],
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    return ended.stdout.splitlines(), root


def test_the_last_line_names_scores_in_which_films_matter(demo):
    lines, _ = demo
    scores = json.loads(Path(lines[-1]).read_text())
    assert set(scores["protocols"]) == {"r2gen-2020", "full-text"}
    for result in scores["protocols"].values():
        assert all(set(result[system]) == NAMES for system in ("score", "floor", "shuffled"))
        assert result["score"]["bleu4"] > result["floor"]["bleu4"]
        assert result["shuffled"]["bleu4"] < 0.9 * result["score"]["bleu4"]
        assert result["shuffled"]["cider_d"] < 0.7 * result["score"]["cider_d"]
    assert scores["predictions"]["n"] == 240


@pytest.mark.long
def test_with_a_graph_the_demo_ends_with_both_systems_scores(tmp_path):
    """Some eight minutes on two cores: what is made is named, and both systems read their films."""
    ended = subprocess.run(
        [sys.executable, "-m", "jobs.demo", "--root", str(tmp_path), "--system", "r2genkg"],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=1500,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-4000:]
    lines = ended.stdout.splitlines()
    for name in ("demo-r2gengpt", "demo-r2genkg"):
        (path,) = (tmp_path / name / "predictions" / "test").glob("*/scores.json")
        result = json.loads(path.read_text())["protocols"]["full-text"]
        assert result["shuffled"]["cider_d"] < 0.8 * result["score"]["cider_d"], name
    first = json.loads((path.parent / "predictions.jsonl").read_text().splitlines()[0])
    assert path == Path(lines[-1]) and len(first["extra"]["evidence"]["nodes"]) == 5
    assert any("At the same number of steps" in line for line in lines)


def test_a_film_of_ones_own_is_reported_by_the_command_in_the_readme(demo):
    _, root = demo
    (command,) = [line for line in (ROOT / "README.md").read_text().splitlines() if "report runs/demo " in line]
    film = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 240), np.uint8))
    film.save(root / "film.png")
    words = [*command.split()[1:-2], str(root / "demo"), str(root / "film.png")]
    ended = subprocess.run([sys.executable, "-m", "jobs.cli", *words], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0 and len(ended.stdout.split()) > 3, ended.stderr


def test_mlflow_holds_the_run_with_its_losses_and_scores(demo):
    _, root = demo
    client = MlflowClient(tracking_uri=f"sqlite:///{root / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("r2kg").experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["engine.zero"] == "2"
    losses = [metric.value for metric in client.get_metric_history(run.info.run_id, "train/loss")]
    assert losses[-1] < losses[0]
    assert run.data.metrics["test/r2gen-2020/score/bleu4"] > run.data.metrics["test/r2gen-2020/floor/bleu4"]
