"""The index beside one tar: where every member of every study lies, and what the tar was made from."""

from pydantic import Field, ValidationError

from shards.errors import DataError
from shards.study import Drop, Record
from shards.tars.place import Place

VERSION = 2


class Entry(Record):
    """Where one study lies in its tar."""

    key: str
    id: str
    patient: str = ""
    members: dict[str, tuple[int, int]]
    """Name behind "KEY." → (offset, size) in bytes."""
    crc32: int = -1
    """Checksum over the members' contents, films in view order, then the record; -1: not known."""
    films: tuple[str, ...] = ()
    """First 16 hex digits of every film's SHA-256, to find a film that is in two splits."""


class ShardIndex(Record):
    """The file NAME.index.json beside a tar. Written last: a tar without it is not finished."""

    version: int = VERSION
    name: str
    split: str
    recipe: str
    """Hash of everything the tar was made from: its items and the writer's settings."""
    sha256: str
    bytes: int
    studies: tuple[Entry, ...]
    drops: tuple[Drop, ...] = ()
    warnings: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """What was repaired → ids of the studies."""


def index_path(tar: Place) -> Place:
    """NAME.tar → NAME.index.json."""
    return tar.with_suffix(".index.json")


def read_shard_index(path: Place) -> ShardIndex:
    """DataError when the file is missing or malformed."""
    try:
        return ShardIndex.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        cause = (
            error.strerror
            if isinstance(error, OSError)
            else f"{error.error_count()} fields do not fit version {VERSION}"
        )
        raise DataError(
            f"index {path} cannot be read ({cause}): run `r2kg shard` again, whole shards are kept"
        ) from error
