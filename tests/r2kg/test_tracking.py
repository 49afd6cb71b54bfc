"""Records reach a real MLflow, and wait beside the run while there is none."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import pytest
from mlflow import MlflowClient

import r2kg
from jobs.track import main as track
from r2kg.config.run import Run
from r2kg.tracking import Tracker, close_run, track_scores, tracking_note, tracking_uri

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path, monkeypatch) -> Run:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    made = Run(name="a-run", root=str(tmp_path), tracking={"parent": "table-1"})
    made.directory.mkdir()
    return made


def history(run: Run, uri: str, metric: str) -> list[tuple[int, float]]:
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(run.tracking.experiment)
    (found,) = client.search_runs([experiment.experiment_id], "tags.`mlflow.runName` = 'a-run'")
    return [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, metric)]


def test_one_mlflow_run_under_its_parent_however_often_it_is_continued(run):
    for step in (1, 2):
        tracker = Tracker(run)
        tracker.log(step, **{"train.loss": 1.0 / step})
        assert tracker.close() == 0
        assert "holds all records" in tracking_note(0, tracker)
    uri = tracking_uri(run)
    assert history(run, uri, "train/loss") == [(1, 1.0), (2, 0.5)]
    client = MlflowClient(tracking_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name("r2kg").experiment_id])
    child = next(found for found in runs if found.data.tags["mlflow.runName"] == "a-run")
    parent = next(found for found in runs if found.data.tags["mlflow.runName"] == "table-1")
    assert len(runs) == 2 and child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.params["train.seed"] == "42" and child.info.status == "FINISHED"


def status(run: Run, uri: str = "") -> list[str]:
    """Of every MLflow run of its name."""
    client = MlflowClient(tracking_uri=uri or tracking_uri(run))
    experiment = client.get_experiment_by_name(run.tracking.experiment)
    found = client.search_runs([experiment.experiment_id], "tags.`mlflow.runName` = 'a-run'")
    return [one.info.status for one in found]


def test_what_a_run_was_made_with_and_its_files_are_in_mlflow(run):
    run.save(run.directory / "run.json")
    scored = run.directory / "predictions" / "test" / "step-9"
    scored.mkdir(parents=True)
    (scored / "context.json").write_text(json.dumps({"step": 9, "split": "test"}))
    (scored / "scores.json").write_text("{}")
    tracker = Tracker(run, running=True)
    tracker.say("It was begun.")
    tracker.close("FINISHED")
    scores = {"protocols": {"full-text": {"score": {"bleu4": 0.5}, "floor": None, "shuffled": None}}}
    assert "holds all records" in track_scores(scored / "predictions.jsonl", scores)
    client = MlflowClient(tracking_uri=tracking_uri(run))
    experiment = client.get_experiment_by_name("r2kg")
    (found,) = client.search_runs([experiment.experiment_id], "tags.`mlflow.runName` = 'a-run'")
    assert found.data.tags["version.torch"] == version("torch") and found.data.tags["version.r2kg"] == r2kg.__version__
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert found.data.tags.get("mlflow.source.git.commit", "") == commit
    assert {file.path for file in client.list_artifacts(found.info.run_id)} == {"run.json", "log.txt", "predictions"}
    kept = client.download_artifacts(found.info.run_id, "predictions/test/step-9/scores.json")
    assert Path(kept).read_text() == "{}"
    assert "test/full-text/score/bleu4" not in found.data.metrics, "the context names another decoding"
    assert found.data.metrics["test/step-9/full-text/score/bleu4"] == 0.5
    assert found.info.artifact_uri.startswith((run.directory.parent / "mlartifacts").as_uri())


def test_what_mlflow_takes_as_no_name_keeps_no_record_back(run):
    begun = run.change({"train.init_from": "stage-1@best", "train.init_map": {"*": None, "häd": "head"}})
    tracker = Tracker(begun, running=True)
    tracker.log(1, loss=1.0)
    assert "holds all records" in tracking_note(tracker.close("FINISHED"), tracker)
    client = MlflowClient(tracking_uri=tracking_uri(run))
    experiment = client.get_experiment_by_name("r2kg")
    (found,) = client.search_runs([experiment.experiment_id], "tags.`mlflow.runName` = 'a-run'")
    told = {key: value for key, value in found.data.params.items() if "init_map" in key}
    assert told == {"train.init_map._": "None", "train.init_map.h_d": "head"}


def test_a_continued_run_says_with_what_it_goes_on(run):
    for rate in (1e-4, 2e-4, 1e-4):
        Tracker(run.change({"optim.lr": rate}), running=True).close("FINISHED")
        client = MlflowClient(tracking_uri=tracking_uri(run))
        experiment = client.get_experiment_by_name("r2kg")
        (found,) = client.search_runs([experiment.experiment_id], "tags.`mlflow.runName` = 'a-run'")
        assert found.data.params["optim.lr"] == "0.0001"
        now = {key: value for key, value in found.data.tags.items() if key.startswith("now.")}
        assert now == ({"now.optim.lr": str(rate)} if rate > 1e-4 or "now.optim.lr" in now else {})
    assert now == {"now.optim.lr": "0.0001"}


def test_records_that_are_sent_later_say_with_what_they_were_made(run, monkeypatch, tmp_path):
    """Not the versions of whoever sends them."""
    monkeypatch.setenv("R2KG_COMMIT", "a" * 40)
    Tracker(run.change({"tracking.uri": f"sqlite:///{tmp_path}/nowhere/mlflow.db"}), running=True).close(patience=3.0)
    monkeypatch.setenv("R2KG_COMMIT", "b" * 40)
    Tracker(run).close("FINISHED")
    client = MlflowClient(tracking_uri=tracking_uri(run))
    (found,) = client.search_runs([client.get_experiment_by_name("r2kg").experiment_id], "tags.recipe = ''")
    assert found.data.tags["git"] == "a" * 40 == found.data.tags["mlflow.source.git.commit"]
    Tracker(run, running=True).close("FINISHED")
    assert client.get_run(found.info.run_id).data.tags["now.git"] == "b" * 40


def test_artefacts_that_did_not_arrive_are_named(run, monkeypatch):
    def refused(*_):
        raise PermissionError("no credentials")

    run.save(run.directory / "run.json")
    monkeypatch.setattr(MlflowClient, "log_artifact", refused)
    tracker = Tracker(run, running=True)
    tracker.log(1, loss=1.0)
    note = tracking_note(tracker.close("FINISHED"), tracker)
    assert "holds all records of a-run, and not its artefacts run.json (PermissionError: no credentials)" in note


def test_an_mlflow_run_that_was_made_but_not_finished_making_is_gone_on_with(run, monkeypatch):
    monkeypatch.setattr("r2kg.tracking.RETRY_SECONDS", 0.1)
    real, calls = MlflowClient.log_batch, []

    def breaks(self, *arguments, **named):
        calls.append(1)
        if len(calls) < 3:
            raise ConnectionError("the server went away")
        return real(self, *arguments, **named)

    monkeypatch.setattr(MlflowClient, "log_batch", breaks)
    tracker = Tracker(run)
    tracker.log(1, loss=1.0)
    for _ in range(600):
        if not tracker.unsent():
            break
        time.sleep(0.1)
    assert tracker.close() == 0 and len(calls) > 3
    assert status(run) == ["FINISHED"] and history(run, tracking_uri(run), "loss") == [(1, 1.0)]


def test_an_mlflow_run_has_the_status_that_training_has(run):
    tracker = Tracker(run, running=True)
    tracker.log(1, loss=1.0)
    for _ in range(600):
        if not tracker.unsent():
            break
        time.sleep(0.1)
    assert status(run) == ["RUNNING"]
    tracker.close(patience=0)  # a worker that is lost ends nothing
    assert "holds all records" in close_run(run, "KILLED")
    assert status(run) == ["KILLED"]
    scores = Tracker(run)
    scores.log(1, bleu=0.5)
    assert scores.close() == 0 and status(run) == ["KILLED"]
    again = Tracker(run, running=True)
    again.log(2, loss=0.5)
    assert again.close("FINISHED") == 0 and status(run) == ["FINISHED"]
    assert close_run(run, "FAILED") == "" and status(run) == ["FINISHED"], "it was not under way"


def test_a_run_that_has_ended_is_sent_to_another_server_and_none_has_anything_twice(run, tmp_path, capsys):
    tracker = Tracker(run)
    for step in range(3):
        tracker.log(step, loss=float(step))
    assert tracker.close("FINISHED") == 0
    run.save(run.directory / "run.json")
    with run.directory.joinpath("metrics.jsonl").open("a") as records:
        records.write('{"step": 9, "time_')  # a kill cut it
    for uri in (f"sqlite:///{tmp_path / 'other.db'}", tracking_uri(run)):
        track(run.directory, uri, 90.0)
        assert "holds all records of a-run" in capsys.readouterr().out
        assert status(run, uri) == ["FINISHED"] and [step for step, _ in history(run, uri, "loss")] == [0, 1, 2]


def test_a_torn_record_costs_no_other(run):
    """Of a worker that was lost sight of and wrote on, or of a file system that lost a block."""
    tracker = Tracker(run)
    tracker.log(1, loss=1.0)
    with run.directory.joinpath("metrics.jsonl").open("a") as records:
        records.write('{"step": 2, "metr\n[]\n\0\0\n{"step": 2}\n')
    tracker.log(3, loss=3.0)
    other = Tracker(run)  # `r2kg track` while training goes on: it takes nothing away
    tracker.log(4, loss=4.0)
    other.close()
    assert tracker.close("FINISHED") == 0, tracker.problem
    assert history(run, tracking_uri(run), "loss") == [(1, 1.0), (3, 3.0), (4, 4.0)]


def test_an_error_that_says_nothing_does_not_end_the_sending(run, monkeypatch):
    told = []

    def forward(tracker, ending):
        told.append(ending)
        raise RuntimeError

    monkeypatch.setattr(Tracker, "_forward", forward)
    tracker = Tracker(run)
    tracker.log(1, loss=1.0)
    assert tracker.close(patience=5) == 1 and told == [True]
    assert "RuntimeError" in tracking_note(1, tracker)


def test_a_damaged_cursor_hides_no_error(run):
    run.directory.joinpath("mlflow.json").write_text("{")
    assert close_run(run, "FAILED") == ""


def test_every_record_that_waits_is_counted(run):
    tracker = Tracker(run.change({"tracking.uri": "http://127.0.0.1:9"}))
    for step in range(1203):
        tracker.log(step, loss=1.0)
    assert tracker.unsent() == 1203
    tracker.close(patience=0)


@pytest.mark.slow
def test_a_kill_while_mlflow_makes_its_file_leaves_a_file_that_works_or_none(run):
    """MLflow builds its tables in many steps; a worker that is killed among them must not end tracking for good."""
    run.save(run.directory / "run.json")
    code = (
        "import sys, time; from pathlib import Path; from r2kg.config.run import load_run; "
        "from r2kg.tracking import Tracker; Tracker(load_run(Path(sys.argv[1]))).log(1, loss=2.0); time.sleep(60)"
    )
    killed = subprocess.Popen([sys.executable, "-c", code, str(run.directory / "run.json")])
    try:
        for _ in range(1200):
            with suppress(FileNotFoundError):  # SQLite deletes its journal whenever it likes
                if any(path.stat().st_size for path in run.directory.parent.glob("*mlflow.db*")):
                    break
            time.sleep(0.02)
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    tracker = Tracker(run)
    tracker.log(2, loss=1.0)
    assert tracker.close(patience=90) == 0, tracker.problem
    assert history(run, tracking_uri(run), "loss") == [(1, 2.0), (2, 1.0)]


@pytest.mark.slow
def test_a_server_that_is_away_gets_the_records_later(run, tmp_path, free_port, wait_for_port):
    port = free_port()
    run = run.change({"tracking.uri": f"http://127.0.0.1:{port}"})
    tracker = Tracker(run)
    began = time.monotonic()
    tracker.log(1, loss=2.0)
    assert time.monotonic() - began < 1, "logging must not wait for the server"
    unsent = tracker.close(patience=90)
    note = tracking_note(unsent, tracker)
    assert unsent == 1 and "has not taken 1 records" in note and str(tracker.files.metrics) in note
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "server", "--port", str(port), "--host", "127.0.0.1", "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", f"{tmp_path}/a"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for_port(port)
        tracker = Tracker(run)
        tracker.log(2, loss=1.0)
        assert tracker.close(patience=90) == 0, tracker.problem
        assert history(run, run.tracking.uri, "loss") == [(1, 2.0), (2, 1.0)]
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
