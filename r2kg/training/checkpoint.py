"""A checkpoint directory: trainable state in safetensors parts, state.json, and a manifest that makes it count.

Written beside its final name and renamed when whole. "Newest good" is the newest whose files match its own manifest.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from shards.errors import CheckpointError

MANIFEST = "manifest.json"
MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's state of the tensor NAME is stored as NAME.exp_avg and NAME.exp_avg_sq."""


def checkpoint_path(run_directory: Path, step: int) -> Path:
    """Directory of the checkpoint after `step` optimiser steps."""
    return run_directory / "checkpoints" / f"step-{step:08d}"


def write_checkpoint(
    run_directory: Path, part: dict[str, Tensor], state: dict, rank: int, world: int, barrier: Callable[[], None]
) -> Path:
    """Write one checkpoint from all workers; collective.

    Args:
        part: this worker's tensors (`Engine.state`).
        state: contents of state.json; "step" names the directory.
        barrier: returns when every worker has called it.

    Raises:
        CheckpointError: not enough room, with both sizes.
    """
    final = checkpoint_path(run_directory, state["step"])
    partial = final.with_name(f".{final.name}.partial")
    if rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    barrier()
    check_room(partial, sum(t.numel() * t.element_size() for t in part.values()) * world)
    name = f"part-{rank:05d}-of-{world:05d}.safetensors"
    save_file(part, partial / name)
    (partial / f"{name}.sha256").write_text(_sha256(partial / name))
    barrier()
    if rank == 0:
        (partial / "state.json").write_text(json.dumps(state, indent=1))
        _seal(partial)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
    barrier()
    return final


def read_state(checkpoint: Path) -> dict:
    """state.json: step, samples_seen, fingerprints, run, versions, losses."""
    return json.loads((checkpoint / "state.json").read_text())


def read_tensors(checkpoint: Path) -> dict[str, Tensor]:
    """All parts as one dict on host: weights and Adam's moments."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(checkpoint.glob("part-*.safetensors")):
        tensors |= load_file(file)
    return tensors


def weights_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights among `read_tensors`' tensors."""
    return {name: value for name, value in tensors.items() if name.rpartition(".")[2] not in MOMENTS}


def complaints(checkpoint: Path) -> list[str]:
    """What is wrong with a checkpoint, judged by its own manifest; empty when it is good."""
    try:
        expected = json.loads((checkpoint / MANIFEST).read_text())["sha256"]
    except (OSError, ValueError, KeyError) as error:
        return [f"{checkpoint / MANIFEST} cannot be read: {error}"]
    found = []
    for name, digest in expected.items():
        file = checkpoint / name
        if not file.is_file():
            found.append(f"{file} is missing")
        elif _sha256(file) != digest:
            found.append(f"{file} changed since it was written")
    return found


def checkpoints(run_directory: Path) -> list[Path]:
    """Finished checkpoints, oldest first; not yet checked."""
    return sorted((run_directory / "checkpoints").glob("step-*"))


def newest_checkpoint(run_directory: Path, warn: Callable[[str], None] = lambda text: None) -> Path | None:
    """The newest good checkpoint; each bad one that is passed over is named through `warn`."""
    for checkpoint in reversed(checkpoints(run_directory)):
        wrong = complaints(checkpoint)
        if not wrong:
            return checkpoint
        warn(f"checkpoint {checkpoint.name} is passed over: {'; '.join(wrong)}")
    return None


def best_checkpoint(run_directory: Path) -> Path:
    """The good checkpoint with the lowest validation loss, the newest where none was measured.

    Raises:
        CheckpointError: the run has no good checkpoint.
    """
    good = [path for path in checkpoints(run_directory) if not complaints(path)]
    if not good:
        raise CheckpointError(f"{run_directory} holds no good checkpoint: train the run first, or copy its checkpoints")
    measured = [(read_state(path)["validation_loss"], path) for path in good]
    measured = [(loss, path) for loss, path in measured if loss is not None]
    return min(measured)[1] if measured else good[-1]


def prune(run_directory: Path, kept: int) -> None:
    """Delete all but the `kept` newest checkpoints and the best one."""
    paths = checkpoints(run_directory)
    losses = {path: read_state(path).get("validation_loss") for path in paths}
    measured = [path for path in paths if losses[path] is not None]
    keep = set(paths[-kept:]) | ({min(measured, key=losses.get)} if measured else set())
    for path in set(paths) - keep:
        shutil.rmtree(path, ignore_errors=True)


def check_room(directory: Path, needed: int) -> None:
    """Raise CheckpointError when the file system of `directory` cannot take `needed` bytes more."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise CheckpointError(
            f"a checkpoint needs {needed / 1e9:.2f} GB, {directory} has {free / 1e9:.2f} GB free: "
            "make room, set root= to another disk, or lower train.checkpoints_kept"
        )


def _seal(partial: Path) -> None:
    digests = {"state.json": _sha256(partial / "state.json")}
    for file in sorted(partial.glob("part-*.sha256")):
        digests[file.name.removesuffix(".sha256")] = file.read_text()
        file.unlink()
    (partial / MANIFEST).write_text(json.dumps({"sha256": digests}, indent=1))
    for file in partial.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
