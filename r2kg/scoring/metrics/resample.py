"""Intervals and p-values of scores, from test sets that are drawn by patient.

Studies of one patient are alike, so a patient is drawn, or swapped, with all studies: else intervals are too narrow.
What is asked is how scores would differ on other patients of the same kind; the training is taken as it is.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from r2kg.scoring.metrics.samples import Floats, Ranked, Samples

DRAWS, SWAPS, LEVEL, SEED = 1_000, 10_000, 0.95, 0
BLOCK = 4_000_000
"""Numbers of a matrix of draws at once."""
EQUAL = 1e-12
"""Differences that lie closer are equal but for rounding."""
Groups = NDArray[np.int64]


def patients_of(lines: Sequence[Mapping[str, Any]]) -> tuple[Groups, str]:
    """Which studies are drawn together: a number for the patient of each prediction line, [n], and "patients".

    A study whose patient is not told is drawn alone; where no line tells it (older files do not) it says "studies".
    """
    names = [line.get("patient") for line in lines]
    known = [name if isinstance(name, str) else "" for name in names]
    numbers = dict[tuple[str, int], int]()
    groups = [numbers.setdefault((name, -1 if name else at), len(numbers)) for at, name in enumerate(known)]
    return np.array(groups, np.int64), "patients" if any(known) else "studies"


def drawn(systems: Mapping[str, Samples], groups: Groups, draws: int = DRAWS) -> dict[str, dict[str, Floats]]:
    """System → metric → its value on every drawn test set, [draws]; the sets are the same for all systems.

    Multinomial weights over the patients: the bootstrap (Efron 1979) without a drawn list of studies. The values of
    one draw depend neither on `BLOCK` nor on which systems stand beside.
    """
    tables = {name: _summed(samples.table, groups) for name, samples in systems.items()}
    random, count = np.random.default_rng(SEED), int(groups.max()) + 1
    found: dict[str, dict[str, list[Floats]]] = {name: {} for name in systems}
    for size in _blocks(draws, len(groups)):
        weights = random.multinomial(count, np.full(count, 1 / count), size).astype(np.float64)
        for name, samples in systems.items():
            values = {**samples.of_sums(weights @ tables[name])}
            if samples.ranked:
                values |= samples.ranked.of_weights(weights[:, groups])
            for metric, value in values.items():
                found[name].setdefault(metric, []).append(value)
    return {name: {metric: np.concatenate(own) for metric, own in by.items()} for name, by in found.items()}


def interval(values: Floats, level: float = LEVEL) -> list[float] | None:
    """The middle `level` of the drawn values, [draws] → [low, high]; None where no draw has a value."""
    tail = 50 * (1 - level)
    known = values[~np.isnan(values)]
    return [float(end) for end in np.percentile(known, (tail, 100 - tail))] if len(known) else None


def bootstrap(systems: Mapping[str, Samples], groups: Groups, by: str, decimals: int = 6) -> dict[str, Any]:
    """What a score says of its noise, as fields of scores.json: 95 % percentile intervals.

    `intervals` {metric: [low, high]} of the system "score", `above_NAME` those of its difference to each other one
    on the same draws, and `bootstrap`, which says what was drawn and how often.
    """
    values = drawn(systems, groups)
    ours = values.pop("score")
    told: dict[str, Any] = {"intervals": ours}
    for name, other in values.items():
        told[f"above_{name}"] = {metric: ours[metric] - own for metric, own in other.items() if metric in ours}
    for field, by_metric in told.items():
        ends = {metric: interval(own) for metric, own in by_metric.items()}
        told[field] = {metric: [round(end, decimals) for end in both] for metric, both in ends.items() if both}
    how = {"by": by, "drawn": int(groups.max()) + 1, "draws": DRAWS, "level": LEVEL, "seed": SEED}
    return told | {"bootstrap": how}


def p_of_swaps(
    ours: Sequence[Samples], others: Sequence[Samples], groups: Groups, swaps: int = SWAPS
) -> dict[str, float]:
    """Metric → two-sided p of the difference of two systems, by approximate randomisation with swaps by patient.

    If the systems do not differ, whose answer stands on which side means nothing (Noreen 1989; Riezler and Maxwell
    2005): p is the share of random swaps that give at least the difference that is seen, the one seen among them.

    Args:
        ours, others: runs of either system on the same studies, as many of both, in pairs; compared is the mean of
            each side, and of a swapped patient all pairs are.
    """
    tables = [tuple(_summed(one.table, groups) for one in pair) for pair in zip(ours, others, strict=True)]
    ranked = [(own.ranked, other.ranked) for own, other in zip(ours, others, strict=True)]
    random, count = np.random.default_rng(SEED), int(groups.max()) + 1
    seen = _difference(ours, others, tables, ranked, np.zeros((1, count)), groups)
    reached = dict.fromkeys(seen, 0)
    for size in _blocks(swaps, len(groups)):
        swapped = random.integers(0, 2, (size, count), np.int8).astype(np.float64)
        for metric, value in _difference(ours, others, tables, ranked, swapped, groups).items():
            reached[metric] += int((np.abs(value) >= abs(seen[metric][0]) - EQUAL).sum())
    known = {metric: number for metric, number in reached.items() if not np.isnan(seen[metric][0])}
    return {metric: (1 + number) / (1 + swaps) for metric, number in known.items()}


def _difference(
    ours: Sequence[Samples],
    others: Sequence[Samples],
    tables: Sequence[tuple[NDArray[Any], ...]],
    ranked: Sequence[tuple[Ranked | None, Ranked | None]],
    swapped: Floats,
    groups: Groups,
) -> dict[str, Floats]:
    """Metric → mean over the pairs of ours less the other, [swaps], where [swaps, patients] says who are swapped."""
    sums = dict[str, Any]()
    for own, other, (mine, its), (my_ranks, its_ranks) in zip(ours, others, tables, ranked, strict=True):
        moved = swapped @ (its - mine)
        values = {**own.of_sums(mine.sum(0) + moved)}
        against = {**other.of_sums(its.sum(0) - moved)}
        if my_ranks and its_ranks:
            fields = ("truth", "counts", "probabilities")
            both = Ranked(*(np.concatenate([getattr(my_ranks, f), getattr(its_ranks, f)]) for f in fields))
            away = swapped[:, groups]
            values |= both.of_weights(np.concatenate([1 - away, away], axis=1))
            against |= both.of_weights(np.concatenate([away, 1 - away], axis=1))
        for metric in values.keys() & against.keys():
            sums[metric] = sums.get(metric, 0.0) + (values[metric] - against[metric]) / len(ours)
    return sums


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, so that the chance of one false finding among all is that of the smallest.

    Holm 1979, "A simple sequentially rejective multiple test procedure"; in the order given, at most 1.
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[at]))
        corrected[at] = largest
    return corrected


def half_width(values: Sequence[float], level: float = LEVEL) -> float | None:
    """Half the interval of the mean of runs that differ in their seed (Student's t); None for fewer than two."""
    if len(values) < 2:
        return None
    quantile = stats.t.ppf(0.5 + level / 2, len(values) - 1)
    return float(quantile * np.std(values, ddof=1) / len(values) ** 0.5)


def _summed(table: NDArray[Any], groups: Groups) -> Floats:
    """Rows of one patient added up, [n, k] → [patients, k]."""
    summed = np.zeros((int(groups.max()) + 1, table.shape[1]))
    np.add.at(summed, groups, table)
    return summed


def _blocks(draws: int, width: int) -> Iterator[int]:
    """How many draws are made at once, so that a matrix of them with `width` columns stays small."""
    size = max(1, min(draws, BLOCK // max(1, width)))
    while draws > 0:
        yield min(size, draws)
        draws -= size
