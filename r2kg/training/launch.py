"""The driver's side of training: stages before it, the Ray Train group, what it prints while it waits."""

import hashlib
import json
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import ray
from ray.data import Dataset, ExecutionOptions
from ray.train import DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from r2kg.config import Run
from r2kg.modules.tiny_lm import write_tiny_lm
from r2kg.training.checkpoint import newest_checkpoint, read_state
from r2kg.training.features import film_bytes
from r2kg.training.loop import train_worker
from r2kg.training.plan import Plan, checked_manifest, open_run, preflight
from shards import errors
from shards.session import connect_ray
from shards.stream.blocks import rows_per_block, stream_blocks
from shards.stream.order import plan as plan_blocks
from shards.stream.order import sequential_blocks
from shards.stream.records import read_targets
from shards.tars.manifest import Manifest


def train(run: Run) -> dict:
    """Train `run` to its end on the Ray cluster this process is connected to (a local one otherwise).

    Returns:
        the worker's summary: step, loss, validation_loss, unread studies.

    Raises:
        ConfigError, DataError, CheckpointError: before any worker starts where possible; never retried.
        RetryableError: workers were lost more often than `train.max_restarts` allows.
    """
    run = run.absolute()
    manifest = checked_manifest(run)
    run = prepare_llm(run, manifest)
    plan = preflight(run, manifest)
    continued = open_run(run)
    print(plan.sentence(run))
    start = newest_checkpoint(run.directory, warn=print)
    if start and (state := read_state(start))["step"] >= plan.steps:
        print(f"{run.name} has taken its {plan.steps} steps already: {start}.")
        return {"step": state["step"], "loss": None, "validation_loss": state["validation_loss"], "unread": unread(run)}
    if start:
        print(f"Continuing {run.name} from {start.name} of {plan.steps} steps.")
    elif continued:
        print(f"{run.name} has no checkpoint yet: starting at step 0.")
    check_cluster(run)
    with ProgressPrinter(run, plan.steps):
        return _fit(run, plan)


def prepare_llm(run: Run, manifest: Manifest) -> Run:
    """Where model.llm.source is "tiny": make that LM from the training reports, once per shards and settings.

    Returns:
        the run with the LM's directory as its source, which is what run.json then names.
    """
    if run.model.llm.source != "tiny":
        return run
    settings = [manifest.fingerprint, run.tiny_lm.model_dump(), run.train.seed, run.model.prompt]
    name = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]
    folder = run.directory.parent / "lm" / f"tiny-{name}"
    if not folder.is_dir():
        print(f"Training a small language model on {manifest.splits['train'].studies:,} reports, into {folder}.")
        unread = {} if run.data.on_bad == "skip" else None
        reports = read_targets(run.data.shards, "train", unread)
        write_tiny_lm(reports, folder, run.tiny_lm, run.train.seed, run.model.prompt)
    return run.change({"model.llm.source": str(folder)})


def _fit(run: Run, plan: Plan) -> dict:
    config, train = {"run": run.model_dump_json(), "plan": asdict(plan)}, run.train
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=train.workers,
            use_gpu=train.gpus,
            resources_per_worker={"CPU": train.cpus_per_worker, **({"GPU": 1} if train.gpus else {})},
        ),
        run_config=RunConfig(
            name=f"attempt-{int(time.time())}",
            storage_path=str(run.directory / "ray"),
            failure_config=FailureConfig(max_failures=train.max_restarts),
        ),
        datasets={"train": TrainFilms(run, plan)}
        | ({"val": ValidationFilms(run, plan)} if plan.validation_studies else {}),
        dataset_config=DataConfig(execution_options=ExecutionOptions(preserve_order=True)),
    )
    try:
        return trainer.fit().return_value | {"unread": unread(run)}
    except TrainingFailedError as error:
        raise_failure(run)
        raise errors.RetryableError(
            f"{run.name} lost its workers more than train.max_restarts={train.max_restarts} times; "
            f"submit it again to go on from its newest checkpoint. Last: {str(error)[-2000:]}"
        ) from error


class TrainFilms:
    """The training stream from the newest good checkpoint on; Ray Train calls it whenever a worker group starts."""

    def __init__(self, run: Run, plan: Plan):
        """Hold the run; nothing is read before the call."""
        self.run, self.plan = run, plan

    def __call__(self) -> Dataset:
        """Plan the remaining steps. A failure that no restart can mend is raised here, which ends the run."""
        raise_failure(self.run)
        start, run, train = newest_checkpoint(self.run.directory), self.run, self.run.train
        step = read_state(start)["step"] if start else 0
        left = max(0, self.plan.steps - step)
        share = left * train.global_batch // train.workers
        blocks = plan_blocks(
            n=self.plan.studies,
            seed=train.seed,
            samples_seen=step * train.global_batch,
            steps=left,
            global_batch=train.global_batch,
            world=train.workers,
            rows_per_block=rows_per_block(run.model.vision.image_px, run.data.views, share, film_bytes(run)),
            chunk=run.data.chunk,
            window=run.data.window,
        )
        return _films(run, "train", blocks)


class ValidationFilms:
    """The validation stream: the first studies of the split, in order, the same at every validation."""

    def __init__(self, run: Run, plan: Plan):
        """Hold the run; nothing is read before the call."""
        self.run, self.plan = run, plan

    def __call__(self) -> Dataset:
        """Blocks of equal rows for every worker, filled with rows that count for nothing."""
        train = self.run.train
        blocks = sequential_blocks(self.plan.validation_studies, train.workers, train.micro_batch)
        return _films(self.run, "val", blocks)


def unread(run: Run) -> dict[str, str]:
    """Studies that no worker could read, by key, with the cause."""
    files = sorted(run.directory.glob("unread-*.jsonl"))
    return dict(json.loads(line) for file in files for line in file.read_text().splitlines())


def raise_failure(run: Run) -> None:
    """Raise what a worker noted in failure.json, if it did."""
    note = run.directory / "failure.json"
    if note.exists():
        failure = json.loads(note.read_text())
        kind = getattr(errors, failure["kind"], None)
        raise kind(failure["message"]) if kind else RuntimeError(failure["traceback"])


def check_cluster(run: Run) -> None:
    """Connect to Ray and compare what the run asks for with what the cluster has."""
    connect_ray(run.directory)
    have, train = ray.cluster_resources(), run.train
    wanted = {"CPU": train.workers * train.cpus_per_worker, **({"GPU": train.workers} if train.gpus else {})}
    for kind, amount in wanted.items():
        if have.get(kind, 0) < amount:
            raise errors.ConfigError(
                f"{train.workers} workers need {amount:g} {kind}, the Ray cluster has {have.get(kind, 0):g}: lower "
                "train.workers or train.cpus_per_worker, add nodes, or set train.gpus=false to train on CPUs"
            )
    if have.get("CPU", 0) - wanted["CPU"] < 1:
        raise errors.ConfigError(
            f"{wanted['CPU']:g} of {have.get('CPU', 0):g} CPUs would go to training and none to reading films: "
            f"set train.cpus_per_worker to at most {max(0.1, (have.get('CPU', 0) - 1) / train.workers):.2g}"
        )


class ProgressPrinter:
    """Prints the run's log as it grows, and on a terminal a bar with the time left under it."""

    def __init__(self, run: Run, steps: int):
        """Follow metrics.jsonl and log.txt of the run."""
        self.records, self.log, self.steps = run.directory / "metrics.jsonl", run.directory / "log.txt", steps
        self.read = self.log.stat().st_size if self.log.exists() else 0
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> "ProgressPrinter":
        self.thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self.done.set()
        self.thread.join()

    def _follow(self) -> None:
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        columns += (TextColumn("{task.fields[loss]}"),)
        with Progress(*columns, disable=not sys.stdout.isatty()) as bar:
            task = bar.add_task("training", total=self.steps, loss="")
            while not self.done.wait(1.0):
                step, loss = newest_loss(self.records)
                bar.update(task, completed=step, loss=f"loss {loss:.3f}")
                self._print_log()
        self._print_log()

    def _print_log(self) -> None:
        if self.log.exists():
            with self.log.open("rb") as log:
                log.seek(self.read)
                new = log.read()
            whole = new[: new.rfind(b"\n") + 1]
            self.read += len(whole)
            print(whole.decode(), end="", flush=True)


def newest_loss(records: Path) -> tuple[int, float]:
    """(step, training loss) of the newest record that has one; (0, nan) before the first."""
    lines = records.read_text().splitlines()[-5:] if records.exists() else []
    for line in reversed(lines):
        row = json.loads(line)
        if "train.loss" in row["metrics"]:
            return row["step"], row["metrics"]["train.loss"]
    return 0, float("nan")


def _films(run: Run, split: str, blocks: list) -> Dataset:
    data = run.data
    return stream_blocks(
        data.shards, split, blocks, run.model.vision.image_px, data.views, data.on_bad, features=data.features or None
    )
