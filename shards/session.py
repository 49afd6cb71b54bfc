"""The Ray cluster this process works on."""

import atexit
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.errors import RetryableError
from shards.privacy import OURS

if TYPE_CHECKING:  # a second, for which the process that only starts others need not wait
    from ray.data import Dataset

SPILL = ".ray-spill"


def connect_ray(beside: Path | None = None) -> None:
    """Join the cluster of RAY_ADDRESS or of the submitted job, else start a local one that ends with this process.

    Objects that do not fit a local session's memory are spilled below `beside`, where reports may lie, instead of into
    the system's temporary directory, and removed at the end; on a cluster that is for whoever starts it to set. A local
    session keeps its workers' output in its log files; what users need is in the run's own log.

    No runtime_env is set: a submitted job has its own, and Ray refuses a second one with other values.

    Raises:
        RetryableError: the cluster does not answer, or the session of our own could not be started.
    """
    import ray
    from ray.exceptions import RayError

    if ray.is_initialized():
        return
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    where: dict[str, Any] = {"logging_level": "error"}
    if beside and not joining():
        spill = beside / SPILL
        spill.mkdir(parents=True, exist_ok=True)
        atexit.register(shutil.rmtree, spill, ignore_errors=True)
        where["object_spilling_directory"] = str(spill)
    try:
        ray.init(**where, log_to_driver=joining())
    except Exception as error:
        if not isinstance(error, RuntimeError | OSError | RayError) and type(error) is not Exception:
            raise  # a mistake; a plain Exception is what Ray raises when its processes are slow to start
        what = f"the Ray cluster at {os.environ.get('RAY_ADDRESS', 'hand')}" if joining() else "a Ray session"
        cause = " ".join(str(error).split())[:300]
        raise RetryableError(f"{what} could not be {'joined' if joining() else 'started'}: {cause}") from error


def joining() -> bool:
    """Whether this process works on a cluster that others started, rather than on a session of its own."""
    return bool(os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_JOB_ID"))


def quiet(dataset: "Dataset") -> "Dataset":
    """The dataset, without bars of its own, and with a worker's error kept as its cause."""
    dataset.context.raise_original_map_exception = True
    dataset.context.enable_progress_bars = False
    return dataset


@contextmanager
def in_our_words(what: str = "what worked on this") -> Iterator[None]:
    """Raise an error of ours that a worker met as it was there, and another's as Ray's.

    Raises:
        RetryableError: `what` was lost: a worker, its node or the session.
    """
    from ray.exceptions import RayError, RayTaskError

    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, OURS):
            raise error.cause from None
        raise
    except RayError as error:
        raise RetryableError(f"{what} was lost ({type(error).__name__}): run the same command again") from error
