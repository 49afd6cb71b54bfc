"""ZeRO stages, worker counts, micro-batches and resumption change who computes, never what."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

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
HALF = [f"{zero}:{precision}:4:half" for zero in range(4) for precision in ("fp32", "bf16")]
"""Of an LM that is fp16 on disk, as Llama-2's is, under adapters."""
BF16 = ["0:bf16:4:none", "1:bf16:4:none", "2:bf16:4:none", "3:bf16:4:none"]
SMALL = {
    "0:fp32:8:memory+amsgrad": [f"{zero}:fp32:4:resume+memory+amsgrad" for zero in range(4)]
    + ["2:fp32:4:memory+amsgrad+offload_optimizer"],
    "0:fp32:8:memory+clip_value": [f"{zero}:fp32:4:memory+clip_value" for zero in range(4)],
    "0:fp32:8:terms": ["0:fp32:2:terms", "3:fp32:4:resume+terms"],
    "0:fp32:8:terms+overflow": [f"{zero}:fp32:2:terms+overflow+resume" for zero in range(4)]
    + ["2:fp32:4:terms+overflow+offload_optimizer"],
}
"""Settings of the system of two terms and two mutable buffers, by the one process they equal."""
SMALL_BF16 = {
    "0:fp32:8:memory+amsgrad": ["2:bf16:4:resume+memory+amsgrad"],
    "0:fp32:8:terms+overflow": [f"{zero}:bf16:4:terms+overflow" for zero in range(4)],
}


@pytest.fixture(scope="module")
def losses(tmp_path_factory) -> dict[str, list[float]]:
    folder = tmp_path_factory.mktemp("zero")
    reports = ["the heart is large . there is no effusion .", "the lungs are clear . no nodule ."] * 8
    lm = write_tiny_lm(reports, folder / "lm", TinyLm(width=32, layers=2, heads=2, vocabulary=320, epochs=1), seed=0)
    half = AutoModelForCausalLM.from_pretrained(lm, dtype=torch.float16)
    half.save_pretrained(shutil.copytree(lm, f"{lm}-half"))
    alone = torchrun(1, lm, folder / "one.json", [ONE, *SMALL])
    small = [setting for settings in (*SMALL.values(), *SMALL_BF16.values()) for setting in settings]
    return alone | torchrun(2, lm, folder / "two.json", SETTINGS + BF16 + HALF + small)


def torchrun(workers: int, lm: Path, out: Path, settings: list[str]) -> dict[str, list[float]]:
    script = Path(__file__).with_name("zero_worker.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
    ended = subprocess.run(
        [*command, str(script), str(lm), str(out), *settings],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"},  # an abort says where
        capture_output=True,
        text=True,
        timeout=500,
    )
    said = ended.stderr.partition("torch/distributed/elastic/")[0]  # behind it stands torchrun's own summary
    spoken = [line for line in said.splitlines() if "Warning" not in line]
    if ended.returncode:
        pytest.fail("\n".join(spoken)[-12000:], pytrace=False)
    return json.loads(out.read_text())


@pytest.mark.parametrize("setting", SETTINGS)
def test_first_ten_losses_equal_one_process(losses, setting):
    assert losses[ONE][0] > losses[ONE][-1], "the model must learn, or equal losses say nothing"
    assert losses[setting] == pytest.approx(losses[ONE], abs=1e-3)


@pytest.mark.parametrize("setting", HALF)
def test_an_lm_that_is_fp16_on_disk_learns_as_well(losses, setting):
    assert losses[setting] == pytest.approx(losses[ONE], abs=0.05)


@pytest.mark.parametrize("setting", BF16)
def test_bf16_stays_near_fp32(losses, setting):
    assert losses[setting] == pytest.approx(losses[ONE], abs=0.05)


@pytest.mark.parametrize("one", SMALL)
def test_terms_buffers_and_every_optimiser_are_the_same_over_stages_and_after_a_resume(losses, one):
    """Ten losses, and what the two buffers hold at the end."""
    others = [losses[other][:10] for other in SMALL if other != one]
    assert all(max(abs(a - b) for a, b in zip(losses[one], other, strict=False)) > 0.02 for other in others)
    for setting in SMALL[one]:
        same = 10 if "terms" in setting else 12  # more micro-batches are more passes
        assert losses[setting][:same] == pytest.approx(losses[one][:same], abs=1e-3), setting


def test_mutable_buffers_keep_their_precision_under_bf16(losses):
    for one, settings in SMALL_BF16.items():
        for setting in settings:
            assert losses[setting][:11] == pytest.approx(losses[one][:11], abs=0.05)


def test_a_gradient_that_is_no_number_changes_nothing_and_is_counted(losses):
    """On one worker of two it is enough; what changed is compared in the workers."""
    settings = [one for one in losses if "terms" in one]
    assert len(settings) == 13
    wanted = {one: [0, 3, 5] if "overflow" in one else [] for one in settings}  # at 5 some are resumed
    assert {one: losses[one][12] for one in settings} == wanted


@pytest.mark.long
def test_a_compiled_model_has_the_same_losses(tmp_path):
    lm = write_tiny_lm(["the heart is large ."] * 8, tmp_path / "lm", TinyLm(width=32, epochs=1), seed=0)
    one, compiled = "0:fp32:8:terms", "2:fp32:4:terms+compile"
    losses = torchrun(1, lm, tmp_path / "one.json", [one]) | torchrun(2, lm, tmp_path / "two.json", [compiled])
    assert losses[one][0] > losses[one][9] and losses[compiled][:10] == pytest.approx(losses[one][:10], abs=1e-3)
