"""`Manifest`: what a directory of shards holds, what was left out of it, and how to tell that it is still the same."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from shards.errors import DataError
from shards.study import Record

FILE = "manifest.json"
VERSION = 1
HOW_TO_SHARD = "make the shards with `r2kg shard`, or point at a directory that holds them"
CHUNK_BYTES = 1 << 20


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


class SplitCount(Record):
    """Size of one split."""

    studies: int = 0
    images: int = 0
    patients: int = 0
    """Distinct patients; 0 when the dataset does not tell."""


class Shard(Record):
    """One tar file."""

    name: str
    split: str
    studies: int
    images: int
    bytes: int
    sha256: str


class Manifest(Record):
    """Everything about a directory of shards short of the studies themselves."""

    version: int = VERSION
    source: str
    licence: str
    """Tag of the dataset's terms; "synthetic" for drawn films."""
    cleaning: str
    """Name in `shards.clean.CLEANINGS` of the rule that made `Study.target`."""
    size_px: int
    """Short side of the stored films in pixels; a smaller film is stored as it is."""
    quality: int
    """JPEG quality of the stored films."""
    splits: dict[str, SplitCount]
    shards: tuple[Shard, ...]
    drops: tuple[Drop, ...] = ()
    warnings: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """What was repaired → ids of the studies it was repaired in."""
    fingerprint: str = ""
    """`fingerprint_of` this manifest: changes when any byte of any shard, any count or any name changes."""

    @property
    def given(self) -> int:
        """Studies the raw dataset listed: used + dropped."""
        return sum(count.studies for count in self.splits.values()) + len(self.drops)

    def drop_counts(self) -> dict[str, int]:
        """Number of drops by reason, most frequent first."""
        reasons = [drop.reason for drop in self.drops]
        return {reason: reasons.count(reason) for reason in sorted(set(reasons), key=lambda r: (-reasons.count(r), r))}

    def sealed(self) -> "Manifest":
        """The same manifest with its fingerprint filled in."""
        return self.model_copy(update={"fingerprint": fingerprint_of(self)})


def fingerprint_of(manifest: Manifest) -> str:
    """SHA-256 over the manifest's content, the fingerprint itself left out."""
    content = manifest.model_dump(mode="json", exclude={"fingerprint"})
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees either nothing, the old content or all of the new content."""
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(part, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def write_manifest(root: Path, manifest: Manifest) -> Manifest:
    """Seal the manifest and write it into `root`; returns what was written."""
    sealed = manifest.sealed()
    write_atomic(Path(root) / FILE, sealed.model_dump_json(indent=1).encode() + b"\n")
    return sealed


def read_manifest(root: Path) -> Manifest:
    """The manifest of a directory of shards; DataError when it is missing, malformed or was edited by hand."""
    path = Path(root) / FILE
    if not path.is_file():
        raise DataError(f"no shards at {root}: {FILE} is missing there. Way out: {HOW_TO_SHARD}")
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        fields = ", ".join(sorted({".".join(map(str, e["loc"])) or "the whole file" for e in error.errors()})[:5])
        raise DataError(
            f"{path} is not a manifest of version {VERSION} (at fault: {fields}). {HOW_TO_SHARD}"
        ) from error
    if manifest.fingerprint != (found := fingerprint_of(manifest)):
        raise DataError(
            f"{path} was changed after it was written: it says fingerprint {manifest.fingerprint[:12]}, its content "
            f"gives {found[:12]}. Results would name shards that do not exist as described. Way out: {HOW_TO_SHARD}"
        )
    return manifest


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _fault(root: Path, shard: Shard, how: str) -> str:
    path = root / shard.name
    if not path.is_file():
        return f"{shard.name} is missing"
    if (size := path.stat().st_size) != shard.bytes:
        return f"{shard.name} has {size} bytes, the manifest says {shard.bytes}"
    if how == "sha256" and (found := sha256_of(path)) != shard.sha256:
        return f"{shard.name} has sha256 {found[:12]}, the manifest says {shard.sha256[:12]}"
    return ""


def verify(root: Path, manifest: Manifest, how: Literal["sha256", "size"] = "sha256", threads: int = 8) -> None:
    """Compare every shard with the manifest; DataError names each one that is missing or changed.

    "size" reads no content and is what a run does at its start; "sha256" reads every byte.
    """
    root = Path(root)
    with ThreadPoolExecutor(threads) as pool:
        faults = [fault for fault in pool.map(lambda shard: _fault(root, shard, how), manifest.shards) if fault]
    if faults:
        raise DataError(
            f"{len(faults)} of {len(manifest.shards)} shards under {root} differ from {FILE}: {'; '.join(faults)}. "
            f"A run on them would not be the run of fingerprint {manifest.fingerprint[:12]}, and its scores could not "
            "be compared. Way out: run `r2kg shard` with the same settings again (whole shards are kept), or copy the "
            "named files from where they were made"
        )
