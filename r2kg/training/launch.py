"""The driver's side of training: what comes before the workers, the Ray Train group, what ends a run."""

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import ray
from ray.data import Dataset, ExecutionOptions
from ray.train import DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from r2kg.config.run import Run, load_run
from r2kg.protocol import parse_choice, protocols_of
from r2kg.rundir import RunFiles
from r2kg.training.artefacts import prepared
from r2kg.training.checkpoint import newest_checkpoint, read_state
from r2kg.training.features import film_bytes, refuse_tuned
from r2kg.training.loop import train_worker
from r2kg.training.plan import Plan, checked_manifest, preflight, refuse_changed
from r2kg.training.progress import progress
from shards.errors import ConfigError, RetryableError
from shards.session import connect_ray
from shards.stream.blocks import rows_per_block, stream_blocks
from shards.stream.order import plan as plan_blocks
from shards.stream.order import sequential_blocks


def train(run: Run) -> dict:
    """Train `run` to its end on the Ray cluster this process is connected to (a local one otherwise).

    Returns:
        the worker's summary: step, loss, validation_loss, unread studies.

    Raises:
        ConfigError, DataError, CheckpointError: before any worker starts where possible; never retried.
        RetryableError: workers were lost more often than `train.max_restarts` allows.
    """
    run = run.absolute()
    protocols_of(run.protocols, run.model.task)  # what is cheap to refuse, before a language model is made
    parse_choice(run.train.choose, run.model.task)
    manifest = checked_manifest(run)
    if run.data.features:
        refuse_tuned(run)
    run, artefacts = prepared(run, manifest)
    plan = preflight(run, manifest, artefacts)
    files = RunFiles(run.directory)
    if continued := files.run.exists():
        refuse_changed(load_run(files.run), run)
    files.begin(run)
    print(plan.sentence(run))
    if plan.begins:
        print(plan.begins)
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
        return _fit(run, plan) | {"unread": files.unread()}


def _fit(run: Run, plan: Plan) -> dict:
    """The summary of the workers that came to the end of the plan."""
    train, files = run.train, RunFiles(run.directory)
    trainer = TorchTrainer(
        train_worker,  # type: ignore[arg-type]  # mypy sees Train V1, where nothing is returned
        train_loop_config={"run": run.model_dump_json(), "plan": asdict(plan)},
        scaling_config=ScalingConfig(
            num_workers=train.workers,
            use_gpu=train.gpus,
            resources_per_worker={"CPU": train.cpus_per_worker, **({"GPU": 1} if train.gpus else {})},
        ),
        run_config=RunConfig(
            name=f"attempt-{int(time.time())}",
            storage_path=str(files.ray),
            failure_config=FailureConfig(max_failures=train.max_restarts),
        ),
        datasets=film_streams(run, plan),
        dataset_config=DataConfig(execution_options=ExecutionOptions(preserve_order=True)),
    )
    try:
        return trainer.fit().return_value  # type: ignore[attr-defined]  # as above
    except TrainingFailedError as error:
        files.raise_failure()
        raise RetryableError(
            f"{run.name} lost its workers more than train.max_restarts={train.max_restarts} times; "
            f"submit it again to go on from its newest checkpoint. Last: {str(error)[-2000:]}"
        ) from error


def film_streams(run: Run, plan: Plan) -> dict[str, Dataset | Callable[[], Dataset]]:
    """Makers of the streams, by split. Ray Train calls them whenever a worker group starts; nothing is read before."""
    train, data, inputs = run.train, run.data, run.inputs
    films = partial(
        stream_blocks, data.shards, image_size=inputs.image_px, views=inputs.views, on_bad=data.on_bad, sides=run.sides
    )  # fmt: skip

    def training() -> Dataset:
        """From the newest good checkpoint on. A failure that no restart can mend is raised here, which ends the run."""
        RunFiles(run.directory).raise_failure()
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
    """Connect to Ray and compare what the run asks for with what the cluster has."""
    connect_ray(run.directory)
    have, train = ray.cluster_resources(), run.train
    wanted = {"CPU": train.workers * train.cpus_per_worker, **({"GPU": train.workers} if train.gpus else {})}
    for kind, amount in wanted.items():
        if have.get(kind, 0) < amount:
            raise ConfigError(
                f"{train.workers} workers need {amount:g} {kind}, the Ray cluster has {have.get(kind, 0):g}: lower "
                "train.workers or train.cpus_per_worker, add nodes, or set train.gpus=false to train on CPUs"
            )
    if have.get("CPU", 0) - wanted["CPU"] < 1:
        raise ConfigError(
            f"{wanted['CPU']:g} of {have.get('CPU', 0):g} CPUs would go to training and none to reading films: "
            f"set train.cpus_per_worker to at most {max(0.1, (have.get('CPU', 0) - 1) / train.workers):.2g}"
        )
