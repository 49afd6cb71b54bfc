"""A checkpoint directory: trainable state in safetensors parts, state.json, and a manifest that makes it count.

Written beside its final name and renamed when whole. "Newest good" is the newest whose files match its own manifest.
"""

import json
import os
import re
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from r2kg.config.protocol import parse_choice
from r2kg.rundir import RunFiles, read_json
from r2kg.training.optim import gentler
from shards.errors import CheckpointError, ConfigError, RetryableError, may_pass
from shards.tars.place import remember_sha256, sha256_of, size_of, write_atomic

MANIFEST = "manifest.json"
PART = r"part-\d{5,}-of-(\d{5,})\.safetensors"
FileName = Annotated[str, Field(pattern=rf"^(?:{PART}|state\.json)$")]
UNREAD = "Run the same command again; if it stays so, move that away, and the newest good one before it is taken"
MOMENT = "@"
"""What the optimiser keeps of the parameter NAME is stored as NAME@exp_avg, NAME@exp_avg_sq, ...: no parameter's and no
buffer's name holds this sign."""


def write_checkpoint(
    run_directory: Path,
    part: dict[str, Tensor],
    state: dict,
    rank: int,
    world: int,
    gather: Callable[[Any], list[Any]],
    attempt: str = "",
) -> Path:
    """Write one checkpoint from all workers; collective. It counts once all of it is on the disk.

    Args:
        part: this worker's tensors (`Engine.state`).
        state: contents of state.json; "step" names the directory.
        gather: returns what every worker gave, by rank, when all have. What one worker wrote is told to the others this
            way: a shared file system may list it late.
        attempt: marks what is not finished yet, so that another attempt, lost sight of, neither writes into it nor
            deletes it. What earlier attempts have left is deleted when a run begins (`RunFiles.begin`).

    Raises:
        CheckpointError: a tensor is not finite; it is named, and nothing is written. Not enough room, with both sizes.
        RetryableError: this worker does not see what the first one has made.
    """
    final = RunFiles(run_directory).checkpoints / f"step-{state['step']:08d}"
    partial = final.with_name(f".{final.name}.{attempt}.partial")
    broken = [name for name, value in part.items() if value.is_floating_point() and not value.isfinite().all()]
    free = 0
    if rank == 0:
        for left in final.parent.glob(f".step-*.{attempt}.partial"):  # of workers that were lost
            shutil.rmtree(left, ignore_errors=True)
        partial.mkdir(parents=True)
        free = shutil.disk_usage(partial).free
    told = gather((broken, sum(value.nbytes for value in part.values()), free))
    if broken := [name for names, _, _ in told for name in names]:
        raise CheckpointError(
            f"{len(broken)} tensors hold values that are not finite at step {state['step']} (first {broken[0]}): no "
            f"checkpoint is written of them. {gentler(run_directory)}"
        )
    check_room(final.parent, sum(size for _, size, _ in told), free=told[0][2])
    file = partial / f"part-{rank:05d}-of-{world:05d}.safetensors"
    seen(partial)
    _write_part(file, part)
    parts = gather((file.name, file.stat().st_size, sha256_of(file)))
    if rank == 0:
        write_atomic(partial / "state.json", json.dumps(state, indent=1).encode())
        parts.append(("state.json", size_of(partial / "state.json"), sha256_of(partial / "state.json")))
        manifest = {
            "bytes": {name: size for name, size, _ in parts},
            "sha256": {name: digest for name, _, digest in parts},
        }
        write_atomic(partial / MANIFEST, json.dumps(manifest, indent=1).encode())
        _flush(partial)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        _flush(final.parent)
        for name, _, digest in parts:  # what was read back a moment ago is not read again to prune
            remember_sha256(final / name, digest)
    gather(None)
    return final


def _write_part(file: Path, part: dict[str, Tensor]) -> None:
    """Put one worker's tensors on the disk; CheckpointError when there is no room left, else RetryableError."""
    try:
        save_file(part, file)
        with file.open("rb") as written:
            os.fsync(written.fileno())
    except (SafetensorError, OSError) as error:
        full = re.search(r"os error (?:28|122)\b|Errno (?:28|122)\b", str(error))  # ENOSPC, EDQUOT
        kind, then = (CheckpointError, "make room, or raise the quota") if full else (RetryableError, "submit it again")
        raise kind(f"{file} cannot be written ({error}): {then}; the newest checkpoint stays") from error


def _flush(directory: Path) -> None:
    """Put a directory's entries on the disk."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def seen(path: Path, seconds: float = 60.0) -> Path:
    """A path that another machine may have made a moment ago, once it is there: shared file systems show it late.

    Raises:
        RetryableError: it is not, after `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > deadline:
            raise RetryableError(
                f"{socket.gethostname()} does not see {path}, which another worker has written or read"
            )
        time.sleep(0.2)
        with suppress(OSError):
            os.scandir(path.parent).close()  # asks the server anew
    return path


def read_state(checkpoint: Path) -> dict:
    """state.json: step, samples_seen, fingerprints, run, versions, losses.

    Raises:
        CheckpointError: it is damaged, or has not what is asked for.
    """
    try:
        state = read_json(checkpoint / "state.json")
        measured = state.get("validation_loss")
        if type(step := state.get("step")) is not int or step < 0 or not isinstance(measured, int | float | None):
            raise ValueError("state.json has no step, or a validation loss that is no number")
    except ValueError as error:
        raise CheckpointError(f"checkpoint {checkpoint} cannot be used: {error}") from None
    return State(state)


class State(dict):
    """What state.json holds."""

    def __missing__(self, key: str) -> Any:
        raise CheckpointError(f"the state.json of a checkpoint has no {key}: take another checkpoint")


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of files by name, each read when it is asked for, and of its bytes those that are then touched."""

    def __init__(self, files: Iterable[Path]):
        """Open the files, which are closed with the last tensor of them; CheckpointError for one that is none."""
        try:
            opened = [safe_open(file, "pt") for file in files]
        except (SafetensorError, OSError) as error:
            kind = RetryableError if may_pass(error) else CheckpointError
            raise kind(f"tensors of a checkpoint cannot be read: {str(error)[:200]}") from error
        self._where = {name: file for file in opened for name in file.keys()}  # noqa: SIM118  # it is no mapping

    def __getitem__(self, name: str) -> Tensor:
        """A tensor in the file's own dtype, on the host."""
        return self._where[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        """Names, in the order of the files."""
        return iter(self._where)

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self._where)


def read_tensors(checkpoint: Path) -> StoredTensors:
    """Weights, mutable buffers and the optimiser's moments, of all parts."""
    return StoredTensors(checkpoint / name for name in _expected(checkpoint)["sha256"] if name.startswith("part-"))


def weights_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's tensors among `read_tensors`': weights and mutable buffers, as `load_stored` takes them."""
    return {name: tensors[name] for name in tensors if MOMENT not in name}


def _expected(checkpoint: Path) -> dict[str, dict[FileName, Any]]:
    """A checkpoint's manifest: "sha256", and in all but the oldest "bytes", by file.

    Raises:
        CheckpointError: it is damaged, names what no checkpoint has, or not all of it.
    """
    try:
        manifest = read_json(checkpoint / MANIFEST, dict[str, dict[FileName, str | int]])
        files = manifest.get("sha256", {})
        if not all(isinstance(size, int) for size in manifest.get("bytes", {}).values()):
            raise ValueError("it has sizes that are no numbers")
        worlds = [int(part[1]) for name in files if (part := re.fullmatch(PART, name))]
        if set(worlds) != {len(worlds)} or "state.json" not in files:
            raise ValueError("it does not name state.json and all the parts")
    except ValueError as error:
        raise CheckpointError(f"{checkpoint / MANIFEST} cannot be read: {error}") from None
    return {"bytes": {}} | manifest


def complaints(checkpoint: Path, hashes: bool = True) -> list[str]:
    """What is wrong with a checkpoint, judged by its manifest (without `hashes` by sizes); empty when it is good.

    Raises:
        RetryableError: the file system did not answer for a moment, which says nothing of the checkpoint.
    """
    wrong = []
    try:
        manifest = _expected(checkpoint)
        for name, digest in manifest["sha256"].items():
            file = checkpoint / name
            if not file.is_file():
                wrong.append(f"{file} is missing")
            elif (size := size_of(file)) != manifest["bytes"].get(name, size) or (hashes and sha256_of(file) != digest):
                wrong.append(f"{file} changed since it was written")
        if not wrong:
            read_state(checkpoint)
    except (OSError, CheckpointError) as error:
        if may_pass(error):
            raise RetryableError(f"{checkpoint} cannot be read at the moment: {error}. {UNREAD}") from error
        return [str(error)]
    return wrong


def checkpoints(run_directory: Path) -> list[Path]:
    """Finished checkpoints, oldest first, not yet checked; what has another name, such as a copy, is none.

    Raises:
        RetryableError: the directory cannot be listed at the moment; it must not pass for an empty one.
    """
    directory = RunFiles(run_directory).checkpoints
    try:
        with os.scandir(directory) as entries:
            found = [directory / entry.name for entry in entries if re.fullmatch(r"step-\d{8,}", entry.name)]
        return sorted(path for path in found if stat.S_ISDIR(path.stat().st_mode))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        if may_pass(error):
            raise RetryableError(f"{directory} cannot be read at the moment: {error}. {UNREAD}") from error
        raise CheckpointError(f"{directory} cannot be read: {error}") from None


def newest_checkpoint(run_directory: Path, warn: Callable[[str], None] = lambda text: None) -> Path | None:
    """The newest good checkpoint, None where there is none at all; each bad one passed over is named through `warn`.

    Raises:
        CheckpointError: there are some, and none is good: to begin anew is for a person to decide.
        RetryableError: they cannot be read at the moment.
    """
    paths, wrong = checkpoints(run_directory), list[str]()
    for checkpoint in reversed(paths):
        wrong = complaints(checkpoint)
        if not wrong:
            return checkpoint
        warn(f"checkpoint {checkpoint.name} is passed over: {'; '.join(wrong)}")
    if paths:
        raise CheckpointError(
            f"none of the {len(paths)} checkpoints in {paths[0].parent} is good; of {paths[0].name}: "
            f"{'; '.join(wrong)}. Put a good one in its place, or move them all away to begin at step 0"
        )
    return None


def find_checkpoint(run_directory: Path, which: str) -> Path:
    """The good checkpoint "best", "last" or of a step number.

    Best is the lowest validation loss, the newest where none was measured, or what `train.choose` of the run.json
    there says; "best" passes over damaged ones.

    Raises:
        CheckpointError: no such checkpoint, or the one asked for is damaged; the best is not chosen yet.
    """
    paths = checkpoints(run_directory)
    if which == "best":
        good, choice = [path for path in paths if not complaints(path, hashes=False)], choice_of(run_directory)
        waiting = [path for path in good if choice and scored(path, choice) is None]
        if unscored := [path.name for path in waiting if not complaints(path)]:
            raise CheckpointError(
                f"the best checkpoint of {run_directory} is not chosen yet: {len(unscored)} of {len(good)} have no "
                f"score by train.choose={choice} ({', '.join(unscored)}). Submit the run again (`r2kg train "
                f"{RunFiles(run_directory).run}`), which goes on with the choice, or name a step"
            )
        while good:  # the others need not be read
            best = _best(good, choice) or good[-1]
            if not complaints(best):
                return best
            good.remove(best)
        raise CheckpointError(f"{run_directory} holds no good checkpoint: train the run first, or copy its checkpoints")
    named = paths[-1:] if which == "last" else [path for path in paths if path.name == f"step-{which:0>8}"]
    if not named:
        names = ", ".join(path.name for path in paths) or "none"
        raise CheckpointError(f"{run_directory} has no checkpoint {which!r}; it holds {names}")
    if wrong := complaints(named[0]):
        raise CheckpointError(f"{'; '.join(wrong)}. Take another: best, last, or a step of {run_directory}")
    return named[0]


def prune(run_directory: Path, kept: int, chosen: bool = False, written: Path | None = None) -> None:
    """Delete all good checkpoints but the `kept` newest and the best; a damaged one stays and counts for nothing.

    Where another choice than the loss decides which is best, none is deleted before all are scored (`chosen`).
    `written` was hashed a moment ago, and is not read again for it.
    """
    try:
        if (choice := choice_of(run_directory)) and not chosen:
            return
        good = [path for path in checkpoints(run_directory) if path == written or not complaints(path)]
        best = _best(good, choice)
    except RetryableError:  # there will be another time
        return
    for path in set(good) - {*good[-kept:], best, written}:
        shutil.rmtree(path, ignore_errors=True)


def choice_of(run_directory: Path) -> str:
    """`train.choose` of the run as it was submitted last; "" for the loss and where there is no run.json.

    Raises:
        ConfigError: a torn run.json.
    """
    saved = RunFiles(run_directory).run
    try:
        train = read_json(saved).get("train", {}) if saved.is_file() else {}
        choose = train.get("choose", "loss") if isinstance(train, dict) else None
        if not isinstance(choose, str):
            raise ValueError("it says no train.choose")
    except ValueError as error:
        raise ConfigError(f"{saved} is torn or no saved run ({error}): put a whole one in its place") from None
    return "" if choose == "loss" else choose


def scored(checkpoint: Path, choice: str) -> float | None:
    """What a checkpoint scores by a choice, the higher the better.

    None where it was not scored, by another metric only, or where other weights stand there since.
    """
    try:
        record = read_json(RunFiles(checkpoint.parents[1]).validation / f"{checkpoint.name}.json")
        if record["checkpoint_sha256"] != sha256_of(checkpoint / MANIFEST):
            return None
        return sum(weight * record["values"][name] for name, weight in parse_choice(choice, record["task"]).items())
    except (OSError, ValueError, LookupError, TypeError, OverflowError):
        return None


def _best(paths: list[Path], choice: str) -> Path | None:
    """Of equal ones the oldest; None where none was measured."""
    values = [(read_state(path).get("validation_loss"), path) for path in paths]
    if choice:
        values = [(None if (value := scored(path, choice)) is None else -value, path) for path in paths]
    finite = [(value, path) for value, path in values if value is not None and value == value]  # NaN is not
    return min(finite, default=(None, None))[1]


def check_room(directory: Path, needed: int, count: int = 1, free: int | None = None) -> None:
    """Raise CheckpointError when the file system of `directory` cannot take `needed` bytes, `count` checkpoints, more.

    Workers compare with what one of them found `free`, so that all come to the same.
    """
    free = shutil.disk_usage(directory).free if free is None else free
    if free < needed:
        what = "a checkpoint needs" if count == 1 else f"{count} checkpoints, as many as are there at a time, need"
        raise CheckpointError(
            f"{what} {needed / 1e9:.2f} GB, {directory} has {free / 1e9:.2f} GB free: make room there, lower "
            "train.checkpoints_kept (under another train.choose than loss: raise train.checkpoint_every), or begin a "
            "run on another disk with root="
        )
