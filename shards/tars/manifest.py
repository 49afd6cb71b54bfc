"""`Manifest`: what a directory of shards holds, what was left out of it, and how to tell that it is still the same."""

import hashlib
import json
from collections import Counter

from pydantic import Field, ValidationError

from shards.errors import DataError
from shards.sources import Published, SplitCount
from shards.study import Drop, Record
from shards.tars.place import Place, place, write_atomic

FILE = "manifest.json"
VERSION = 1
HOW_TO_SHARD = "make the shards with `r2kg shard`, or point at a directory that holds them"
CHUNK_BYTES = 1 << 20


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
    """What was repaired or is suspicious → the studies it was found in."""
    notes: tuple[str, ...] = ()
    """What the source found worth telling, such as where two forms of the raw data differ."""
    published: Published | None = None
    """Counts to compare `splits` with."""
    fingerprint: str = ""
    """`fingerprint_of` this manifest: changes when any byte of any shard, any count or any name changes."""

    @property
    def given(self) -> int:
        """Studies the raw dataset listed: used + dropped."""
        return sum(count.studies for count in self.splits.values()) + len(self.drops)

    def drop_counts(self) -> dict[str, int]:
        """Number of drops by reason, most frequent first."""
        counts = Counter(drop.reason for drop in self.drops)
        return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))

    def sealed(self) -> "Manifest":
        """The same manifest with its fingerprint filled in."""
        return self.model_copy(update={"fingerprint": fingerprint_of(self)})


def fingerprint_of(manifest: Record) -> str:
    """SHA-256 over a manifest's content, the fingerprint itself left out."""
    content = manifest.model_dump(mode="json", exclude={"fingerprint"})
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_manifest(root: str | Place, manifest: Manifest) -> Manifest:
    """Seal the manifest and write it into `root`; returns what was written."""
    sealed = manifest.sealed()
    write_atomic(place(root) / FILE, sealed.model_dump_json(indent=1).encode() + b"\n")
    return sealed


def read_manifest(root: str | Place) -> Manifest:
    """The manifest of a directory of shards; DataError when it is missing, malformed or was edited by hand."""
    path = place(root) / FILE
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


def sha256_of(path: Place) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()
