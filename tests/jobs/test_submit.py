"""`ray job submit` onto a local head, with Ray's token authentication left on."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from r2kg.modules.config import TinyLm
from r2kg.modules.tiny_lm import write_tiny_lm
from shards.stream.index import read_targets

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))


@pytest.fixture
def head(free_port, wait_for_port):
    """Address of a head of its own; the tests' other session is not touched, and nothing of the head is left."""
    port, dashboard, agent = free_port(), free_port(), free_port()
    folder = tempfile.mkdtemp(prefix="h", dir="/tmp")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"OMP_NUM_THREADS": "1"}
    environment |= {"RAY_AUTH_MODE": "token", "PATH": f"{Path(RAY).parent}:{os.environ['PATH']}"}
    subprocess.run([RAY, "get-auth-token", "--generate"], env=environment, capture_output=True, check=True)
    started = subprocess.run(
        [
            *(RAY, "start", "--head", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=2"),
            *(f"--dashboard-agent-listen-port={agent}", "--object-store-memory=200000000"),
            *(f"--temp-dir={folder}", "--disable-usage-stats"),
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert started.returncode == 0, started.stdout + started.stderr
    wait_for_port(agent)  # the agent that starts jobs comes up some seconds after `ray start` has returned
    yield f"http://127.0.0.1:{dashboard}", environment
    subprocess.run(["pkill", "-9", "-f", folder], check=False)
    shutil.rmtree(folder, ignore_errors=True)


def test_a_tiny_training_is_submitted_as_a_job(head, phantom_shards, tmp_path):
    address, environment = head
    lm = write_tiny_lm(
        read_targets(phantom_shards, "train"),
        tmp_path / "lm",
        TinyLm(width=32, layers=1, heads=2, vocabulary=320, epochs=1),
        seed=0,
    )
    changes = {
        "name": "submitted",
        "root": tmp_path / "runs",
        "data.shards": phantom_shards,
        "model.llm.source": lm,
        "model.vision.image_px": 64,
        "train.steps": 4,
        "train.cpus_per_worker": 0.4,
        "train.validation_studies": 0,
    }
    command = [RAY, "job", "submit", "--address", address, "--working-dir", str(ROOT), "--"]
    command += ["python", "-m", "jobs.train", "r2gengpt.tiny", *(f"{key}={value}" for key, value in changes.items())]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    assert "submitted is trained: 4 steps." in ended.stdout
    assert (tmp_path / "runs/submitted/checkpoints/step-00000004/manifest.json").is_file()
    wrong = subprocess.run(
        [*command[:-8], "train.epoch=3"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert wrong.returncode != 0 and "did you mean" in wrong.stdout + wrong.stderr
