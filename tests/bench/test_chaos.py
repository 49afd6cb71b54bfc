"""A short storm: what `python -m bench.chaos` does for hours, with three kills."""

import os
import re
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_a_run_that_loses_a_worker_its_controller_and_rays_head_ends_with_the_weights_of_one_that_lost_none():
    command = [sys.executable, "-m", "bench.chaos", "--only", "controller,worker,head", "--steps", "75", "--seed", "1"]
    environment = {key: value for key, value in os.environ.items() if key != "TMPDIR"}  # Ray's sockets need a short one
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert ended.returncode == 0, ended.stdout + ended.stderr[-4000:]
    assert [line.partition(" ")[0] for line in re.findall(r"\d: (.*) killed", ended.stdout)] == [
        *("controller", "worker", "head"),
    ]
    assert "same_studies=True largest_difference=0.0" in ended.stdout and "left=[]" in ended.stdout
