"""Predictions: every study of a split exactly once, written by Ray Data actors outside the training workers."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from r2kg.config import Run
from r2kg.scoring.context import scoring_context
from r2kg.systems import build_model, load_trainable_state
from r2kg.training.checkpoint import best_checkpoint, checkpoint_path, complaints, read_state, read_tensors, weights_of
from r2kg.training.features import features_or_films
from r2kg.training.plan import checked_manifest
from shards.errors import CheckpointError, DataError
from shards.privacy import fence
from shards.session import connect_ray
from shards.stream.blocks import Rows, stream_blocks
from shards.stream.index import Index
from shards.stream.order import sequential_blocks
from shards.stream.records import numbered_studies
from shards.tars.manifest import Manifest
from shards.tars.place import Place


class Writer:
    """One actor: the model with a checkpoint's weights, from films to reports."""

    def __init__(self, run: Run, checkpoint: Path, licence: str):
        """Build the model of `run` and put the trained weights of `checkpoint` over its frozen ones."""
        self.run, self.licence = run, licence
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.manual_seed(run.train.seed)
        self.model = build_model(run.model)
        load_trainable_state(self.model, weights_of(read_tensors(checkpoint)))
        if run.engine.precision == "bf16":
            self.model.to(torch.bfloat16)
        self.model.to(self.device).eval()

    def __call__(self, rows: Rows) -> dict[str, np.ndarray]:
        """Rows of the stream → {index, bad, text, tokens, truncated} of the valid ones and of those that are bad."""
        with fence(self.licence, self.run.privacy.allow_text):
            return self._write(rows)

    @torch.inference_mode()
    def _write(self, rows: Rows) -> dict[str, np.ndarray]:
        batch = {key: value.to(self.device) for key, value in self.model.collate(rows).items()}
        written = self.model.generate(batch, self.run.decoding)
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
        checkpoint: "best" (lowest validation loss), "last", or a step number.
        writers: actors that hold the model; one GPU each when the cluster has them.

    Returns:
        RUN/predictions/SPLIT/predictions.jsonl; beside it shuffled.jsonl (each study with the reports written for
        another study's films) and context.json (vocabulary, floors, fingerprints).

    Raises:
        DataError: shards missing or changed, empty split, or a study that got no prediction.
        CheckpointError: no such checkpoint, or a damaged one.
    """
    run = run.change({"data.shards": str(shards)}).absolute()
    shards, manifest = run.data.shards, checked_manifest(run)
    run = features_or_films(run, manifest)
    index = Index.open(shards, split, run.data.on_bad)
    if not len(index):
        raise DataError(f"split {split!r} of {shards} holds no study: its splits are {', '.join(manifest.splits)}")
    source = find_checkpoint(run, checkpoint)
    print(f"{run.name}: writing {len(index)} reports of {split} with {source.name}.")
    written = dict(_write(run, split, index, manifest.licence, source, writers))
    lines, unread = _lines(index, written)
    out = run.directory / "predictions" / split
    out.mkdir(parents=True, exist_ok=True)
    context = _context(run, manifest, split, source) | {"given": len(index), "unread": unread}
    _write_text(out / "context.json", json.dumps(context, indent=1))
    _write_lines(out / "shuffled.jsonl", shuffled(lines, run.train.seed))
    _write_lines(out / "predictions.jsonl", lines)
    return out / "predictions.jsonl"


def find_checkpoint(run: Run, which: str) -> Path:
    """The checkpoint "best", "last" or of a step, after comparing it with its own manifest."""
    if which == "best":
        return best_checkpoint(run.directory)
    steps = sorted((run.directory / "checkpoints").glob("step-*"))
    path = (steps[-1] if steps else None) if which == "last" else checkpoint_path(run.directory, int(which))
    if path is None or not path.is_dir():
        names = ", ".join(step.name for step in steps) or "none"
        raise CheckpointError(f"{run.directory} has no checkpoint {which!r}; it holds {names}")
    if wrong := complaints(path):
        raise CheckpointError("; ".join(wrong))
    return path


def shuffled(lines: list[dict], seed: int) -> list[dict]:
    """Every study with the report written for another study's films.

    A system that sees nothing but films writes the same report whichever study it is asked about, so its control is a
    derangement of its own predictions. With one study there is no other, and the list is empty.
    """
    if len(lines) < 2:
        return []
    order = np.random.default_rng(seed).permutation(len(lines))
    donor = np.empty(len(lines), int)
    donor[order] = np.roll(order, 1)
    taken = ("prediction", "tokens", "truncated")
    return [line | {field: lines[donor[i]][field] for field in taken} for i, line in enumerate(lines)]


def _write(
    run: Run, split: str, index: Index, licence: str, checkpoint: Path, writers: int
) -> Iterator[tuple[int, dict]]:
    import ray

    connect_ray(run.directory)
    size = run.train.micro_batch
    films = stream_blocks(
        run.data.shards, split, sequential_blocks(len(index), 1, size), run.model.vision.image_px, run.data.views,
        run.data.on_bad, index, features=run.data.features or None,
    )  # fmt: skip
    reports = films.map_batches(
        Writer,
        fn_constructor_args=(run, checkpoint, licence),
        batch_size=size,
        compute=ray.data.ActorPoolStrategy(size=writers),
        num_gpus=1 if ray.cluster_resources().get("GPU", 0) >= writers else 0,
        num_cpus=min(1.0, run.train.cpus_per_worker),
    )
    rows = reports.iter_rows()
    for row in track(rows, "writing", total=len(index), disable=not sys.stdout.isatty()):
        yield int(row["index"]), row


def _lines(index: Index, written: dict[int, dict]) -> tuple[list[dict], dict[str, str]]:
    """Prediction lines in index order, and the keys of the studies that could not be read, with the cause."""
    keys = [key.decode() for key in index.keys]
    if lost := [key for row, key in enumerate(keys) if row not in written]:
        raise DataError(f"{len(lost)} studies of {index.split} got no prediction, first {lost[0]}: generate again")
    unread = {keys[row]: answer["bad"] for row, answer in written.items() if answer["bad"]}
    lines = []
    for row, study in numbered_studies(index, unread={}):
        if written[row]["bad"]:
            continue
        lines.append(
            {
                "id": study.id,
                "key": study.key,
                "split": study.split,
                "prediction": str(written[row]["text"]),
                "reference": study.target,
                "reference_raw": study.report,
                "labels": study.labels,
                "triples": study.triples,
                "tokens": int(written[row]["tokens"]),
                "truncated": bool(written[row]["truncated"]),
            }
        )
    return lines, unread


def _context(run: Run, manifest: Manifest, split: str, checkpoint: Path) -> dict:
    """What scoring needs beside the predictions: vocabulary and floors from the training and validation reports."""
    state = read_state(checkpoint)
    about = {
        "run": run.name,
        "checkpoint": checkpoint.name,
        "step": state["step"],
        "split": split,
        "shards": manifest.fingerprint,
        "trained_on": state["shards"],
        "licence": manifest.licence,
        "protocols": list(run.protocols),
    }
    return about | scoring_context(run.data.shards, manifest, run.protocols, run.data.on_bad)


def _write_lines(path: Path, lines: list[dict]) -> None:
    _write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)
