"""A checkpoint directory: trainable state in safetensors parts, state.json, and a manifest that makes it count.

Written beside its final name and renamed when whole. "Newest good" is the newest whose files match its own manifest.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from r2kg.protocol import parse_choice
from r2kg.rundir import RunFiles
from shards.errors import CheckpointError, ConfigError
from shards.tars.place import sha256_of

MANIFEST = "manifest.json"
MOMENT = "@"
"""What the optimiser keeps of the parameter NAME is stored as NAME@exp_avg, NAME@exp_avg_sq, ...: no parameter's and no
buffer's name holds this sign."""


def write_checkpoint(
    run_directory: Path, part: dict[str, Tensor], state: dict, rank: int, world: int, barrier: Callable[[], object]
) -> Path:
    """Write one checkpoint from all workers; collective.

    Args:
        part: this worker's tensors (`Engine.state`).
        state: contents of state.json; "step" names the directory.
        barrier: returns when every worker has called it.

    Raises:
        CheckpointError: not enough room, with both sizes.
    """
    final = RunFiles(run_directory).checkpoints / f"step-{state['step']:08d}"
    partial = final.with_name(f".{final.name}.partial")
    if rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    barrier()
    check_room(partial, sum(t.numel() * t.element_size() for t in part.values()) * world)
    name = f"part-{rank:05d}-of-{world:05d}.safetensors"
    save_file(part, partial / name)
    (partial / f"{name}.sha256").write_text(sha256_of(partial / name))
    barrier()
    if rank == 0:
        (partial / "state.json").write_text(json.dumps(state, indent=1))
        digests = {"state.json": sha256_of(partial / "state.json")}
        for file in sorted(partial.glob("part-*.sha256")):
            digests[file.name.removesuffix(".sha256")] = file.read_text()
            file.unlink()
        (partial / MANIFEST).write_text(json.dumps({"sha256": digests}, indent=1))
        for file in partial.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
    barrier()
    return final


def read_state(checkpoint: Path) -> dict:
    """state.json: step, samples_seen, fingerprints, run, versions, losses."""
    return json.loads((checkpoint / "state.json").read_text())


def read_tensors(checkpoint: Path) -> dict[str, Tensor]:
    """All parts as one dict on host: weights, mutable buffers and the optimiser's moments."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(checkpoint.glob("part-*.safetensors")):
        tensors |= load_file(file)
    return tensors


def weights_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The model's tensors among `read_tensors`': weights and mutable buffers, as `load_stored` takes them."""
    return {name: value for name, value in tensors.items() if MOMENT not in name}


def complaints(checkpoint: Path) -> list[str]:
    """What is wrong with a checkpoint, judged by its own manifest; empty when it is good."""
    try:
        expected = json.loads((checkpoint / MANIFEST).read_text())["sha256"]
    except (OSError, ValueError, KeyError) as error:
        return [f"{checkpoint / MANIFEST} cannot be read: {error}"]
    wrong = []
    for name, digest in expected.items():
        file = checkpoint / name
        if not file.is_file():
            wrong.append(f"{file} is missing")
        elif sha256_of(file) != digest:
            wrong.append(f"{file} changed since it was written")
    return wrong


def checkpoints(run_directory: Path) -> list[Path]:
    """Finished checkpoints, oldest first; not yet checked."""
    return sorted(RunFiles(run_directory).checkpoints.glob("step-*"))


def newest_checkpoint(run_directory: Path, warn: Callable[[str], None] = lambda text: None) -> Path | None:
    """The newest good checkpoint; each bad one that is passed over is named through `warn`."""
    for checkpoint in reversed(checkpoints(run_directory)):
        wrong = complaints(checkpoint)
        if not wrong:
            return checkpoint
        warn(f"checkpoint {checkpoint.name} is passed over: {'; '.join(wrong)}")
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
        good = [path for path in paths if not complaints(path)]
        if not good:
            raise CheckpointError(
                f"{run_directory} holds no good checkpoint: train the run first, or copy its checkpoints"
            )
        choice = choice_of(run_directory)
        if unscored := [path.name for path in good if choice and scored(path, choice) is None]:
            raise CheckpointError(
                f"the best checkpoint of {run_directory} is not chosen yet: {len(unscored)} of {len(good)} have no "
                f"score by train.choose={choice} ({', '.join(unscored)}). Submit the run again (`r2kg train "
                f"{RunFiles(run_directory).run}`), which goes on with the choice, or name a step"
            )
        return _best(good, choice) or good[-1]
    named = paths[-1:] if which == "last" else [path for path in paths if path.name == f"step-{which:0>8}"]
    if not named:
        names = ", ".join(path.name for path in paths) or "none"
        raise CheckpointError(f"{run_directory} has no checkpoint {which!r}; it holds {names}")
    if wrong := complaints(named[0]):
        raise CheckpointError("; ".join(wrong))
    return named[0]


def prune(run_directory: Path, kept: int, chosen: bool = False) -> None:
    """Delete all but the `kept` newest checkpoints and the best one.

    Where another choice than the loss decides which is best, none is deleted before all are scored (`chosen`).
    """
    paths, choice = checkpoints(run_directory), choice_of(run_directory)
    if choice and not chosen:
        return
    for path in set(paths) - {*paths[-kept:], _best(paths, choice)}:
        shutil.rmtree(path, ignore_errors=True)


def choice_of(run_directory: Path) -> str:
    """`train.choose` of the run as it was submitted last; "" for the loss and where there is no run.json."""
    saved = RunFiles(run_directory).run
    choose = json.loads(saved.read_text())["train"].get("choose", "loss") if saved.is_file() else "loss"
    return "" if choose == "loss" else choose


def scored(checkpoint: Path, choice: str) -> float | None:
    """What a checkpoint scores by a choice, the higher the better.

    None where it was not scored, by another metric only, or where other weights stand there since.
    """
    try:
        record = json.loads(RunFiles(checkpoint.parents[1]).validation.joinpath(f"{checkpoint.name}.json").read_text())
        if record["checkpoint_sha256"] != sha256_of(checkpoint / MANIFEST):
            return None
        return sum(weight * record["values"][name] for name, weight in parse_choice(choice, record["task"]).items())
    except (OSError, ValueError, LookupError, ConfigError):
        return None


def _best(paths: list[Path], choice: str) -> Path | None:
    """Of equal ones the oldest; None where none was measured."""
    values = [(read_state(path).get("validation_loss"), path) for path in paths]
    if choice:
        values = [(None if (value := scored(path, choice)) is None else -value, path) for path in paths]
    finite = [(value, path) for value, path in values if value is not None and value == value]  # NaN is not
    return min(finite, default=(None, None))[1]


def check_room(directory: Path, needed: int) -> None:
    """Raise CheckpointError when the file system of `directory` cannot take `needed` bytes more."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise CheckpointError(
            f"a checkpoint needs {needed / 1e9:.2f} GB, {directory} has {free / 1e9:.2f} GB free: "
            "make room, set root= to another disk, or lower train.checkpoints_kept (under another train.choose than "
            "loss: raise train.checkpoint_every)"
        )
