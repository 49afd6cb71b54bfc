"""`Study`: the one record type that travels from a raw dataset to a scored prediction."""

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from shards.errors import DataError

KEY = re.compile(r"[a-z0-9_-]{1,120}")
MAX_RECORD_BYTES = 4_000_000
"""Longest JSON of one study that is read or written."""
BYTES_PER_PART = 40
"""JSON that is read has no more names, objects and lists than one for so many of the bytes it may have."""
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
Label = Literal[-1, 0, 1] | None
"""1 present, 0 absent, -1 uncertain, None not mentioned."""
FINDINGS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Lesion",
    "Lung Opacity",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
"""The 14 observations that CheXpert's labelers mark (Irvin et al., AAAI 2019)."""


class Record(BaseModel):
    """Base of everything that is written into a shard: immutable, unknown fields are an error, and no
    validation error quotes a report."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class View(Record):
    """One film of a study."""

    position: Literal["frontal", "lateral", "unknown"] = "unknown"
    file: str = ""
    """Path of the film below the raw dataset's root; empty for drawn films."""


class Study(Record):
    """One examination: its films (in the shard beside this record), its report and what is known of both."""

    key: str
    """Name inside the shard, unique over all splits."""
    id: str
    """Identifier as the dataset's owner wrote it."""
    patient: str = ""
    """Patient identifier; empty when the dataset does not tell."""
    split: Split
    views: tuple[View, ...]
    """View i is the member KEY.i.jpg: the first frontal film, the first lateral one, then the others, as there are."""
    sections: dict[str, str] = Field(default_factory=dict)
    """Report sections as written: findings, impression, indication, comparison."""
    report: str
    """The section that is the target, as written."""
    target: str
    """`report` after the manifest's named cleaning: what models are trained to write."""
    labels: dict[str, Label] = Field(default_factory=dict)
    """Finding name → `Label`."""
    triples: tuple[tuple[str, str, str], ...] = ()
    """(head, relation, tail) with relations modify, located_at, suggestive_of."""
    provenance: dict[str, str] = Field(default_factory=dict)
    """Where the record came from: source, file, row, or the seed of a drawn study."""

    @field_validator("key")
    @classmethod
    def _key_is_a_member_name(cls, key: str) -> str:
        if not KEY.fullmatch(key):
            raise ValueError(f"key {key!r} must match [a-z0-9_-]{{1,120}}: it becomes a tar member name")
        return key


def refuse_bomb(data: bytes | memoryview, most: int = MAX_RECORD_BYTES) -> None:
    """ValueError for JSON of more than `most` bytes, or of so many parts that it would take a hundred times as much."""
    if len(data) > most:
        raise ValueError(f"{len(data):,} bytes of JSON; at most {most:,} are read")
    if (parts := sum(map(bytes(data).count, (b":", b"[", b"{")))) > most // BYTES_PER_PART:
        raise ValueError(f"{parts:,} names, objects and lists in JSON; at most {most // BYTES_PER_PART:,} are read")


def key_of(identifier: str) -> str:
    """Turn a dataset's own identifier into a shard key: lower case, every other character a hyphen."""
    return re.sub(r"[^a-z0-9_-]", "-", identifier.lower())


class Drop(Record):
    """One study, or one film of it, that the raw dataset lists and the shards do not hold."""

    id: str
    """Identifier as the dataset's owner wrote it."""
    reason: str
    """Short slug that drops are counted by: "image does not decode", "empty report", ..."""
    detail: str
    """The values: what was found, where. Never report text."""
    split: str = ""
    file: str = ""
    """Path of the film at fault below the raw dataset's root, when one film is at fault."""


class BadStudy(DataError):
    """One study, not the dataset, is at fault. Carries what a `Drop` says of it."""

    def __init__(self, reason: str, detail: str, file: str = ""):
        """`reason` is the slug drops are counted by; neither text may hold report text."""
        super().__init__(reason, detail, file)
        self.reason, self.detail, self.file = reason, detail, file

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"

    def drop(self, identifier: str, split: str = "") -> Drop:
        """The drop that says why the study `identifier` is not used."""
        return Drop(id=identifier, reason=self.reason, detail=self.detail, split=split, file=self.file)
