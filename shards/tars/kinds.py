"""Sides: what belongs to the studies of shards and lies beside them, so that films are never written again.

A side has one tar for every tar of the shards, in it members of the same keys in the same order (a study may have
none), and side.json. What kinds there are is data (`KINDS`): a new one is an entry there and a job that writes it.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from pydantic import Field, field_validator

from shards.errors import ConfigError, DataError
from shards.tars.format import SIDE_FILE, Manifest, SealedManifest, Sha256, Tar, read_index, read_sealed
from shards.tars.place import Place, place

FILE = SIDE_FILE
UNREAD = "cannot be read"
"""Cause that may have gone when the side is written again: a tar with such a study is not kept."""
MAX_EXTENT = 1 << 27
"""Most names of a vocabulary; most values of one study's member."""


@dataclass(frozen=True)
class Kind:
    """One kind of side."""

    suffix: str
    """Of the member that is streamed: KEY.<suffix>."""
    extent: tuple[str, ...]
    """Fields of the description that tell its size: a number, or a list, whose length counts."""
    column: str
    """Where it stands in a row of the stream."""
    how: str
    """The command that writes it."""
    per_film: bool = False
    """True: the bit patterns of bf16 [V, *extent[1:]], of as many of a study's films as extent[0] says, streamed in
    place of the films. False: bytes, b"" for a study without."""
    of_films: bool = False
    """True: made from the study's films alone, so that where another study's films are shown it is the other's too."""
    tells_report: bool = False
    """True: made from the study's report, so that a system that writes reports must not be shown it."""
    place: str = ""
    """Below SHARDS/side, where one is looked for that no place is named for; "": as the kind is called."""
    unpack: str = ""
    """"module:function" of (data, *extent) that raises DataError for bytes that are not of this kind."""


OF_FILMS = Kind(
    suffix="film.safetensors",
    extent=("nodes", "relations"),
    column="film_subgraph",
    how="`r2kg graph films SHARDS`",
    of_films=True,
    unpack="shards.graphs.subgraph:unpack",
)
KINDS: dict[str, Kind] = {
    "subgraphs": Kind(
        suffix="kg.safetensors",
        extent=("nodes", "relations"),
        column="subgraph",
        how="`r2kg subgraphs SHARDS`",
        tells_report=True,
        unpack="shards.graphs.subgraph:unpack",
    ),
    "film_subgraphs": OF_FILMS,
    "film_subgraphs_of_another": replace(OF_FILMS, how="`r2kg graph films SHARDS --of-another`"),
    "annotations": Kind(
        suffix="annotation.json",
        extent=(),
        column="annotation",
        how="`r2kg graph annotate SHARDS`",
        tells_report=True,
        place="annotations-rules",  # each extractor's have a place of their own: those of the default one
    ),
    "triples": Kind(
        suffix="triples.json",
        extent=(),
        column="triples",
        how="`r2kg triples SHARDS`",
        tells_report=True,
        unpack="shards.graphs.triples:unpack_triples",
    ),
    "features": Kind(
        suffix="features",
        extent=("views", "patches", "width"),
        column="features",
        how="`r2kg features RECIPE data.shards=SHARDS`",
        per_film=True,
        of_films=True,
    ),
}


class SideTar(Tar):
    """A tar of a side. `studies` are those of the shards' tar: with a member and without."""

    held: int = Field(ge=0)
    """Studies with a member."""


class SideManifest(SealedManifest):
    """side.json: what the side is, which shards it belongs to, what it holds."""

    kind: str
    """Key of `KINDS`."""
    parent: Sha256
    """Fingerprint of the shards' manifest."""
    description: dict[str, Any]
    """What decides the content. features: encoder (fingerprint), name, transform, dtype, precision, views, patches,
    width. subgraphs: origin, nodes and relations (names by id), and the file they were made from with its sha256.
    film_subgraphs: nodes and relations, graph, annotations and features by fingerprint, settings. triples: origin,
    what they were taken from by hash or fingerprint, settings, and the splits that have them."""
    shards: tuple[SideTar, ...]
    warnings: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """What is suspicious → where it was found."""
    without: dict[str, int] = Field(default_factory=dict)
    """Why studies have no member → how many; NAME.index.json says which."""
    totals: dict[str, int] = Field(default_factory=dict)
    largest: dict[str, int] = Field(default_factory=dict)

    @field_validator("kind")
    @classmethod
    def _kind_is_known(cls, kind: str) -> str:
        if kind not in KINDS:
            raise ValueError(f"kind is none of {', '.join(KINDS)}")
        return kind

    @property
    def extent(self) -> tuple[int, ...]:
        """Sizes by `Kind.extent`; DataError when the description does not tell them."""
        kind = KINDS[self.kind]
        values = [self.description.get(name) for name in kind.extent]
        sizes: list[Any] = [len(value) if isinstance(value, list) else value for value in values]
        if not all(isinstance(size, int) and 0 <= size <= MAX_EXTENT for size in sizes) or (
            kind.per_film and not 0 < math.prod(sizes) <= MAX_EXTENT
        ):
            raise DataError(f"{FILE} of kind {self.kind} tells no usable {', '.join(kind.extent)}")
        return tuple(sizes)


def read_side(where: str | Place, kind: str = "") -> SideManifest:
    """side.json of a side; DataError when it is missing, malformed, old or was edited by hand.

    Args:
        kind: the one that is looked for, whose command an error names; what is there may be another.
    """
    again = f"write it with {' or '.join(one.how for name, one in KINDS.items() if kind in ('', name))}"
    return read_sealed(place(where) / FILE, SideManifest, f"no side at {where}", again)


def only_side(root: Place, kind: str, option: str, fingerprint: str = "") -> Place:
    """The side of a kind below SHARDS/side, where there is exactly one; `fingerprint`: the one that has it.

    Raises:
        ConfigError: there is none, or more than one.
    """
    folder, found = root / "side", list[Place]()
    entries: Iterable[Any] = folder.iterdir() if folder.is_dir() else ()
    for where in sorted(entries, key=str):
        with suppress(DataError):  # what else lies there is no side, or broken, and is not meant
            side = read_side(where)
            if side.kind == kind and fingerprint in ("", side.fingerprint):
                found.append(where)
    if len(found) == 1:
        return found[0]
    those = f"{kind} of fingerprint {fingerprint[:12]}, which the graph was built of," if fingerprint else kind
    if not found:
        raise ConfigError(f"no {those} below {folder}: write them with {KINDS[kind].how}, or give {option} PLACE")
    names = ", ".join(where.name for where in found)
    raise ConfigError(f"{len(found)} sides of {those} below {folder} ({names}): say which with {option} PLACE")


def description_hash(side: SideManifest) -> str:
    """SHA-256 of what decides the side's content, whatever shards it was made for: equal hashes, equal meaning."""
    return hashlib.sha256(json.dumps(side.description, sort_keys=True).encode()).hexdigest()


def refuse_other(where: str | Place, side: SideManifest, parent: Manifest, kind: str) -> None:
    """DataError when the side is of another kind or belongs to other shards; ConfigError for a kind that is none."""
    if kind not in KINDS:
        raise ConfigError(f"no kind of side {kind!r}: one of {', '.join(KINDS)}")
    how = KINDS[kind].how
    if side.kind != kind:
        raise DataError(f"{where} holds {side.kind}, not {kind}: write {kind} with {how}")
    if side.parent != parent.fingerprint:
        raise DataError(
            f"the {kind} at {where} belong to shards of fingerprint {side.parent[:12]}, the shards given have "
            f"{parent.fingerprint[:12]}: studies would get the {kind} of other films or reports. Way out: write the "
            f"side again with {how}, or give the shards it was made from"
        )
    if {tar.name for tar in side.shards} != {shard.name for shard in parent.shards if shard.studies}:
        raise DataError(f"{FILE} at {where} lists other tars than its shards: write the side again with {how}")


def without_member(where: str | Place, side: SideManifest) -> Iterator[tuple[str, str]]:
    """(key, why) of the studies that have no member, one index in memory at a time."""
    for tar in side.shards:
        for entry in read_index(place(where), tar).studies:
            if KINDS[side.kind].suffix not in entry.members:
                yield entry.key, f"{entry.cause}: {entry.detail}" if entry.detail else entry.cause
