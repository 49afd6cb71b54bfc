"""The Ray cluster this process works on."""

import logging
import os

import ray

WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # torch's default of one thread per core would oversubscribe shared cores
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


def connect_ray() -> None:
    """Join the cluster of RAY_ADDRESS or of the submitted job, else start a local one that ends with this process.

    A local session keeps its workers' output in its log files; what users need is in the run's own log.
    """
    if ray.is_initialized():
        return
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    joining = bool(os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_JOB_ID"))
    ray.init(runtime_env={"env_vars": WORKER_ENVIRONMENT}, logging_level="error", log_to_driver=joining)
