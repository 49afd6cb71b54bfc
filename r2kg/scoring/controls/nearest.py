"""A baseline without a model: every study gets the report of the training study whose films are nearest to its own.

What a generator adds to a frozen encoder's features is what it scores beyond this one.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from r2kg.config.protocol import protocol_named, protocols_of
from r2kg.graph.film.memory import PORTION, nearest, remember
from r2kg.modules.beams import Generated
from r2kg.scoring.context import scoring_context
from r2kg.scoring.controls.withheld import derangement, shuffled
from r2kg.scoring.writing.writer import prediction_line
from shards.errors import ConfigError, DataError
from shards.stream.index import open_splits, studies_of
from shards.stream.side import Side
from shards.study import Study
from shards.tars.format import read_manifest
from shards.tars.kinds import read_side
from shards.tars.place import Place, create, place, write_atomic


def write_nearest(
    root: str | Place, features: str | Place, out: Path, split: str = "test", protocols: tuple[str, ...] = ()
) -> Path:
    """Copy the nearest training study's report for every study of a split; none of its own patient, nor its own.

    Args:
        features: the side of a frozen encoder's features (`r2kg features`); the cosine is that of their means.
        out: as the directory of a run.

    Returns:
        OUT/predictions/SPLIT/nearest-HASH/predictions.jsonl, with the control and context that scoring needs beside it.

    Raises:
        ConfigError: protocols of another task.
        DataError: no such split, features of other shards, or of no study of a split.
    """
    root, manifest, names = place(root), read_manifest(root), protocols_of(protocols, "report")
    if cutting := [name for name in names if protocol_named(name).reference_cut == "tokens"]:
        raise ConfigError(f"protocol {cutting[0]} cuts references by tokens of a language model, and this one has none")
    indices = open_splits(root, manifest)
    if split not in indices:
        raise DataError(f"split {split!r} of {root} holds no study: its splits are {', '.join(indices)}")
    indices = {name: index for name, index in indices.items() if name in ("train", split)}
    known = scoring_context(root, manifest, names, "fail")  # refuses protocols that do not fit, before all the reading
    films = {name: Side.open(features, index, manifest, "features") for name, index in indices.items()}
    memory, index, train = remember(root, manifest, indices, films), indices[split], indices["train"]
    decided = {"features": read_side(features).fingerprint, "shards": manifest.fingerprint, "protocols": list(names)}
    digest = hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()
    folder = out / "predictions" / split / f"nearest-{digest[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    unread, starts, at = {index.keys[row].decode(): why for row, why in memory.unread[split].items()}, list[int](), 0
    rows = [row for row in range(len(index)) if row not in memory.unread[split]]
    with create(folder / "written.jsonl") as file:
        for begin in range(0, len(rows), PORTION):
            some = rows[begin : begin + PORTION]
            found = nearest(memory, split, some, 1)
            given = dict(studies_of(train, [int(one.row[0]) for one in found if len(one.row)]))
            for one, (_, study) in zip(found, studies_of(index, some), strict=True):
                copied: Study | None = given.get(int(one.row[0])) if len(one.row) else None
                if study is None or copied is None:
                    raise DataError(f"no other patient's training study has features: {root} has too few patients")
                written = Generated(copied.target, len(copied.target.split()), False, {"copied_from": copied.key})
                starts.append(at)
                at += file.write(json.dumps(prediction_line(study, written, "report")).encode() + b"\n")
    donors, offsets = derangement(len(starts), 0), np.array(starts, np.int64)
    if len(donors):
        with create(folder / "shuffled.jsonl") as file:
            for line in shuffled(folder / "written.jsonl", offsets, donors):
                file.write(json.dumps(line).encode() + b"\n")
    context = decided | {"run": out.name, "checkpoint": "nearest", "split": split, "licence": manifest.licence}
    context |= known | {"given": len(index), "unread": unread}
    write_atomic(folder / "context.json", json.dumps(context, indent=1).encode())
    (folder / "written.jsonl").replace(folder / "predictions.jsonl")  # last: where it stands, all of it does
    return folder / "predictions.jsonl"
