"""The index beside one tar: where every member of every study lies, and what the tar was made from."""

from pathlib import Path

from pydantic import Field, ValidationError

from shards.errors import DataError
from shards.manifest import Drop
from shards.study import Record

VERSION = 1


class Entry(Record):
    """Where one study lies in its tar."""

    key: str
    id: str
    patient: str = ""
    members: dict[str, tuple[int, int]]
    """Name behind "KEY." → (offset, size) in bytes."""


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


def index_path(tar: Path) -> Path:
    """NAME.tar → NAME.index.json."""
    return tar.with_suffix(".index.json")


def read_shard_index(path: Path) -> ShardIndex:
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
