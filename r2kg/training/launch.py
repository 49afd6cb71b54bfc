"""The driver's side of training: what comes before the workers, the Ray Train group, what ends a run."""

import os
import time
from _thread import interrupt_main
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import psutil
import ray
import yaml
from ray.autoscaler.sdk import request_resources
from ray.data import Dataset, ExecutionOptions
from ray.exceptions import RayError, RayTaskError
from ray.train import DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from r2kg.attempts.lease import lease
from r2kg.config.run import Run, load_run
from r2kg.rundir import RunFiles, new_attempt
from r2kg.tracking import close_run
from r2kg.training.artefacts import prepared
from r2kg.training.checkpoint import newest_checkpoint, read_state
from r2kg.training.features import film_bytes, refuse_tuned
from r2kg.training.plan import Plan, checked_choice, checked_manifest, preflight, refuse_changed
from r2kg.training.progress import progress
from r2kg.training.worker import enter
from shards.errors import ConfigError, RetryableError
from shards.privacy import fenced
from shards.session import connect_ray, joining
from shards.stream.blocks import rows_per_block, stream_blocks
from shards.stream.order import plan as plan_blocks
from shards.stream.order import sequential_blocks


def train(run: Run) -> dict:
    """Train `run` to its end on the Ray cluster this process is connected to (a local one otherwise).

    Lost workers are replaced. What takes the driver or Ray's controller with it ends this call, and `r2kg train` starts
    over then: see `r2kg.attempts.supervise`.

    Returns:
        the worker's summary: step, loss, validation_loss, unread studies.

    Raises:
        ConfigError, DataError, CheckpointError: before any worker starts where possible; never retried. Also when the
            run is being trained already.
        RetryableError: workers were lost more often than `train.max_restarts` allows, or Ray's controller was.
    """
    run = run.absolute()
    with lease(run.directory, f"{run.name} is being trained", lambda sentence: interrupt_main()):
        try:
            return attempt(run, new_attempt(), run.train.max_restarts)
        except BaseException as error:
            if note := close_run(run, "FAILED" if isinstance(error, Exception) else "KILLED"):
                print(note)
            raise


def attempt(run: Run, name: str, restarts: int) -> dict:
    """`train` for who holds the run's lease: groups of workers until one comes to the end or `restarts` are used up.

    `name` marks what this attempt's workers leave in the run's directory, `restarts` of -1 sets no limit.
    """
    checked_choice(run, run.manifest())  # what is cheap to refuse, before shards are read and a language model is made
    manifest = checked_manifest(run)
    if run.data.features:
        refuse_tuned(run)
    run, artefacts = prepared(run, manifest)
    plan = preflight(run, manifest, artefacts)
    files = RunFiles(run.directory)
    if continued := files.run.exists():
        refuse_changed(load_run(files.run), run)
    files.begin(run)
    for sentence in filter(None, (plan.sentence(run), plan.begins, plan.cuts)):
        print(sentence)
    start, patience = newest_checkpoint(run.directory, warn=print), run.train.patience
    state = read_state(start) if start else {"step": -1}
    if (stopped := 0 < patience <= state.get("since_lowest", 0)) or state["step"] >= plan.steps:
        if stopped and state["step"] < plan.steps:
            print(
                f"{run.name} stopped at step {state['step']} of {plan.steps}, train.patience={patience}: {start}. "
                "Submit it with more patience, or train.patience=0, to go on."
            )
        else:
            print(f"{run.name} has taken its {plan.steps} steps already: {start}.")
        summary = {"step": state["step"], "loss": None, "validation_loss": state["validation_loss"]}
        return summary | {"unread": files.unread()}
    if start:
        print(f"Continuing {run.name} from {start.name} of {plan.steps} steps.")
    elif continued:
        print(f"{run.name} has no checkpoint yet: starting at step 0.")
    check_cluster(run)
    with progress(files, plan.steps):
        return _fit(run, plan, name, restarts) | {"unread": files.unread()}


def _fit(run: Run, plan: Plan, name: str, restarts: int) -> dict:
    """The summary of the workers that came to the end of the plan."""
    train, files = run.train, RunFiles(run.directory)
    if not joining():  # on two cores every second of CPU counts; nobody drains a session of our own
        os.environ |= {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_TRAIN_METRICS_ENABLED": "0"}
    trainer = TorchTrainer(
        enter,  # type: ignore[arg-type]  # mypy sees Train V1, where nothing is returned
        train_loop_config={"run": run.model_dump_json(), "plan": asdict(plan), "attempt": name},
        scaling_config=ScalingConfig(
            num_workers=train.workers,
            use_gpu=train.gpus,
            resources_per_worker={"CPU": train.cpus_per_worker, **({"GPU": 1} if train.gpus else {})},
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(files.ray),
            failure_config=FailureConfig(max_failures=restarts),
        ),
        datasets=film_streams(run, plan, name),
        dataset_config=DataConfig(execution_options=ExecutionOptions(preserve_order=True)),
    )
    try:
        return trainer.fit().return_value  # type: ignore[attr-defined]  # as above
    except (TrainingFailedError, RayError, ConnectionError) as error:
        files.raise_failure(name)
        if isinstance(error, RayTaskError):
            raise  # a mistake of somebody's, not a loss
        groups, lost = files.groups_of(name), getattr(error, "worker_failures", {})
        what = "Ray's controller" if not lost else "a worker" if len(lost) == 1 else f"{len(lost)} workers"
        causes = [*lost.values()] or [getattr(error, "controller_failure", error)]
        last = str(fenced(causes[0], plan.licence, run.privacy.allow_text)) or type(causes[0]).__name__
        raise RetryableError(
            f"{run.name} lost {what} after it had started {groups} group{'s' * (groups != 1)} of workers. Submit it "
            f"again to go on from its newest checkpoint. Last: {' '.join(last.split())[:200]}"
        ) from error


def film_streams(run: Run, plan: Plan, name: str = "") -> dict[str, Dataset | Callable[[], Dataset]]:
    """Makers of the streams, by split. Ray Train calls them whenever a worker group starts; nothing is read before."""
    train, data, inputs = run.train, run.data, run.inputs
    films = partial(
        stream_blocks, data.shards, image_size=inputs.image_px, views=inputs.views, on_bad=data.on_bad, sides=run.sides
    )  # fmt: skip

    def training() -> Dataset:
        """From the newest good checkpoint on. A failure that no restart can mend is raised here, which ends the run."""
        files = RunFiles(run.directory)
        files.raise_failure(name)
        files.note_group(name)
        start = newest_checkpoint(run.directory)
        step = read_state(start)["step"] if start else 0
        left = max(0, plan.steps - step)
        share = left * train.global_batch // train.workers
        blocks = plan_blocks(
            n=plan.studies,
            seed=train.seed,
            samples_seen=step * train.global_batch,
            steps=left,
            global_batch=train.global_batch,
            world=train.workers,
            rows_per_block=rows_per_block(inputs.image_px, inputs.views, share, film_bytes(run)),
            chunk=data.chunk,
            window=data.window,
        )
        return films("train", blocks, augment=inputs.augment, seed=train.seed)

    def validation() -> Dataset:
        """The first studies of the split, in order, filled with rows that count for nothing; always the same."""
        return films("val", sequential_blocks(plan.validation_studies, train.workers, train.micro_batch))

    return {"train": training, "val": validation} if plan.validation_studies else {"train": training}


def check_cluster(run: Run) -> None:
    """Connect to Ray and compare what the run asks for with what the cluster has, or can get from its autoscaler.

    Raises:
        ConfigError: it has too little and can get no more.
        RetryableError: nodes that could come did not in `train.wait_minutes`.
    """
    connect_ray(run.directory)
    train = run.train
    each = {"CPU": train.cpus_per_worker, **({"GPU": 1.0} if train.gpus else {})}
    wanted = {kind: train.workers * amount for kind, amount in each.items()}
    have, limits = ray.cluster_resources(), most_there_can_be()
    most = {kind: max(have.get(kind, 0), limits.get(kind, 0)) for kind in wanted}
    for kind, amount in wanted.items():
        if most[kind] < amount:
            can = ", and no more when all its nodes are started" if limits else ""
            raise ConfigError(
                f"{train.workers} workers need {amount:g} {kind}, the Ray cluster has {most[kind]:g}{can}: lower "
                "train.workers or train.cpus_per_worker, add nodes, or set train.gpus=false to train on CPUs"
            )
    if most["CPU"] - wanted["CPU"] < 1:
        raise ConfigError(
            f"{wanted['CPU']:g} of {most['CPU']:g} CPUs would go to training and none to reading films: "
            f"set train.cpus_per_worker to at most {max(0.1, (most['CPU'] - 1) / train.workers):.2g}"
        )
    deadline, next_word = time.monotonic() + 60 * train.wait_minutes, 0.0
    while lacking := [f"{n - have.get(kind, 0):g} {kind}" for kind, n in wanted.items() if have.get(kind, 0) < n]:
        if (now := time.monotonic()) >= next_word:
            next_word = now + 60
            print(f"Waiting for nodes with {' and '.join(lacking)} more (train.wait_minutes={train.wait_minutes:g}).")
            request_resources(bundles=[each] * train.workers)
        if now > deadline:
            raise RetryableError(
                f"no node with {' and '.join(lacking)} came in train.wait_minutes={train.wait_minutes:g}: see what the "
                "autoscaler says (`ray status`), and submit the run again"
            )
        time.sleep(1.0)
        have = ray.cluster_resources()
    if next_word:  # the workers' placement group holds the nodes from now on
        request_resources(bundles=[])


def most_there_can_be() -> dict[str, float]:
    """Kind → what an autoscaler can bring the cluster to; {} where none is known of.

    A cluster service may report it; the autoscaler's file tells where that runs on this machine (the head of `ray up`);
    under KubeRay the limits are not known here.
    """
    if limits := ray._private.state.state.get_max_resources_from_cluster_config():
        return {kind: float(amount) for kind, amount in limits.items()}
    if not joining():
        return {}
    flag, unknown = "--autoscaling-config=", float("inf")
    words = (word for process in psutil.process_iter(["cmdline"]) for word in process.info["cmdline"] or ())
    if not (file := next((word.removeprefix(flag) for word in words if word.startswith(flag)), "")):
        return {"CPU": unknown, "GPU": unknown} if "RAY_CLUSTER_NAME" in os.environ else {}
    config, total = yaml.safe_load(Path(file).read_text()), {"CPU": 0.0, "GPU": 0.0}
    for name, kind in config["available_node_types"].items():
        nodes = kind.get("max_workers", 0) + (name == config["head_node_type"])
        for resource in total if nodes else ():
            amounts = kind.get("resources") or {"CPU": unknown, "GPU": unknown}  # of one that says none the cloud knows
            total[resource] += nodes * amounts.get(resource, 0.0)
    return total
