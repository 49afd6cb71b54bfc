"""A checkpoint counts only when it is whole; what is damaged is passed over by name."""

import json
from threading import Barrier, Thread

import pytest
import torch

from r2kg.config.run import Run
from r2kg.rundir import RunFiles
from r2kg.training.checkpoint import (
    check_room,
    checkpoints,
    complaints,
    find_checkpoint,
    newest_checkpoint,
    prune,
    read_state,
    read_tensors,
    weights_of,
    write_checkpoint,
)
from shards.errors import CheckpointError


def gathering(world):
    """Function (rank, value) → all workers' values, as torch.distributed's all_gather_object gives them."""
    barrier, given = Barrier(world), [None] * world

    def gather(rank, mine):
        given[rank] = mine
        barrier.wait()
        everyone = list(given)
        barrier.wait()
        return everyone

    return gather


def write(directory, step, validation_loss=None, world=2, attempt="one"):
    """Write with one thread per worker, as the workers of a run do."""
    gather = gathering(world)

    def worker(rank):
        part = {f"w{rank}": torch.full((3,), float(step)), f"w{rank}@exp_avg": torch.ones(3)}
        state = {"step": step, "validation_loss": validation_loss}
        write_checkpoint(directory, part, state, rank, world, lambda mine: gather(rank, mine), attempt)

    threads = [Thread(target=worker, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return checkpoints(directory)[-1]


def test_parts_of_all_workers_come_back_together(tmp_path):
    path = write(tmp_path, 7, world=3)
    assert sorted(read_tensors(path)) == ["w0", "w0@exp_avg", "w1", "w1@exp_avg", "w2", "w2@exp_avg"]
    assert sorted(weights_of(read_tensors(path))) == ["w0", "w1", "w2"]
    assert read_state(path)["step"] == 7 and not complaints(path)


@pytest.mark.parametrize("damage", ["cut", "flip", "lost", "state", "manifest"])
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path, damage):
    older, newest = write(tmp_path, 1), write(tmp_path, 2)
    part = next(newest.glob("part-00001*"))
    content = part.read_bytes()
    if damage == "cut":
        part.write_bytes(content[:-5])
    elif damage == "flip":
        part.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "lost":
        part.unlink()
    elif damage == "state":
        (newest / "state.json").write_text(json.dumps({"step": 3}))
    else:
        (newest / "manifest.json").unlink()
    warnings: list[str] = []
    assert newest_checkpoint(tmp_path, warnings.append) == older
    assert len(warnings) == 1 and newest.name in warnings[0]


def test_a_write_that_broke_off_is_no_checkpoint(tmp_path):
    good = write(tmp_path, 1)
    partial = good.with_name(".step-00000002.another.partial")
    partial.mkdir()
    (partial / "part-00000-of-00002.safetensors").write_bytes(b"half")
    assert newest_checkpoint(tmp_path) == good
    assert read_state(write(tmp_path, 2))["step"] == 2
    assert list(good.parent.glob(".*")) == [partial], "it may be another's that goes on"
    run = Run(name=tmp_path.name, root=str(tmp_path.parent))
    RunFiles(run.directory).begin(run)
    assert not list(good.parent.glob(".*")), "what another attempt has left is gone"


def test_values_that_are_no_numbers_are_never_written(tmp_path):
    good, gather = write(tmp_path, 1), gathering(2)
    errors: list[CheckpointError] = []

    def worker(rank):
        part = {f"w{rank}": torch.ones(3), f"w{rank}@exp_avg": torch.tensor([0.0, float("nan") if rank else 0.0])}
        try:
            write_checkpoint(tmp_path, part, {"step": 2}, rank, 2, lambda mine: gather(rank, mine))
        except CheckpointError as error:
            errors.append(error)

    threads = [Thread(target=worker, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [str(error)[:62] for error in errors] == [
        "1 tensors hold values that are not finite at step 2 (first w1@"
    ] * 2
    assert checkpoints(tmp_path) == [good]


def test_a_damaged_checkpoint_costs_no_good_one(tmp_path):
    """Neither as one of the newest, nor as the best by a loss that nobody can have again."""
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 2.5), (5, 2.6)):
        write(tmp_path, step, loss)
    for step in (2, 5):
        part = next(checkpoints(tmp_path)[step - 1].glob("part-00001*"))
        content = part.read_bytes()
        part.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    prune(tmp_path, kept=1)
    assert [int(path.name[5:]) for path in checkpoints(tmp_path)] == [2, 3, 4, 5]
    assert find_checkpoint(tmp_path, "best").name == "step-00000003"


def test_a_manifest_without_sizes_is_read_too(tmp_path):
    path = write(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({"sha256": manifest["sha256"]}))
    assert not complaints(path) and len(read_tensors(path)) == 4


def test_pruning_keeps_the_newest_and_the_best(tmp_path):
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 2.5)):
        write(tmp_path, step, loss)
    prune(tmp_path, kept=2)
    assert [read_state(path)["step"] for path in checkpoints(tmp_path)] == [2, 3, 4]
    assert [read_state(find_checkpoint(tmp_path, which))["step"] for which in ("best", "last", "3")] == [2, 4, 3]
    (checkpoints(tmp_path)[0] / "state.json").write_text("{}")
    assert read_state(find_checkpoint(tmp_path, "best"))["step"] == 3, "what is damaged is not the best"
    with pytest.raises(CheckpointError, match="step-00000002/state.json changed"):
        find_checkpoint(tmp_path, "2")
    with pytest.raises(CheckpointError, match=r"no checkpoint '1'; it holds step-00000002, step-00000003"):
        find_checkpoint(tmp_path, "1")


def test_a_validation_loss_that_is_no_number_is_never_the_best(tmp_path):
    for step, loss in ((1, float("nan")), (2, 0.9), (3, 0.8), (4, float("nan"))):
        write(tmp_path, step, loss)
    assert find_checkpoint(tmp_path, "best").name == "step-00000003"


def test_no_room_says_how_much_is_missing(tmp_path):
    with pytest.raises(CheckpointError, match=r"needs 1000000000\.00 GB.*free"):
        check_room(tmp_path, 10**18)


def test_a_run_without_a_checkpoint_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="no good checkpoint"):
        find_checkpoint(tmp_path, "best")
