"""Which split an examination of IU X-Ray belongs to."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from shards.errors import ConfigError, DataError
from shards.sources.iu_xray.annotation import read_listing
from shards.sources.iu_xray.exam import Exam, Listing
from shards.sources.split import FRACTIONS, hash_split
from shards.study import SPLITS, BadStudy, Split

SplitBy = Literal["auto", "annotation", "column", "hash", "train"]
ANNOTATION = "annotation.json"
SplitOf = Callable[[Exam], tuple[str, Split]]
"""Examination → (its id in that split, split); BadStudy when it has none."""


def split_by(asked: SplitBy, listing: Listing, root: Path) -> SplitBy:
    """What "auto" means here: annotation.json where it is, else the listing's own column, else hash, or train.

    Kaggle's and Open-i's forms know no split, so they are hashed; a plain table without the column is all train.

    Raises:
        ConfigError: a choice that what lies there cannot satisfy.
    """
    own = any(exam.split for exam in listing.exams)
    there = listing.kind == "annotation" or (root / ANNOTATION).is_file()
    if asked == "auto":
        asked = "annotation" if there else "column" if own else "train" if listing.kind == "plain" else "hash"
    if asked == "annotation" and not there:
        raise ConfigError(f"split='annotation', but {root / ANNOTATION} is missing: choose {_others(asked)}")
    if asked == "column" and (listing.kind == "annotation" or not own):
        raise ConfigError(f"split='column', but {listing.file.name} has no column split: choose {_others(asked)}")
    return asked


def _others(asked: SplitBy) -> str:
    return " or ".join(choice for choice in get_args(SplitBy) if choice != asked)


def split_rule(by: SplitBy, listing: Listing, root: Path) -> SplitOf:
    """The rule for a choice of `split_by` other than "auto"."""
    if by == "annotation" and listing.kind != "annotation":
        return _annotated(root / ANNOTATION)
    return {"hash": _hashed, "train": lambda exam: (exam.id, "train")}.get(by, lambda exam: _listed(listing, exam))


def told(by: SplitBy, listing: Listing) -> str:
    """One line on where the split comes from."""
    shares = ", ".join(f"{share:g}" for share in FRACTIONS)
    return {
        "annotation": f"the split is that of {listing.file.name if listing.kind == 'annotation' else ANNOTATION}",
        "column": f"the split is the column of {listing.file.name}",
        "hash": f"the split is a hash of the CXR number ({shares}), not R2Gen's: scores do not compare with published",
        "train": f"all studies are in train: {listing.file.name} is read without a split",
    }[by]


def _hashed(exam: Exam) -> tuple[str, Split]:
    return exam.id, hash_split(exam.patient or exam.id)


def _listed(listing: Listing, exam: Exam) -> tuple[str, Split]:
    for split in SPLITS:
        if exam.split.lower() == split:
            return exam.id, split
    known = ", ".join(SPLITS)
    raise BadStudy("split is not a name", f"{listing.file.name} {exam.place}: {exam.split[:50]!r} is none of {known}")


def _annotated(path: Path) -> SplitOf:
    """By CXR number, which every form agrees on; by id where an id has no number."""
    known: dict[str, tuple[str, Split]] = {}
    for exam in read_listing(path).exams:
        here = exam.id, _listed(Listing("annotation", path), exam)[1]
        if known.setdefault(exam.patient or exam.id, here) != here:
            places = " and ".join(f"{name!r} in {split}" for name, split in (known[exam.patient or exam.id], here))
            raise DataError(f"{path} puts one examination in two places: {places}. Remove one of them")

    def of(exam: Exam) -> tuple[str, Split]:
        if (found := known.get(exam.patient or exam.id)) is None:
            raise BadStudy("not in the R2Gen split", f"{exam.place}: {path.name} does not list it")
        return found

    return of
