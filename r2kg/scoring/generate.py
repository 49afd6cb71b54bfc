"""Predictions: every study of a split exactly once, written by Ray Data actors outside the training workers."""

import hashlib
import json
import shutil
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

from r2kg.attempts.lease import lease, stop_main
from r2kg.config.protocol import protocols_of
from r2kg.config.run import Run
from r2kg.modules.beams import Generated
from r2kg.rundir import RunFiles
from r2kg.scoring.context import References, answer_of, scoring_context
from r2kg.scoring.controls.withheld import derangement, refuse_withheld, shown, shuffled
from r2kg.scoring.further import add_protocols, what_decides, written_before
from r2kg.systems.contract import Model, add_reference_cuts, model_class, refuse_cuts, to_device
from r2kg.training.artefacts import trained_model
from r2kg.training.checkpoint import find_checkpoint, read_state
from r2kg.training.features import features_or_films
from r2kg.training.plan import checked_manifest
from shards.errors import CheckpointError, ConfigError, DataError, RetryableError
from shards.graphs.triples import unpack_triples
from shards.privacy import fence
from shards.session import connect_ray, gpus_for, in_our_words, watched
from shards.stream.blocks import Rows, micro_batches, read_block, stream_blocks
from shards.stream.index import Index
from shards.stream.order import Indices, sequential_blocks
from shards.stream.side import Side
from shards.study import Study
from shards.tars.format import Manifest
from shards.tars.kinds import KINDS, description_hash, read_side
from shards.tars.place import Place, create, write_atomic

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

    def __init__(self, run: Run, checkpoint: Path, licence: str, parts: Path | None = None, probe: Probe | None = None):
        """Take what the model is made of: an error in an actor's first call comes back as it was, one in here does not.

        Args:
            parts: where a block's lines go.
            probe: rows of the validation split, and the loss that the checkpoint had on them.
        """
        self.run, self.checkpoint, self.licence, self.parts, self.probe = run, checkpoint, licence, parts, probe
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
        lines, right = list[dict[str, Any]](), [KINDS[kind].column for kind in self.run.reference]
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
                        lines.append(prediction_line(study, written[row], self.run.model.task, member))
            add_reference_cuts(lines, self.model, protocols_of(self.run.protocols, self.run.model.task))
            if self.parts:
                content = "".join(json.dumps(line) + "\n" for line in lines)
                write_atomic(self.parts / PART.format(int(rows["index"][0])), content.encode())
        return {"written": np.array([len(lines)])}


def prediction_line(study: Study, written: Generated, task: str, member: bytes | None = None) -> dict[str, Any]:
    """What predictions.jsonl says of a study; `written.extra` is its field "extra", unless it is empty.

    `member`: what is right about it, of a side, in place of the record.

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
    return {
        "id": study.id,
        "key": study.key,
        "patient": study.patient,
        "split": study.split,
        "prediction": written.text,
        **answer_of(study, task, member),
        "labels": study.labels,
        "triples": study.triples if member is None else unpack_triples(member),
        "tokens": written.tokens,
        "truncated": written.truncated,
        **extra,
    }


def generate(run: Run, shards: str | Place, split: str = "test", checkpoint: str = "best", writers: int = 0) -> Path:
    """Write predictions of a trained run on a split.

    Everything that can be refused is refused before the first report is written. What is written lies in part files;
    the same call after a kill goes on behind them, and after the end it finds what is there.

    Args:
        checkpoint: "best" (by train.choose), "last", or a step number.
        writers: actors that hold the model, one GPU each where the cluster has some; 0: as many as it has GPUs,
            without any as many as the run has workers. The files do not depend on their number.

    Returns:
        RUN/predictions/SPLIT/CHECKPOINT-DECODING-HASH/predictions.jsonl, the hash being that of all that decides the
        reports, which no protocol does: what a further one needs is added to those that are there. Beside it
        shuffled.jsonl (each study with what is written when the films are another study's) and context.json
        (vocabulary, floors, fingerprints).

    Raises:
        ConfigError: a protocol that is unknown or of another task than the system's, a side of another meaning, more
            writers than GPUs, or the same is being written already.
        DataError: shards missing or changed, empty split, or a study that got no prediction.
        CheckpointError: no such checkpoint, or a damaged one, or it does not give the loss any more that it had.
    """
    run = run.change({"data.shards": str(shards)}).absolute()
    protocols = protocols_of(run.protocols, run.model.task)
    refuse_cuts(model_class(run.model), protocols)
    manifest = checked_manifest(run)
    run = features_or_films(run, manifest)
    index = Index.open(run.data.shards, split, run.data.on_bad)
    if not len(index):
        raise DataError(
            f"split {split!r} of {run.data.shards} holds no study: its splits are {', '.join(manifest.splits)}"
        )
    source = find_checkpoint(run.directory, checkpoint)
    state = read_state(source)
    refuse_withheld(run)
    if references := References.of(run.reference, manifest):
        references.refuse_lacking(split)
    decided = what_decides(run, manifest, source, state, references)
    decoding = run.model.decoding
    how = "-".join(
        ["sampled" if decoding.sample else f"beams{decoding.beams}", *(f"no-{what}" for what in decoding.withhold)]
    )
    digest = hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()
    out = RunFiles(run.directory).predictions / split / f"{source.name}-{how}-{digest[:8]}"
    predictions = (out := written_before(out, decided)) / "predictions.jsonl"
    if predictions.exists():
        with lease(out, f"{split} of {run.name} is being written", stop_main):
            added = add_protocols(run, manifest, out, protocols)
        told = f"; what {' and '.join(added)} needs was added" if added else ""
        print(f"{predictions} is written already{told}; delete its directory to have it written again.")
        return predictions
    context = decided | {
        "protocols": list(protocols),
        "run": run.name,
        "checkpoint": source.name,
        "step": state["step"],
        "split": split,
        "trained_on": state["shards"],
        "licence": manifest.licence,
        **({"reference_at": run.reference} if references else {}),
    }
    context |= scoring_context(run.data.shards, manifest, protocols, run.data.on_bad, references)
    probe = probe_of(run, manifest, state)
    with lease(out, f"{split} of {run.name} is being written", stop_main):
        print(f"{run.name}: writing {len(index)} reports of {split} with {source.name}.")
        write_reports(run, index, manifest.licence, source, writers, out / "parts", probe=probe)
        offsets, unread = joined(out / "parts", out / "written.jsonl", index)
        context |= {"given": len(index), "unread": unread}
        context |= write_control(run, index, manifest.licence, source, writers, out, offsets)
        write_atomic(out / "context.json", json.dumps(context, indent=1).encode())
        (out / "written.jsonl").replace(predictions)  # last: where it stands, all of it does
        add_protocols(run, manifest, out, protocols)  # lines that a killed call has left are of its protocols alone
        for parts in ("parts", "control"):
            shutil.rmtree(out / parts, ignore_errors=True)
    return predictions


def write_control(
    run: Run, index: Index, licence: str, checkpoint: Path, writers: int, out: Path, offsets: Indices
) -> dict[str, str]:
    """Write shuffled.jsonl beside written.jsonl in `out`; returns {}, or {"no_control": why there can be none}."""
    inputs, donors = run.inputs, derangement(len(offsets), run.train.seed)
    if inputs.image_px is None and not run.data.features:
        return {"no_control": f"{run.model.system} reads no films, so none can be another study's"}
    if "film" in run.model.decoding.withhold:
        return {"no_control": "films are black (model.decoding.withhold): another study's would be as black"}
    if not len(donors):
        return {"no_control": f"{len(offsets)} study was written about: there are no films of another one"}
    if inputs.text or not all(KINDS[kind].of_films for kind in inputs.sides):
        print(f"{run.name}: writing them again with the films of other studies, for the control.")
        row_of = {key.decode(): row for row, key in enumerate(index.keys)}
        with (out / "written.jsonl").open("rb") as file:
            written, whose = [row_of[json.loads(line)["key"]] for line in file], np.arange(len(index))
        whose[written] = np.array(written)[donors]
        write_reports(run, index, licence, checkpoint, writers, out / "control", whose)
        joined(out / "control", out / "shuffled.jsonl", index)
    else:
        with create(out / "shuffled.jsonl") as file:
            for line in shuffled(out / "written.jsonl", offsets, donors):
                file.write(json.dumps(line).encode() + b"\n")
    return {}


def probe_of(run: Run, manifest: Manifest, state: dict[str, Any]) -> Probe | None:
    """Rows of the validation split and the loss that the checkpoint had on them; None, said, where there are none."""
    probe = state.get("probe")
    if not probe or manifest.fingerprint != state["shards"]:
        why = "it was trained on other shards" if probe else "it was not measured in training"
        print(f"{run.name}: the model's validation loss is not checked, {why}.")
        return None
    for kind, where in run.reference.items():
        if description_hash(read_side(where, kind)) != state["sides"].get(kind):
            print(f"{run.name}: the model's validation loss is not checked, it was trained with other {kind}.")
            return None
    index, count = Index.open(run.data.shards, "val", run.data.on_bad), probe["studies"]
    block = sequential_blocks(count, 1, count, count)[0]
    inputs, sides = run.inputs, run.sides.items()  # those that are targets too
    beside = {kind: Side.open(where, index, manifest, kind, run.data.on_bad) for kind, where in sides}
    rows = read_block(index, block, inputs.image_px, inputs.views, run.data.on_bad, beside, fit=inputs.fit)
    return rows, probe["loss"]


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
    films: Indices | None = None,
    first: int | None = None,
    probe: Probe | None = None,
) -> None:
    """Write what is lacking of a split's part files.

    Args:
        parts: a directory for one checkpoint, decoding and split: a block whose file stands there is not written again.
        films: [n], by row of the index the row whose films are shown in place of its own.
        first: only so many studies, from the beginning of the split.

    Raises:
        ConfigError: more writers than GPUs.
        RetryableError: a study got no prediction.
    """
    connect_ray(run.directory)
    size, count = run.train.micro_batch, min(len(index), first or len(index))
    gpus = gpus_to_write_on(run, writers)
    blocks = sequential_blocks(count, 1, size, max(size, min(BLOCK_ROWS, count // BLOCKS)))
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
            run.shown_sides | run.reference, fit=run.inputs.fit,
        )  # fmt: skip
        reports = studies.dataset().map_batches(
            Writer,
            fn_constructor_args=(run, checkpoint, licence, parts, probe),
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


def joined(parts: Path, path: Path, index: Index) -> tuple[Indices, dict[str, str]]:
    """All part files in the order of the split, in one.

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
        if (found := len(starts) + len(unread)) != len(index.keys):
            raise DataError(
                f"{parts} holds {found} of {len(index.keys)} studies: a file there was damaged after it "
                "was written. Delete that directory, and run the same command again"
            )
    return np.array(starts, np.int64), unread
