"""Predictions: every study of a split exactly once, written by Ray Data actors outside the training workers."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
import torch
from rich.progress import track

from r2kg.config.run import Run
from r2kg.protocol import protocols_of
from r2kg.rundir import RunFiles
from r2kg.scoring.context import answer_of, scoring_context
from r2kg.systems.contract import load_stored, to_bf16, to_device
from r2kg.training.artefacts import built
from r2kg.training.checkpoint import find_checkpoint, read_state, read_tensors, weights_of
from r2kg.training.features import features_or_films
from r2kg.training.plan import checked_manifest
from shards.errors import ConfigError, DataError
from shards.privacy import fence
from shards.session import connect_ray
from shards.stream.blocks import Rows, stream_blocks
from shards.stream.index import Index, numbered_studies
from shards.stream.order import Indices, sequential_blocks
from shards.tars.kinds import description_hash, read_side
from shards.tars.place import Place, write_atomic


class Writer:
    """One actor: the model with a checkpoint's weights, from films to reports."""

    def __init__(self, run: Run, checkpoint: Path, licence: str):
        """Build the model of `run` and put the trained weights of `checkpoint` over its frozen ones."""
        self.run, self.licence = run, licence
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.manual_seed(run.train.seed)
        self.model = built(run)
        load_stored(self.model, weights_of(read_tensors(checkpoint)))
        if run.engine.precision == "bf16":
            to_bf16(self.model)
        self.model.to(self.device).eval()

    def __call__(self, rows: Rows) -> dict[str, np.ndarray]:
        """Rows of the stream → {index, bad, text, tokens, truncated} of the valid ones and of those that are bad."""
        with fence(self.licence, self.run.privacy.allow_text), torch.inference_mode():
            shown = self.run.inputs.shown
            rows = rows | {"record": np.array([shown(record) for record in rows["record"]], object)}
            batch = to_device(self.model.collate(rows), self.device)
            written = self.model.generate(batch, self.run.model.decoding)
            keep = np.flatnonzero(rows["index"] >= 0)
            return {
                "index": rows["index"][keep],
                "bad": np.array([rows["bad"][row] for row in keep], object),
                "text": np.array([written[row].text for row in keep], object),
                "tokens": np.array([written[row].tokens for row in keep], np.int64),
                "truncated": np.array([written[row].truncated for row in keep], bool),
            }


def generate(run: Run, shards: str | Place, split: str = "test", checkpoint: str = "best", writers: int = 1) -> Path:
    """Write predictions of a trained run on a split.

    Args:
        checkpoint: "best" (by train.choose), "last", or a step number.
        writers: actors that hold the model; one GPU each when the cluster has them.

    Returns:
        RUN/predictions/SPLIT/predictions.jsonl; beside it shuffled.jsonl (each study with what is written when the
        films are another study's) and context.json (vocabulary, floors, fingerprints).

    Raises:
        ConfigError: a protocol that is unknown or of another task than the system's, or a side of another meaning.
        DataError: shards missing or changed, empty split, or a study that got no prediction.
        CheckpointError: no such checkpoint, or a damaged one.
    """
    run = run.change({"data.shards": str(shards)}).absolute()
    protocols = protocols_of(run.protocols, run.model.task)
    manifest = checked_manifest(run)
    run = features_or_films(run, manifest)
    index = Index.open(run.data.shards, split, run.data.on_bad)
    if not len(index):
        raise DataError(
            f"split {split!r} of {run.data.shards} holds no study: its splits are {', '.join(manifest.splits)}"
        )
    source = find_checkpoint(run.directory, checkpoint)
    state = read_state(source)
    for kind in run.shown_sides.keys() & state["sides"].keys():
        if description_hash(read_side(run.shown_sides[kind])) != state["sides"][kind]:
            raise ConfigError(
                f"the {kind} at {run.shown_sides[kind]} are described otherwise than those {run.name} was trained "
                "with, so their numbers would mean other things: write them as those were, or name those in data.sides"
            )
    print(f"{run.name}: writing {len(index)} reports of {split} with {source.name}.")
    lines, unread = write_reports(run, index, manifest.licence, source, writers)
    context = {
        "run": run.name,
        "checkpoint": source.name,
        "step": state["step"],
        "split": split,
        "shards": manifest.fingerprint,
        "trained_on": state["shards"],
        "licence": manifest.licence,
        "protocols": list(protocols),
    }
    context |= scoring_context(run.data.shards, manifest, protocols, run.data.on_bad)
    context |= {"given": len(index), "unread": unread}
    inputs, control = run.inputs, list[dict[str, Any]]()
    donors = derangement(len(lines), run.train.seed)
    if inputs.image_px is None and not run.data.features:
        context["no_control"] = f"{run.model.system} reads no films, so none can be another study's"
    elif not len(donors):
        context["no_control"] = f"{len(lines)} study was written about: there are no films of another one"
    elif inputs.text or inputs.sides:
        print(f"{run.name}: writing them again with the films of other studies, for the control.")
        row_of = {key.decode(): row for row, key in enumerate(index.keys)}
        written, whose = [row_of[line["key"]] for line in lines], np.arange(len(index))
        whose[written] = np.array(written)[donors]
        control, _ = write_reports(run, index, manifest.licence, source, writers, whose)
    else:
        control = shuffled(lines, donors)
    out = RunFiles(run.directory).predictions / split
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "context.json", json.dumps(context, indent=1).encode())
    (out / "shuffled.jsonl").unlink(missing_ok=True)  # an older control would be taken for this one's
    for name, answers in {"shuffled.jsonl": control, "predictions.jsonl": lines}.items():
        if answers:
            write_atomic(out / name, "".join(json.dumps(line) + "\n" for line in answers).encode())
    return out / "predictions.jsonl"


def write_reports(
    run: Run,
    index: Index,
    licence: str,
    checkpoint: Path,
    writers: int,
    films: Indices | None = None,
    first: int | None = None,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Prediction lines of a split in index order, and the keys of the studies that could not be read, with the cause.

    Args:
        films: [n], by row of the index the row whose films are shown in place of its own.
        first: only so many studies, from the beginning of the split.

    Raises:
        DataError: a study got no prediction.
    """
    connect_ray(run.directory)
    size, count = run.train.micro_batch, min(len(index), first or len(index))
    blocks = sequential_blocks(count, 1, size)
    if films is not None:
        blocks = [replace(b, films=np.where(b.index < 0, b.index, films[b.index])) for b in blocks]
    studies = stream_blocks(
        run.data.shards, index.split, blocks, run.inputs.image_px, run.inputs.views, run.data.on_bad, index,
        run.shown_sides,
    )  # fmt: skip
    reports = studies.map_batches(
        Writer,
        fn_constructor_args=(run, checkpoint, licence),
        batch_size=size,
        compute=ray.data.ActorPoolStrategy(size=writers),
        num_gpus=1 if ray.cluster_resources().get("GPU", 0) >= writers else 0,
        num_cpus=min(1.0, run.train.cpus_per_worker),
    )
    rows = track(reports.iter_rows(), "writing", total=count, disable=not sys.stdout.isatty())
    answers = {int(row["index"]): row for row in rows}
    keys = [key.decode() for key in index.keys[:count]]
    if lost := [key for row, key in enumerate(keys) if row not in answers]:
        raise DataError(f"{len(lost)} studies of {index.split} got no prediction, first {lost[0]}: generate again")
    lines = [
        {
            "id": study.id,
            "key": study.key,
            "split": study.split,
            "prediction": str(answers[row]["text"]),
            **answer_of(study, run.model.task),
            "labels": study.labels,
            "triples": study.triples,
            "tokens": int(answers[row]["tokens"]),
            "truncated": bool(answers[row]["truncated"]),
        }
        for row, study in numbered_studies(index, unread={}, first=count)
        if not answers[row]["bad"]
    ]
    return lines, {keys[row]: answer["bad"] for row, answer in answers.items() if answer["bad"]}


def derangement(n: int, seed: int) -> Indices:
    """For each of n another one, each taken once: int64 [n]; of fewer than two empty."""
    if n < 2:
        return np.empty(0, np.int64)
    order = np.random.default_rng(seed).permutation(n)
    donor = np.empty(n, np.int64)
    donor[order] = np.roll(order, 1)
    return donor


def shuffled(lines: list[dict], donors: Indices) -> list[dict]:
    """Every study with the report written for another study's films.

    A system that sees nothing but films writes the same report whichever study it is asked about, so its control is a
    derangement of its own predictions.
    """
    taken = ("prediction", "tokens", "truncated")
    return [line | {field: lines[donor][field] for field in taken} for line, donor in zip(lines, donors, strict=True)]
