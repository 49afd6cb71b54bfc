"""Splits that keep each patient's studies together, and listings that cannot be split as they stand."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

from shards.errors import ConfigError, DataError
from shards.privacy import Names
from shards.sources import Item
from shards.study import SPLITS, Drop, Split

FRACTIONS = (0.7, 0.1, 0.2)
"""Train, val, test: the proportions of the R2Gen lineage's own splits."""
TOLERANCE = 1e-6
SHOWN = 5
Overlap = Literal["fail", "report"]
"""A patient in two splits is an error, or is named in the manifest's warnings."""


def hash_split(patient: str, fractions: tuple[float, float, float] = FRACTIONS, salt: str = "") -> Split:
    """The split of a patient: a number in [0, 1) made from SHA-256 of (salt, patient), cut at the fractions.

    It depends on nothing else: neither on the other patients, nor on their order or number, so a dataset can grow, be
    filtered or be read in parts without anybody changing sides. The price is that counts are right only on average: of
    n patients a share f comes out with a standard deviation of sqrt(f (1 - f) / n) (0.0016 for 70 % of 64,725), and
    counts of studies scatter more, because patients have different numbers of them. Another salt is another draw.

    Raises:
        ConfigError: fractions that are negative or do not add up to 1.
        DataError: no patient: all studies without one would fall into the same split.
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > TOLERANCE:
        raise ConfigError(f"split fractions {fractions} for train, val, test: use three of 0 or more that add up to 1")
    if not patient:
        raise DataError("a study without a patient cannot be put on one side of a patient-disjoint split")
    digest = hashlib.sha256(f"{len(salt)}:{salt}{patient}".encode()).digest()
    at = int.from_bytes(digest[:7]) / 2**56
    if at < fractions[0]:
        return "train"
    return "val" if at < fractions[0] + fractions[1] or not fractions[2] else "test"


def patients_in_two_splits(pairs: Iterable[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    """Patient → splits, for patients that (patient, split) pairs put into more than one; "" is no patient.

    Holds one reference per patient beside the overlap itself, so a generator may feed it a large dataset.
    """
    first: dict[str, str] = {}
    shared: dict[str, set[str]] = {}
    for patient, split in pairs:
        if patient and (known := first.setdefault(patient, split)) != split:
            shared.setdefault(patient, {known}).add(split)
    order: dict[str, int] = {split: rank for rank, split in enumerate(SPLITS)}
    return {
        patient: tuple(sorted(splits, key=lambda split: (order.get(split, len(order)), split)))
        for patient, splits in shared.items()
    }


def refuse_listing(source: str, items: Sequence[Item], names: Names = Names(), drops: Sequence[Drop] = ()) -> None:  # noqa: B008
    """DataError when the listing as a whole cannot become shards: nothing, no training split, a name used twice."""
    if not items:
        reasons = Counter(drop.reason for drop in drops).most_common(3)
        first = {drop.reason: f", e.g. {drop.detail}" for drop in reversed(drops) if not names.salt}
        told = [f"{reason} ({count:,}{first.get(reason, '')})" for reason, count in reasons]
        why = "; ".join(told) or "it names no study at all"
        raise DataError(f"{source} lists no usable study, so there is nothing to write: {why}")
    if not any(item.split == "train" for item in items):
        raise DataError(
            f"{source} lists {len(items)} studies and none in split 'train': a run on it would train nothing"
        )
    rows: dict[str, int] = {}
    for number, item in enumerate(items):
        if (before := rows.setdefault(names.key(item.id), number)) != number:
            one, shown = items[before], names.id(item.id)
            same = one.id == item.id
            what = f"id {shown!r} is" if same else f"ids {names.id(one.id)!r} and {shown!r} become one shard key,"
            where = (f"{each.split} entry {each.payload.get('row', n)}" for each, n in ((one, before), (item, number)))
            raise DataError(
                f"{source}: {what} listed twice, as {' and as '.join(where)}: a study of one split must not be in "
                "another. Remove one of the two from the raw listing"
            )


def shared_patients(source: str, items: Sequence[Item], names: Names, overlap: Overlap) -> tuple[str, ...]:
    """Patients listed in more than one split, as "patient: splits"; DataError under overlap="fail" if there are any."""
    shared = patients_in_two_splits((item.patient, item.split) for item in items if item.patient)
    shown = tuple(sorted(f"{names.patient(patient)}: {', '.join(splits)}" for patient, splits in shared.items()))
    if shown and overlap == "fail":
        some = "; ".join(shown[:SHOWN]) + (", ..." if len(shown) > SHOWN else "")
        raise DataError(
            f"{source}: {len(shown)} patients are in more than one split ({some}): a model tested on them has seen "
            "them. Choose a patient-disjoint split, or say --overlap report to write the shards all the same, which "
            "the manifest then states"
        )
    return shown
