"""What a run asks of its cluster, on a real head whose autoscaler starts nodes of its own (Ray's local provider)."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import ray

pytestmark = pytest.mark.slow
PORT = 6379  # the one that the nodes of this provider look for
RAY = str(Path(sys.executable).with_name("ray"))
ASK = """
import sys
from r2kg.recipes import find_recipe
from r2kg.training.launch import refuse_impossible, wait_for_workers
from shards.session import connect_ray
connect_ray()
from shards.errors import ConfigError, RetryableError
from r2kg.scoring.writing.writer import gpus_to_write_on
from shards.session import pool_for
on_gpus = {"root": sys.argv[1], "train.gpus": True, "train.wait_minutes": 5.0, "train.cpus_per_worker": 1}
for workers in (2, 9):
    changes = {"root": sys.argv[1], "train.workers": workers, "train.wait_minutes": 5.0, "train.global_batch": 18}
    changes |= {"train.micro_batch": 1, "train.cpus_per_worker": 1}
    try:
        run = find_recipe("r2gengpt.tiny").change(changes)
        refuse_impossible(run)
        wait_for_workers(run)
        print("can be")
    except (ConfigError, RetryableError) as error:
        print(type(error).__name__, error)
print("GPUs to write on:", gpus_to_write_on(find_recipe("r2gengpt.tiny").change(on_gpus), 2))
try:
    gpus_to_write_on(find_recipe("r2gengpt.tiny").change(on_gpus), 3)
except ConfigError as error:
    print(error)
print("pool:", pool_for(0, 9, 5.0), pool_for(1, 9, 5.0))
"""
GONE = """
import sys
from pathlib import Path
from r2kg.recipes import find_recipe
from r2kg.training.launch import refuse_impossible, wait_for_workers
from shards.session import connect_ray
connect_ray()
from shards.errors import ConfigError, RetryableError
run = find_recipe("r2gengpt.tiny").change(
    {"root": sys.argv[1], "train.gpus": True, "train.wait_minutes": 0.01, "train.workers": 1,
     "train.cpus_per_worker": 0.5}
)
for groups in (0, 1):
    try:
        refuse_impossible(run)
        wait_for_workers(run)
    except (ConfigError, RetryableError) as error:
        print(type(error).__name__, error)
    run.directory.mkdir(exist_ok=True, parents=True)
    run.directory.joinpath("groups.txt").touch()
"""


@pytest.fixture
def head():
    """Environment that joins a head of 1 CPU, which can get two nodes of 2 CPUs more and has none yet."""
    folder = tempfile.mkdtemp(prefix="a", dir="/tmp")
    kinds = {
        "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
        "more": {"resources": {"CPU": 2, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    }
    config = {
        "cluster_name": "fake", "max_workers": 4, "upscaling_speed": 10, "idle_timeout_minutes": 5, "auth": {},
        "provider": {"type": "fake_multinode", "disable_node_updaters": True, "disable_launch_config_check": True},
        "available_node_types": kinds, "head_node_type": "ray.head.default",
        "file_mounts": {}, "cluster_synced_files": [], "rsync_exclude": [], "rsync_filter": [],
        "initialization_commands": [], "setup_commands": [], "head_setup_commands": [], "worker_setup_commands": [],
        "head_start_ray_commands": [], "worker_start_ray_commands": [],
    }  # fmt: skip
    file = Path(folder, "cluster.json")
    file.write_text(json.dumps(config))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"OMP_NUM_THREADS": "1"}
    environment |= {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_enable_autoscaler_v2": "0"}
    environment |= {"RAY_AUTH_MODE": "token", "PATH": f"{Path(RAY).parent}:{os.environ['PATH']}"}
    subprocess.run([RAY, "get-auth-token", "--generate"], env=environment, capture_output=True, check=True)
    started = subprocess.run(
        [
            *(RAY, "start", "--head", f"--port={PORT}", "--num-cpus=1", f"--autoscaling-config={file}"),
            *("--include-dashboard=false", "--object-store-memory=100000000", f"--temp-dir={folder}"),
            "--disable-usage-stats",
        ],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert started.returncode == 0, started.stdout + started.stderr
    yield environment | {"RAY_ADDRESS": f"127.0.0.1:{PORT}"}
    subprocess.run(["pkill", "-9", "-f", folder], check=False)
    shutil.rmtree(folder, ignore_errors=True)


def test_nodes_that_can_come_are_waited_for_and_others_refused(head, tmp_path):
    asked = subprocess.run(
        [sys.executable, "-c", ASK, str(tmp_path)], env=head, capture_output=True, text=True, timeout=240
    )
    lines = asked.stdout.splitlines()
    assert "can be" in lines, asked.stdout + asked.stderr[-2000:]
    assert lines[:2] == [
        f"The Ray cluster at 127.0.0.1:{PORT}: 1 CPUs, 0 GPUs.",
        "Waiting for nodes with 1 CPU more (train.wait_minutes=5).",
    ]
    refused = "ConfigError 9 workers need 9 CPU, the Ray cluster has 5, and no more when all its nodes are started"
    assert any(refused in line for line in lines), lines
    assert "GPUs to write on: 2" in lines, lines
    assert "3 writers need a GPU each, the Ray cluster has 2: lower --writers" in lines, lines
    assert lines[-1] == "pool: (2, 1) (1, 1)" and "The classifier is held by 2 processes with a GPU each." in lines


def test_a_node_that_is_gone_is_waited_for_where_no_autoscaler_is_known_of(ray_session, tmp_path):
    """A run that never had workers asks for what is not there; one that had some waits for what went away."""
    address = ray.get_runtime_context().gcs_address
    asked = subprocess.run(
        [sys.executable, "-c", GONE, str(tmp_path)],
        env=os.environ | {"RAY_ADDRESS": address},
        capture_output=True,
        text=True,
        timeout=120,
    )
    which, first, waiting, second = asked.stdout.splitlines()
    assert which.startswith(f"The Ray cluster at {address}: ")
    assert first.startswith("ConfigError 1 workers need 1 GPU, the Ray cluster has 0: lower train.workers")
    assert waiting == "Waiting for nodes with 1 GPU more (train.wait_minutes=0.01)."
    assert second.startswith("WaitedError no node with 1 GPU came in train.wait_minutes=0.01")
