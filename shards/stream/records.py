"""The studies of a split without their films, one after the other."""

from collections.abc import Iterator

from shards.errors import DataError
from shards.stream.index import Index
from shards.study import Study
from shards.tars.place import Place


def read_studies(
    root: str | Place, split: str, index: Index | None = None, unread: dict[str, str] | None = None
) -> Iterator[Study]:
    """Studies of a split in index order, read one at a time; the films are not touched.

    A record that cannot be read is left out and noted in `unread` (key → cause) if that is given.

    Raises:
        DataError: a record cannot be read and `unread` is None; the message names tar and study.
    """
    index = index or Index.open(root, split, "fail" if unread is None else "skip")
    return (study for _, study in numbered_studies(index, unread))


def numbered_studies(index: Index, unread: dict[str, str] | None = None) -> Iterator[tuple[int, Study]]:
    """(row of the index, study) of those that can be read; see `read_studies`."""
    for row in range(len(index)):
        try:
            yield row, Study.model_validate_json(index.record_of(row, index.read_record(row)))
        except DataError as error:
            if unread is None:
                raise
            unread[index.keys[row].decode()] = str(error)


def read_targets(root: str | Place, split: str, unread: dict[str, str] | None = None) -> list[str]:
    """Cleaned reports of a split, in index order; `unread` as in `read_studies`."""
    return [study.target for study in read_studies(root, split, unread=unread)]
