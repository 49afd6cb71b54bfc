"""Splits that keep each patient's studies together, and the search for listings that do not."""

import hashlib
from collections.abc import Iterable

from shards.errors import ConfigError, DataError
from shards.study import SPLITS, Split

FRACTIONS = (0.7, 0.1, 0.2)
"""Train, val, test: the proportions of the R2Gen lineage's own splits."""
TOLERANCE = 1e-6


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
