"""A trained classifier as what finds the cells of a vision-token bank (`r2kg.graph.bank.Explainer`)."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch

from r2kg.config.run import Run
from r2kg.rundir import saved_run
from r2kg.systems.classifier.config import ClassifierConfig
from r2kg.training.artefacts import trained_model
from r2kg.training.checkpoint import MANIFEST, find_checkpoint, read_state
from shards.errors import ConfigError, DataError
from shards.tars.format import Manifest
from shards.tars.place import sha256_of


def explainer_of(
    directory: Path, checkpoint: str, manifest: Manifest
) -> tuple[Callable[[], Any], ClassifierConfig, dict[str, Any]]:
    """What builds the classifier of a run in an actor, its part of the configuration, and what names it.

    Raises:
        ConfigError: the run is of another system.
        DataError: it was trained on other shards, whose training studies may be these shards' test studies.
        CheckpointError: no such checkpoint, or a damaged one.
    """
    run = saved_run(directory)
    if not isinstance(config := run.model, ClassifierConfig):
        raise ConfigError(f"{run.name} is a run of {config.system}: a bank is cut out by one of the system classifier")
    where = find_checkpoint(run.directory, checkpoint)
    if (theirs := read_state(where)["shards"]) != manifest.fingerprint:
        raise DataError(
            f"{run.name} was trained on shards {theirs[:12]}, these have {manifest.fingerprint[:12]}: it may know "
            "films of other splits. Train one on these shards"
        )
    named = {"checkpoint_sha256": sha256_of(where / MANIFEST), "encoder": config.vision.name}
    return partial(_built, run, where), config, named


def _built(run: Run, checkpoint: Path) -> Any:
    """The model, on the actor's GPU where it has one."""
    return trained_model(run, checkpoint, "cuda" if torch.cuda.is_available() and ray.get_gpu_ids() else "cpu")
