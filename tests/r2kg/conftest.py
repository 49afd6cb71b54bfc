"""Runs that several tests look at. They must not change them; copy their directories."""

from collections.abc import Callable

import pytest

from r2kg.config.run import Run

STEPS = 12


@pytest.fixture(scope="session")
def twelve_steps(small_run: Callable[[dict], Run]) -> Run:
    """Twelve steps of eight films on two workers, with a checkpoint every third step; not taken yet."""
    return small_run(
        {
            "train.steps": STEPS,
            "train.global_batch": 8,
            "train.micro_batch": 2,
            "train.checkpoint_every": 3,
            "train.checkpoints_kept": 9,
            "train.validation_studies": 6,
            "train.record_studies": True,
        }
    )


@pytest.fixture(scope="session")
def undisturbed(twelve_steps: Run) -> Run:
    """Those steps, taken."""
    from r2kg.training.launch import train

    run = twelve_steps.change({"name": "undisturbed"})
    summary = train(run)
    assert summary["step"] == STEPS and summary["unread"] == {}
    return run


@pytest.fixture(scope="session")
def killed(twelve_steps: Run) -> Run:
    """Those steps, taken though a worker was killed after the sixth."""
    from tests.r2kg.killing import train_killed

    run = twelve_steps.change({"name": "killed"})
    assert train_killed(run, checkpoint_step=6)["step"] == STEPS
    return run
