"""Which split an examination of IU X-Ray belongs to."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from shards.errors import ConfigError, DataError
from shards.sources import Published
from shards.sources.iu_xray.annotation import R2GEN, read_annotation
from shards.sources.iu_xray.exam import Exam, Form
from shards.sources.split import FRACTIONS, hash_split
from shards.study import BadStudy, Split

SplitBy = Literal["auto", "annotation", "hash", "train"]
ANNOTATION = "annotation.json"


@dataclass(frozen=True)
class SplitRule:
    """What decides the split of every examination."""

    by: SplitBy
    """Never "auto"."""
    note: str
    """The same in one line."""
    published: Published | None = None
    """R2Gen's counts, when its annotation.json decides."""
    annotated: dict[str, tuple[str, Split]] = field(default_factory=dict)
    """CXR number, or id where there is none, → (id, split) in the annotation beside another form."""

    def of(self, exam: Exam) -> tuple[str, Split]:
        """(the examination's id in its split, split); BadStudy when it has none."""
        if self.by == "hash":
            return exam.id, hash_split(exam.patient or exam.id)
        if self.by == "train":
            return exam.id, "train"
        if exam.split:
            return exam.id, exam.split
        if (place := self.annotated.get(exam.patient or exam.id)) is None:
            raise BadStudy("not in the R2Gen split", f"{exam.place}: {ANNOTATION} does not list it")
        return place


def split_rule(asked: SplitBy, form: Form, root: Path) -> SplitRule:
    """The rule asked for; "auto" is annotation.json where it is, else hash, as Kaggle's and Open-i's forms have none.

    Raises:
        ConfigError: a choice that what lies there cannot satisfy.
        DataError: annotation.json is broken or puts one examination in two places.
    """
    path, own = root / ANNOTATION, form.name == "annotation"
    if asked == "hash" or (asked == "auto" and not own and not path.is_file()):
        shares = ", ".join(f"{share:g}" for share in FRACTIONS)
        note = f"the split is a hash of the CXR number ({shares}), not R2Gen's: scores do not compare with published"
        return SplitRule("hash", note)
    if asked == "train":
        return SplitRule("train", f"all studies are in train: {form.file.name} is read without a split")
    if own:
        published = R2GEN if form.file.name == ANNOTATION else None
        return SplitRule("annotation", f"the split is that of {form.file.name}", published)
    if not path.is_file():
        raise ConfigError(f"split='annotation', but {path} is missing: choose auto or hash or train")
    annotated: dict[str, tuple[str, Split]] = {}
    for exam in read_annotation(path).exams:
        if exam.split and annotated.setdefault(exam.patient or exam.id, here := (exam.id, exam.split)) != here:
            both = annotated[exam.patient or exam.id], here
            places = " and ".join(f"{name!r} in {split}" for name, split in both)
            raise DataError(f"{path} puts one examination in two places: {places}. Remove one of them")
    return SplitRule("annotation", f"the split is that of {ANNOTATION}", R2GEN, annotated)
