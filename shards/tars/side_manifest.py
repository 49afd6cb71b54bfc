"""side.json and the index beside a side's tars: what a side is, which shards it belongs to, what it holds.

A side is what belongs to the studies of shards and is written beside them, so that films are never written again: a
directory or fsspec URL with one NAME.tar for every tar of the shards, in it members KEY.<suffix> for the same keys in
the same order (a study may have none), NAME.index.json beside it, and side.json.
"""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from pydantic import Field, ValidationError

from shards.errors import DataError, OnBad
from shards.study import Record
from shards.tars.manifest import Manifest, fingerprint_of
from shards.tars.place import Place, place, write_atomic
from shards.tars.shard_index import index_path
from shards.tars.verify import THREADS, How, tar_fault

FILE = "side.json"
VERSION = 1
Kind = Literal["subgraphs", "features"]
MEMBER: dict[Kind, str] = {"subgraphs": "kg.npz", "features": "features"}
"""Kind → suffix of the member that is streamed."""
HOW: dict[Kind, str] = {"subgraphs": "`r2kg subgraphs SHARDS`", "features": "`r2kg features RECIPE data.shards=SHARDS`"}
EXTENT: dict[Kind, tuple[str, ...]] = {
    "subgraphs": ("nodes", "relations"),
    "features": ("views", "patches", "width"),
}


UNREAD = "cannot be read"
"""Cause that may have gone when the side is written again: a tar with such a study is not kept."""
MAX_EXTENT = 1 << 27
"""Most names of a vocabulary; most values of one study's features."""


class SideEntry(Record):
    """One study's part of a side tar."""

    key: str
    members: dict[str, tuple[int, int, int]] = Field(default_factory=dict)
    """Name behind "KEY." → (offset, size in bytes, crc32)."""
    cause: str = ""
    """Why the member that is streamed is not there."""
    detail: str = ""
    """What was found; never report text."""


class SideIndex(Record):
    """The file NAME.index.json beside a side tar. Written last: a tar without it is not finished."""

    version: int = VERSION
    name: str
    recipe: str
    """Hash of everything the tar was made from."""
    sha256: str
    bytes: int
    studies: tuple[SideEntry, ...]
    """All studies of the shards' tar of that name, in its order."""
    totals: dict[str, int] = Field(default_factory=dict)
    """What was counted while the tar was made, added up."""
    largest: dict[str, int] = Field(default_factory=dict)
    """Largest size of one study's member, by what is measured."""


class SideShard(Record):
    """One side tar."""

    name: str
    split: str
    studies: int
    """Studies of the shards' tar: with a member and without."""
    held: int
    """Studies with a member."""
    bytes: int
    sha256: str


class SideManifest(Record):
    """side.json: what the side is, which shards it belongs to, what it holds."""

    version: int = VERSION
    kind: Kind
    parent: str
    """Fingerprint of the shards' manifest."""
    licence: str
    """Tag of the shards' terms: what is made from patients' films and reports is under them too."""
    description: dict[str, Any]
    """What decides the content. features: encoder (fingerprint), name, transform, dtype, precision, views, patches,
    width. subgraphs: origin, nodes and relations (names by id), and the file they were made from with its sha256."""
    shards: tuple[SideShard, ...]
    without: dict[str, int] = Field(default_factory=dict)
    """Why studies have no member → how many; NAME.index.json says which."""
    totals: dict[str, int] = Field(default_factory=dict)
    largest: dict[str, int] = Field(default_factory=dict)
    warnings: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """What was found in the source and cannot belong to any study."""
    fingerprint: str = ""
    """SHA-256 of all other fields."""

    @property
    def extent(self) -> tuple[int, ...]:
        """Numbers of nodes and relations; views, patches and width of features. DataError when they are not told."""
        values = [self.description.get(name) for name in EXTENT[self.kind]]
        sizes = tuple(len(value) if isinstance(value, list) else value for value in values)
        if not all(isinstance(size, int) and 0 <= size <= MAX_EXTENT for size in sizes) or (
            self.kind == "features" and not 0 < math.prod(sizes) <= MAX_EXTENT
        ):
            raise DataError(f"{FILE} of kind {self.kind} tells no usable {', '.join(EXTENT[self.kind])}: {sizes}")
        return sizes

    def sealed(self) -> "SideManifest":
        """The same with its fingerprint filled in."""
        return self.model_copy(update={"fingerprint": fingerprint_of(self)})


def write_side_manifest(root: Place, manifest: SideManifest) -> SideManifest:
    """Seal side.json and write it; returns what was written."""
    sealed = manifest.sealed()
    write_atomic(root / FILE, sealed.model_dump_json(indent=1).encode() + b"\n")
    return sealed


def read_side(where: str | Place) -> SideManifest:
    """side.json of a side; DataError when it is missing, malformed or was edited by hand."""
    path = place(where) / FILE
    try:
        manifest = SideManifest.model_validate_json(path.read_bytes())
    except OSError:
        raise DataError(
            f"no side at {where}: {FILE} is missing there. Way out: write it with {' or '.join(HOW.values())}"
        ) from None
    except ValidationError as error:
        fields = ", ".join(sorted({".".join(map(str, e["loc"])) or "the whole file" for e in error.errors()})[:5])
        raise DataError(f"{path} is not a side of version {VERSION} (at fault: {fields}): write it again") from None
    if manifest.fingerprint != (found := fingerprint_of(manifest)):
        raise DataError(
            f"{path} was changed after it was written: it says fingerprint {manifest.fingerprint[:12]}, its content "
            f"gives {found[:12]}. Way out: write it again with {HOW[manifest.kind]}"
        )
    return manifest


def read_side_index(path: Place) -> SideIndex:
    """DataError when the file is missing or malformed."""
    try:
        return SideIndex.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        torn = isinstance(error, ValidationError)
        cause = f"{error.error_count()} fields do not fit version {VERSION}" if torn else error.strerror
        raise DataError(
            f"side index {path} cannot be read ({cause}): write the side again, whole tars are kept"
        ) from None


def refuse_other(where: str | Place, side: SideManifest, parent: Manifest, kind: Kind) -> None:
    """DataError when the side is of another kind or belongs to other shards."""
    if side.kind != kind:
        raise DataError(f"{where} holds {side.kind}, not {kind}: write {kind} with {HOW[kind]}")
    if side.parent != parent.fingerprint:
        raise DataError(
            f"the {kind} at {where} belong to shards of fingerprint {side.parent[:12]}, the shards given have "
            f"{parent.fingerprint[:12]}: studies would get the {kind} of other films or reports. Way out: write the "
            f"side again with {HOW[kind]}, or give the shards it was made from"
        )
    if {shard.name for shard in side.shards} != {shard.name for shard in parent.shards if shard.studies}:
        raise DataError(f"{FILE} at {where} lists other tars than its shards: write the side again with {HOW[kind]}")


def side_faults(where: str | Place, side: SideManifest, how: How = "sha256") -> list[str]:
    """One sentence for every side tar that is missing or changed and every index that is torn; "size" reads no tar."""
    root = place(where)
    with ThreadPoolExecutor(THREADS) as pool:
        return [fault for fault in pool.map(lambda shard: _fault(root, shard, how), side.shards) if fault]


def _fault(root: Place, shard: SideShard, how: How) -> str:
    return tar_fault(root, shard, how, FILE) or entries_of(root, shard, "skip")[1]


def entries_of(root: Place, shard: SideShard, on_bad: OnBad) -> tuple[tuple[SideEntry, ...], str]:
    """The studies of one side tar, or why they are not known."""
    try:
        index = read_side_index(index_path(root / shard.name))
        ends = [at + size for entry in index.studies for at, size, _ in entry.members.values() if at >= 0 <= size]
        whole = len(ends) == sum(len(entry.members) for entry in index.studies) and max(ends, default=0) <= shard.bytes
        if not whole or (index.sha256, index.bytes, len(index.studies)) != (shard.sha256, shard.bytes, shard.studies):
            raise DataError(f"side index {index_path(root / shard.name)} describes another tar: write the side again")
        return index.studies, ""
    except DataError as error:
        if on_bad == "fail":
            raise
        return (), str(error)


def without_member(where: str | Place, side: SideManifest) -> Iterator[tuple[str, str]]:
    """(key, why) of the studies that have no member, one index in memory at a time."""
    for shard in side.shards:
        for entry in read_side_index(index_path(place(where) / shard.name)).studies:
            if MEMBER[side.kind] not in entry.members:
                yield entry.key, f"{entry.cause}: {entry.detail}" if entry.detail else entry.cause


def side_lines(side: SideManifest) -> list[str]:
    """What a side holds and lacks, in sentences; studies given = with + without."""
    lines = []
    for split in dict.fromkeys(shard.split for shard in side.shards):
        mine = [shard for shard in side.shards if shard.split == split]
        given, held = sum(shard.studies for shard in mine), sum(shard.held for shard in mine)
        lines.append(f"{split:6} {given:>8,} studies {held:>8,} with {side.kind} {given - held:>8,} without")
    lines += [f"Without: {cause}: {count:,}" for cause, count in side.without.items()]
    lines += [f"{what}: {count:,}" for what, count in side.totals.items()]
    lines += [f"Largest, {what}: {count:,}" for what, count in side.largest.items()]
    lines += [f"Warning: {what}: {len(names)} ({', '.join(names[:9])})" for what, names in side.warnings.items()]
    return [*lines, f"Fingerprint {side.fingerprint[:12]}, of shards {side.parent[:12]}."]
