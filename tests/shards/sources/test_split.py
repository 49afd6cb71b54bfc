"""Splits by hash: a patient's side depends on the patient and the salt alone; overlaps of a listing are found."""

import subprocess
import sys
from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import ConfigError, DataError
from shards.sources.split import hash_split, patients_in_two_splits
from shards.study import SPLITS

PATIENTS = st.text(min_size=1, max_size=12)
SHARES = st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 9)).map(lambda n: tuple(x / sum(n) for x in n))
KNOWN = ["train", "train", "train", "test", "train", "train", "test", "test", "train", "train", "train", "val"]
"""Splits of patient00000 to patient00011, written down once: another rule would move patients from test to train."""


@given(PATIENTS, SHARES, st.text(max_size=4))
def test_a_patient_has_one_split_of_those_that_have_a_share(patient: str, shares: tuple, salt: str) -> None:
    split = hash_split(patient, shares, salt)
    assert split in SPLITS
    assert split == hash_split(patient, shares, salt)
    assert shares[SPLITS.index(split)] > 0


@given(PATIENTS, SHARES, st.floats(0, 1))
def test_more_training_data_takes_nobody_out_of_training(patient: str, shares: tuple, part: float) -> None:
    train, val, test = shares
    more = (train + part * val, (1 - part) * val, test)
    if hash_split(patient, shares) == "train":
        assert hash_split(patient, more) == "train"


def test_known_patients_stay_where_they_were_in_another_process() -> None:
    names = [f"patient{number:05d}" for number in range(len(KNOWN))]
    here = [hash_split(name) for name in names]
    code = f"from shards.sources.split import hash_split; print(*map(hash_split, {names}))"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert here == there == KNOWN


def test_counts_are_near_the_fractions_and_a_salt_draws_again() -> None:
    names = [f"patient{number:05d}" for number in range(20_000)]
    counts = Counter(map(hash_split, names))
    for split, share in zip(SPLITS, (0.7, 0.1, 0.2), strict=True):
        assert counts[split] / len(names) == pytest.approx(share, abs=4 * (share * (1 - share) / len(names)) ** 0.5)
    moved = sum(hash_split(name) != hash_split(name, salt="other") for name in names) / len(names)
    assert moved == pytest.approx(1 - (0.7**2 + 0.1**2 + 0.2**2), abs=0.02)


@given(st.text(max_size=3), st.text(min_size=1, max_size=3))
def test_salt_and_patient_cannot_be_mistaken_for_each_other(salt: str, name: str) -> None:
    many = (0.5, 0.25, 0.25)
    one = [hash_split(f"{name}{n}", many, salt) for n in range(80)]
    other = [hash_split(f"{n}", many, salt + name) for n in range(80)]
    assert one != other


@pytest.mark.parametrize("fractions", [(0.7, 0.2, 0.2), (1.1, -0.1, 0.0), (0.5, 0.5), (7, 1, 2)])
def test_fractions_that_cannot_be_are_refused(fractions: tuple) -> None:
    with pytest.raises(ConfigError, match="three of 0 or more that add up to 1"):
        hash_split("patient00001", fractions)


def test_nobody_cannot_be_put_on_a_side() -> None:
    with pytest.raises(DataError, match="without a patient"):
        hash_split("")


@given(st.lists(st.tuples(st.sampled_from(["", "a", "b", "c", "d"]), st.sampled_from(SPLITS))))
def test_overlaps_are_exactly_the_patients_of_two_splits(pairs: list[tuple[str, str]]) -> None:
    splits = defaultdict(set)
    for patient, split in pairs:
        splits[patient].add(split)
    wanted = {patient: splits[patient] for patient in splits if patient and len(splits[patient]) > 1}
    found = patients_in_two_splits(iter(pairs))
    assert {patient: set(names) for patient, names in found.items()} == wanted
    assert all(names == tuple(split for split in SPLITS if split in names) for names in found.values())


@given(st.lists(st.tuples(PATIENTS, st.integers(1, 3))))
def test_a_split_by_hash_has_no_overlap(studies: list[tuple[str, int]]) -> None:
    pairs = ((patient, hash_split(patient)) for patient, count in studies for _ in range(count))
    assert patients_in_two_splits(pairs) == {}
