"""What a run will do, computed and checked before any worker starts."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from r2kg.config.run import Run
from r2kg.protocol import AS_MANIFEST, parse_choice, protocol_named, protocols_of
from r2kg.systems.contract import build_model
from r2kg.training.artefacts import begin
from r2kg.training.checkpoint import check_room, checkpoints
from r2kg.training.features import check_features, refuse_damage
from r2kg.training.optim import parameter_groups
from shards.errors import ConfigError
from shards.tars.format import Manifest
from shards.tars.kinds import description_hash, read_side, refuse_other
from shards.tars.verify import faults_of, verify

MAY_CHANGE = (
    "root", "data.shards", "data.features", "data.sides", "data.verify", "data.on_bad", "engine", "tracking",
    "privacy", "protocols", "model.decoding", "train.epochs", "train.steps", "train.workers", "train.micro_batch",
    "train.gpus", "train.cpus_per_worker", "train.max_restarts", "train.wait_minutes", "train.max_skipped",
    "train.checkpoint_every", "train.checkpoints_kept", "train.validate_every", "train.patience", "train.choose",
    "train.log_every", "train.record_studies", "train.accept_changes",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """Derived numbers of a run."""

    studies: int
    """Studies of the training split."""
    validation_studies: int
    """Studies the validation loss is taken over."""
    steps: int
    """Optimiser steps of the whole run."""
    steps_per_epoch: float
    """Studies / global batch; not whole, since steps run across epochs."""
    shards: str
    """Fingerprint of the shards."""
    licence: str
    """Terms tag of the shards: decides what errors may say."""
    trained: dict[str, int]
    """Trained parameters by group."""
    parameters: int
    """All parameters."""
    artefacts: dict[str, Any]
    """What was made for the run, by name: path, settings, fingerprint."""
    checkpoint_bytes: int
    """Size of one checkpoint on disk."""
    sides: dict[str, str] = field(default_factory=dict)
    """Kind → hash of the description of the sides that are read, features apart."""
    begins: str = ""
    """Which weights it begins with, a sentence; empty: its own."""

    def sentence(self, run: Run) -> str:
        """One line for the log."""
        groups = ", ".join(f"{name} {count:,}" for name, count in self.trained.items())
        train = run.train
        return (
            f"{run.name}: {self.studies:,} studies, {self.steps:,} steps of {train.global_batch} "
            f"({train.workers} workers × {train.micro_batch} × {train.accumulation}), ZeRO-{run.engine.zero} "
            f"{run.engine.precision}, {sum(self.trained.values()):,} of {self.parameters:,} parameters trained "
            f"({groups}), checkpoints of {self.checkpoint_bytes / 1e6:,.1f} MB."
        )


def preflight(run: Run, manifest: Manifest, artefacts: dict[str, Any]) -> Plan:
    """Check everything that can be checked without a worker, and return the numbers.

    Raises:
        ConfigError: unknown protocol or one of another task, no such choice of checkpoints, LM or system that cannot
            be built, optim's groups that are not the model's, train.init_from of another shape.
        CheckpointError: no room for the run's checkpoints.
    """
    protocol = protocol_named(protocols_of(run.protocols, run.model.task)[0])
    choice, validated = parse_choice(run.train.choose, run.model.task), manifest.splits["val"].studies
    if choice and not min(run.train.validation_studies, validated):
        raise ConfigError(
            f"train.choose={run.train.choose} generates on validation studies, of which there are none "
            f"(train.validation_studies={run.train.validation_studies}, {validated} in the shards): raise the first, "
            "or set train.choose=loss"
        )
    if choice and protocol.reference_cut != "none" and protocol.cleaning not in (AS_MANIFEST, manifest.cleaning):
        raise ConfigError(
            f"train.choose={run.train.choose} is scored under the first protocol, {protocol.name}, which cleans with "
            f"{protocol.cleaning}; the shards are cleaned with {manifest.cleaning}: put another protocol first"
        )
    if run.data.features:
        check_features(run, manifest)
    sides = dict[str, str]()
    for kind, where in run.sides.items():
        if kind != "features":
            side = read_side(where)
            refuse_other(where, side, manifest, kind)
            refuse_damage(run, where, side)
            sides[kind] = description_hash(side)
    with torch.device("meta"):  # so that a 7B model costs no memory
        model = build_model(run.model)
    begins = begin(model, run)  # type: ignore[arg-type]  # a Model is an nn.Module
    parameter_groups(model, run.optim)
    trained = {name: sum(p.numel() for _, p in pairs) for name, pairs in model.trainable().items()}
    per_trained = 16 if run.optim.amsgrad else 12  # an fp32 weight and Adam's two moments, AMSGrad's third
    buffers = sum(model.get_buffer(name).numel() * model.get_buffer(name).element_size() for name in model.mutable)
    studies = manifest.splits["train"].studies
    plan = Plan(
        studies=studies,
        validation_studies=min(run.train.validation_studies, manifest.splits["val"].studies),
        steps=run.train.steps or math.ceil(run.train.epochs * studies / run.train.global_batch),
        steps_per_epoch=studies / run.train.global_batch,
        shards=manifest.fingerprint,
        licence=manifest.licence,
        trained={name: count for name, count in trained.items() if count},
        parameters=sum(p.numel() for p in model.parameters()),
        artefacts=artefacts,
        checkpoint_bytes=per_trained * sum(trained.values()) + buffers,
        begins=begins,
        sides=sides,
    )
    if run.train.patience and not plan.validation_studies:
        raise ConfigError(
            f"train.patience={run.train.patience} needs a validation loss, but the validation split is empty"
        )
    there = next(path for path in (run.directory, *run.directory.parents) if path.exists())
    kept = run.train.checkpoints_kept + 2
    if choice:  # none is deleted before all are scored
        kept = max(kept, math.ceil(plan.steps / run.train.checkpoint_every) + 1 - len(checkpoints(run.directory)))
    check_room(there, plan.checkpoint_bytes * kept)
    return plan


def checked_manifest(run: Run) -> Manifest:
    """The manifest of `run.data.shards`, after comparing the shards with it as `run.data.verify` says.

    Damage is printed under data.on_bad=skip: every study is checked again when it is read, and those that cannot be
    are skipped and named. Under fail it is a DataError.
    """
    manifest = run.manifest()
    if run.data.on_bad == "fail":
        verify(run.data.shards, manifest, run.data.verify)
    elif faults := faults_of(run.data.shards, manifest.shards, run.data.verify):
        print(f"Shards are damaged: {'; '.join(faults)}. Studies that cannot be read are skipped and named.")
    return manifest


def refuse_changed(before: Run, now: Run) -> None:
    """ConfigError, naming the fields, when a run that began as `before` would go on as another experiment.

    An artefact is named by what decides its content, so under a root that was moved it is the same one.
    """
    changed = differences(before.model_dump(), now.model_dump())
    moved = [
        field
        for field, values in changed.items()
        if all(isinstance(value, str) and Path(value).parent.name == "artefacts" for value in values)
        and len({Path(value).name for value in values}) == 1
    ]
    fixed = [field for field in changed if field not in moved and not field.startswith(MAY_CHANGE)]
    if fixed:
        named = "; ".join(f"{field}: {changed[field][0]} then, {changed[field][1]} now" for field in fixed)
        raise ConfigError(
            f"run {now.name!r} exists in {now.directory} with other settings ({named}): "
            "choose another name=, or submit it with the settings it began with"
        )


def differences(old: dict, new: dict, prefix: str = "") -> dict[str, tuple]:
    """Dotted fields that differ, with both values."""
    changed: dict[str, tuple] = {}
    for key in old.keys() | new.keys():
        one, two = old.get(key), new.get(key)
        if isinstance(one, dict) and isinstance(two, dict):
            changed |= differences(one, two, f"{prefix}{key}.")
        elif json.dumps(one) != json.dumps(two):
            changed[prefix + key] = (one, two)
    return dict(sorted(changed.items()))
