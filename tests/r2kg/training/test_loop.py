"""Real runs on two workers: what they consume is decided by the plan alone, whatever happens to them."""

import json
import shutil
import traceback
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from r2kg.config.run import Run
from r2kg.recipes import find_recipe
from r2kg.training.checkpoint import newest_checkpoint, read_state, read_tensors
from r2kg.training.launch import train
from r2kg.training.loop import Worker, train_worker
from r2kg.training.plan import Plan
from shards.errors import CheckpointError, ConfigError, DataError
from shards.stream.index import read_targets
from shards.stream.order import step_indices

slow = pytest.mark.slow
STEPS = 12


@pytest.fixture(scope="module")
def recipe(twelve_steps) -> Run:
    return twelve_steps


def consumed(run: Run) -> dict[int, list[int]]:
    """Step → studies, sorted; a step that was taken again after a restart must have taken the same ones."""
    parts: dict[tuple[int, str], list[int]] = {}
    for file in sorted((run.directory / "consumed").glob("*.jsonl")):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            taken = parts.setdefault((row["step"], file.name), row["index"])
            assert taken == row["index"], f"step {row['step']} was repeated with other studies"
    steps: dict[tuple[int, str], list[int]] = {}
    for (step, name), index in parts.items():
        steps.setdefault((step, name.partition("-of-")[2]), []).extend(index)
    found: dict[int, list[int]] = {}
    for (step, _), index in steps.items():
        assert found.setdefault(step, sorted(index)) == sorted(index), f"step {step} differs between numbers of workers"
    return found


def train_losses(run: Run) -> dict[int, float]:
    rows = [json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["metrics"]["train.loss"] for row in rows if "train.loss" in row["metrics"]}


@slow
def test_a_run_takes_the_steps_of_the_pure_order(recipe, undisturbed):
    data, n = recipe.data, len(read_targets(Path(recipe.data.shards), "train"))
    index = step_indices(n, recipe.train.seed, 0, STEPS * 8, data.chunk, data.window).reshape(STEPS, 8)
    assert consumed(undisturbed) == {step: sorted(row.tolist()) for step, row in enumerate(index)}
    state = read_state(newest_checkpoint(undisturbed.directory))
    assert (state["step"], state["samples_seen"], state["world"]) == (STEPS, STEPS * 8, 2)
    assert state["validation_loss"] > 0


@slow
def test_a_killed_worker_costs_nothing_but_time(killed, undisturbed):
    assert consumed(killed) == consumed(undisturbed)
    assert train_losses(killed) == pytest.approx(train_losses(undisturbed), abs=1e-4)
    ours, theirs = (read_tensors(newest_checkpoint(run.directory)) for run in (killed, undisturbed))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in theirs)


@slow
def test_a_refused_submission_leaves_a_run_as_it_is(recipe, undisturbed):
    saved = (undisturbed.directory / "run.json").read_bytes()
    for changes, told in (({"train.gpus": True}, "need 2 GPU"), ({"optim.lr": 0.5}, "with other settings .optim.lr")):
        with pytest.raises(ConfigError, match=told):
            train(undisturbed.change(changes | {"train.steps": 40}))
    assert (undisturbed.directory / "run.json").read_bytes() == saved


def test_settings_that_no_step_was_taken_with_hold_nobody(recipe):
    refused = recipe.change({"name": "refused"})
    refused.directory.mkdir(parents=True)
    refused.save(refused.directory / "run.json")
    assert train(refused.change({"optim.lr": 0.002, "train.steps": 1}))["step"] == 1


def test_a_run_submitted_again_goes_on_with_another_number_of_workers(recipe, undisturbed):
    run = recipe.change({"name": "moved", "train.steps": 6})
    assert train(run)["step"] == 6
    alone = run.change({"train.steps": STEPS, "train.workers": 1, "train.micro_batch": 4})
    assert train(alone)["step"] == STEPS
    assert consumed(alone) == consumed(undisturbed)
    with pytest.raises(ConfigError, match=r"other settings.*optim.lr: .* then, 1.0 now"):
        train(alone.change({"optim.lr": 1}))
    assert train(alone)["step"] == STEPS, "a finished run that is submitted again ends at once"


@pytest.mark.long
@slow
def test_a_run_whose_validation_loss_stands_still_stops_and_stays_stopped(recipe, capsys):
    """At a learning rate of 0 the first validation is the lowest; the second is counted before the restart."""
    run = recipe.change({"name": "patient", "optim.lr": 0.0, "train.patience": 2, "train.checkpoint_every": 1})
    assert train(run.change({"train.steps": 2}))["step"] == 2
    assert train(run)["step"] == 3
    assert (
        "Stopped at step 3 of 12: the validation loss has not fallen below" in (run.directory / "log.txt").read_text()
    )
    state = read_state(newest_checkpoint(run.directory))
    assert (state["step"], state["since_lowest"]) == (3, 2) and state["lowest_loss"] == state["validation_loss"]
    assert sorted(consumed(run)) == [0, 1, 2], "nothing was trained on after the decision"
    capsys.readouterr()
    assert train(run)["step"] == 3
    assert "patient stopped at step 3 of 12, train.patience=2" in capsys.readouterr().out


@slow
def test_unreadable_films_are_counted_and_named_or_stop_the_run(recipe, tmp_path):
    run = recipe.change({"name": "holes", "data.shards": str(damaged(recipe, tmp_path)), "data.verify": "size"})
    summary = train(run.change({"train.steps": 6, "data.on_bad": "skip"}))
    assert len(summary["unread"]) == 1
    (key, cause), *_ = summary["unread"].items()
    assert key.startswith("phantom-") and "train-00000.tar" in cause
    with pytest.raises(DataError, match="train-00000.tar"):
        train(run.change({"name": "strict", "data.on_bad": "fail", "train.max_restarts": 3}))


@slow
def test_damaged_shards_are_trained_on_and_what_was_not_seen_is_named_exactly(recipe, tmp_path, capsys):
    root = Path(shutil.copytree(recipe.data.shards, tmp_path / "faulty"))
    names = {shard: studies_of(root, shard) for shard in ("train-00000", "train-00001")}
    with (root / "train-00000.tar").open("r+b") as tar:  # cut inside the sixth study: five are whole
        tar.truncate(names["train-00000"][5][1] + 700)
    (root / "train-00001.tar").unlink()
    torn = root / "train-00002.index.json"
    torn.write_bytes(torn.read_bytes()[:-40])  # the tar is whole, so nothing of it is lost
    run = recipe.change({"name": "faulty", "data.shards": str(root), "data.on_bad": "skip"})
    summary = train(run)
    lost = {key for key, _ in names["train-00000"][5:] + names["train-00001"]}
    assert summary["step"] == STEPS and set(summary["unread"]) == lost and len(lost) == 27
    printed = capsys.readouterr().out
    for fault in (
        "train-00000.tar has",
        "train-00001.tar is missing",
        "train-00002.index.json cannot be used: it is torn",
    ):
        assert fault in printed
    with pytest.raises(DataError, match="in 3 places"):
        train(run.change({"name": "faulty-strict", "data.on_bad": "fail"}))
    assert not (run.directory.parent / "faulty-strict").exists(), "it stops before the first step"


def studies_of(root: Path, shard: str) -> list[tuple[str, int]]:
    """(key, first byte) of a tar's studies."""
    index = json.loads((root / f"{shard}.index.json").read_text())
    return [(entry["key"], entry["members"]["0.jpg"][0]) for entry in index["studies"]]


def damaged(recipe: Run, folder: Path) -> Path:
    """A copy of the shards in which one film no longer decodes, though no size changed."""
    root = folder / "holes"
    shutil.copytree(recipe.data.shards, root)
    index = json.loads((root / "train-00000.index.json").read_text())
    offset, size, _ = index["studies"][0]["members"]["0.jpg"]
    with (root / "train-00000.tar").open("r+b") as tar:
        tar.seek(offset)
        tar.write(b"\0" * size)
    return root


@pytest.mark.parametrize("damage", ["missing", "changed", "manifest"])
def test_shards_that_changed_stop_the_run_before_any_worker(recipe, tmp_path, damage):
    root = damaged(recipe, tmp_path)
    if damage == "missing":
        (root / "train-00000.tar").unlink()
    if damage == "manifest":
        (root / "manifest.json").unlink()
    message = {"missing": "missing", "changed": "sha256", "manifest": "r2kg shard"}[damage]
    with pytest.raises(DataError, match=message):
        train(recipe.change({"name": f"no-{damage}", "data.shards": str(root), "data.verify": "sha256"}))


def test_impossible_requests_stop_before_any_worker(recipe, monkeypatch):
    with pytest.raises(ConfigError, match="none to reading films"):
        train(recipe.change({"name": "greedy", "train.cpus_per_worker": 0.9}))
    greedy = recipe.change({"name": "greedy"})
    assert not (greedy.directory / "run.json").exists(), "what was refused is not begun"
    with pytest.raises(ConfigError, match="need 2 GPU"):
        train(recipe.change({"name": "gpus", "train.gpus": True}))
    with pytest.raises(ConfigError, match="unknown protocols"):
        train(recipe.change({"name": "protocol", "protocols": ["bleu"]}))
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("r2kg.training.checkpoint.shutil.disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match=r"\d checkpoints, as many as are there at a time, need .* GB.*make room"):
        train(recipe.change({"name": "full"}))


@pytest.mark.parametrize("micro_batches", [0, 5])
def test_a_stream_that_ends_early_is_no_whole_run(recipe, micro_batches):
    stream = iter([{"step": np.full(2, number // 2), "bad": []} for number in range(micro_batches)])
    worker = object.__new__(Worker)
    worker.run, worker.plan = recipe.change({"train.record_studies": False}), SimpleNamespace(steps=STEPS)
    worker.unread = SimpleNamespace(add=list)
    taken = []
    with pytest.raises(DataError, match=f"ended after step {micro_batches // 2} of {STEPS}"):
        taken.extend(step for step, _ in worker._steps(0, stream))
    assert not taken or taken == [0, 1]


def test_a_failure_that_cannot_be_noted_still_tells_no_text(tmp_path, monkeypatch):
    run = find_recipe("r2gengpt.tiny").change({"root": str(tmp_path), "name": "fails"})
    plan = Plan(
        studies=1, validation_studies=0, steps=1, steps_per_epoch=1.0, shards="", trained={}, parameters=0,
        artefacts={}, checkpoint_bytes=0, licence="physionet-credentialed-1.5.0",
    )  # fmt: skip

    def fails(*_):
        raise ValueError("the report says: a large effusion")

    monkeypatch.setattr("r2kg.training.loop._train", fails)
    config = {"run": run.model_dump_json(), "plan": asdict(plan), "attempt": "one"}
    with pytest.raises(RuntimeError, match="its message is withheld") as caught:
        train_worker(config)  # there is no run directory to note it in
    assert "effusion" not in "".join(traceback.format_exception(caught.value))
