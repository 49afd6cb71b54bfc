"""Predictions that are written already: which they are, and what further protocols need beside them.

A report depends on no protocol. What one needs is the training vocabulary and its floor, in context.json, and of one
that cuts references by the model's tokens how much of each reference these spell, in the prediction lines.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from r2kg.config.protocol import PROTOCOLS, protocol_named
from r2kg.config.run import Run
from r2kg.rundir import read_json
from r2kg.scoring.context import References, scoring_context
from r2kg.scoring.evaluate import read_predictions
from r2kg.systems.contract import add_reference_cuts, build_model
from r2kg.training.checkpoint import MANIFEST
from shards.errors import ConfigError, DataError
from shards.tars.format import Manifest
from shards.tars.kinds import description_hash, read_side
from shards.tars.place import sha256_of, write_atomic

FILES = ("predictions.jsonl", "shuffled.jsonl")


def what_decides(
    run: Run, manifest: Manifest, checkpoint: Path, state: Mapping[str, Any], references: References | None
) -> dict[str, Any]:
    """All that decides what is written about a split, as context.json says it and the directory's hash has it.

    Args:
        state: of the checkpoint.

    Raises:
        ConfigError: a side of another meaning than the run was trained with.
    """
    sides = {kind: description_hash(read_side(where)) for kind, where in run.shown_sides.items() if kind != "features"}
    for kind, found in sides.items():
        if found != state["sides"].get(kind, found):
            raise ConfigError(
                f"the {kind} at {run.shown_sides[kind]} are described otherwise than those {run.name} was trained "
                "with, so their numbers would mean other things: write them as those were, or name those in data.sides"
            )
    decided = {
        "checkpoint_sha256": sha256_of(checkpoint / MANIFEST),
        "decoding": run.model.decoding.told(),
        "shards": manifest.fingerprint,
        "sides": sides,
        "features": bool(run.data.features),
        "precision": run.engine.precision,
        "micro_batch": run.train.micro_batch,
    }
    return decided | ({"reference": references.named} if references else {})


def written_before(out: Path, decided: Mapping[str, Any]) -> Path:
    """The directory whose predictions were decided by just this: `out`, or a neighbour of another hash.

    The hash of directories held the protocols too once, so that the same reports may lie under another.

    Args:
        out: of this hash, NAME-HASH; neighbours are NAME-*.
        decided: what context.json says of what the reports depend on.
    """
    start = out.name.rpartition("-")[0]
    asked = {"reference": None} | json.loads(json.dumps(dict(decided)))
    for path in (out, *sorted(out.parent.glob(f"{start}-*"))):
        with suppress(ValueError):  # no context, or a damaged one
            told = read_json(path / "context.json")
            if (path / FILES[0]).is_file() and all(told.get(name) == value for name, value in asked.items()):
                return path
    return out


def add_protocols(run: Run, manifest: Manifest, out: Path, protocols: Sequence[str]) -> list[str]:
    """Write what protocols need into the predictions in `out`, whose reports stay; returns those that lacked something.

    The lines come first and context.json last, each in one piece: after a kill the same call goes on.

    Raises:
        ConfigError: a protocol that cannot score these shards, or cuts by tokens that the system does not have.
        DataError: context.json is damaged; no training report can be read.
    """
    cutting = [name for name in protocols if protocol_named(name).reference_cut == "tokens"]
    lacking = set[str]()
    for path in (out / name for name in FILES if cutting and (out / name).is_file()):
        lines = read_predictions(path)
        uncut = [
            name
            for name in cutting
            if any("reference_raw" in line and name not in line.get("reference_cut", {}) for line in lines)
        ]
        if uncut:
            with torch.device("meta"):  # it is asked for its tokenizer alone
                model = build_model(run.model)
            add_reference_cuts(lines, model, uncut)
            write_atomic(path, "".join(json.dumps(line) + "\n" for line in lines).encode())
            lacking |= {*uncut}
    try:
        context = read_json(out / "context.json")
        floors = dict(context.get("floor") or {})
        before = context.get("protocols") or [name for name in floors if name in PROTOCOLS]
        named = list(dict.fromkeys([*before, *protocols]))
    except (ValueError, TypeError) as error:
        raise DataError(f"{out / 'context.json'}: {error}. Delete {out} to have its reports written again") from None
    if new := [name for name in protocols if name not in before]:
        references = References.of(run.reference, manifest)
        more = scoring_context(run.data.shards, manifest, named, run.data.on_bad, references)
        context |= more | {"floor": floors | more["floor"], "protocols": named}
        write_atomic(out / "context.json", json.dumps(context, indent=1).encode())
    return [name for name in protocols if name in lacking or name in new]
