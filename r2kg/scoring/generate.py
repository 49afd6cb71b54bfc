"""Predictions: every study of a split exactly once, written by Ray Data actors outside the training workers."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from r2kg.attempts.lease import lease, stop_main
from r2kg.config.protocol import protocols_of
from r2kg.config.run import Run
from r2kg.rundir import UNSCORED, RunFiles
from r2kg.scoring.context import References, scoring_context
from r2kg.scoring.controls.withheld import derangement, refuse_withheld, shuffled
from r2kg.scoring.writing.further import add_protocols, what_decides, written_before
from r2kg.scoring.writing.writer import NOT_KNOWN, Probe, joined, write_reports
from r2kg.systems.contract import model_class, refuse_cuts
from r2kg.training.checkpoint import find_checkpoint, read_state
from r2kg.training.features import features_or_films
from r2kg.training.plan import checked_manifest
from shards.errors import DataError
from shards.stream.blocks import read_block
from shards.stream.index import Index
from shards.stream.order import Indices, sequential_blocks
from shards.stream.side import Side
from shards.tars.format import Manifest
from shards.tars.kinds import KINDS, description_hash, read_side
from shards.tars.place import Place, create, write_atomic


def generate(
    run: Run,
    shards: str | Place,
    split: str = "test",
    checkpoint: str = "best",
    writers: int = 0,
    scored: bool = True,
) -> Path:
    """Write predictions of a trained run on a split.

    Everything that can be refused is refused before the first report is written. What is written lies in part files;
    the same call after a kill goes on behind them, and after the end it finds what is there.

    Args:
        checkpoint: "best" (by train.choose), "last", or a step number.
        writers: actors that hold the model, one GPU each where the cluster has some; 0: as many as it has GPUs,
            without any as many as the run has workers. The files do not depend on their number.
        scored: studies of which nothing right is known, as their side has no member, are left out and named. False:
            all are written about, into unscored.jsonl, without what is right, floors and control.

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
    protocols = protocols_of(run.protocols, run.model.task) if scored else ()
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
    references, rows = References.of(run.reference, manifest) if scored else None, np.arange(len(index))
    if references:
        references.refuse_lacking(split)
        rows = references.rows(index, manifest, run.data.on_bad)
    decided = what_decides(run, manifest, source, state, references) | ({} if scored else {"scored": False})
    decoding = run.model.decoding
    how = "-".join(
        ["sampled" if decoding.sample else f"beams{decoding.beams}", *(f"no-{what}" for what in decoding.withhold)]
    )
    digest = hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()
    out = RunFiles(run.directory).predictions / split / f"{source.name}-{how}-{digest[:8]}"
    predictions = (out := written_before(out, decided)) / ("predictions.jsonl" if scored else UNSCORED)
    if predictions.exists():
        with lease(out, f"{split} of {run.name} is being written", stop_main):
            added = add_protocols(run, manifest, out, protocols) if scored else []
        told = f"; what {' and '.join(added)} needs was added" if added else ""
        print(f"{predictions} is written already{told}; delete its directory to have it written again.")
        return predictions
    context = decided | {
        "task": run.model.task,
        "protocols": list(protocols),
        "run": run.name,
        "checkpoint": source.name,
        "step": state["step"],
        "split": split,
        "trained_on": state["shards"],
        "licence": manifest.licence,
        **({"reference_at": run.reference} if references else {}),
    }
    if scored:
        context |= scoring_context(run.data.shards, manifest, protocols, run.data.on_bad, references)
    probe = probe_of(run, manifest, state)
    with lease(out, f"{split} of {run.name} is being written", stop_main):
        left = f"; {len(index) - len(rows)} are left out, {NOT_KNOWN} (--unscored writes about all)"
        print(f"{run.name}: writing {len(rows)} texts of {split} with {source.name}{left * (len(rows) < len(index))}.")
        write_reports(run, index, manifest.licence, source, writers, out / "parts", rows, probe=probe, scored=scored)
        offsets, unread = joined(out / "parts", out / "written.jsonl", index, len(rows))
        not_known = {index.keys[row].decode(): NOT_KNOWN for row in np.setdiff1d(np.arange(len(index)), rows)}
        context |= {"given": len(index), "unread": unread | not_known}
        if scored:
            context |= write_control(run, index, manifest.licence, source, writers, out, offsets, rows)
        write_atomic(out / "context.json", json.dumps(context, indent=1).encode())
        (out / "written.jsonl").replace(predictions)  # last: where it stands, all of it does
        if scored:
            add_protocols(run, manifest, out, protocols)  # lines that a killed call has left are of its protocols alone
        for parts in ("parts", "control"):
            shutil.rmtree(out / parts, ignore_errors=True)
    return predictions


def write_control(
    run: Run, index: Index, licence: str, checkpoint: Path, writers: int, out: Path, offsets: Indices, rows: Indices
) -> dict[str, str]:
    """Write shuffled.jsonl beside written.jsonl in `out`; returns {}, or {"no_control": why there can be none}.

    `offsets` as `joined` gives them, `rows` as `write_reports` was asked for.
    """
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
        write_reports(run, index, licence, checkpoint, writers, out / "control", rows, whose)
        joined(out / "control", out / "shuffled.jsonl", index, len(rows))
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
