"""Ctrl-C and kill: a run that is told to stop leaves a checkpoint of the step it was at."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from r2kg.config.run import Run
from r2kg.rundir import RunFiles
from r2kg.tracking import tracking_uri
from r2kg.training.checkpoint import newest_checkpoint, read_state

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
FAR = 100_000


def started(saved: Path, *changes: str) -> subprocess.Popen[str]:
    """`r2kg train`, with the rest of a terminal's processes in a session of their own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", "from jobs.cli import main; main()", "train", str(saved), *changes]
    return subprocess.Popen(
        command, cwd=saved.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def test_a_stopped_run_goes_on_from_the_step_it_was_stopped_at(
    small_run: Callable[[dict], Run], tmp_path: Path
) -> None:
    run = small_run({
        "train.steps": FAR, "train.global_batch": 4, "train.micro_batch": 2, "train.checkpoint_every": FAR,
        "train.validation_studies": 6, "train.log_every": 1,
    }).change({"name": "stopped", "root": str(tmp_path)})  # fmt: skip
    files, saved = RunFiles(run.directory), tmp_path / "saved.json"
    run.save(saved)
    process = started(saved)
    try:
        for _ in range(2400):
            if process.poll() is not None or (files.metrics.exists() and files.metrics.read_bytes().count(b"\n") >= 5):
                break
            time.sleep(0.1)
        assert process.poll() is None, process.communicate()[0][-3000:]
        os.killpg(process.pid, signal.SIGINT)
        said = process.communicate(timeout=60)[0]
    finally:
        process.kill()
    assert process.returncode == 130 and "stopped is stopping with a checkpoint" in said, said[-3000:]
    checkpoint = newest_checkpoint(run.directory)
    assert checkpoint is not None
    state = read_state(checkpoint)
    last = json.loads(files.metrics.read_text().splitlines()[-1])["step"]
    assert state["step"] == last >= 4 and state["validation_loss"] is None and state["probe"] is None
    assert f"Stopped at step {last} of {FAR}, as was asked." in files.log.read_text()
    client = MlflowClient(tracking_uri=tracking_uri(run))
    (found,) = client.search_runs([client.get_experiment_by_name("r2kg").experiment_id])
    assert found.info.status == "KILLED"
    again = started(saved, f"train.steps={last + 2}")
    said = again.communicate(timeout=240)[0]
    assert again.returncode == 0 and f"2 workers take steps {last} to {last + 2}." in files.log.read_text(), said[
        -3000:
    ]
    assert client.get_run(found.info.run_id).info.status == "FINISHED"
    assert "Traceback" not in said
