"""scores.json as a table for people."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from r2kg.config.protocol import METRICS

FLOORS = {"floor": "floor: one answer for all", "shuffled": "shuffled: other films"}


def scores_table(scores: Mapping[str, Any], nearest: Mapping[str, Any] | None = None) -> Table:
    """Ours beside both floors, one row per protocol and metric; the caption says why a cell is empty.

    Args:
        nearest: scores.json of `r2kg nearest` on the same studies: a column more, for protocols that it has too.
    """
    predictions, by_protocol = scores["predictions"], scores["protocols"]
    control = f", a control without {' and '.join(predictions['withheld'])}" if predictions.get("withheld") else ""
    reasons = {
        f"{what}: {reason}"
        for result in by_protocol.values()
        for what, reason in result["unavailable"].items()
        if not what.startswith("label ")
    }
    table = Table(
        title=f"{predictions['n']} studies, predictions {predictions['sha256'][:12]}{control}",
        caption="\n".join([*_facts(scores), *_noise(scores), *sorted(reasons)]),
    )
    columns = ("protocol", "metric", "ours", *FLOORS.values(), *(["nearest film's report"] if nearest else []))
    for column in columns:
        table.add_column(column, justify="left" if column in ("protocol", "metric") else "right")
    known = dict.fromkeys(METRICS["triples"] + METRICS["report"] + METRICS["labels"])
    for name, result in by_protocol.items():
        copied = (nearest or {}).get("protocols", {}).get(name) or {}
        if copied.get("hash") != result["hash"]:
            copied = {}
        for metric in filter(result["score"].__contains__, known):
            values = [(system or {}).get(metric) for system in (result["score"], *map(result.get, FLOORS))]
            values += [(copied.get("score") or {}).get(metric)] if nearest else []
            cells = ["–" if value is None else f"{value:.3f}" for value in values]
            if ends := (result.get("intervals") or {}).get(metric):
                cells[0] += f" ({ends[0]:.3f}-{ends[1]:.3f})"
            table.add_row(f"{name} {result['hash'][:8]}", metric, *cells)
        table.add_section()
    return table


def _facts(scores: Mapping[str, Any]) -> list[str]:
    """What the scores do not show: health of the texts, what was cut, what no mean has."""
    predictions, health = scores["predictions"], scores["health"]
    said = [
        f"{health['unique_share']:.0%} of predictions are unique, {health['commonest_share']:.0%} are the commonest one"
    ]
    said[0] += f", {health['empty_share']:.0%} empty" if health.get("empty_share") else ""
    said[0] += f", {health['truncated_share']:.0%} stopped by the length limit" if health.get("truncated_share") else ""
    words = [health.get(f"mean_words_{side}") for side in ("prediction", "reference")]
    if None not in words:
        said.append(f"{words[0]:.0f} words a prediction, {words[1]:.0f} a reference")
    for name, result in scores["protocols"].items():
        if result.get("cut_references"):
            said.append(f"{name} cuts {result['cut_references']} of {predictions['n']} references")
        if result.get("unlabelled"):
            said.append(f"{name}: of {result['unlabelled']} of {predictions['n']} studies no label is known")
        if unmeant := [what[6:] for what in result["unavailable"] if what.startswith("label ")]:
            said.append(f"{name} leaves {len(unmeant)} labels out of means, as all studies agree: {', '.join(unmeant)}")
    if pieces := health.get("pieces"):
        rejected, torn = health["rejected_pieces"], health["truncated_pieces"]
        said.append(f"of {pieces} pieces {rejected} are no triple, {torn} broke off")
    return said


def _noise(scores: Mapping[str, Any]) -> list[str]:
    """How the intervals were made, and which metrics are not above a floor by more than noise."""
    said = dict[str, None]()
    for name, result in scores["protocols"].items():
        if how := result.get("bootstrap"):
            drawn = f"{how['draws']:,} draws of {how['drawn']} {how['by']}"
            drawn += "" if how["by"] == "patients" else ", as the lines name no patient"
            said[f"in brackets: {how['level']:.0%} intervals, {drawn}"] = None
        for floor in FLOORS:
            beside = result.get(f"above_{floor}") or {}
            if within := [metric for metric, (low, _) in beside.items() if low <= 0]:
                said[f"{name} is not above {floor} by more than noise: {', '.join(within)}"] = None
    return [*said]
