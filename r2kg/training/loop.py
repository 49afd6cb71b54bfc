"""The one training loop, run by every Ray Train worker for every system.

A run is a cursor: `step` optimiser steps of `global_batch` studies have been taken. Everything else (order, learning
rate, dropout, weights) follows from the cursor, the seed and the newest good checkpoint, so a worker that was killed,
a run that was submitted again and a run on other workers all go the same way.
"""

import json
import os
import resource
import socket
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from typing import Any

import psutil
import ray.train
import torch
import torch.distributed as dist

from r2kg.config.run import Run
from r2kg.rundir import RunFiles, UnreadStudies
from r2kg.systems.contract import Model, other_weights
from r2kg.tracking import Tracker, tracking_note
from r2kg.training.artefacts import built, fingerprints
from r2kg.training.checkpoint import (
    MANIFEST,
    complaints,
    prune,
    read_state,
    read_tensors,
    seen,
    write_checkpoint,
)
from r2kg.training.engine import Engine, SharedTensors
from r2kg.training.features import refuse_other_weights
from r2kg.training.optim import gentler
from r2kg.training.plan import Plan
from shards.errors import CheckpointError, ConfigError, DataError, RetryableError
from shards.privacy import OURS, fenced
from shards.stream.blocks import Rows, read_batches
from shards.tars.kinds import read_side

LIBRARIES = ("torch", "deepspeed", "transformers", "peft", "timm", "ray", "r2kg")
LASTING = tuple(kind for kind in OURS if kind is not RetryableError)
MISTAKES = (
    TypeError, ValueError, LookupError, AttributeError, ImportError, AssertionError, FileNotFoundError,
    torch.OutOfMemoryError,
)  # fmt: skip
"""With `LASTING`, what a restart cannot mend. A lost worker shows in those left as RuntimeError or RayError."""


def train_worker(config: dict) -> dict:
    """Entry point of a Ray Train worker; `config` holds the run and its plan as JSON.

    An error that a restart cannot mend is left in failure.json, and then nothing is restarted. It says what may be
    shown: for credentialed data a library's own message is not in it.

    Returns:
        {"step", "loss", "validation_loss"} on every rank.
    """
    run, plan, attempt = Run.model_validate_json(config["run"]), Plan(**config["plan"]), config["attempt"]
    try:
        return _train(run, plan, attempt)
    except Exception as error:
        shown = fenced(error, plan.licence, run.privacy.allow_text)
        chain: list[BaseException] = []
        cause: BaseException | None = error
        while cause is not None and len(chain) < 20:
            chain.append(cause)
            cause = getattr(cause, "cause", None) or cause.__cause__
        ours = next((link for link in chain if isinstance(link, LASTING)), None)
        if ours or isinstance(error, MISTAKES):
            text = "".join(traceback.format_exception(error)) if shown is error else str(shown)
            with suppress(OSError):  # nothing raised here may carry the withheld error along
                RunFiles(run.directory).note_failure(
                    attempt, type(ours or error).__name__, str(ours or shown), text[-8000:]
                )
        if shown is error:
            raise
        raise shown from None


def _train(run: Run, plan: Plan, attempt: str) -> dict:
    """From the checkpoint at which the stream begins, if it belongs to these shards and weights, to the plan's end."""
    torch.manual_seed(run.train.seed)
    refuse_unshared(run, attempt)
    stream = read_batches(ray.train.get_dataset_shard("train"), run.train.micro_batch)
    with ThreadPoolExecutor(1) as beside:  # films are read while the model is built
        first = beside.submit(next, stream, None)
        model = built(run)
        if run.engine.gradient_checkpointing:
            model.gradient_checkpointing()
        rows = first.result()
    step = int(rows["step"][0]) if rows else 0
    start = RunFiles(run.directory).checkpoints / f"step-{step:08d}"
    agreed: list[Any] = [{}, {}]
    if not dist.get_rank():  # one reads and hashes all of it, and tells the others
        if run.data.features:
            encoder: Any = model.vision  # type: ignore[attr-defined]  # so says `Inputs.encoder`
            made_with = read_side(run.data.features).description["encoder"]
            refuse_other_weights(encoder, made_with, "the features were made with")
        agreed[0] = model.fingerprint()
        agreed[1] = _checked_state(start, run, plan, agreed[0]) if step else {}
    dist.broadcast_object_list(agreed)
    frozen, state = agreed
    restore = None
    if state:
        seen(start / MANIFEST)
        restore = {"tensors": SharedTensors(read_tensors(start)), "step": step, "skipped": state.get("skipped", 0)}
    engine = Engine(model, run, plan.steps, plan.steps_per_epoch, restore)
    del restore  # the engine lets it go when its moments are back
    worker = Worker(run, plan, model, engine, frozen, attempt)
    worker.skipped = state.get("skipped", 0)
    if state.get("lowest_loss") is not None:
        worker.lowest_loss, worker.since_lowest = state["lowest_loss"], state["since_lowest"]
    return worker.fit(step, chain([rows] if rows else [], stream))


def machine() -> dict[str, float]:
    """What this worker and its machine take: peaks in GB, and what MLflow draws on a page of its own."""
    gpu = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    taken = psutil.virtual_memory()
    values = {
        "train.peak_gb": peak / 1e9,
        "system.cpu_utilization_percentage": psutil.cpu_percent(),
        "system.system_memory_usage_megabytes": taken.used / 1e6,
        "system.system_memory_usage_percentage": taken.percent,
    }
    if gpu:
        free, total = torch.cuda.mem_get_info()
        values |= {
            "system.gpu_0_memory_usage_megabytes": (total - free) / 1e6,
            "system.gpu_0_memory_usage_percentage": 100 * (1 - free / total),
        }
    return values


def gathered(mine: Any) -> list[Any]:
    """What every worker gives, by rank, once all have."""
    given: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(given, mine)
    return given


def refuse_unshared(run: Run, attempt: str) -> None:
    """ConfigError naming the machines that do not see what the driver has written into the run's directory.

    Collective: found out here, not when the first checkpoint is written.
    """
    files, deadline, seen = RunFiles(run.directory), time.monotonic() + 30, False
    while not (seen := files.groups_of(attempt) > 0) and time.monotonic() < deadline:
        time.sleep(0.5)
    blind = gathered("" if seen and os.access(run.directory, os.W_OK) else socket.gethostname())
    if machines := sorted({host for host in blind if host}):
        raise ConfigError(
            f"root={run.root} is not shared: workers on {', '.join(machines)} do not see, or cannot write, what the "
            f"driver has left in {run.directory}. Set root= to a directory that every node mounts"
        )


def _checked_state(start: Path, run: Run, plan: Plan, frozen: dict) -> dict[str, Any]:
    """state.json of the checkpoint at which the stream begins.

    Raises:
        CheckpointError: it is of other shards, artefacts, sides or frozen weights.
        RetryableError: it is damaged or gone by now, or not seen here.
    """
    if wrong := complaints(seen(start)):
        raise RetryableError(f"the stream begins at {start.name}, but {'; '.join(wrong)}: submit the run again")
    state = read_state(start)
    then_and_now = {
        "shards": (state["shards"], plan.shards),
        "artefacts": (fingerprints(state["artefacts"]), fingerprints(plan.artefacts)),
        "sides": (state["sides"], plan.sides),
    }
    changed = [f"{what} were {then}, now they are {now}" for what, (then, now) in then_and_now.items() if then != now]
    changed += [f"frozen weights of the {told}" for told in other_weights(state["frozen"], frozen)]
    if changed and not run.train.accept_changes:
        raise CheckpointError(
            f"{start} was trained with other data or another base than it would go on with: {'; '.join(changed)}. "
            "Restore them, choose another name=, or set train.accept_changes=true"
        )
    return state


class Worker:
    """What one worker holds while the loop runs."""

    def __init__(self, run: Run, plan: Plan, model: Model, engine: Engine, frozen: dict, attempt: str = ""):
        """`frozen` names the weights that are not stored: source, revision, hash."""
        context = ray.train.get_context()
        self.run, self.plan, self.model, self.engine, self.frozen = run, plan, model, engine, frozen
        self.attempt = attempt
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.tracker = Tracker(run, running=True) if self.rank == 0 else None
        self.unread = UnreadStudies(run.directory, self.rank)
        self.validation_loss: float | None = None
        self.probe: dict[str, float] | None = None  # a few validation studies and the loss on them
        self.validated_at = self.saved_at = -1
        self.lowest_loss = float("inf")  # of all validations so far, those before a restart too
        self.since_lowest = 0  # validations
        self.stopping = False  # a validation was broken off, because the run is to stop
        self.skipped, self.in_a_row = 0, 0  # steps without an update, because a gradient was not finite

    def fit(self, first: int, stream: Iterator[Rows]) -> dict:
        """Take the steps from `first` to the end of the plan, or until `train.patience` ends.

        Every worker has the same validation losses, and so the same patience.

        Args:
            stream: this worker's micro-batches from `first` on.
        """
        train, end = self.run.train, self.plan.steps
        metrics: dict[str, float] = {}
        self.clock = (first, time.monotonic())
        if not first:
            for sentence in filter(None, (self.plan.begins, self.plan.cuts)):
                self.say(sentence)
            if self.tracker:
                self.tracker.log(0, **{f"cut.{name}": share for name, share in self.plan.cut.items()})
        self.say(f"{self.world} workers take steps {first} to {self.plan.steps}.")
        for step, rows in self._steps(first, stream):
            if metrics and step % train.checkpoint_every == 0:
                self.save(step)
            if metrics and train.validate_every and step % train.validate_every == 0 and self.validated_at != step:
                self.validate(step)
            if self.stopping:
                return self.leave(step, metrics)
            if 0 < train.patience <= self.since_lowest:
                end = step
                break
            metrics = self.engine.step([self.model.collate(micro) for micro in rows], self.is_told())
            stopped = metrics.pop("stop") > 0
            if not metrics["loss"] < float("inf"):
                raise ConfigError(
                    f"loss is {metrics['loss']} at step {step} (lr {metrics['lr']:.2g}, gradient norm "
                    f"{metrics['grad_norm']:.2g}). {gentler(self.run.directory)}"
                )
            self.count_skipped(step, metrics)
            if (step + 1) % train.log_every == 0 or step + 1 == self.plan.steps:
                self.log(step + 1, metrics)
            if stopped and step + 1 < end:
                return self.leave(step + 1, metrics)
        if metrics and self.saved_at != end:
            self.save(end)
        if end < self.plan.steps:
            self.say(
                f"Stopped at step {end} of {self.plan.steps}: the validation loss has not fallen below "
                f"{self.lowest_loss:.3f} in {self.since_lowest} validations (train.patience={train.patience})."
            )
        return self.finish(end, metrics)

    def count_skipped(self, step: int, metrics: dict[str, float]) -> None:
        """Count a step without an update; ConfigError when there were more than `train.max_skipped` in a row."""
        if not metrics.pop("skipped"):
            self.in_a_row = 0
            return
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self.in_a_row == 1:
            self.say(f"Step {step}: a gradient is not finite, so nothing was updated ({self.skipped} such steps).")
        if self.in_a_row > self.run.train.max_skipped:
            raise ConfigError(
                f"no step since {step + 1 - self.in_a_row} has changed anything: the gradients of "
                f"{self.in_a_row} steps in a row were not finite (loss {metrics['loss']:.3f}, lr {metrics['lr']:.2g}, "
                f"train.max_skipped={self.run.train.max_skipped}). {gentler(self.run.directory)}; or "
                "submit it again with engine.precision=fp32"
            )

    def log(self, step: int, metrics: dict) -> None:
        """Record the newest step's loss, the speed since the last record, and how rank 0 and its machine stand."""
        (since, then), self.clock = self.clock, (step, time.monotonic())
        if self.tracker:
            speed = (step - since) * self.run.train.global_batch / (self.clock[1] - then)
            record = {f"train.{name}": value for name, value in metrics.items()}
            record |= {"train.studies_per_s": speed, "train.unread": len(self.unread.named)}
            padding = ask() if (ask := getattr(self.model, "padding", None)) else None
            record |= {} if padding is None else {"train.padding": padding}
            self.tracker.log(step, **record, **{"train.skipped": self.skipped}, **machine())

    def is_told(self) -> bool:
        """Whether this worker knows that the run is to stop: rank 0 looks."""
        return self.rank == 0 and RunFiles(self.run.directory).is_to_stop(self.attempt)

    def say(self, sentence: str) -> None:
        """An event of the run; rank 0 speaks for all."""
        if self.tracker:
            self.tracker.say(sentence)

    def validate(self, step: int) -> None:
        """Loss per token on the validation split; all workers."""
        if not self.plan.validation_studies:
            return
        rows = read_batches(ray.train.get_dataset_shard("val"), self.run.train.micro_batch)
        at_end = step >= self.plan.steps  # there is no later one to choose the best checkpoint by
        stop = (lambda: False) if at_end else self.is_told
        terms = self.engine.validation_loss((self.model.collate(micro) for micro in rows), stop)
        if not terms:
            self.stopping = True
            return
        studies = min(self.plan.validation_studies, self.world * self.run.train.micro_batch)
        self.probe = {"studies": studies, "loss": terms.pop("first")}
        self.validation_loss, self.validated_at = terms["loss"], step
        if terms["loss"] < self.lowest_loss:
            self.lowest_loss, self.since_lowest = terms["loss"], 0
        else:
            self.since_lowest += 1
        if self.tracker:
            self.tracker.log(step, **{f"val.{name}": value for name, value in terms.items()})
        ray.train.report({"step": step, "validation_loss": self.validation_loss})

    def leave(self, step: int, metrics: dict) -> dict:
        """Write a checkpoint, without the time that a validation takes, and end: somebody waits for it."""
        if self.saved_at != step:
            self.save(step, validated=False)
        self.say(f"Stopped at step {step} of {self.plan.steps}, as was asked. Submit it again to go on from there.")
        return self.finish(step, metrics, "KILLED") | {"stopped": True}

    def save(self, step: int, validated: bool = True) -> None:
        """Validate, write a checkpoint, delete those that are no longer wanted; all workers."""
        if self.validated_at != step and validated:
            self.validate(step)
        known = self.validated_at == step
        state = {
            "step": step,
            "samples_seen": step * self.run.train.global_batch,
            "seed": self.run.train.seed,
            "world": self.world,
            "shards": self.plan.shards,
            "artefacts": self.plan.artefacts,
            "sides": self.plan.sides,
            "films": self.plan.films,
            "frozen": self.frozen,
            "validation_loss": self.validation_loss if known else None,
            "probe": self.probe if known else None,
            "lowest_loss": self.lowest_loss if self.lowest_loss < float("inf") else None,
            "since_lowest": self.since_lowest,
            "skipped": self.skipped,
            "run": self.run.model_dump(mode="json"),
            "versions": {name: version(name) for name in LIBRARIES},
        }
        written = write_checkpoint(
            self.run.directory, self.engine.state(), state, self.rank, self.world, gathered, self.attempt
        )
        self.saved_at = step
        if self.rank == 0:
            prune(self.run.directory, self.run.train.checkpoints_kept, written=written)
        loss = f", validation loss {self.validation_loss:.3f}" if known and self.validation_loss is not None else ""
        self.say(f"Checkpoint at step {step} of {self.plan.steps}{loss}.")

    def finish(self, step: int, metrics: dict, status: str = "FINISHED") -> dict:
        """Close tracking at the last step; say what was not seen."""
        if self.tracker:
            self.tracker.log(step, **{"train.unread": len(self.unread.named)})
            self.say(tracking_note(self.tracker.close(status), self.tracker))
        return {"step": step, "loss": metrics.get("loss"), "validation_loss": self.validation_loss}

    def _steps(self, first: int, stream: Iterator[Rows]) -> Iterator[tuple[int, list[Rows]]]:
        """(step, this worker's micro-batches of it) from step `first` on; DataError when the stream ends early."""
        train, consumed = self.run.train, None
        if train.record_studies:
            path = RunFiles(self.run.directory).consumed / f"{self.rank:05d}-of-{self.world:05d}.jsonl"
            path.parent.mkdir(exist_ok=True)
            consumed = path.open("a")
        step = first
        while len(rows := list(islice(stream, train.accumulation))) == train.accumulation:
            if int(rows[0]["step"][0]) != step:
                raise CheckpointError(f"the stream gave step {int(rows[0]['step'][0])}, the weights are at {step}")
            for micro in rows:
                self.unread.add(micro["bad"])
            yield step, rows
            if consumed:  # not before: a run that stops early asks for a step it does not take
                index = [int(i) for micro in rows for i in micro["index"]]
                consumed.write(json.dumps({"step": step, "index": index}) + "\n")
                consumed.flush()
            step += 1
        if step < self.plan.steps:  # it must not pass for a whole run
            raise DataError(
                f"the stream ended after step {step} of {self.plan.steps}: shards were lost while the run read them. "
                "Restore them and submit the run again"
            )
