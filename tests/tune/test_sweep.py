"""A sweep whose driver is killed after its first trial: the same command ends it, and nothing is trained twice."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from mlflow import MlflowClient

from r2kg.attempts.lease import HeldError, lease
from r2kg.config.protocol import PROTOCOLS, protocol_named, protocols_of
from r2kg.config.run import Run
from r2kg.rundir import RunFiles
from tests.tune.small_sweep import asked
from tune.plan import (
    NOTE,
    begun_note,
    decoding_key,
    error_of,
    is_finished,
    note_error,
    read_note,
    write_note,
    write_plan,
)
from tune.sweep import Told, at_once, takes
from tune.trial import attempt, carry_out

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def places(small_run) -> tuple[str, str, str]:
    """Shards, a small language model, an empty root."""
    run: Run = small_run({})
    return run.data.shards, run.model.llm.source, run.root


def test_a_trial_is_finished_when_all_its_scores_are_there_for_the_same_settings_and_shards(phantom_shards, tmp_path):
    first, second = asked(str(phantom_shards), "tiny", str(tmp_path)).trials()
    assert [list(one.rows) for one in (first, second)] == [["adapters", "the same again"], ["frozen | <b>"]]
    assert not is_finished(first, "films")
    home = first.run.directory
    (home / "predictions").mkdir(parents=True)
    scored = {name: {"hash": protocol_named(name).hash} for name in protocols_of(first.run.protocols, "report")}
    (home / "predictions" / "scores.json").write_text(json.dumps({"protocols": scored}))
    good = {"hash": first.hash, "shards": "films", "scores": {"{}": "predictions/scores.json"}, "errors": {}}
    wrong = [{"hash": second.hash}, {"shards": "others"}, {"scores": {}}]
    for change in ({}, *wrong, {"scores": {"{}": "predictions/gone.json"}}, {"scores": {"{}": "/etc/hostname"}}):
        (home / NOTE).write_text(json.dumps(good | change))
        assert is_finished(first, "films") == (not change), change
    (home / NOTE).write_text(json.dumps(good))
    assert not is_finished(replace(first, rows={"another": {"model.decoding.beams": 1}}), "films")
    further = next(name for name, one in PROTOCOLS.items() if one.task == "report" and name not in scored)
    assert not is_finished(replace(first, run=first.run.change({"protocols": (further,)})), "films")
    (home / "predictions" / "scores.json").write_text(
        json.dumps({"protocols": {name: {"hash": ""} for name in scored}})
    )
    assert not is_finished(first, "films"), "the protocol has other rules by now"
    (home / NOTE).write_text('{"hash"')
    assert not is_finished(first, "films")


def test_what_fails_leaves_the_scores_that_are_there(phantom_shards, tmp_path):
    whole = asked(str(phantom_shards), "tiny", str(tmp_path))
    whole.changes["train.cpus_per_worker"] = 1000.0
    trial, manifest = whole.trials()[0], trials_manifest(phantom_shards)
    home = trial.run.directory
    home.mkdir()
    (home / "scores.json").write_text("{}")
    one, other = {"model.decoding.beams": 1}, {"model.decoding.beams": 2}
    note = {"hash": trial.hash, "shards": manifest.fingerprint, "scores": {decoding_key(one): "scores.json"}}
    write_note(trial.run, note | {"errors": {decoding_key(other): "DataError: why"}})
    assert error_of(read_note(home), one) == "" and error_of(read_note(home), other) == "DataError: why"
    assert begun_note(trial, manifest) == note | {"errors": {}}
    carry_out(replace(trial, rows={"one": one, "other": other}))
    assert error_of(read_note(home), one) == ""
    assert "1000 CPU" in error_of(read_note(home), other), "and not why an earlier call failed"
    assert begun_note(replace(trial, hash="another"), manifest)["scores"] == {}


def test_of_a_run_that_another_process_holds_nothing_is_noted(phantom_shards, tmp_path):
    trial = asked(str(phantom_shards), "tiny", str(tmp_path)).trials()[0]
    with lease(trial.run.directory, "it is being trained", print):
        (trial.run.directory / "mlflow.json").write_text(cursor := '{"servers": {}, "status": "RUNNING"}')
        with pytest.raises(HeldError, match="is being trained already"):
            attempt(trial, trials_manifest(phantom_shards))
        assert not (read_note(trial.run.directory) or {"errors": {}})["errors"]
        assert (trial.run.directory / "mlflow.json").read_text() == cursor


def test_trials_are_counted_by_what_each_takes_and_a_lost_one_is_known_by_name(phantom_shards, tmp_path):
    light = asked(str(phantom_shards), "tiny", str(tmp_path)).trials()[0]
    heavy = replace(light, run=light.run.change({"train.cpus_per_worker": 500.0}))
    assert takes(light) == [("CPU", 1.4)] and takes(heavy) == [("CPU", 501.0)]
    assert at_once([heavy, heavy]) == 1 <= at_once([light])
    told = Told({light.name: light})
    told.on_trial_error(0, [], SimpleNamespace(config={"run": light.name}))
    assert told.lost == {light.name}


def test_a_plan_keeps_rows_of_the_same_setting_and_forgets_those_of_another(phantom_shards, tmp_path):
    whole = asked(str(phantom_shards), "tiny", str(tmp_path))
    trials, manifest = whole.trials(), trials_manifest(phantom_shards)
    whole.directory.mkdir()

    def rows() -> list[str]:
        return [line["row"] for line in json.loads((whole.directory / "sweep.json").read_text())["trials"]]

    write_plan(whole, trials[:1], manifest)
    write_plan(whole, trials[1:], manifest)
    assert sorted(rows()) == ["adapters", "frozen | <b>", "the same again"]
    for line in (content := json.loads((whole.directory / "sweep.json").read_text()))["trials"]:
        line["run"] = f"{line['run'][:-8]}00000000" if line["row"] == "the same again" else line["run"]
    (whole.directory / "sweep.json").write_text(json.dumps(content))
    write_plan(whole, trials[1:], manifest)
    assert sorted(rows()) == ["adapters", "frozen | <b>"], "what the table's code makes another trial of by now is gone"
    whole.changes["train.steps"] = 3
    write_plan(whole, trials[1:], manifest)
    assert rows() == ["frozen | <b>"]
    note_error(trials[1], manifest, "DataError: why")
    assert read_note(trials[1].run.directory)["errors"] == {"": "DataError: why"}


def trials_manifest(shards: Path):
    from shards.tars.format import read_manifest

    return read_manifest(shards)


@pytest.mark.slow
def test_after_a_kill_the_same_command_ends_the_sweep_and_trains_nothing_twice(places):
    command = [sys.executable, "-m", "tests.tune.small_sweep", *places]
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "TMPDIR")}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    first, second = asked(*places).trials()
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as killed:
        deadline = time.monotonic() + 600
        while not (first.run.directory / NOTE).exists() or not RunFiles(second.run.directory).run.exists():
            assert killed.poll() is None and time.monotonic() < deadline, killed.stdout.read().decode()[-3000:]
            time.sleep(0.2)
        children = psutil.Process(killed.pid).children(recursive=True)
        os.kill(killed.pid, signal.SIGKILL)
    psutil.wait_procs(children, timeout=60)
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "small: 2 trials, 1 finished before." in ended.stdout
    assert f"1 of 1: {second.name} is scored" in ended.stdout
    assert (first.run.directory / "groups.txt").read_text().count("started") == 1, "trained once"
    table = (asked(*places).directory / "table.md").read_text()
    assert "failed" not in table and table.count("(1 seed)") == 3 and "| Another | 0.200 | not trained here |" in table
    client = MlflowClient(tracking_uri=f"sqlite:///{Path(places[2]) / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("r2kg").experiment_id])
    (group,) = [one for one in runs if one.data.tags.get("r2kg_parent")]
    children = {one.data.tags["mlflow.runName"]: one for one in runs if one is not group}
    assert children.keys() == {first.name, second.name} and len(runs) == 3
    assert {one.info.status for one in runs} == {"FINISHED"}
    assert {one.data.tags["mlflow.parentRunId"] for one in children.values()} == {group.info.run_id}
    assert {each.path for each in client.list_artifacts(group.info.run_id)} >= {"table.md", "table.html", "table.png"}
    assert "bleu4/adapters" in group.data.metrics
