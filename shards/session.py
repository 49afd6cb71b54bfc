"""The Ray cluster this process works on."""

import atexit
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.data import Dataset
from ray.exceptions import RayTaskError

from shards.privacy import OURS

WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # torch's default of one thread per core would oversubscribe shared cores
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


SPILL = ".ray-spill"


def connect_ray(beside: Path | None = None) -> None:
    """Join the cluster of RAY_ADDRESS or of the submitted job, else start a local one that ends with this process.

    Objects that do not fit a local session's memory are spilled below `beside`, where reports may lie, instead of into
    the system's temporary directory, and removed at the end; on a cluster that is for whoever starts it to set. A local
    session keeps its workers' output in its log files; what users need is in the run's own log.
    """
    if ray.is_initialized():
        return
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    joining = bool(os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_JOB_ID"))
    where: dict[str, Any] = {"logging_level": "error"}
    if beside and not joining:
        spill = beside / SPILL
        spill.mkdir(parents=True, exist_ok=True)
        atexit.register(shutil.rmtree, spill, ignore_errors=True)
        where["object_spilling_directory"] = str(spill)
    ray.init(**where, runtime_env={"env_vars": WORKER_ENVIRONMENT}, log_to_driver=joining)


def quiet(dataset: Dataset) -> Dataset:
    """The dataset, without bars of its own, and with a worker's error kept as its cause."""
    dataset.context.raise_original_map_exception = True
    dataset.context.enable_progress_bars = False
    return dataset


@contextmanager
def in_our_words() -> Iterator[None]:
    """Raise an error of ours that a worker met as it was there; others stay Ray's."""
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, OURS):
            raise error.cause from None
        raise
