"""The driver's side of training: what comes before the workers, the Ray Train group, what ends a run."""

import os
from dataclasses import asdict
from math import ceil

import ray
from ray.exceptions import RayError, RayTaskError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from r2kg.attempts.lease import lease, stop_main
from r2kg.config.run import Run, load_run
from r2kg.modules.config import Vision
from r2kg.modules.hub import go_offline_without_hub
from r2kg.modules.vision import refuse_unknown
from r2kg.rundir import RunFiles, new_attempt
from r2kg.tracking import close_run
from r2kg.training.artefacts import prepared
from r2kg.training.checkpoint import newest_checkpoint, read_state
from r2kg.training.features import refuse_tuned
from r2kg.training.plan import Plan, checked_choice, checked_manifest, preflight, refuse_changed
from r2kg.training.progress import progress
from r2kg.training.remote import Losses, Ranks, enter, film_streams
from shards.errors import ConfigError, RetryableError
from shards.privacy import fenced
from shards.session import connect_ray, joining, most_there_can_be, wait_for


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
    with lease(run.directory, f"{run.name} is being trained", stop_main):
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
    if isinstance(encoder := run.inputs.encoder, Vision):
        refuse_unknown(encoder)
    connect_ray(run.directory)
    refuse_impossible(run)
    go_offline_without_hub()
    checked_choice(run, run.manifest())  # what is cheap to refuse, before shards are read and a language model is made
    manifest = checked_manifest(run)
    if run.data.features:
        refuse_tuned(run)
    run, artefacts = prepared(run, manifest)
    plan = preflight(run, manifest, artefacts)
    files = RunFiles(run.directory)
    start, patience = newest_checkpoint(run.directory, warn=print), run.train.patience
    continued = files.run.exists()
    if continued and start:  # what was never trained holds nobody to its settings
        refuse_changed(load_run(files.run), run)
    print(plan.sentence(run))
    state = read_state(start) if start else {"step": -1}
    if (stopped := 0 < patience <= state.get("since_lowest", 0)) or state["step"] >= plan.steps:
        if stopped and state["step"] < plan.steps:
            print(
                f"{run.name} stopped at step {state['step']} of {plan.steps}, train.patience={patience}: {start}. "
                "Submit it with more patience, or train.patience=0, to go on."
            )
        else:
            print(f"{run.name} has taken its {plan.steps} steps already: {start}.")
        files.begin(run)
        summary = {"step": state["step"], "loss": None, "validation_loss": state["validation_loss"]}
        return summary | {"unread": files.unread()}
    if start:
        print(f"Continuing {run.name} from {start.name} of {plan.steps} steps.")
    elif continued:
        print(f"{run.name} has no checkpoint yet: starting at step 0.")
    wait_for_workers(run)
    files.begin(run)
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
            failure_config=FailureConfig(  # type: ignore[call-arg]  # as above
                max_failures=restarts,
                controller_failure_limit=max(1, ceil(train.wait_minutes)),  # it waits a minute for a group to start
            ),
            callbacks=[Losses(run.directory, name)],  # type: ignore[list-item]  # as above
        ),
        datasets=film_streams(run, plan.studies, plan.validation_studies, plan.steps, name),  # type: ignore[arg-type]  # as `Ranks` takes them
        dataset_config=Ranks(),
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


def each_worker(run: Run) -> dict[str, float]:
    """What one worker takes, by kind."""
    return {"CPU": run.train.cpus_per_worker, **({"GPU": 1.0} if run.train.gpus else {})}


def wait_for_workers(run: Run) -> None:
    """Wait until the cluster has what the workers take; RetryableError when it has not in `train.wait_minutes`."""
    wait_for(run.train.workers, each_worker(run), run.train.wait_minutes)


def refuse_impossible(run: Run) -> None:
    """Compare what the run asks for with what the cluster has, or can get.

    A run that has had workers is not refused for what the cluster lacks now: where no autoscaler is known of, nodes
    that are gone may come back by other hands.

    Raises:
        ConfigError: it has too little and can get no more.
    """
    train, each = run.train, each_worker(run)
    wanted = {kind: train.workers * amount for kind, amount in each.items()}
    have, limits = ray.cluster_resources(), most_there_can_be()
    if not limits and joining() and RunFiles(run.directory).groups.exists():
        limits = dict.fromkeys(wanted, float("inf"))
    most = {kind: max(have.get(kind, 0), limits.get(kind, 0)) for kind in wanted}
    for kind, amount in wanted.items():
        if most[kind] < amount:
            can = ", and no more when all its nodes are started" if limits else ""
            can += "" if joining() else " (a session of our own; RAY_ADDRESS=auto joins a cluster on this machine)"
            raise ConfigError(
                f"{train.workers} workers need {amount:g} {kind}, the Ray cluster has {most[kind]:g}{can}: lower "
                "train.workers or train.cpus_per_worker, add nodes, or set train.gpus=false to train on CPUs"
            )
    if most["CPU"] - wanted["CPU"] < 1:
        raise ConfigError(
            f"{wanted['CPU']:g} of {most['CPU']:g} CPUs would go to training and none to reading films: "
            f"set train.cpus_per_worker to at most {max(0.1, (most['CPU'] - 1) / train.workers):.2g}"
        )
