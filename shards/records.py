"""The studies of a split without their films, one after the other."""

from collections.abc import Iterator
from pathlib import Path

from shards.errors import DataError
from shards.index import Index
from shards.study import Study


def read_studies(root: Path, split: str, index: Index | None = None) -> Iterator[Study]:
    """Studies of a split in index order, read one at a time; the films are not touched.

    Raises:
        DataError: a record cannot be read; the message names tar and study.
    """
    index = index or Index.open(Path(root), split)
    for row in range(len(index)):
        try:
            yield Study.model_validate_json(index.record_of(row, index.read_record(row)))
        except ValueError as error:
            raise DataError(f"record {row} of split {split} under {root}: {error}") from error


def read_targets(root: Path, split: str) -> list[str]:
    """Cleaned reports of a split, in index order."""
    return [study.target for study in read_studies(root, split)]
