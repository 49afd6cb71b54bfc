"""Actors that hold the model and write a split's reports into part files, from which one file is joined."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
import torch

from r2kg.config.protocol import protocols_of
from r2kg.config.run import Run
from r2kg.modules.beams import Generated
from r2kg.scoring.context import answer_of
from r2kg.scoring.controls.withheld import shown
from r2kg.systems.contract import Model, add_reference_cuts, to_device
from r2kg.training.artefacts import trained_model
from shards.errors import CheckpointError, ConfigError, DataError, RetryableError
from shards.graphs.triples import unpack_triples
from shards.privacy import fence
from shards.session import connect_ray, gpus_for, in_our_words, watched
from shards.stream.blocks import Rows, micro_batches, stream_blocks
from shards.stream.index import Index
from shards.stream.order import Indices, sequential_blocks
from shards.study import Study
from shards.tars.kinds import KINDS
from shards.tars.place import create, write_atomic

Probe = tuple[Rows, float]
"""Rows of the validation split, and the loss that a checkpoint had on them."""
PART = "part-{:09d}.jsonl"
"""Lines of a block, by the row of the split at which it begins."""
BLOCKS, BLOCK_ROWS = 256, 256
"""A split is cut into about so many blocks of at least a micro-batch and at most so many rows, however many write:
enough for every writer to have work to the end, and few enough to cost nothing."""
NOT_KNOWN = "what is right about it is not known: the side that holds that has no member of it"
PROBE_TOLERANCE = {"fp32": 1e-3, "bf16": 2e-2}
"""How far a writer's loss may lie from the one in training, of the loss or of 1: other kernels, or autocast, round."""


class Writer:
    """One actor: the model with a checkpoint's weights, from blocks of films to files of reports."""

    def __init__(
        self,
        run: Run,
        checkpoint: Path,
        licence: str,
        parts: Path | None = None,
        probe: Probe | None = None,
        scored: bool = True,
    ):
        """Take what the model is made of: an error in an actor's first call comes back as it was, one in here does not.

        Args:
            parts: where a block's lines go.
            probe: rows of the validation split, and the loss that the checkpoint had on them.
            scored: lines say what is right.
        """
        self.run, self.checkpoint, self.licence, self.parts, self.probe = run, checkpoint, licence, parts, probe
        self.task = run.model.task if scored else None
        self.device = "cuda" if ray.get_gpu_ids() else "cpu"

    @cached_property
    def model(self) -> Model:
        """The model of the run, with the trained weights of the checkpoint over its frozen ones.

        Raises:
            CheckpointError: it has other frozen weights, or another loss on the probe: its reports would be another
                model's.
        """
        model = trained_model(self.run, self.checkpoint, self.device)
        if self.probe:
            with fence(self.licence, self.run.privacy.allow_text), torch.inference_mode():
                self._refuse_another(model, *self.probe)
        return model

    def _refuse_another(self, model: Model, rows: Rows, wanted: float) -> None:
        sums, counts, weights = Counter[str](), Counter[str](), dict[str, float]()
        for micro in micro_batches(rows, self.run.train.micro_batch):
            batch = model.collate(micro)
            counts.update(model.counts(batch))
            for name, term in model.loss(to_device(batch, self.device)).items():
                sums[name] += float(term.sum)  # type: ignore[assignment]
                weights[name] = term.weight
        found = sum(weight * sums[name] / max(1.0, counts[name]) for name, weight in weights.items())
        if not abs(found - wanted) <= PROBE_TOLERANCE[self.run.engine.precision] * max(1.0, abs(wanted)):
            raise CheckpointError(
                f"{self.checkpoint} had a loss of {wanted:.4f} on {len(rows['index'])} validation studies when it was "
                f"written, and has {found:.4f} here: this is not the model that was trained. Its frozen weights, their "
                "precision or a library must have changed: restore them, or train again"
            )

    def __call__(self, rows: Rows) -> dict[str, np.ndarray]:
        """Write a block's lines into a file of their own, and instead of a study's that is unread why; their number.

        What is right is taken out of the rows where it lies in a side, before the model is shown them.
        """
        lines, right = list[dict[str, Any]](), [KINDS[kind].column for kind in self.run.reference if self.task]
        with fence(self.licence, self.run.privacy.allow_text), torch.inference_mode():
            for micro in micro_batches(rows, self.run.train.micro_batch):
                members = next((micro.pop(column) for column in right), None)
                batch = to_device(self.model.collate(micro | shown(self.run, micro)), self.device)
                written = self.model.generate(batch, self.run.model.decoding)
                for row in np.flatnonzero(micro["index"] >= 0):
                    if cause := micro["bad"][row]:
                        lines.append({"row": int(micro["index"][row]), "unread": str(cause)})
                    elif members is not None and not members[row]:
                        lines.append({"row": int(micro["index"][row]), "unread": NOT_KNOWN})
                    else:
                        study, member = Study.model_validate_json(micro["record"][row]), None
                        if members is not None:
                            member = bytes(members[row])
                        lines.append(prediction_line(study, written[row], self.task, member))
            if self.task:
                add_reference_cuts(lines, self.model, protocols_of(self.run.protocols, self.task))
            if self.parts:
                content = "".join(json.dumps(line) + "\n" for line in lines)
                write_atomic(self.parts / PART.format(int(rows["index"][0])), content.encode())
        return {"written": np.array([len(lines)])}


def prediction_line(study: Study, written: Generated, task: str | None, member: bytes | None = None) -> dict[str, Any]:
    """What predictions.jsonl says of a study; `written.extra` is its field "extra", unless it is empty.

    Args:
        task: of the system; None: the line tells nothing of what is right.
        member: what is right about it, of a side, in place of the record.

    Raises:
        ConfigError: the system's `extra` is no JSON, so that it could not be read back.
    """
    extra = {"extra": dict(written.extra)} if written.extra else {}
    try:
        json.dumps(extra, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"the `extra` that the system gives for study {study.id} is no JSON ({error}): let `generate` give texts, "
            "finite numbers, and lists and dicts of them"
        ) from None
    right = dict[str, Any]()
    if task:
        triples = study.triples if member is None else unpack_triples(member)
        right = {**answer_of(study, task, member), "labels": study.labels, "triples": triples}
    return {
        "id": study.id,
        "key": study.key,
        "patient": study.patient,
        "split": study.split,
        "prediction": written.text,
        **right,
        "tokens": written.tokens,
        "truncated": written.truncated,
        **extra,
    }


def gpus_to_write_on(run: Run, writers: int) -> int:
    """GPUs that the cluster has for writers, once those have come that a run trained on GPUs can get; 0 to use CPUs.

    Raises:
        ConfigError: more writers than there can be GPUs.
        RetryableError: those that could come did not in `train.wait_minutes`.
    """
    minutes, cpus = run.train.wait_minutes if run.train.gpus else None, min(1.0, run.train.cpus_per_worker)
    way_out = "or write on CPUs with train.gpus=false"
    have = gpus_for(writers, minutes, run.train.workers, cpus, "writers", way_out)
    if run.train.gpus and not have:
        print(f"{run.name} was trained on GPUs and the Ray cluster has none: writing on CPUs.")
    return have


def write_reports(
    run: Run,
    index: Index,
    licence: str,
    checkpoint: Path,
    writers: int,
    parts: Path,
    rows: Indices | None = None,
    films: Indices | None = None,
    probe: Probe | None = None,
    scored: bool = True,
) -> None:
    """Write what is lacking of a split's part files.

    Args:
        parts: a directory for one checkpoint, decoding and split: a block whose file stands there is not written again.
        rows: of the index, rising, those that are written about; None: all.
        films: [n], by row of the index the row whose films are shown in place of its own.
        scored: lines say what is right.

    Raises:
        ConfigError: more writers than GPUs.
        RetryableError: a study got no prediction.
    """
    connect_ray(run.directory)
    rows = np.arange(len(index)) if rows is None else rows
    size, count = run.train.micro_batch, len(rows)
    gpus = gpus_to_write_on(run, writers)
    blocks = sequential_blocks(count, 1, size, max(size, min(BLOCK_ROWS, count // BLOCKS)))
    blocks = [replace(b, index=np.where(b.index < 0, b.index, rows[b.index])) for b in blocks]
    if films is not None:
        blocks = [replace(b, films=np.where(b.index < 0, b.index, films[b.index])) for b in blocks]
    parts.mkdir(parents=True, exist_ok=True)
    files = [parts / PART.format(int(block.index.flat[0])) for block in blocks]
    left = [block for block, file in zip(blocks, files, strict=True) if not file.exists()]
    if 0 < len(left) < len(blocks):
        print(f"{len(blocks) - len(left)} of {len(blocks)} blocks were written before.")
    if left:
        studies = stream_blocks(
            run.data.shards, index.split, left, run.inputs.image_px, run.inputs.views, run.data.on_bad, index,
            run.shown_sides | (run.reference if scored else {}), fit=run.inputs.fit,
        )  # fmt: skip
        reports = studies.dataset().map_batches(
            Writer,
            fn_constructor_args=(run, checkpoint, licence, parts, probe, scored),
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=min(len(left), writers or gpus or run.train.workers)),
            num_gpus=1 if gpus else 0,
            num_cpus=min(1.0, run.train.cpus_per_worker),
        )
        with in_our_words("a writer"):
            for _ in watched(reports.iter_rows(), "writing blocks of reports", len(left)):
                pass
    if lacking := [file.name for file in files if not file.exists()]:
        raise RetryableError(
            f"{len(lacking)} blocks of {index.split} were not written, first {lacking[0]}: run the same command again"
        )


def lines_of(parts: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Every line that writers have left, as it stands and as what it says, in the order of the split.

    A study that could not be read is {"row", "unread": cause}.
    """
    for part in sorted(parts.glob("part-*.jsonl")):
        for line in part.read_bytes().splitlines(keepends=True):
            try:
                yield line, json.loads(line)
            except ValueError:
                raise DataError(f"{part} is damaged: delete it, and run the same command again") from None


def joined(parts: Path, path: Path, index: Index, count: int) -> tuple[Indices, dict[str, str]]:
    """All part files in the order of the split, in one; they hold `count` studies.

    Returns:
        the byte at which each line begins, int64 [lines], and the keys of the studies that could not be read, with the
        cause.
    """
    starts, unread, at = list[int](), dict[str, str](), 0
    with create(path) as file:
        for line, told in lines_of(parts):
            if "unread" in told:
                unread[index.keys[told["row"]].decode()] = told["unread"]
            else:
                starts.append(at)
                at += file.write(line)
        if (found := len(starts) + len(unread)) != count:
            raise DataError(
                f"{parts} holds {found} of {count} studies: a file there was damaged after it "
                "was written. Delete that directory, and run the same command again"
            )
    return np.array(starts, np.int64), unread
