"""predictions.jsonl → scores.json: a pure function of files.

Every score stands beside two floors: one constant training answer given to everybody (on IU X-Ray it beats published
systems), and the system's own predictions made from another study's films (what it says without looking).
"""

import glob
import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

from pydantic import ConfigDict
from typing_extensions import TypedDict

from r2kg.config.protocol import (
    AS_MANIFEST,
    METRICS,
    PROTOCOLS,
    Protocol,
    Task,
    protocol_named,
    protocols_of,
    refuse_unfit,
)
from r2kg.rundir import directory_of, read_json, withheld
from r2kg.scoring.metrics.health import score_health
from r2kg.scoring.metrics.labels import RANKED, names_in, score_labels, score_naming, unlabelled
from r2kg.scoring.metrics.meteor import Meteor
from r2kg.scoring.metrics.nlg import ConstantBleu
from r2kg.scoring.metrics.resample import Groups, bootstrap, patients_of
from r2kg.scoring.metrics.rule_labeler import LABELER, label_reports
from r2kg.scoring.metrics.samples import Samples, sample_labels, sample_reports, sample_triples
from r2kg.scoring.metrics.triples import agreement, score_reading, sets_of
from shards.errors import DataError
from shards.graphs.text import triples_in
from shards.tars.place import write_atomic

_DECIMALS = 6
_NAMED = 5
_LONGEST_SPLIT = 40
MAX_BYTES, MAX_UNSCORED_BYTES = 200_000_000, 1_000_000_000
"""Of a predictions file, which is held about five times over; of one whose answers alone are taken, such as those of
MIMIC-CXR's training split."""
MAX_TEXT = 100_000
"""Characters of a report; real ones have a few thousand."""
TEXTS = ("id", "prediction", "reference", "reference_raw")
OF_FINDINGS = "{} findings"
"""By the protocol's name the key of the floor that findings are compared with; words have one of their own."""


class Context(TypedDict, total=False):
    """What is used of context.json."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    vocabulary: list[str] | None
    cleaning: str | None
    floor: dict[str, str | None] | None
    task: Task | None
    protocols: list[str] | None
    no_control: str | None
    reference: dict[str, str] | None
    reference_at: dict[str, str] | None


def read_predictions(path: str | Path, scored: bool = True) -> list[dict[str, Any]]:
    """The lines of a predictions file, in its order, each study exactly once; `scored`: with what is right.

    Raises `DataError` with file:line for a line that is no prediction, and with the ids that occur twice. No report
    text is quoted.
    """
    return _read_lines(Path(path), TEXTS[: 2 + scored], MAX_BYTES if scored else MAX_UNSCORED_BYTES)[0]


def _read_lines(
    path: Path, needed: Sequence[str] = TEXTS[:3], most: int = MAX_BYTES
) -> tuple[list[dict[str, Any]], str]:
    """The lines of a predictions file and the SHA-256 of its bytes."""
    try:
        if path.exists() and not path.is_file():
            raise OSError(0, "no regular file")
        if (size := path.stat().st_size) > most:
            raise DataError(f"{path} has {size:,} bytes, at most {most:,} are read: take it in parts")
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read predictions {path}: {error.strerror}: give the file that generating writes"
        ) from error
    if not content:
        raise DataError(f"{path} has no predictions: generate them again")
    lines = []
    for number, row in enumerate(BytesIO(content), start=1):
        try:
            line = json.loads(row)
            if b"\\u" in row:  # JSON can escape half of a surrogate pair
                json.dumps(line, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "not UTF-8, or nested too deep"
            raise DataError(
                f"{path}:{number} is not one JSON object ({reason}): a file cut short must be generated again"
            ) from None
        known = line if isinstance(line, dict) else {}
        wrong = [key for key in needed if not isinstance(known.get(key), str)]
        if wrong:
            raise DataError(
                f"{path}:{number} is not a prediction: no text under {', '.join(wrong)}"
                + ", so that it cannot be scored" * (wrong == ["reference"])
            )
        if long := [key for key, text in line.items() if isinstance(text, str) and len(text) > MAX_TEXT]:
            what = ", ".join(key for key in long if key in TEXTS) or "a field"
            raise DataError(f"{path}:{number} is no report's: {what} has more than {MAX_TEXT:,} characters")
        lines.append(line)
    twice = [name for name, count in Counter(line["id"] for line in lines).items() if count > 1]
    if twice:
        raise DataError(
            f"{path} has {len(twice)} studies more than once ({_few(twice)}): each must be there exactly once"
        )
    return lines, hashlib.sha256(content).hexdigest()


def _few(ids: Sequence[str]) -> str:
    return ", ".join(name[:80] for name in ids[:_NAMED]) + (
        f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    )


def choose_floor(
    train_reports: Iterable[str],
    validation_references: Sequence[str],
    protocol: Protocol,
    vocabulary: Iterable[str] | None,
    candidates: int = 200,
    seed: int = 0,
    findings: bool = False,
) -> str:
    """The training report that scores best when it is given to every validation study (BLEU-4, then 3, 2, 1).

    With `findings` the one whose findings have the best micro F1 with theirs (`rule_labeler`), then by BLEU. Of
    triples: the training answer whose whole triples have the best mean F1, then its entities, then by BLEU. Of labels:
    the one whose names have the best mean F1 with those of the studies, then by BLEU.

    All texts are cleaned ones. Tried are `candidates` distinct reports: half the commonest, half a sample drawn by
    `seed` from the rest, so the choice depends on no test study and no order. Raises `DataError` without training or
    validation reports.
    """
    counts = Counter(train_reports)
    if not counts or not validation_references:
        raise DataError(
            f"a floor needs training and validation reports: got {len(counts)} and {len(validation_references)}"
        )
    words = None if vocabulary is None else frozenset(vocabulary)
    constant = ConstantBleu([protocol.cut(reference, words) for reference in validation_references])
    parts = {"report": (), "triples": ("triple", "entity"), "labels": ("name",)}[protocol.task]

    def sets(answer: str) -> Mapping[str, set[Any]]:
        return {"name": names_in(answer)} if protocol.task == "labels" else sets_of(triples_in(answer).triples)

    given = [sets(reference) for reference in validation_references] if parts else []
    given_findings = validation_references if findings else []
    wanted = (label_reports(given_findings) == 1).sum(0)  # [14]

    def quality(report: str) -> tuple[float, ...]:
        said = sets(report) if parts else {}
        f1 = [
            sum(agreement(len(said[kind] & study[kind]), len(said[kind]), len(study[kind]))[2] for study in given)
            for kind in parts
        ]
        text = protocol.hypothesis({"prediction": report})
        if findings:
            stated = label_reports([text])[0] == 1
            f1 = [2 * int(wanted[stated].sum()) / max(1, len(given_findings) * int(stated.sum()) + int(wanted.sum()))]
        return *f1, *reversed(constant.score(text).values())

    ordered = sorted(counts, key=lambda report: (-counts[report], report))
    commonest, rest = ordered[: (candidates + 1) // 2], sorted(ordered[(candidates + 1) // 2 :])
    sample = random.Random(seed).sample(rest, min(candidates // 2, len(rest)))
    return max(commonest + sample, key=quality)


def evaluate(
    predictions_path: str | Path,
    protocols: Sequence[str | Protocol] = (),
    context: Mapping[str, Any] | None = None,
    meteor: Meteor | None = None,
) -> dict[str, Any]:
    """Score a predictions file under each protocol, with both floors, and write scores.json beside it.

    Every score has a 95 % interval, and so have the differences to the floors (`r2kg.scoring.metrics.resample`).
    `context.json` beside the predictions gives the training vocabulary, the manifest's cleaning, the floor texts and
    the task and the protocols, which the task has of its own where none is named; `context` fills in what it does not
    say.
    `shuffled.jsonl` beside it holds the predictions from other studies' films. What could not be computed is null, with
    the reason under `unavailable`. Protocols that the same predictions were scored under before stay. The same files
    give the same bytes. Raises `DataError` for faulty files,
    `ConfigError` for protocols that are unknown or of another task.
    """
    path = Path(predictions_path)
    named = [protocol_named(item) if isinstance(item, str) else item for item in protocols]
    merged = _read_context(path.with_name("context.json"), context or {})
    task = merged.get("task") or (named[0].task if named else "report")
    given = [each.name for each in named if each.name in PROTOCOLS]
    usual = protocols_of(given or merged.get("protocols", ()), task)
    named = named or [protocol_named(name) for name in usual]
    lines, sha256 = _read_lines(path)
    shuffled, groups = _read_shuffled(path, lines), patients_of(lines)
    with nullcontext(meteor) if meteor else Meteor() as program:
        by_protocol = {each.name: score_protocol(each, lines, shuffled, merged, program, groups) for each in named}
    used = json.dumps({key: merged.get(key) for key in ("vocabulary", "cleaning", "floor")}, sort_keys=True)
    other = None if shuffled is None else json.dumps([line["prediction"] for line in shuffled])
    if shuffled is not None and task == "labels":
        other = json.dumps([(line["prediction"], line["extra"]) for line in shuffled])
    scored = {  # by content: nothing of where or when
        "sha256": sha256,
        "n": len(lines),
        "splits": dict(sorted(Counter(_split_of(line) for line in lines).items())),
        "shards": merged.get("shards"),
        "checkpoint": merged.get("checkpoint"),
        "checkpoint_sha256": merged.get("checkpoint_sha256"),
        "decoding": merged.get("decoding"),
        "context_sha256": hashlib.sha256(used.encode()).hexdigest(),
        "shuffled_sha256": None if other is None else hashlib.sha256(other.encode()).hexdigest(),
    }
    scored |= {"reference": merged["reference"]} if merged.get("reference") else {}
    scored |= {"withheld": hidden} if (hidden := withheld(path)) else {}
    health = score_health(lines)
    if task == "triples":
        health |= score_reading(lines)
    elif task == "labels":
        health |= score_naming(lines)
    labeler = {"labeler": LABELER} if task == "report" else {}
    beside = path.with_name("scores.json")
    with suppress(ValueError, LookupError, TypeError):  # one that is damaged, or of other predictions, goes
        same = (before := read_json(beside))["predictions"] == json.loads(json.dumps(scored))
        if same and labeler.items() <= before.items():
            by_protocol = before["protocols"] | by_protocol
    scores = {"predictions": scored, "protocols": by_protocol, "health": _rounded(health), **labeler}
    content = json.dumps(scores, indent=1, sort_keys=True, allow_nan=False) + "\n"
    write_atomic(beside, content.encode())
    return scores


def _split_of(line: Mapping[str, Any]) -> str:
    split = line.get("split")
    return split if isinstance(split, str) and split and len(split) <= _LONGEST_SPLIT else "unnamed"


def context_beside(predictions: Path) -> dict[str, Any]:
    """What context.json beside a predictions file says; without one nothing but no floors."""
    return _read_context(predictions.with_name("context.json"), {})


def nearest_beside(predictions: Path) -> dict[str, Any] | None:
    """The scores of the newest copied reports (`r2kg nearest`) of the same split and shards, next to this run; or None.

    They are another run's, so scores.json does not hold them; a damaged one is passed over.
    """
    run, context = directory_of(predictions), context_beside(predictions)
    if run is None or not isinstance(split := context.get("split"), str):
        return None
    found = [
        path
        for path in run.parent.glob(f"*/predictions/{glob.escape(split)}/nearest-*/scores.json")
        if path.parent != predictions.resolve().parent
    ]
    for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True):
        with suppress(ValueError, LookupError, TypeError):
            scores: dict[str, Any] = read_json(path)
            if scores["predictions"]["shards"] == context["shards"]:
                return scores
    return None


def protocols_beside(predictions: Path) -> tuple[str, ...]:
    """The protocols that context.json beside a predictions file names, else those of its task, else of reports."""
    context = context_beside(predictions)
    return protocols_of(context.get("protocols", ()), context.get("task") or "report")


def _rounded(values: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: value if value is None else round(value, _DECIMALS) for name, value in values.items()}


def _read_context(path: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """What context.json says, filled in by `given`; floors are merged by protocol."""
    try:
        written = dict(read_json(path, Context)) if path.exists() else {}
        json.dumps(written, allow_nan=False)  # it is in part given on to scores.json
    except ValueError as error:
        raise DataError(f"{error}: remove {path} and pass --shards, or generate the predictions again") from None
    known = {key: value for key, value in written.items() if value is not None}
    return {**given, **known, "floor": {**(given.get("floor") or {}), **(known.get("floor") or {})}}


def _read_shuffled(path: Path, lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    """The predictions from other films in the order of `lines`, each beside its own reference; None without a file."""
    shuffled_path = path.with_name("shuffled.jsonl")
    if not shuffled_path.exists():
        return None
    other = {line["id"]: line for line in read_predictions(shuffled_path)}
    unequal = sorted(other.keys() ^ {line["id"] for line in lines})
    if unequal:
        raise DataError(
            f"{shuffled_path} and {path.name} differ in {len(unequal)} studies ({_few(unequal)}): "
            "generate both from one split"
        )
    told = [(line, other[line["id"]]) for line in lines]
    fields = ("prediction", "extra", "truncated")
    return [{**line, **{field: its.get(field) for field in fields}} for line, its in told]


def whole_references(
    protocol: Protocol, lines: Sequence[Mapping[str, Any]], references: Sequence[str]
) -> Sequence[str]:
    """References without the protocol's cut, by which findings are scored: `references` where it cuts nothing."""
    return references if protocol.reference_cut == "none" else [protocol.uncut.reference(line) for line in lines]


def score_protocol(
    protocol: Protocol,
    lines: Sequence[Mapping[str, Any]],
    shuffled: Sequence[Mapping[str, Any]] | None,
    context: Mapping[str, Any],
    meteor: Meteor,
    groups: tuple[Groups, str] | None = None,
) -> dict[str, Any]:
    """The protocol's hash, scores of the predictions and of both floors, and why some are None.

    With `groups` (`patients_of` the lines) also their intervals, by `bootstrap`.
    """
    cleaning, floor = context.get("cleaning"), context["floor"].get(protocol.name)
    of_findings = context["floor"].get(OF_FINDINGS.format(protocol.name))
    if cleaning:
        refuse_unfit([protocol], cleaning)
    vocabulary = None if context.get("vocabulary") is None else frozenset(context["vocabulary"])
    references = [protocol.reference(line, vocabulary) for line in lines]
    uncut = whole_references(protocol, lines, references)
    whole = {"extra": None, "truncated": False}
    systems = {
        "score": lines,
        "floor": None if floor is None else [{**line, **whole, "prediction": floor} for line in lines],
        "shuffled": shuffled,
    }
    unavailable = {}
    if floor is None:
        unavailable["floor"] = f"context.json has no floor text for {protocol.name}: pass --shards to choose one"
    if shuffled is None:
        unavailable["shuffled"] = context.get("no_control") or (
            "no shuffled.jsonl beside the predictions: generate it from other studies' films"
        )
    if protocol.hypothesis_cleaning == AS_MANIFEST and not cleaning:
        unavailable["hypothesis_cleaning"] = "context.json names no cleaning: predictions were compared as generated"
    result: dict[str, Any] = {"hash": protocol.hash, "unavailable": unavailable}
    if protocol.max_length:
        result["cut_references"] = sum(map(protocol.cuts, lines))
    if protocol.task == "labels" and (without := unlabelled(lines)):
        result["unlabelled"] = without
    samples = dict[str, Samples]()
    for name, system in systems.items():
        if system is None:
            result[name] = None
            continue
        hypotheses = [protocol.hypothesis(line, cleaning or "raw") for line in system]
        if protocol.task == "report":
            stated = hypotheses
            if name == "floor" and of_findings is not None:
                stated = [protocol.hypothesis({"prediction": of_findings}, cleaning or "raw")] * len(lines)
            samples[name], reasons = sample_reports(references, hypotheses, uncut, stated, meteor)
            values = {**dict.fromkeys(METRICS["report"]), **samples[name].values()}
        elif protocol.task == "triples":
            samples[name] = sample_triples(references, hypotheses)
            values, reasons = {**samples[name].values()}, {}
        else:
            values, by_label, reasons = score_labels(system, protocol.uncertain, tuple(result.get("labels", ())))
            result.setdefault("labels", {label: _rounded(scores) for label, scores in by_label.items()})
            samples[name] = sample_labels(system, protocol.uncertain, tuple(by_label))
            if name == "floor":
                reasons |= dict.fromkeys(RANKED, "one answer for all ranks no study")
            if name != "score":  # what is to be said of a label was said of the system
                reasons = {f"{name}.{metric}": reason for metric, reason in reasons.items() if metric in values}
        result[name] = _rounded(values)
        unavailable.update(reasons)
    if groups and len(set(groups[0])) > 1:
        result |= bootstrap(samples, *groups, _DECIMALS)
    elif groups:
        unavailable["intervals"] = f"they are drawn from two {groups[1]} or more, and there is one"
    return result
