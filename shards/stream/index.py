"""`Index`: where the films and the record of every study of a split lie; the studies without their films."""

import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from shards.errors import DataError, OnBad, RetryableError, may_pass
from shards.sources.archive import walk_tar
from shards.stream.members import ABSENT, Fetched, Members
from shards.study import Study, refuse_bomb
from shards.tars.format import RECORD, Entry, Manifest, Shard, read_index, read_manifest
from shards.tars.place import Place, is_local, place, sha256_of, size_of

MAX_SPANS = 10_000_000
THREADS = 8
"""Indices of a remote directory that are read at once."""
RECORDS = 1024
"""Records of a remote directory that are asked for at once."""


@dataclass(frozen=True, eq=False)
class Index(Members):
    """Pointers to the n studies of a split: V films in view order, then the record (M = V + 1)."""

    split: str = ""

    @classmethod
    def open(cls, root: str | Place, split: str, on_bad: OnBad = "fail", manifest: Manifest | None = None) -> "Index":
        """Index of a split; giving its `manifest` spares reading it.

        Under on_bad="skip" the index of one tar may be torn: it is made again from the tar if that is whole, else the
        tar's studies stay listed, by number, and cannot be read. Every split has the length its manifest says.

        Raises:
            DataError: no shards, no such split, under "fail" a torn index.
        """
        root = place(root)
        manifest = manifest or read_manifest(root)
        shards = [shard for shard in manifest.shards if shard.split == split and shard.studies]
        if not shards:
            held = ", ".join(name for name, count in manifest.splits.items() if count.studies)
            raise DataError(f"no studies of split {split!r} at {root}: its splits are {held}")
        keys, parts, torn = list[bytes](), list[NDArray[np.int64]](), list[str]()
        with ThreadPoolExecutor(1 if is_local(root) else THREADS) as pool:
            for own, span, cause in pool.map(lambda shard: _pointers(root, shard, on_bad), shards):
                keys += own
                parts.append(span)
                torn.append(cause)
        most = max(span.shape[1] for span in parts)
        if len(keys) * most > MAX_SPANS:
            raise DataError(f"{len(keys):,} studies of up to {most - 1} films: at most {MAX_SPANS:,} members are read")
        for number, span in enumerate(parts):  # the record stays last
            absent = np.full((len(span), most - span.shape[1], 3), ABSENT, np.int64)
            parts[number] = np.concatenate([span[:, :-1], absent, span[:, -1:]], axis=1)
        return cls(
            root=str(root),
            tars=tuple(shard.name for shard in shards),
            stamps=tuple(shard.sha256 for shard in shards),
            torn=tuple(torn),
            keys=np.array(keys, np.bytes_),
            tar=np.repeat(np.arange(len(shards), dtype=np.int32), [len(span) for span in parts]),
            span=np.concatenate(parts),
            split=split,
        )

    def films(self, row: int) -> int:
        """Number of films of study `row`."""
        return int((self.span[row, :-1, 0] >= 0).sum())

    def read(self, row: int, fetched: memoryview | DataError | None = None) -> tuple[list[memoryview], memoryview]:
        """The encoded films of study `row` in view order, and its record; `fetched` is what `fetch` had for it.

        Raises:
            DataError: naming tar and study, when they cannot be read or are not what was written.
        """
        *films, record = self.members(row, 0, fetched)
        return films, record

    def fetch_records(self, rows: range | list[int]) -> Fetched:
        """As `fetch`, the records alone, to be given to `read_record`."""
        return self.fetch(rows, first=-1)

    def read_record(self, row: int, fetched: memoryview | DataError | None = None) -> memoryview:
        """The bytes of study `row`'s record alone, checked; `fetched` is what `fetch_records` had for it."""
        return self.members(row, -1, fetched)[0]

    def record_of(self, row: int, data: memoryview) -> str:
        """The JSON of a study's record, which must be of that study."""
        key = self.keys[row].decode()
        try:
            refuse_bomb(data)
            text = str(data, "utf-8")
            if Study.model_validate_json(text).key != key:
                raise ValueError("the record there is of another study")
        except ValueError as error:
            cause = f"{error.error_count()} fields do not fit" if isinstance(error, ValidationError) else error
            raise DataError(f"{self.tars[int(self.tar[row])]}: record of {key} is not readable: {cause}") from None
        return text


def _pointers(root: Place, shard: Shard, on_bad: OnBad) -> tuple[list[bytes], NDArray[np.int64], str]:
    """Keys and spans of one tar's studies, and why none can be read; all that is kept of its index."""
    entries, cause = _entries(root, shard, on_bad)
    span = np.full((shard.studies, max([2, *(len(entry.members) for entry in entries)]), 3), ABSENT, np.int64)
    for row, entry in enumerate(entries):
        spans = list(entry.members.values())
        span[row, [*range(len(spans) - 1), -1]] = spans
    stem = shard.name.removesuffix(".tar")
    keys = [entry.key.encode() for entry in entries] or [f"{stem}-{n}".encode() for n in range(shard.studies)]
    return keys, span, cause


def _entries(root: Place, shard: Shard, on_bad: OnBad) -> tuple[list[Entry], str]:
    """The studies of one tar by its index or, under "skip", by what can be had without one; why none can be read."""
    try:
        return _films_and_record(shard, list(read_index(root, shard).studies)), ""
    except DataError as error:
        if on_bad == "fail":
            raise
        cause = str(error)
    path = root / shard.name
    members: dict[str, dict[str, tuple[int, int, int]]] = {}
    try:
        if size_of(path) != shard.bytes or sha256_of(path) != shard.sha256:
            raise DataError(f"{shard.name} is not whole either")
        with path.open("rb") as file:
            for member in walk_tar(path).members:
                key, _, name = member.name.partition(".")
                file.seek(member.offset)
                crc = zlib.crc32(file.read(member.size))
                members.setdefault(key, {})[name] = member.offset, member.size, crc
        return _films_and_record(shard, [Entry(key=key, members=own) for key, own in members.items()]), ""
    except (OSError, ValueError) as error:
        if may_pass(error):
            raise RetryableError(f"{shard.name} cannot be read at the moment: run the same command again") from error
        also = str(error) if isinstance(error, DataError) else f"{shard.name} cannot be read ({type(error).__name__})"
        return [], f"{cause}; {also}, so nothing tells where the study lies or what its key is"


def _films_and_record(shard: Shard, entries: list[Entry]) -> list[Entry]:
    """The entries, if they are those of the shard: as many, each of one film or more and a record behind them."""
    for entry in entries:
        if list(entry.members) != [*(f"{film}.jpg" for film in range(len(entry.members) - 1)), RECORD]:
            raise DataError(f"the index of {shard.name} lists other members of {entry.key} than films and a record")
    if len(entries) != shard.studies:
        raise DataError(f"{shard.name} holds {len(entries):,} studies, the manifest says {shard.studies:,}")
    return entries


def open_splits(root: str | Place, manifest: Manifest) -> dict[str, Index]:
    """The index of every split that has studies; DataError when one is torn: a side's keys must be the shards'."""
    splits = [split for split, count in manifest.splits.items() if count.studies]
    return {split: Index.open(root, split, manifest=manifest) for split in splits}


def studies_of(
    index: Index, rows: range | list[int], unread: dict[str, str] | None = None
) -> Iterator[tuple[int, Study | None]]:
    """(row of the index, study) of these rows, one at a time; no film is.

    A record that cannot be read is None and noted in `unread` (key → cause) if that is given.

    Raises:
        DataError: a record cannot be read and `unread` is None; the message names tar and study.
    """
    for at in range(0, len(rows), RECORDS):
        some = rows[at : at + RECORDS]
        fetched = index.fetch_records(some)
        for row in some:
            try:
                data = index.read_record(row, fetched.pop(row, None))
                yield row, Study.model_validate_json(index.record_of(row, data))
            except DataError as error:
                if unread is None:
                    raise
                unread[index.keys[row].decode()] = str(error)
                yield row, None


def numbered_studies(
    index: Index, unread: dict[str, str] | None = None, first: int | None = None
) -> Iterator[tuple[int, Study]]:
    """`studies_of` the `first` rows, or of all, that can be read."""
    rows = range(len(index))[:first]
    return ((row, study) for row, study in studies_of(index, rows, unread) if study is not None)


def read_studies(root: str | Place, split: str, unread: dict[str, str] | None = None) -> Iterator[Study]:
    """Studies of a split in index order; `unread` as in `numbered_studies`."""
    index = Index.open(root, split, "fail" if unread is None else "skip")
    return (study for _, study in numbered_studies(index, unread))


def read_targets(root: str | Place, split: str, unread: dict[str, str] | None = None) -> list[str]:
    """Cleaned reports of a split, in index order; `unread` as in `numbered_studies`."""
    return [study.target for study in read_studies(root, split, unread)]
