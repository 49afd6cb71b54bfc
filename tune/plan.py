"""What a sweep comes to before anything is trained, and what lies on disk of it: its plan, and how each trial ended.

No Ray and no torch here: `r2kg table` and `r2kg sweep --dry-run` need none.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from r2kg.config.protocol import protocol_named, protocols_of
from r2kg.config.run import Run
from r2kg.rundir import read_json
from r2kg.tracking import close_run
from shards.errors import ConfigError, RetryableError
from shards.tars.format import Manifest
from shards.tars.place import write_atomic
from tune.rows import Table, Trial, directory_name, trials_of
from tune.tables import STUDIES

PLAN = "sweep.json"
NOTE = "trial.json"


class Note(TypedDict):
    """How a trial ended, in its run's directory."""

    hash: str
    shards: str
    """Fingerprint."""
    scores: dict[str, str]
    """Decoding, as JSON of its changes → scores.json, from the run's directory."""
    errors: dict[str, str]
    """Decoding → why it has no scores; under "" why none has."""


class Line(TypedDict):
    """A row with a seed."""

    row: str
    seed: int
    run: str
    """Its run's directory, beside the sweep's."""
    decoding: dict[str, Any]
    protocol: str
    """The one that the table is of."""


class Plan(TypedDict):
    """sweep.json."""

    table: str
    tiny: bool
    setting: dict[str, Any]
    """Fingerprint of the shards, their data set ("source"), changes of the command line."""
    trials: list[Line]


@dataclass(frozen=True)
class Sweep:
    """A table with what was asked for on the command line."""

    table: Table
    tiny: bool = False
    seeds: int = 0
    """0: the table's."""
    rows: Sequence[str] = ()
    root: Path = Path("runs")
    changes: Mapping[str, Any] | None = None
    """Of every row that has such a field."""

    @property
    def directory(self) -> Path:
        """Where the plan and the written table lie; runs lie beside it."""
        return self.root.expanduser().resolve() / directory_name(self.table, self.tiny)

    @property
    def shards(self) -> str:
        """The shards that all trials have: drawn ones, or those of data.shards."""
        given = (self.changes or {}).get("data.shards")
        if self.tiny and given:
            raise ConfigError(f"--tiny draws its own films: leave data.shards={given} out, or --tiny")
        return str(self.directory.parent / f"phantom-{STUDIES}") if self.tiny else str(given or "")

    def trials(self) -> list[Trial]:
        """What is to be trained; nothing is written.

        Raises:
            ConfigError: no shards are named, or as `trials_of`.
            DataError: there are none where it says.
        """
        changes = {**(self.changes or {}), "root": str(self.directory.parent), "data.shards": self.shards}
        probe = Run(name="probe").change({"data.shards": self.shards}).absolute()
        fingerprint = f"phantom-{STUDIES}" if self.tiny else probe.manifest().fingerprint
        found = trials_of(self.table, self.tiny, self.seeds, changes, fingerprint, self.rows)
        return [Trial(one.run.absolute(), one.hash, one.rows, one.seed, one.first) for one in found]


def write_plan(asked: Sweep, trials: list[Trial], manifest: Manifest) -> None:
    """Write which run has which row with which seed, for `r2kg table`.

    Trials of an earlier call stay where it had the same shards and changes, so that rows and seeds can come one by one;
    not those that the table's code, or what they read, would by now make another trial of.
    """
    setting = {"shards": manifest.fingerprint, "source": manifest.source}
    setting |= {"changes": json.loads(json.dumps(dict(asked.changes or {})))}
    path, lines = asked.directory / PLAN, list[Line]()
    for one in trials:
        protocol = asked.table.protocol or protocols_of(one.run.protocols, one.run.model.task)[0]
        for row, how in one.rows.items():
            line: Line = {"row": row, "seed": one.seed, "run": one.name, "decoding": how, "protocol": protocol}
            lines.append(line)
    try:
        before: Plan = read_json(path, Plan)
        if before["setting"] == setting:
            mine = {(line["row"], line["seed"]) for line in lines}
            others = [old for old in before["trials"] if (old["row"], old["seed"]) not in mine]
            known = {row.name for row in asked.table.rows}
            rows = list(dict.fromkeys(old["row"] for old in others if old["row"] in known))
            seeds = len({old["seed"] for old in before["trials"]})
            again = replace(asked, rows=rows, seeds=seeds).trials() if rows else []
            now = {(row, one.seed, one.name) for one in again for row in one.rows}
            lines += [old for old in others if (old["row"], old["seed"], old["run"]) in now]
    except ValueError:  # there is none, or a damaged one
        pass
    content: Plan = {"table": asked.table.name, "tiny": asked.tiny, "setting": setting, "trials": lines}
    write_atomic(path, json.dumps(content, indent=1).encode())


def decoding_key(changes: dict[str, Any]) -> str:
    """The changes of a decoding as a key."""
    return json.dumps(changes, sort_keys=True)


def note_error(trial: Trial, manifest: Manifest, error: str) -> None:
    """Note why a trial has come to no end, beside the scores that it has, and end its run in MLflow where it is still
    under way.
    """
    note = begun_note(trial, manifest)
    trial.run.directory.mkdir(parents=True, exist_ok=True)
    write_note(trial.run, {**note, "errors": {"": error}})
    close_run(trial.run, "FAILED")


def begun_note(trial: Trial, manifest: Manifest) -> Note:
    """A note without errors, with the scores that an earlier call has left of the same trial."""
    note = read_note(trial.run.directory)
    same = note and (note["hash"], note["shards"]) == (trial.hash, manifest.fingerprint)
    return {
        "hash": trial.hash, "shards": manifest.fingerprint, "scores": note["scores"] if note and same else {},
        "errors": {},
    }  # fmt: skip


def error_of(note: Note | None, decoding: dict[str, Any]) -> str:
    """Why a decoding of a trial has no scores; "" where it has."""
    key = decoding_key(decoding)
    if note and key in note["scores"]:
        return ""
    return (note and (note["errors"].get(key) or note["errors"].get(""))) or "not trained, or not to the end"


def write_note(run: Run, note: Note) -> None:
    """Write how a trial ended."""
    write_atomic(run.directory / NOTE, json.dumps(note, indent=1).encode())


def read_note(directory: Path) -> Note | None:
    """How the trial in a run's directory ended; None where that is not known.

    A file of scores that is named outside the directory, or is gone, is as good as none.
    """
    try:
        note: Note = read_json(directory / NOTE, Note)
    except ValueError:
        return None
    home = directory.resolve()
    inside = {
        key: where
        for key, where in note["scores"].items()
        if (path := (home / where).resolve()).is_relative_to(home) and path.is_file()
    }
    return {**note, "scores": inside}


def is_finished(trial: Trial, fingerprint: str) -> bool:
    """Whether all that the trial is to be scored by is there, of these settings, shards and protocols as they are."""
    run = trial.run
    try:
        note = read_note(run.directory)
        if not note or (note["hash"], note["shards"]) != (trial.hash, fingerprint):
            return False
        wanted = {name: protocol_named(name).hash for name in protocols_of(run.protocols, run.model.task)}
        for changes in trial.rows.values() or ({},):
            told = read_json(run.directory / note["scores"][decoding_key(changes)])["protocols"]
            if any(told[name]["hash"] != digest for name, digest in wanted.items()):
                return False
    except (ValueError, LookupError, TypeError, RetryableError):  # one that is missing or damaged
        return False
    return True
