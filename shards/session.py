"""The Ray cluster this process works on."""

import atexit
import logging
import os
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from shards.errors import ConfigError, RetryableError, WaitedError, unusable
from shards.privacy import OURS

if TYPE_CHECKING:  # a second, for which the process that only starts others need not wait
    from ray.data import Dataset

SPILL = ".ray-spill"
CONNECT_SECONDS = 5.0
MOST_ON_CPUS = 8
"""Processes that hold a model where there are no GPUs: each has it in memory once more."""
SECONDS = 15.0
"""Between two lines on how far something is."""
Row = TypeVar("Row")
RETRIED = "\nFailed to apply UDF transform after"


def connect_ray(beside: Path | None = None) -> None:
    """Join the cluster of RAY_ADDRESS or of the submitted job, else start a local one that ends with this process.

    No other is joined: what else runs on this machine is somebody's, and may end before we do. Which it is, and what it
    has, is printed.

    Objects that do not fit a local session's memory are spilled below `beside`, where reports may lie, instead of into
    the system's temporary directory, and removed at the end; on a cluster that is for whoever starts it to set. A local
    session keeps its workers' output in its log files; what users need is in the run's own log.

    No runtime_env is set: a submitted job has its own, and Ray refuses a second one with other values.

    Raises:
        ConfigError: RAY_ADDRESS is no address.
        RetryableError: the cluster does not answer, or the session of our own could not be started.
    """
    import ray
    from ray.exceptions import RayError

    if ray.is_initialized():
        return
    before = signal.getsignal(signal.SIGTERM)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    refuse_silent(os.environ.get("RAY_ADDRESS", ""))
    where: dict[str, Any] = {"logging_level": "error"}
    if not joining():
        where["address"] = "local"
        if beside:
            where["object_spilling_directory"] = str(_spill_directory(beside))
    try:
        ray.init(**where, log_to_driver=joining())
    except Exception as error:
        if not isinstance(error, RuntimeError | OSError | RayError) and type(error) is not Exception:
            raise  # a mistake; a plain Exception is what Ray raises when its processes are slow to start
        what = f"the Ray cluster at {os.environ.get('RAY_ADDRESS', 'hand')}" if joining() else "a Ray session"
        cause = " ".join(str(error).split())[:300]
        raise RetryableError(f"{what} could not be {'joined' if joining() else 'started'}: {cause}") from error
    have = ray.cluster_resources()
    which = f"The Ray cluster at {os.environ.get('RAY_ADDRESS', 'hand')}" if joining() else "A Ray session of its own"
    print(f"{which}: {have.get('CPU', 0):g} CPUs, {have.get('GPU', 0):g} GPUs.", flush=True)
    with suppress(ValueError, TypeError):  # of a thread, or not of Python's; else Ray ends us with a dump of its stack
        signal.signal(signal.SIGTERM, before if before is not signal.SIG_DFL else _exit)


def refuse_silent(address: str) -> None:
    """Ask whether anything answers at HOST:PORT: Ray itself would ask for a quarter of an hour, deaf to Ctrl-C.

    Raises:
        ConfigError: neither that, nor auto or local, nor an address of a kind with "://".
        RetryableError: nothing answers.
    """
    host, _, port = address.rpartition(":")
    if not address or address in ("auto", "local") or "://" in address:
        return
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"RAY_ADDRESS={address} is no address: give HOST:PORT, or auto for this machine's cluster")
    for pause in (1.0, 2.0, 0.0):
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
            return
        except OSError as error:
            cause = error
            time.sleep(pause)
    raise RetryableError(f"no Ray cluster answers at RAY_ADDRESS={address} ({cause}): start it, or unset the variable")


def _exit(number: int, _: object) -> None:
    """SIGTERM as an end like any other: what was begun is closed, Ray's processes and spilled objects go."""
    sys.exit(128 + number)


def _spill_directory(beside: Path) -> Path:
    """A directory below `beside` that goes with this process; those of processes that were killed go now."""
    import psutil

    host = socket.gethostname()
    for left in beside.glob(f"{SPILL}-*"):
        mine = re.fullmatch(rf"{re.escape(SPILL)}-{re.escape(host)}-(\d+)", left.name)
        if mine and not psutil.pid_exists(int(mine[1])):
            shutil.rmtree(left, ignore_errors=True)
    spill = beside / f"{SPILL}-{host}-{os.getpid()}"
    try:
        spill.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unusable(beside, error) from None
    atexit.register(_end, spill)
    return spill


def _end(spill: Path) -> None:
    """Ray first: while it lives it makes the directory again."""
    import ray

    ray.shutdown()
    shutil.rmtree(spill, ignore_errors=True)


def joining() -> bool:
    """Whether this process works on a cluster that others started, rather than on a session of its own."""
    return bool(os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_JOB_ID"))


def most_there_can_be() -> dict[str, float]:
    """Kind → what an autoscaler can bring the cluster to; {} where none is known of.

    A cluster service may report it; the autoscaler's file tells where that runs on this machine (the head of `ray up`);
    under KubeRay the limits are not known here.
    """
    import psutil
    import ray
    import yaml

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


def wait_for(count: int, each: dict[str, float], minutes: float, way_out: str = "") -> None:
    """Wait until the cluster has `count` times what `each` names by kind; an autoscaler is asked for it.

    Raises:
        WaitedError: it has not, after so many minutes (`train.wait_minutes`); `way_out` is what else may be done.
    """
    import ray
    from ray.autoscaler.sdk import request_resources

    deadline, next_word = time.monotonic() + 60 * minutes, 0.0
    wanted, have = {kind: count * amount for kind, amount in each.items()}, ray.cluster_resources()
    while lacking := [f"{n - have.get(kind, 0):g} {kind}" for kind, n in wanted.items() if have.get(kind, 0) < n]:
        if (now := time.monotonic()) >= next_word:
            next_word = now + 60
            print(f"Waiting for nodes with {' and '.join(lacking)} more (train.wait_minutes={minutes:g}).", flush=True)
            request_resources(bundles=[each] * count)
        if now > deadline:
            raise WaitedError(
                f"no node with {' and '.join(lacking)} came in train.wait_minutes={minutes:g}: see what `ray status` "
                f"says, and run the same command again{', ' * bool(way_out)}{way_out}"
            )
        time.sleep(1.0)
        have = ray.cluster_resources()
    if next_word:  # what asked for them holds the nodes from now on
        request_resources(bundles=[])


def gpus_for(
    actors: int,
    minutes: float | None = None,
    wanted: int = 1,
    cpus: float = 1.0,
    noun: str = "actors",
    way_out: str = "",
) -> int:
    """GPUs that the cluster has for actors that take one each, once those that can come have; 0: CPUs are to be used.

    Args:
        actors: as many as are asked for; 0: as many as it has GPUs.
        minutes: longest time to wait for GPUs that an autoscaler can bring; None: what is there is taken.
        wanted: so many are waited for where no number is asked for.
        cpus: that an actor takes beside its GPU.
        noun: what they are called, and their option; `way_out` is what else may be done when none came.

    Raises:
        ConfigError: more actors than there can be GPUs.
        WaitedError: those that could come did not in time.
    """
    import ray

    have = int(ray.cluster_resources().get("GPU", 0))
    most = have if minutes is None else max(have, most_there_can_be().get("GPU", 0))
    if most and actors > most:
        raise ConfigError(f"{actors} {noun} need a GPU each, the Ray cluster has {most:g}: lower --{noun}")
    if most and have < (actors or 1):
        wait_for(int(min(actors or wanted, most)), {"GPU": 1.0, "CPU": cpus}, minutes or 0.0, way_out)
        have = int(ray.cluster_resources()["GPU"])
    return have


def pool_for(actors: int, portions: int, minutes: float | None = None) -> tuple[int, int]:
    """How many processes are to hold a classifier, and how many GPUs each has: 1, or without any 0. It is printed.

    Args:
        actors: as many as are asked for; 0: one for each GPU, without GPUs one for each core, at most `MOST_ON_CPUS`.
        portions: of the work; more processes would have none.
        minutes: as `gpus_for`, which says what is raised.
    """
    import ray

    gpus = gpus_for(actors, minutes, way_out="or take what is there with --wait-minutes 0")
    cores = int(ray.cluster_resources().get("CPU", 1))
    count = min(actors or gpus or max(1, min(cores, MOST_ON_CPUS)), portions)
    device = "with a GPU each" if gpus else "on CPUs: the Ray cluster has no GPU"
    print(f"The classifier is held by {count} process{'es' * (count > 1)} {device}.", flush=True)
    return count, int(gpus > 0)


def watched(rows: Iterable[Row], what: str, total: int) -> Iterator[Row]:
    """The rows, and how many have come: a bar on a terminal, elsewhere now and then a line."""
    from rich.progress import track

    if sys.stdout.isatty():
        yield from track(rows, what, total)
        return
    said = time.monotonic()
    for count, row in enumerate(rows, 1):
        yield row
        if count < total and time.monotonic() - said >= SECONDS:
            said = time.monotonic()
            print(f"{what}: {count:,} of {total:,}.", flush=True)


def quiet(dataset: "Dataset") -> "Dataset":
    """The dataset, without bars and tracebacks of its own, and with a worker's error kept as its cause."""
    dataset.context.raise_original_map_exception = True
    dataset.context.enable_progress_bars = False
    for handler in logging.getLogger("ray.data").handlers:
        if "File" not in type(handler).__name__:  # what it writes into its session's files is told in full
            handler.addFilter(_news)
    return dataset


def _news(record: logging.LogRecord) -> bool:
    """Whether Ray Data says what nobody else does: its errors are raised too, and bars are ours."""
    return record.levelno < logging.ERROR and not str(record.msg).startswith("Progress bars disabled")


@contextmanager
def in_our_words(what: str = "a worker") -> Iterator[None]:
    """Raise an error of ours that a worker met as it was there, and another's as Ray's.

    Raises:
        RetryableError: `what` was lost: a worker, its node or the session.
    """
    from ray.exceptions import RayError, RayTaskError

    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, OURS):
            error.cause.args = tuple(_said(part) for part in error.cause.args)
            raise error.cause from None
        if isinstance(error.cause, RayError):
            raise _lost(what, error.cause) from error
        raise
    except RayError as error:
        raise _lost(what, error) from error


def _lost(what: str, error: Exception) -> RetryableError:
    return RetryableError(f"{what} was lost ({type(error).__name__}): run the same command again")


def _said(part: Any) -> Any:
    """What an error of ours said, without what Ray Data appends to it of its attempts."""
    return part.partition(RETRIED)[0] if isinstance(part, str) else part
