"""The files of a run: what they are called, and those that the driver and its workers leave for one another."""

import json
import secrets
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from r2kg.config.run import Run, load_run, local_fields
from shards.errors import ConfigError, DataError, patiently
from shards.privacy import OURS
from shards.tars.place import size_of, write_atomic

UNREAD = "unread-{}.jsonl"
"""By rank: lines of [key, cause]."""


UNSCORED = "unscored.jsonl"
"""Predictions that tell nothing of what is right, in place of predictions.jsonl."""
MAX_JSON_BYTES = 100_000_000


def read_json(path: Path, kind: Any = dict[str, Any]) -> Any:
    """What a JSON file that a run has left holds, checked against a type.

    Raises:
        ValueError: anything else, a damaged or missing file included, in words that quote nothing of it.
        RetryableError: the file system did not answer for a moment, which says nothing of the file.
    """
    try:
        if (size := size_of(path)) < 0:
            raise ValueError(f"{path.name} is missing, or no regular file")
        if size > MAX_JSON_BYTES:
            raise ValueError(f"{path.name} has {size:,} bytes, at most {MAX_JSON_BYTES:,} are read")
        return TypeAdapter(kind).validate_json(patiently(str(path), path.read_bytes))
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise ValueError(f"{path.name} is damaged: {fault['msg']}") from None
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read: {error.strerror}") from None


class Record(TypedDict):
    """A line of metrics.jsonl."""

    step: int
    time_ms: int
    metrics: dict[str, float]


_RECORD = TypeAdapter(Record)


def record_of(line: bytes) -> Record | None:
    """What a line of metrics.jsonl records; None for a torn one."""
    try:
        return _RECORD.validate_json(line)
    except ValidationError:
        return None


def new_attempt() -> str:
    """A name that no other attempt at a run has: what its workers leave behind is known by it."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"


class RunFiles:
    """Every file in a run's directory. The class itself touches no disk before a method is called."""

    def __init__(self, directory: Path):
        """Name the files of the run in `directory`, which need not exist."""
        self.directory = directory
        self.run = directory / "run.json"  # the Run as it was submitted last
        self.before = directory / "run.json.before"  # as it was submitted before that
        self.metrics = directory / "metrics.jsonl"  # the records of `r2kg.tracking.Tracker`
        self.cursor = directory / "mlflow.json"  # which of them MLflow has, and under which of its runs
        self.log = directory / "log.txt"  # a sentence for every event
        self.failure = directory / "failure.json"  # what stopped a worker and will stop it again
        self.stop = directory / "stop"  # the attempt that is to write a checkpoint and end
        self.groups = directory / "groups.txt"  # a line for each group of workers that started or was lost
        self.consumed = directory / "consumed"  # RANK-of-WORLD.jsonl: the studies of every step
        self.checkpoints = directory / "checkpoints"  # step-STEP/, see r2kg.training.checkpoint
        self.validation = directory / "validation"  # step-STEP.json: what a checkpoint scores on the validation split
        self.predictions = directory / "predictions"  # SPLIT/HOW/: predictions, control, context and scores
        self.ray = directory / "ray"  # what Ray Train keeps of its own

    def begin(self, run: Run) -> None:
        """Make the directory and save `run`, keep the one saved before it beside it.

        For who holds the lease: a noted failure is forgotten, checkpoints that were not finished are deleted.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        self.failure.unlink(missing_ok=True)
        for partial in self.checkpoints.glob(".step-*.partial"):
            shutil.rmtree(partial, ignore_errors=True)
        if self.run.exists():
            write_atomic(self.before, self.run.read_bytes())
        run.save(self.run)

    def ask_to_stop(self, attempt: str) -> None:
        """Let the workers of an attempt write a checkpoint behind the step they are at, and end."""
        self.directory.mkdir(parents=True, exist_ok=True)
        write_atomic(self.stop, attempt.encode())

    def is_to_stop(self, attempt: str) -> bool:
        """Whether that was asked of this attempt."""
        try:
            return self.stop.read_text() == attempt
        except (OSError, ValueError):
            return False

    def say(self, sentence: str) -> None:
        """One sentence per event, into log.txt; the driver prints it."""
        with self.log.open("a") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {sentence}\n")

    def note_group(self, attempt: str, lost: bool = False) -> None:
        """Count one more group of workers, or that the last one was lost."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with self.groups.open("a") as file:
            file.write(f"{attempt} {time.strftime('%Y-%m-%d %H:%M:%S')} {'lost' if lost else 'started'}\n")

    def groups_of(self, attempt: str) -> int:
        """Groups of workers that an attempt started."""
        return sum(line.endswith(" started") for line in self._noted(attempt))

    def losses_of(self, attempt: str) -> int:
        """What an attempt that is over, and has not ended the run, counts for against `train.max_restarts`; at least 1.

        A group that a preemption ended is followed by the next one without having been lost; what took the attempt
        itself, be it a preemption of the driver's node, counts.
        """
        lines = [line.endswith(" lost") for line in self._noted(attempt)]
        lost = sum(now and not before for before, now in zip([False, *lines], lines, strict=False))
        return lost + (not lines or not lines[-1])

    def _noted(self, attempt: str) -> list[str]:
        try:
            lines = patiently(str(self.groups), self.groups.read_text).splitlines()
        except FileNotFoundError:
            return []
        return [line for line in lines if line.startswith(f"{attempt} ")]

    def note_failure(self, attempt: str, kind: str, message: str, traceback: str) -> None:
        """Leave for the driver what a restart cannot mend; `kind` names an error of `shards.errors` or another."""
        note = {"attempt": attempt, "kind": kind, "message": message, "traceback": traceback}
        write_atomic(self.failure, json.dumps(note).encode())

    def raise_failure(self, attempt: str) -> None:
        """Raise what a worker of this attempt noted: an error of ours as it was, another as RuntimeError with its text.

        What a worker that was lost sight of left behind says nothing of this attempt. DataError for a damaged note.
        """
        try:
            failure = read_json(self.failure, dict[str, str]) if self.failure.exists() else {}
        except ValueError as error:
            raise DataError(
                f"what stopped a worker cannot be told ({error}): see {self.log}, and submit the run again"
            ) from None
        if failure.get("attempt") == attempt:
            kind = {ours.__name__: ours for ours in OURS}.get(failure.get("kind", ""))
            raise kind(failure.get("message", "")) if kind else RuntimeError(failure.get("traceback", ""))

    def unread(self, rank: str = "*") -> dict[str, str]:
        """Studies that no worker (or the one of `rank`) could read, by key, with the cause.

        A line that a killed worker has not finished names none; its study is met and named again.
        """
        named, line_of = dict[str, str](), TypeAdapter(tuple[str, str])
        for path in sorted(self.directory.glob(UNREAD.format(rank))):
            for line in path.read_bytes().splitlines() if path.is_file() else ():
                with suppress(ValidationError):
                    key, cause = line_of.validate_json(line)
                    named[key] = cause
        return named


class UnreadStudies:
    """Studies that one worker could not read, counted and named in its file; the loss is zero on them."""

    def __init__(self, directory: Path, rank: int):
        """Continue the file of this rank."""
        self.path = directory / UNREAD.format(f"{rank:05d}")
        self.named = RunFiles(directory).unread(f"{rank:05d}")

    def add(self, complaints: Iterable[str]) -> None:
        """Each complaint is "KEY: cause", or empty for a study that was read."""
        for complaint in filter(None, complaints):
            key, _, cause = complaint.partition(": ")
            if key not in self.named:
                self.named[key] = cause
                with self.path.open("a") as file:
                    file.write(f"\n{json.dumps([key, cause])}")  # what was torn before stays a line of its own
                print(f"Study {key} was skipped: {cause}")


def saved_run(directory: Path) -> Run:
    """The run that was trained in `directory`, wherever that has been moved to.

    Raises:
        ConfigError: no run.json there, or a torn one.
    """
    saved = RunFiles(Path(directory).resolve()).run
    if not saved.is_file():
        raise ConfigError(f"{directory} is not a run: {saved} is missing. Give the directory that `r2kg train` printed")
    root = saved.parent.parent
    run = load_run(saved).change({"root": str(root), "name": saved.parent.name})
    named = {field: Path(value) for field, value in local_fields(run) if Path(value).parent.name == "artefacts"}
    beside = {field: root / "artefacts" / path.name for field, path in named.items()}
    return run.change({field: str(path) for field, path in beside.items() if path.is_dir()})


def withheld(predictions: Path) -> list[str]:
    """What a model was not shown when it wrote this file (`model.decoding.withhold`), by context.json beside it."""
    with suppress(ValueError, TypeError, AttributeError):
        return list(read_json(predictions.with_name("context.json")).get("decoding", {}).get("withhold", ()))
    return []


def newest_predictions(place: Path, unscored: bool = False) -> Path:
    """A predictions file, or the newest one below a directory, such as a run's; DataError where there is none.

    Controls, of which the model was not shown all, are to be named themselves: they are passed over.

    Args:
        unscored: those that tell nothing of what is right, and so cannot be scored, are as good.
    """
    if not place.is_dir():
        return place
    names = ("predictions.jsonl", UNSCORED)[: 1 + unscored]
    found = sorted((path for name in names for path in place.rglob(name)), key=lambda path: path.stat().st_mtime)
    if ours := [path for path in found if not withheld(path)]:
        return ours[-1]
    if found:
        raise DataError(f"all predictions below {place} are controls (model.decoding.withhold): name one, {found[-1]}")
    raise DataError(f"there is no predictions.jsonl below {place}: write it with `r2kg generate`")


def directory_of(predictions: Path) -> Path | None:
    """The run that wrote RUN/predictions/SPLIT/HOW/FILE; None for a file outside a run."""
    parents = predictions.resolve().parents
    return parents[3] if len(parents) > 3 and RunFiles(parents[3]).run.is_file() else None
