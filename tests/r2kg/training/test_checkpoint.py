"""A checkpoint counts only when it is whole; what is damaged is passed over by name."""

import errno
import hashlib
import json
import os
import shutil
from threading import Barrier, Thread

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

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
    scored,
    weights_of,
    write_checkpoint,
)
from shards.errors import CheckpointError, ConfigError, RetryableError


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


def sealed(checkpoint, name, data):
    """Put another file in the place of one of a checkpoint, and its size and hash into the manifest."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    (checkpoint / name).write_bytes(data)
    manifest["bytes"][name], manifest["sha256"][name] = len(data), hashlib.sha256(data).hexdigest()
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def pipe(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


PARTS = [f"part-0000{rank}-of-00002.safetensors" for rank in range(2)]


@pytest.mark.parametrize(
    "change",
    [
        lambda files: [],
        lambda files: {"sha256": list(files)},
        lambda files: {"sha256": files, "bytes": []},
        lambda files: {"sha256": files, "bytes": dict.fromkeys(files, "9")},
        lambda files: {"sha256": {}},
        lambda files: {"sha256": files | {"/etc/passwd": "0"}},
        lambda files: {"sha256": files | {"../step-00000001/state.json": "0"}},
        lambda files: {"sha256": files | {"\0": "0", "a" * 5_000: "0"}},
        lambda files: {"sha256": {name: digest for name, digest in files.items() if name != "state.json"}},
        lambda files: {"sha256": {name: digest for name, digest in files.items() if name != PARTS[1]}},
    ],
)
def test_a_manifest_that_names_other_or_fewer_files_is_none(tmp_path, change):
    older, newest = write(tmp_path, 1), write(tmp_path, 2)
    manifest = json.loads((newest / "manifest.json").read_text())
    (newest / "manifest.json").write_text(json.dumps(change(manifest["sha256"])))
    assert newest_checkpoint(tmp_path) == older
    with pytest.raises(CheckpointError, match=r"manifest.json cannot be read"):
        find_checkpoint(tmp_path, "last")
    with pytest.raises(CheckpointError, match=r"manifest.json cannot be read"):
        read_tensors(newest)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 100_000, b"9" * 5_000, None], ids=str)
@pytest.mark.parametrize("name", ["manifest.json", "state.json"])
def test_whatever_stands_in_a_checkpoints_files_is_passed_over_and_never_waited_for(tmp_path, name, content):
    older, newest = write(tmp_path, 1, 0.5), write(tmp_path, 2, 0.4)
    if content is None:
        pipe(newest / name)
    elif name == "state.json":
        sealed(newest, name, content)
    else:
        (newest / name).write_bytes(content)
    assert newest_checkpoint(tmp_path) == find_checkpoint(tmp_path, "best") == older
    prune(tmp_path, kept=1)
    assert newest.exists() and older.exists()


@pytest.mark.parametrize(
    "state",
    [{}, {"step": "2"}, {"step": -2}, {"step": 2, "validation_loss": "0.1"}, {"step": 2, "validation_loss": [0.1]}],
)
def test_a_state_without_its_numbers_is_passed_over(tmp_path, state):
    older, newest = write(tmp_path, 1, 0.5), write(tmp_path, 2, 0.4)
    sealed(newest, "state.json", json.dumps(state).encode())
    assert newest_checkpoint(tmp_path) == find_checkpoint(tmp_path, "best") == older
    with pytest.raises(CheckpointError, match="state.json of a checkpoint has no shards"):
        read_state(older)["shards"]


def test_parts_are_those_of_the_manifest_and_no_others(tmp_path):
    path = write(tmp_path, 1)
    (path / "part-00002-of-00003.safetensors").write_bytes((path / PARTS[0]).read_bytes())
    save_file({"w0": torch.full((3,), 7.0)}, path / "part-00009-of-00010.safetensors")
    assert read_tensors(path)["w0"].tolist() == [1.0] * 3
    sealed(path, PARTS[0], b"\xff" * 8)
    with pytest.raises(CheckpointError, match="tensors of a checkpoint cannot be read"):
        read_tensors(path)


def test_copies_and_files_beside_checkpoints_are_none(tmp_path):
    path = write(tmp_path, 1, 0.5)
    shutil.copytree(path, path.with_name("step-00000009.bak"))
    path.with_name("step-00000010").write_text("")
    assert find_checkpoint(tmp_path, "last") == newest_checkpoint(tmp_path) == path
    prune(tmp_path, kept=1)
    assert path.with_name("step-00000009.bak").exists()


@pytest.mark.parametrize("content", [b'{"train": ', b"[]", b'{"train": {"choose": [1]}}', b"[" * 100_000])
def test_a_torn_run_beside_checkpoints_is_one_sentence(tmp_path, content):
    write(tmp_path, 1)
    (tmp_path / "run.json").write_bytes(content)
    for ask in (lambda: find_checkpoint(tmp_path, "best"), lambda: prune(tmp_path, kept=1)):
        with pytest.raises(ConfigError, match="is torn or no saved run"):
            ask()


@pytest.mark.parametrize(
    "values",
    ['{"bleu4": "x"}', '{"bleu4": null}', "[]", "[" * 100_000, '{"rouge_l": 1}', '{"bleu4": 1%s}' % ("0" * 400)],
)
def test_a_score_that_is_none_counts_as_not_measured(tmp_path, values):
    path = write(tmp_path, 1)
    digest = hashlib.sha256((path / "manifest.json").read_bytes()).hexdigest()
    (tmp_path / "validation").mkdir()
    record = f'{{"checkpoint_sha256": "{digest}", "task": "report", "values": %s}}'
    (tmp_path / "validation" / f"{path.name}.json").write_text(record % values)
    assert scored(path, "BLEU-4") is None
    (tmp_path / "validation" / f"{path.name}.json").write_text(record % '{"bleu4": 0.5}')
    assert scored(path, "BLEU-4") == 0.5


def test_a_file_system_that_does_not_answer_says_nothing_of_a_checkpoint(tmp_path, monkeypatch):
    """Neither is it passed over for an older one or for step 0, nor is anything deleted."""
    for step in (1, 2, 3):
        write(tmp_path, step)

    def read(path, fresh=False):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    with monkeypatch.context() as patch:
        patch.setattr("r2kg.training.checkpoint.sha256_of", read)
        with pytest.raises(RetryableError, match=r"step-00000003 cannot be read at the moment: .*Input/output error"):
            newest_checkpoint(tmp_path)
        prune(tmp_path, kept=1)
    assert len(checkpoints(tmp_path)) == 3

    def stat(path, **how):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    with monkeypatch.context() as patch:
        patch.setattr("r2kg.training.checkpoint.os.scandir", stat)
        with pytest.raises(RetryableError, match="checkpoints cannot be read at the moment"):
            newest_checkpoint(tmp_path)


def test_where_none_is_good_nobody_begins_at_step_0_in_silence(tmp_path):
    for step in (1, 2):
        (write(tmp_path, step) / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"none of the 2 checkpoints in .* is good.*move them all away to begin"):
        newest_checkpoint(tmp_path)


def test_what_was_just_written_is_not_pruned_for_what_lay_there(tmp_path):
    first, *_ = [write(tmp_path, step) for step in (1, 5, 6)]
    prune(tmp_path, kept=1, written=first)
    assert [read_state(path)["step"] for path in checkpoints(tmp_path)] == [1, 6]


def test_a_checkpoint_is_read_once_when_it_is_written_and_not_again_to_prune(tmp_path, monkeypatch):
    """An 81 GB checkpoint (a 7B model, trained whole) would take a minute of every save."""
    monkeypatch.setattr("shards.tars.place.REMEMBERED_BYTES", 1)
    for step in (1, 2):
        write(tmp_path, step)

    monkeypatch.setattr("shards.tars.place.RACY_NS", 0)  # they are some seconds old when the next is written

    def read(file, name):
        assert not file.name.endswith(".safetensors"), f"{file.name} is read"
        return hashlib.sha256(file.read())

    monkeypatch.setattr("shards.tars.place.hashlib.file_digest", read)
    prune(tmp_path, kept=2)
    part = next(checkpoints(tmp_path)[0].glob("part-00001*"))
    os.utime(part)
    with pytest.raises(AssertionError, match="part-00001"):
        prune(tmp_path, kept=2)


def test_room_is_asked_for_what_all_workers_write_together(tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)
    errors, gather = list[str](), gathering(2)

    def worker(rank):
        part = {f"w{rank}": torch.ones(1000 if rank else 10)}
        try:
            write_checkpoint(tmp_path, part, {"step": 1}, rank, 2, lambda mine: gather(rank, mine))
        except CheckpointError as error:
            errors.append(str(error)[:28])

    for room, refused in ((4_000, 2), (4_100, 0)):
        errors.clear()
        monkeypatch.setattr("r2kg.training.checkpoint.shutil.disk_usage", lambda _, room=room: free._replace(free=room))
        threads = [Thread(target=worker, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == ["a checkpoint needs 0.00 GB, "] * refused
    assert len(checkpoints(tmp_path)) == 1


@pytest.mark.parametrize(
    ("number", "kind", "way_out"),
    [(28, CheckpointError, "raise the quota"), (122, CheckpointError, "raise the quota"), (5, RetryableError, "again")],
)
def test_a_part_that_cannot_be_written_says_whether_to_try_again(tmp_path, monkeypatch, number, kind, way_out):
    """A quota shows nowhere before."""

    def save(tensors, path):
        raise SafetensorError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")

    monkeypatch.setattr("r2kg.training.checkpoint.save_file", save)
    with pytest.raises(kind, match=rf"part-00000-of-00001.safetensors cannot be written.*os error.*{way_out}"):
        write_checkpoint(tmp_path, {"w": torch.ones(3)}, {"step": 1}, 0, 1, lambda mine: [mine])


def test_no_room_says_how_much_is_missing(tmp_path):
    with pytest.raises(CheckpointError, match=r"needs 1000000000\.00 GB.*free"):
        check_room(tmp_path, 10**18)


def test_a_run_without_a_checkpoint_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="no good checkpoint"):
        find_checkpoint(tmp_path, "best")
