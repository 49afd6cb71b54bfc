"""ZeRO stages, worker counts, micro-batches and resumption change who computes, never what."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from r2kg.modules.config import TinyLm
from r2kg.modules.tiny_lm import write_tiny_lm

pytestmark = pytest.mark.slow
ONE = "0:fp32:8:none"
SETTINGS = [
    "0:fp32:4:none",
    "1:fp32:4:none",
    "2:fp32:4:none",
    "3:fp32:4:none",
    "2:fp32:2:none",
    "0:fp32:2:resume",
    "1:fp32:2:resume",
    "2:fp32:2:resume",
    "3:fp32:4:resume",
    "2:fp32:4:offload_optimizer",
    "3:fp32:4:offload_parameters",
]
BF16 = ["0:bf16:4:none", "1:bf16:4:none", "2:bf16:4:none", "3:bf16:4:none"]


@pytest.fixture(scope="module")
def losses(tmp_path_factory) -> dict[str, list[float]]:
    folder = tmp_path_factory.mktemp("zero")
    reports = ["the heart is large . there is no effusion .", "the lungs are clear . no nodule ."] * 8
    lm = write_tiny_lm(reports, folder / "lm", TinyLm(width=32, layers=2, heads=2, vocabulary=320, epochs=1), seed=0)
    alone = torchrun(1, lm, folder / "one.json", [ONE])
    return alone | torchrun(2, lm, folder / "two.json", SETTINGS + BF16)


def torchrun(workers: int, lm: Path, out: Path, settings: list[str]) -> dict[str, list[float]]:
    script = Path(__file__).with_name("zero_worker.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
    ended = subprocess.run(
        [*command, str(script), str(lm), str(out), *settings],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    return json.loads(out.read_text())


@pytest.mark.parametrize("setting", SETTINGS)
def test_first_ten_losses_equal_one_process(losses, setting):
    assert losses[ONE][0] > losses[ONE][-1], "the model must learn, or equal losses say nothing"
    assert losses[setting] == pytest.approx(losses[ONE], abs=1e-3)


@pytest.mark.parametrize("setting", BF16)
def test_bf16_stays_near_fp32(losses, setting):
    assert losses[setting] == pytest.approx(losses[ONE], abs=0.05)
