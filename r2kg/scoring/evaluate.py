"""predictions.jsonl → scores.json: a pure function of files.

Every score stands beside two floors: one constant training report given to everybody (on IU X-Ray it beats published
systems), and the system's own predictions made from another study's films (what it says without looking).
"""

import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.table import Table

from r2kg.protocol import AS_MANIFEST, Protocol, protocol_named
from r2kg.scoring.metrics.health import score_health
from r2kg.scoring.metrics.nlg import METRICS, ConstantBleu, Meteor, score_nlg
from shards.errors import DataError

DEFAULT_PROTOCOLS = ("r2gen-2020", "full-text")
_DECIMALS = 6
_NAMED = 5


def read_predictions(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a predictions file, in its order, each study exactly once.

    Raises `DataError` with file:line for a line that is no prediction, and with the ids that occur twice. No report
    text is quoted.
    """
    return _parse_predictions(Path(path), _read_bytes(Path(path)))


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read predictions {path}: {error.strerror}: give the file that generating writes"
        ) from error


def _parse_predictions(path: Path, content: bytes) -> list[dict[str, Any]]:
    rows = content.removesuffix(b"\n").split(b"\n") if content else []
    lines = [_parse_line(row, f"{path}:{number}") for number, row in enumerate(rows, start=1)]
    if not lines:
        raise DataError(f"{path} has no predictions: generate them again")
    counts = Counter(line["id"] for line in lines)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise DataError(
            f"{path} has {len(twice)} studies more than once ({_few(twice)}): each must be there exactly once"
        )
    return lines


def _parse_line(row: bytes, place: str) -> dict[str, Any]:
    try:
        line = json.loads(row)
    except (ValueError, RecursionError) as error:
        told = error.msg if isinstance(error, json.JSONDecodeError) else "not UTF-8, or nested too deep"
        raise DataError(f"{place} is not one JSON object ({told}): a file cut short must be generated again") from None
    wrong = [
        key
        for key in ("id", "prediction", "reference")
        if not isinstance(line, dict) or not isinstance(line.get(key), str)
    ]
    if wrong:
        raise DataError(f"{place} is not a prediction: no text under {', '.join(wrong)}")
    return line


def _few(ids: Sequence[str]) -> str:
    return ", ".join(ids[:_NAMED]) + (f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else "")


def choose_floor(
    train_reports: Iterable[str],
    validation_references: Sequence[str],
    protocol: Protocol,
    vocabulary: Iterable[str] | None,
    candidates: int = 200,
    seed: int = 0,
) -> str:
    """The training report that scores best when it is given to every validation study (BLEU-4, then 3, 2, 1).

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

    def quality(report: str) -> tuple[float, ...]:
        return tuple(reversed(constant.score(protocol.hypothesis({"prediction": report})).values()))

    return max(_floor_candidates(counts, candidates, seed), key=quality)


def _floor_candidates(counts: Counter[str], candidates: int, seed: int) -> list[str]:
    ordered = sorted(counts, key=lambda report: (-counts[report], report))
    commonest, rest = ordered[: (candidates + 1) // 2], sorted(ordered[(candidates + 1) // 2 :])
    return commonest + random.Random(seed).sample(rest, min(candidates // 2, len(rest)))


def evaluate(
    predictions_path: str | Path,
    protocols: Sequence[str | Protocol] = DEFAULT_PROTOCOLS,
    context: Mapping[str, Any] | None = None,
    meteor: Meteor | None = None,
) -> dict[str, Any]:
    """Score a predictions file under each protocol, with both floors, and write scores.json beside it.

    `context.json` beside the predictions gives the training vocabulary, the manifest's cleaning and the floor texts;
    `context` fills in what it does not say. `shuffled.jsonl` beside it holds the predictions from other studies'
    films. What could not be computed is null, with the reason under `unavailable`. The same files give the same
    bytes. Raises `DataError` for faulty files, `ConfigError` for unknown protocols.
    """
    chosen = [protocol_named(item) if isinstance(item, str) else item for item in protocols]
    path = Path(predictions_path)
    content = _read_bytes(path)
    lines = _parse_predictions(path, content)
    merged, shuffled = _read_context(path.with_name("context.json"), context or {}), _read_shuffled(path, lines)
    with nullcontext(meteor) if meteor else Meteor() as program:
        by_protocol = {each.name: _score_protocol(each, lines, shuffled, merged, program) for each in chosen}
    health = {name: value if value is None else round(value, _DECIMALS) for name, value in score_health(lines).items()}
    scores = {"predictions": _describe(content, lines, merged, shuffled), "protocols": by_protocol, "health": health}
    _write_json(path.with_name("scores.json"), scores)
    return scores


def _read_context(path: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    try:
        written = json.loads(path.read_bytes()) if path.exists() else {}
    except ValueError:
        raise DataError(f"{path} is not JSON: remove it and pass --shards, or generate the predictions again") from None
    if not isinstance(written, dict):
        raise DataError(f"{path} holds no JSON object: remove it and pass --shards, or generate the predictions again")
    known = {key: value for key, value in written.items() if value is not None}
    return {**given, **known, "floor": {**(given.get("floor") or {}), **(known.get("floor") or {})}}


def _read_shuffled(path: Path, lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    """The predictions from other films in the order of `lines`, each beside its own reference; None without a file."""
    shuffled_path = path.with_name("shuffled.jsonl")
    if not shuffled_path.exists():
        return None
    other = {line["id"]: line["prediction"] for line in read_predictions(shuffled_path)}
    unequal = sorted(other.keys() ^ {line["id"] for line in lines})
    if unequal:
        raise DataError(
            f"{shuffled_path} and {path.name} differ in {len(unequal)} studies ({_few(unequal)}): "
            "generate both from one split"
        )
    return [{**line, "prediction": other[line["id"]]} for line in lines]


def _score_protocol(
    protocol: Protocol,
    lines: Sequence[Mapping[str, Any]],
    shuffled: Sequence[Mapping[str, Any]] | None,
    context: Mapping[str, Any],
    meteor: Meteor,
) -> dict[str, Any]:
    _check_cleaning(protocol, context)
    vocabulary = None if context.get("vocabulary") is None else frozenset(context["vocabulary"])
    references = [protocol.reference(line, vocabulary) for line in lines]
    cleaning, floor = context.get("cleaning") or "raw", context["floor"].get(protocol.name)
    systems = {
        "score": lines,
        "floor": None if floor is None else [{**line, "prediction": floor} for line in lines],
        "shuffled": shuffled,
    }
    result: dict[str, Any] = {"hash": protocol.hash, "unavailable": _absent(protocol, context, systems)}
    for name, system in systems.items():
        if system is None:
            result[name] = None
            continue
        values, reasons = score_nlg(references, [protocol.hypothesis(line, cleaning) for line in system], meteor)
        result[name] = {metric: value if value is None else round(value, _DECIMALS) for metric, value in values.items()}
        result["unavailable"].update(reasons)
    return result


def _check_cleaning(protocol: Protocol, context: Mapping[str, Any]) -> None:
    """Words counted on reports cleaned otherwise would turn the wrong words into <unk>."""
    counted_on = context.get("cleaning")
    if (
        protocol.reference_cut == "none"
        or AS_MANIFEST in (protocol.cleaning, counted_on)
        or counted_on in (None, protocol.cleaning)
    ):
        return
    raise DataError(
        f"protocol {protocol.name} cleans with {protocol.cleaning}, but the vocabulary was counted on reports "
        f"cleaned with {counted_on}: score with a protocol for {counted_on}, with full-text, or write the shards with "
        f"the cleaning {protocol.cleaning}"
    )


def _absent(protocol: Protocol, context: Mapping[str, Any], systems: Mapping[str, Any]) -> dict[str, str]:
    reasons = {
        "floor": f"context.json has no floor text for {protocol.name}: pass --shards to choose one",
        "shuffled": "no shuffled.jsonl beside the predictions: generate it from other studies' films",
    }
    absent = {name: reason for name, reason in reasons.items() if systems[name] is None}
    if protocol.hypothesis_cleaning == AS_MANIFEST and not context.get("cleaning"):
        absent["hypothesis_cleaning"] = "context.json names no cleaning: predictions were compared as generated"
    return absent


def _describe(
    content: bytes,
    lines: Sequence[Mapping[str, Any]],
    context: Mapping[str, Any],
    shuffled: Sequence[Mapping[str, Any]] | None,
) -> dict[str, Any]:
    """What was scored, by content: nothing of where or when."""
    used = json.dumps({key: context.get(key) for key in ("vocabulary", "cleaning", "floor")}, sort_keys=True)
    other = None if shuffled is None else json.dumps([line["prediction"] for line in shuffled])
    return {
        "sha256": hashlib.sha256(content).hexdigest(),
        "n": len(lines),
        "splits": dict(sorted(Counter(str(line.get("split") or "unnamed") for line in lines).items())),
        "shards": context.get("shards"),
        "context_sha256": hashlib.sha256(used.encode()).hexdigest(),
        "shuffled_sha256": None if other is None else hashlib.sha256(other.encode()).hexdigest(),
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def scores_table(scores: Mapping[str, Any]) -> Table:
    """Ours beside both floors, one row per protocol and metric; the caption says why a cell is empty."""
    predictions = scores["predictions"]
    table = Table(
        title=f"{predictions['n']} studies, predictions {predictions['sha256'][:12]}", caption=_caption(scores)
    )
    for column in ("protocol", "metric", "ours", "floor: one report for all", "shuffled: other films"):
        table.add_column(column, justify="left" if column in ("protocol", "metric") else "right")
    for name, result in scores["protocols"].items():
        for metric in METRICS:
            cells = ((result[system] or {}).get(metric) for system in ("score", "floor", "shuffled"))
            table.add_row(
                f"{name} {result['hash'][:8]}", metric, *("–" if cell is None else f"{cell:.3f}" for cell in cells)
            )
        table.add_section()
    return table


def _caption(scores: Mapping[str, Any]) -> str:
    reasons = {
        f"{what}: {why}" for result in scores["protocols"].values() for what, why in result["unavailable"].items()
    }
    health = scores["health"]
    facts = (
        f"{health['unique_share']:.0%} of predictions are unique, {health['commonest_share']:.0%} are the commonest one"
    )
    return "\n".join([facts, *sorted(reasons)])
