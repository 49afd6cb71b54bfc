"""Weights that no checkpoint holds are known by their hash: over others nothing goes on and nothing is written."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from r2kg.config.run import Run
from r2kg.scoring.writing.writer import Writer
from r2kg.systems.contract import other_weights, stored
from r2kg.training.artefacts import built
from r2kg.training.checkpoint import write_checkpoint
from r2kg.training.loop import _checked_state
from r2kg.training.plan import preflight
from shards.errors import CheckpointError


def save_weights(path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), path)


def checkpoint_of(run: Run, step: int, frozen: dict[str, Any], shards: str) -> Path:
    """A checkpoint of one worker, as the loop leaves one."""
    state = {"step": step, "shards": shards, "artefacts": {}, "sides": {}, "frozen": frozen}
    weights = {name: tensor.detach().clone() for name, tensor in stored(built(run)).items()}
    write_checkpoint(run.directory, weights, state, 0, 1, lambda mine: [mine], "one")
    return run.directory / "checkpoints" / f"step-{step:08d}"


def test_another_encoder_under_the_same_name_is_refused(small_run, tmp_path):
    path = tmp_path / "vit.safetensors"
    save_weights(path, 0)
    run: Run = small_run({"model.vision.weights": str(path), "model.vision.tuning": "frozen"})
    plan = preflight(run, run.manifest(), {})
    frozen = built(run).fingerprint()
    good = checkpoint_of(run, 3, frozen, plan.shards)
    assert _checked_state(good, run, plan, frozen)["step"] == 3
    for precision in ("fp32", "bf16"):
        assert Writer(run.change({"engine.precision": precision}), good, "synthetic").model

    save_weights(path, 1)  # another download under the same name
    now = built(run).fingerprint()
    with pytest.raises(CheckpointError, match=r"frozen weights of the vision: .*Restore them, choose another name="):
        _checked_state(good, run, plan, now)
    assert _checked_state(good, run.change({"train.accept_changes": True}), plan, now)["step"] == 3
    with pytest.raises(CheckpointError, match=r"trained over other frozen weights than are found here: vision: .*Rest"):
        Writer(run, good, "synthetic").model  # noqa: B018  # it is made when it is asked for

    named = frozen | {"vision": {"name": "test_vit", "weights": str(path)}}  # as checkpoints said once
    old = checkpoint_of(run, 6, named, plan.shards)
    with pytest.raises(CheckpointError, match=r"vision was given by name, .* not by the hash .* cannot be told"):
        _checked_state(old, run, plan, now)


def test_the_hash_decides_and_not_the_place():
    here, there = {"sha256": "a", "source": "/here"}, {"sha256": "a", "source": "/there"}
    assert other_weights({"llm": here}, {"llm": there}) == other_weights({}, {}) == []
    assert other_weights({"llm": here}, {"llm": here | {"sha256": "b"}})[0].startswith('llm: {"sha256": "a"')
    assert len(other_weights({"llm": here}, {})) == len(other_weights({}, {"llm": here})) == 1
    assert other_weights({"bank": {"rows": 1}}, {"bank": {"rows": 2}}) == ['bank: {"rows": 1} then, {"rows": 2} now']
