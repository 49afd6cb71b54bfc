"""A trained classifier as what finds the cells of a vision-token bank (`r2kg.graph.bank.make.Explainer`), or a trained
GCN classifier as what a knowledge matrix is the mean of (`r2kg.graph.matrix.make.NodeEncoder`).
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch

from r2kg.config.needs import Inputs
from r2kg.config.run import Run, System
from r2kg.rundir import saved_run
from r2kg.systems.classifier.config import ClassifierConfig
from r2kg.systems.gcn.config import GcnConfig
from r2kg.systems.gcn.graph import read_findings
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
    run, where = _trained(
        directory, checkpoint, manifest, ClassifierConfig, "a bank is cut out by one of the system classifier"
    )
    assert isinstance(run.model, ClassifierConfig)
    return partial(_built, run, where), run.model, _named(where, run.model.vision.name)


def node_encoder_of(
    directory: Path, checkpoint: str, manifest: Manifest, graph: str
) -> tuple[Callable[[], Any], Inputs, dict[str, Any]]:
    """What builds the GCN classifier of a run in an actor, what it reads of a study, and what names it.

    Args:
        graph: fingerprint of the finding graph whose nodes the matrix is to have.

    Raises:
        As `explainer_of`; DataError too where it was trained with another graph.
    """
    run, where = _trained(directory, checkpoint, manifest, GcnConfig, "a matrix is made by one of the system gcn")
    assert isinstance(run.model, GcnConfig)
    if (theirs := read_findings(Path(run.model.graph.at)).graph) != graph:
        raise DataError(
            f"{run.name} was trained with finding graph {theirs[:12]}, the one given is {graph[:12]}: its states are "
            "of other nodes. Give that graph with --graph, or train again"
        )
    named = _named(where, run.model.vision.name) | {"run": run.name, "checkpoint": where.name}
    return partial(_built, run, where), run.inputs, named


def minutes_for(directory: Path) -> float | None:
    """Minutes to wait for GPUs that a run's model is to be held on: its own; None where it was trained on CPUs."""
    train = saved_run(directory).train
    return train.wait_minutes if train.gpus else None


def _trained(directory: Path, checkpoint: str, manifest: Manifest, kind: type[System], use: str) -> tuple[Run, Path]:
    """A run of a system that was trained on these shards, and where its checkpoint lies."""
    run = saved_run(directory)
    if not isinstance(run.model, kind):
        raise ConfigError(f"{run.name} is a run of {run.model.system}: {use}")
    where = find_checkpoint(run.directory, checkpoint)
    if (theirs := read_state(where)["shards"]) != manifest.fingerprint:
        raise DataError(
            f"{run.name} was trained on shards {theirs[:12]}, these have {manifest.fingerprint[:12]}: it may know "
            "films of other splits. Train one on these shards"
        )
    return run, where


def _named(checkpoint: Path, encoder: str) -> dict[str, Any]:
    return {"checkpoint_sha256": sha256_of(checkpoint / MANIFEST), "encoder": encoder}


def _built(run: Run, checkpoint: Path) -> Any:
    """The model, on the actor's GPU where it has one."""
    return trained_model(run, checkpoint, "cuda" if torch.cuda.is_available() and ray.get_gpu_ids() else "cpu")
