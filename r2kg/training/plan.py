"""What a run will do, computed and checked before any worker starts."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from r2kg.config.protocol import parse_choice, protocol_named, protocols_of, refuse_unfit
from r2kg.config.run import Run
from r2kg.systems.contract import Model, add_reference_cuts, build_model
from r2kg.training.artefacts import begin
from r2kg.training.checkpoint import check_room, checkpoints
from r2kg.training.features import check_features, refuse_damage
from r2kg.training.optim import parameter_groups
from shards.errors import ConfigError
from shards.graphs.triples import unpack_triples
from shards.stream.index import Index, numbered_studies
from shards.stream.side import Side
from shards.study import Study
from shards.tars.format import Manifest
from shards.tars.kinds import description_hash, read_side, refuse_other
from shards.tars.verify import faults_of, verify

COUNTED = 5000
"""Studies of a split over which lengths are counted: at most these are read before a run starts."""
MAY_CHANGE = (
    "root", "data.shards", "data.features", "data.sides", "data.verify", "data.on_bad", "engine", "tracking",
    "privacy", "protocols", "model.decoding", "train.epochs", "train.steps", "train.workers", "train.micro_batch",
    "train.gpus", "train.cpus_per_worker", "train.max_restarts", "train.wait_minutes", "train.max_skipped",
    "train.checkpoint_every", "train.checkpoints_kept", "train.validate_every", "train.patience", "train.choose",
    "train.stop_seconds", "train.log_every", "train.record_studies", "train.accept_changes",
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
    cut: dict[str, float] = field(default_factory=dict)
    """Share of right answers that are longer than the model is trained on ("train"), or than a protocol compares."""
    cuts: str = ""
    """The same in a sentence; empty: none is."""
    films: dict[str, int] = field(default_factory=dict)
    """How the shards store films: size_px and quality, for films that go the same way later."""

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
        ConfigError: protocols or train.choose that cannot be (`checked_choice`), LM or system that cannot be built,
            optim's groups that are not the model's, train.init_from of another shape.
        CheckpointError: no room for the run's checkpoints.
    """
    choice = checked_choice(run, manifest)
    if run.data.features:
        check_features(run, manifest)
    sides = dict[str, str]()
    for kind, where in run.sides.items():
        if kind != "features":
            side = read_side(where, kind)
            refuse_other(where, side, manifest, kind)
            refuse_damage(run, where, side)
            sides[kind] = description_hash(side)
            if kind == run.inputs.reference:
                run.refuse_lacking(kind, manifest)
    with torch.device("meta"):  # so that a 7B model costs no memory
        model = build_model(run.model)
    begins = begin(model, run)  # type: ignore[arg-type]  # a Model is an nn.Module
    parameter_groups(model, run.optim)
    cut, cuts = count_cut(run, manifest, model)
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
        cut=cut,
        cuts=cuts,
        sides=sides,
        films={"size_px": manifest.size_px, "quality": manifest.quality},
    )
    if run.train.patience and not plan.validation_studies:
        raise ConfigError(
            f"train.patience={run.train.patience} needs a validation loss, but the validation split is empty"
        )
    there = next(path for path in (run.directory, *run.directory.parents) if path.exists())
    kept, written = run.train.checkpoints_kept + 2, [int(path.name[5:]) for path in checkpoints(run.directory)]
    if choice:  # none is deleted before all are scored
        kept = max(kept, math.ceil(plan.steps / run.train.checkpoint_every) + 1)
    if max(written, default=-1) < plan.steps:  # what a run that goes on has written takes its room already
        count = max(1, kept - len(written))
        check_room(there, plan.checkpoint_bytes * count, count)
    return plan


def checked_choice(run: Run, manifest: Manifest) -> dict[str, float]:
    """`parse_choice` of a run, after comparing its protocols with the shards.

    Raises:
        ConfigError: unknown protocol or metric, one of another task or for reports that are cleaned otherwise, or no
            validation study to choose by.
    """
    names = protocols_of(run.protocols, run.model.task)
    refuse_unfit([protocol_named(name) for name in names], manifest.cleaning)
    choice, validated = parse_choice(run.train.choose, run.model.task), manifest.splits["val"].studies
    if choice and not min(run.train.validation_studies, validated):
        raise ConfigError(
            f"train.choose={run.train.choose} generates on validation studies, of which there are none "
            f"(train.validation_studies={run.train.validation_studies}, {validated} in the shards): raise the first, "
            "or set train.choose=loss"
        )
    return choice


def count_cut(run: Run, manifest: Manifest, model: Model) -> tuple[dict[str, float], str]:
    """What share of the right answers is longer than the model is trained on, or than a protocol compares.

    Counted over the first `COUNTED` studies of the training split, and for protocols of "test", which is written by
    default, or else of "val"; those that cannot be read are not among them.

    Returns:
        share by what cuts: "train", and the protocols that cut by name; and a sentence for the log, "" when none does.
    """
    cut, said = dict[str, float](), list[str]()

    def note(name: str, split: str, numbers: list[bool], by: str) -> None:
        cut[name] = sum(numbers) / max(1, len(numbers))
        if any(numbers):
            first = "the first " if len(numbers) < manifest.splits[split].studies else ""
            said.append(f"{sum(numbers):,} of {first}{len(numbers):,} reports of {split} {by}")

    records = [study.model_dump_json() for study in _first_studies(run, "train")]
    note("train", "train", model.cut(records), "are longer than the model is trained on, and cut there")
    protocols = [protocol_named(name) for name in protocols_of(run.protocols, run.model.task)]
    if cutting := [protocol for protocol in protocols if protocol.max_length]:
        split = next((split for split in ("test", "val") if manifest.splits[split].studies), "train")
        scored = _first_studies(run, split)
        lines: list[dict[str, Any]] = [
            {"id": study.id, "reference": study.target, "reference_raw": study.report} for study in scored
        ]
        add_reference_cuts(lines, model, [protocol.name for protocol in cutting])
        for protocol in cutting:
            numbers = [protocol.cuts(line) for line in lines]
            note(protocol.name, split, numbers, f"are compared by their beginning under protocol {protocol.name}")
    return cut, f"{run.name}: {'; '.join(said)}." if said else ""


def _first_studies(run: Run, split: str) -> list[Study]:
    """With the triples of the side that says what is right, where there is one; those without are not among them."""
    index = Index.open(run.data.shards, split, "skip")
    found = list(numbered_studies(index, {}, COUNTED))
    if not run.reference:
        return [study for _, study in found]
    ((kind, where),) = run.reference.items()
    side = Side.open(where, index, run.manifest(), kind, "skip")
    members = dict(side.held([row for row, _ in found], {}))  # what cannot be read is told by who learns from it
    return [
        study.model_copy(update={"triples": unpack_triples(members[row])}) for row, study in found if row in members
    ]


def checked_manifest(run: Run) -> Manifest:
    """The manifest of `run.data.shards`, after comparing the shards with it as `run.data.verify` says.

    Damage is printed under data.on_bad=skip: every study is checked again when it is read, and those that cannot be
    are skipped and named. Under fail it is a DataError.
    """
    manifest, inputs = run.manifest(), run.inputs
    wanted = max(inputs.image_px or 0, inputs.augment.resize_px or 0)
    if manifest.size_px < wanted and not run.data.features:
        print(
            f"{run.name}: films of {run.data.shards} have a short side of {manifest.size_px} px and are enlarged to "
            f"{wanted}; `r2kg shard --size {wanted}` keeps more of them."
        )
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
