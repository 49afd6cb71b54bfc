"""A short storm: what `bench.chaos` does with twenty kills, with three."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_three_kills_change_nothing_but_the_time(tmp_path):
    words = ["--only", "controller,worker,head", "--steps", "75", "--seed", "1"]
    storm = subprocess.run(
        [sys.executable, "-m", "bench.chaos", *words],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    outputs = [file.read_text()[-3000:] for file in tmp_path.glob("chaos-*/runs/*.out")]
    assert storm.returncode == 0, "\n".join([storm.stdout[-3000:], *outputs])
    assert "same_studies=True largest_difference=0.0" in storm.stdout
    assert "left=[]" in storm.stdout
