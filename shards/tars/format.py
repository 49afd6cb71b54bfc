"""One format of tars, for shards and for the sides that lie beside them.

A directory holds NAME.tar files, NAME.index.json beside each, and one sealed manifest: manifest.json of shards,
side.json of a side. Members of a study stand together in its tar, as KEY.<suffix>. The index says where every member
lies and its CRC; it is written after its tar, and the manifest, which names every tar and index by its hash, after them
all. So whatever is changed or torn is noticed: a directory by its manifest, a study or a record when it is read.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Self, TypeVar

from pydantic import FailFast, Field, ValidationError, field_validator

from shards.errors import DataError
from shards.sources import Published, SplitCount
from shards.study import KEY, SPLITS, Drop, Record, Split, refuse_bomb
from shards.tars.place import Place, create, place, read_whole, size_of, write_atomic

FORMAT = 3
SHARDS_FILE, SIDE_FILE = "manifest.json", "side.json"
UNFINISHED = {SHARDS_FILE: ".writing", SIDE_FILE: ".writing-side"}
"""Manifest → mark of a directory that is being written: tells our unfinished tars from those that others, or a job of
another kind, put there."""
DROPS_FILE, WARNINGS_FILE = "drops.jsonl", "warnings.jsonl"
"""Beside a manifest that counts them: every drop, and every study that something was said of, a line each."""
HOW_TO_SHARD = "make the shards with `r2kg shard`, or point at a directory that holds them"
SIZE = 448
"""Short side of stored films by default: twice what the papers' encoders see, as a JPEG scales by itself."""
QUALITY = 95
"""JPEG quality of stored films by default."""
RECORD = "json"
"""Suffix of a study's record; its films are 0.jpg, 1.jpg, … in view order."""
MAX_JSON_BYTES = 64 << 20
"""Largest manifest or index: all of MIMIC-CXR's studies in one have half of it."""
MAX_STUDIES = 1_000_000
MAX_STUDY_BYTES, MAX_MEMBERS = 1 << 29, 100
"""Most of one study in a tar: it is read at once."""
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
AnyRecord = TypeVar("AnyRecord", bound=Record)
AnyManifest = TypeVar("AnyManifest", bound="SealedManifest")

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Entry(Record):
    """One study's part of a tar."""

    key: str = Field(pattern=f"^{KEY.pattern}$")
    members: dict[str, tuple[int, int, int]] = Field(default_factory=dict)
    """Name behind "KEY." → (offset, size in bytes, CRC-32), in the order of the tar."""
    id: str = ""
    patient: str = ""
    films: Annotated[tuple[Digest, ...], FailFast()] = ()
    """First 16 hex digits of every film's SHA-256, to find a film that is in two splits..."""
    content: Annotated[str, Field(pattern=r"^([0-9a-f]{16})?$")] = ""
    """...and of all that the study holds but its names."""
    cause: str = ""
    """Of a side: why the member that is streamed is not there; a short slug that studies are counted by."""
    detail: str = ""
    """What was found; never report text."""


class TarIndex(Record):
    """NAME.index.json beside a tar. Written last: a tar without it is not finished."""

    format: int
    name: str
    split: str
    recipe: str
    """Hash of everything the tar was made from: its items or its shard, and the writer's settings."""
    sha256: str
    bytes: int
    studies: Annotated[tuple[Entry, ...], FailFast()]
    """Those in the tar; of a side all studies of the shards' tar of that name, in its order."""
    drops: Annotated[tuple[Drop, ...], FailFast()] = ()
    warnings: dict[str, Annotated[tuple[str, ...], FailFast()]] = Field(default_factory=dict)
    """What was repaired or is unusual → ids of the studies."""
    totals: dict[str, int] = Field(default_factory=dict)
    """What was counted while the tar was made, added up."""
    largest: dict[str, int] = Field(default_factory=dict)
    """Largest size of one study's member, by what is measured."""
    seal: str = ""
    """SHA-256 of all else here: it alone tells what was written until a manifest names the index by its hash."""

    def sealed(self) -> Self:
        """The same with its seal."""
        content = self.model_dump_json(exclude={"seal"}, exclude_defaults=True)
        return self.model_copy(update={"seal": hashlib.sha256(content.encode()).hexdigest()})


class Remark(Record):
    """A line of `WARNINGS_FILE`."""

    warning: str
    of: str
    """Id of the study or patient as shown, or which studies are alike."""


class Tar(Record):
    """What a manifest says of one tar."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,100}\.tar$")
    split: Split
    studies: int = Field(ge=0, le=MAX_STUDIES)
    bytes: int = Field(ge=0, lt=1 << 62)
    sha256: Sha256
    index: Sha256
    """SHA-256 of NAME.index.json."""


class Shard(Tar):
    """A tar of films and records."""

    images: int = Field(ge=0)


class SealedManifest(Record):
    """What every manifest says, and how it is known to be what was written."""

    format: int = Field(FORMAT, ge=FORMAT, le=FORMAT)
    licence: str
    """Tag of the dataset's terms (`shards.privacy.TERMS`); what is made from patients' films is under them too."""
    fingerprint: str = Field("", pattern=r"^([0-9a-f]{64})?$")
    """`fingerprint_of` this manifest: changes when any byte of any tar or index, any count or any name changes."""

    def sealed(self) -> Self:
        """The same with its fingerprint filled in."""
        return self.model_copy(update={"fingerprint": fingerprint_of(self)})


class Manifest(SealedManifest):
    """manifest.json: everything about a directory of shards short of the studies themselves."""

    source: str
    cleaning: str
    """Name in `shards.clean.CLEANINGS` of the rule that made `Study.target`."""
    size_px: int
    """Short side of the stored films in pixels; a smaller film is stored as it is."""
    quality: int
    """JPEG quality of the stored films."""
    splits: dict[str, SplitCount]
    """Studies, films and patients that are there."""
    shards: Annotated[tuple[Shard, ...], FailFast()]
    drops: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Reason → studies that were left out for it, the most frequent first; `DROPS_FILE` names them."""
    warnings: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """What was repaired or is suspicious → studies it was found in; `WARNINGS_FILE` names them."""
    names: str = Field("", pattern=r"^([0-9a-f]{16})?$")
    """`Names.digest` of the salt that studies are named with; "" for open data, which keeps its names."""
    content: Sha256
    """Of all studies but for their names and order: equal where two sites hold the same, whatever their salts."""
    asked: dict[str, Any] = Field(default_factory=dict)
    """What whoever wrote them asked for: the source, its options but for paths, cleaning, size, quality, tars."""
    notes: tuple[str, ...] = ()
    """What the source found worth telling, such as where two forms of the raw data differ."""
    published: Published | None = None
    """Counts to compare `splits` with."""

    @field_validator("splits")
    @classmethod
    def _every_split_is_counted(cls, splits: dict[str, SplitCount]) -> dict[str, SplitCount]:
        if splits.keys() != set(SPLITS) or any(n < 0 for count in splits.values() for n in dict(count).values()):
            raise ValueError(f"counts of {', '.join(SPLITS)}, of 0 or more, are needed")
        return splits

    @field_validator("shards")
    @classmethod
    def _tars_are_named_once(cls, shards: tuple[Shard, ...]) -> tuple[Shard, ...]:
        if len({shard.name for shard in shards}) != len(shards) or sum(s.studies for s in shards) > MAX_STUDIES:
            raise ValueError(f"a tar is listed twice, or there are more than {MAX_STUDIES:,} studies")
        return shards

    @property
    def given(self) -> int:
        """Studies the raw dataset listed: used + dropped."""
        return sum(count.studies for count in self.splits.values()) + self.dropped

    @property
    def dropped(self) -> int:
        """Studies that were left out."""
        return sum(self.drops.values())


def fingerprint_of(manifest: SealedManifest) -> str:
    """SHA-256 over a manifest's content, the fingerprint itself left out."""
    content = manifest.model_dump(mode="json", exclude={"fingerprint"})
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_sealed(path: Place, manifest: AnyManifest) -> AnyManifest:
    """Seal a manifest and write it; returns what was written."""
    sealed = manifest.sealed()
    write_atomic(path, sealed.model_dump_json(indent=1).encode() + b"\n")
    return sealed


def read_sealed(path: Place, kind: type[AnyManifest], missing: str, again: str) -> AnyManifest:
    """A manifest that is whole and of this format; DataError, ending with the way out `again`, for any other."""
    if size_of(path) < 0:
        raise DataError(f"{missing}: {path.name} is missing there. Way out: {again}")
    try:
        content: Any = json.loads(read_whole(path, MAX_JSON_BYTES))
        written = content.get("format", content.get("version")) if isinstance(content, dict) else None
        if isinstance(written, int) and written != FORMAT:
            raise DataError(f"{path} is of format {written}, and format {FORMAT} is read. Way out: {again}")
        manifest = kind.model_validate(content)
        fingerprint = fingerprint_of(manifest)
    except ValidationError as error:
        fields = ", ".join(sorted({".".join(map(str, e["loc"])) or "the whole file" for e in error.errors()})[:5])
        raise DataError(f"{path} is no manifest of format {FORMAT} (at fault: {fields}). Way out: {again}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or type(error).__name__}") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        cause = f"cannot be used: {error}" if type(error) is ValueError else f"is not JSON ({type(error).__name__})"
        raise DataError(f"{path} {cause}. Way out: {again}") from None
    if manifest.fingerprint != fingerprint:
        raise DataError(
            f"{path} was changed after it was written: it says fingerprint {manifest.fingerprint[:12]}, its content "
            f"gives {fingerprint[:12]}. Results would name data that does not exist as described. Way out: {again}"
        )
    return manifest


def write_manifest(root: str | Place, manifest: Manifest) -> Manifest:
    """Seal manifest.json and write it into `root`; returns what was written."""
    return write_sealed(place(root) / SHARDS_FILE, manifest)


def read_manifest(root: str | Place) -> Manifest:
    """The manifest of a directory of shards; DataError when it is missing, malformed, old or was edited by hand."""
    return read_sealed(place(root) / SHARDS_FILE, Manifest, f"no shards at {root}", HOW_TO_SHARD)


def write_named(root: Place, name: str, lines: Iterable[Record]) -> None:
    """Write `DROPS_FILE` or `WARNINGS_FILE`."""
    with create(root / name) as file:
        for line in lines:
            file.write(line.model_dump_json().encode() + b"\n")


def dropped_in(root: Place) -> Iterator[Drop]:
    """The drops that `DROPS_FILE` names; none where it is not beside the shards."""
    return _named(root / DROPS_FILE, Drop)


def warned_in(root: Place) -> Iterator[Remark]:
    """What `WARNINGS_FILE` says; nothing where it is not beside the shards."""
    return _named(root / WARNINGS_FILE, Remark)


def _named(path: Place, kind: type[AnyRecord]) -> Iterator[AnyRecord]:
    if size_of(path) < 0:
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                refuse_bomb(line)
                yield kind.model_validate_json(line)
            except ValueError:
                raise DataError(f"{path}, line {number} is torn: {HOW_TO_SHARD}") from None


def index_path(tar: Place) -> Place:
    """NAME.tar → NAME.index.json."""
    return tar.with_suffix(".index.json")


def raw_path(tar: Place) -> Place:
    """NAME.tar → NAME.raw: how the raw files looked that it was made from. No part of what a manifest seals, so that
    the same studies have the same fingerprint whenever their films were copied."""
    return tar.with_suffix(".raw")


def read_index(root: Place, tar: Tar) -> TarIndex:
    """The index of a tar of a manifest; DataError when it is missing or not what the manifest says."""
    path = index_path(root / tar.name)
    try:
        data = read_whole(path, MAX_JSON_BYTES)
        if hashlib.sha256(data).hexdigest() != tar.index:
            raise ValueError("it is torn or was changed after it was written")
        index = TarIndex.model_validate_json(data)
        said = {"format": FORMAT, "name": tar.name, "split": tar.split, "sha256": tar.sha256, "bytes": tar.bytes}
        if len(index.studies) != tar.studies or index.model_dump(include=set(said)) != said:
            raise ValueError("it describes another tar")
        for entry in index.studies:
            spans, end = list(entry.members.values()), 0
            for at, size, crc in spans:
                if at < end or size < 0 or at + size > tar.bytes or not 0 <= crc < 1 << 32:
                    raise ValueError("it lists members that are not one behind the other in its tar")
                end = at + size
            if spans and (end - spans[0][0] > MAX_STUDY_BYTES or len(spans) > MAX_MEMBERS):
                raise ValueError(f"it lists a study of more than {MAX_STUDY_BYTES:,} bytes or {MAX_MEMBERS} members")
    except (OSError, ValueError) as error:
        cause = "it is malformed" if isinstance(error, ValidationError) else getattr(error, "strerror", None) or error
        raise DataError(
            f"index {path} cannot be used: {cause}. Run the command that wrote it again, whole tars are kept"
        ) from None
    return index


def described(root: Place, name: str) -> tuple[TarIndex, dict[str, Any]]:
    """The index beside the tar `name`, which was just written, and the fields of its `Tar`."""
    path = index_path(root / name)
    try:
        data = read_whole(path, MAX_JSON_BYTES)
        index = TarIndex.model_validate_json(data)
        if index != index.sealed():
            raise ValueError
    except (OSError, ValueError) as error:
        raise DataError(f"{path} was just written and cannot be read ({type(error).__name__}): run again") from None
    hashes = {"sha256": index.sha256, "index": hashlib.sha256(data).hexdigest()}
    return index, {"name": name, "split": index.split, "studies": len(index.studies), "bytes": index.bytes, **hashes}


@dataclass
class Tally:
    """Counts over the indices of shards, one index in memory at a time."""

    images: Counter[str] = field(default_factory=Counter)
    studies: Counter[str] = field(default_factory=Counter)
    drops: list[Drop] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    twins: list[str] = field(default_factory=list)
    """"KEY (split) = KEY (split)" for every film whose stored bytes also stand in another split."""
    _patients: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _contents: list[str] = field(default_factory=list)
    _films: dict[bytes, tuple[str, str]] = field(default_factory=dict)

    def add(self, index: TarIndex) -> int:
        """Count one index; returns its number of films."""
        images = sum(len(entry.members) - 1 for entry in index.studies)
        self.images[index.split] += images
        self.studies[index.split] += len(index.studies)
        self.drops += index.drops
        self.remarks += [Remark(warning=what, of=one) for what, ids in index.warnings.items() for one in ids]
        for entry in index.studies:
            self._contents.append(f"{index.split} {entry.content}")
            if entry.patient:
                self._patients[index.split].add(entry.patient)
            for digest in entry.films:
                key, split = self._films.setdefault(bytes.fromhex(digest), (entry.key, index.split))
                if split != index.split:
                    self.twins.append(f"{key} ({split}) = {entry.key} ({index.split})")
        return images

    def content(self) -> str:
        """`Manifest.content`."""
        return hashlib.sha256("\n".join(sorted(self._contents)).encode()).hexdigest()

    def splits(self) -> dict[str, SplitCount]:
        """Studies, films and patients of every split."""
        return {
            split: SplitCount(
                studies=self.studies[split], images=self.images[split], patients=len(self._patients[split])
            )
            for split in SPLITS
        }


def counted(what: Iterable[str]) -> dict[str, int]:
    """How often each, the most frequent first."""
    return dict(sorted(Counter(what).items(), key=lambda pair: (-pair[1], pair[0])))


def counts_of(splits: dict[str, SplitCount]) -> str:
    """Counts for a message: studies/films/patients of every split."""
    return ", ".join(f"{split} {count.studies}/{count.images}/{count.patients}" for split, count in splits.items())
