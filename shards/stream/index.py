"""`Index`: where every study of a split lies, as numpy arrays, so that a reader needs one request per study."""

import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from shards.errors import DataError, OnBad
from shards.study import Drop, Study
from shards.tars.archive import walk_tar
from shards.tars.foreign import adopt, samples_of
from shards.tars.manifest import FILE, HOW_TO_SHARD, Shard, read_manifest, sha256_of
from shards.tars.place import Fetched, Place, fetch, is_local, names_in, place, read_at, size_of
from shards.tars.shard_index import Entry, ShardIndex, index_path, read_shard_index

SLACK_BYTES = 1 << 16


@dataclass(frozen=True, eq=False)
class Index:
    """Pointers to the n studies of a split. Picklable; its arrays travel without a copy."""

    root: str
    split: str
    tars: tuple[str, ...]
    """Names below `root`."""
    stamps: tuple[str, ...]
    """One per tar: changes when the tar's content does."""
    keys: NDArray[np.bytes_]
    """[n] names inside the shards."""
    tar: NDArray[np.int32]
    """[n] position in `tars`."""
    record: NDArray[np.int64]
    """[n, 2] offset and size of KEY.json."""
    films: NDArray[np.int64]
    """[n, V, 2] offset and size of KEY.v.jpg; -1 where a study has fewer than V views."""
    crc32: NDArray[np.int64]
    """[n] checksum of the films and the record; -1 where none is known."""
    drops: tuple[Drop, ...] = ()
    """What an archive written by others holds that cannot be used."""
    foreign: bool = False
    """Records are not `Study` yet: `record_of` converts them."""

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def given(self) -> int:
        """Studies listed: usable + dropped."""
        return len(self) + len(self.drops)

    @classmethod
    def open(cls, root: str | Place, split: str, on_bad: OnBad = "fail") -> "Index":
        """Index of a split: our own shards by their manifest, else the archives root/SPLIT*.tar of others.

        Under on_bad="skip" the index of one tar may be torn: it is made again from the tar if that is whole, else the
        tar's studies stay listed, by number, and cannot be read. Every split has the length its manifest says.
        """
        root = place(root)
        if not (root / FILE).is_file():
            tars = [name for name in names_in(root) if name.startswith(split) and name.endswith(".tar")]
            if not tars:
                raise DataError(
                    f"no shards of split {split!r} at {root}: neither {FILE} nor {split}*.tar. {HOW_TO_SHARD}"
                )
            return cls.of_tars(root, split, tars)
        manifest = read_manifest(root)
        shards = [shard for shard in manifest.shards if shard.split == split and shard.studies]
        if not shards:
            held = ", ".join(name for name, count in manifest.splits.items() if count.studies)
            raise DataError(f"no studies of split {split!r} at {root}: its splits are {held}")
        parts = [_Part.of(number, _entries(root, shard, on_bad)) for number, shard in enumerate(shards)]
        return _join(root, split, [s.name for s in shards], [s.sha256 for s in shards], parts, (), False)

    @classmethod
    def of_tars(cls, root: str | Place, split: str, names: list[str]) -> "Index":
        """Index of WebDataset archives that others wrote, by one walk over each; what cannot be used is in `drops`."""
        root, parts, drops, stamps = place(root), [], [], []
        for number, name in enumerate(names):
            found, dropped = samples_of(name, split, walk_tar(root / name))
            parts.append(_Part.of(number, found))
            drops += dropped
            changed = os.stat(root / name).st_mtime_ns if is_local(root) else ""
            stamps.append(f"{changed}-{size_of(root / name)}")
        return _join(root, split, names, stamps, parts, tuple(drops), True)

    def rows_of(self, tar: int) -> range:
        """The rows of a tar; a tar's studies stand together."""
        return range(*np.searchsorted(self.tar, [tar, tar + 1]).tolist())

    def fetch(self, rows: Iterable[int]) -> Fetched:
        """The bytes of many studies of a remote directory at once, to be given to `read`; {} for a local one."""
        return fetch(self.root, rows, lambda row: self._located(row, _span(self._members(row))))

    def fetch_records(self, rows: Iterable[int]) -> Fetched:
        """The records alone of many studies of a remote directory, to be given to `read_record`; {} for a local one."""
        return fetch(self.root, rows, lambda row: self._located(row, tuple(self.record[row].tolist())))

    def read(self, row: int, span: memoryview | DataError | None = None) -> tuple[list[memoryview], memoryview]:
        """The encoded films of study `row` in view order, and the bytes of its record; `span` is what `fetch` found.

        Raises:
            DataError: naming tar and study, when they cannot be read or are not what was written.
        """
        self._refuse_unknown(row)
        members = self._members(row)
        if (whole := _span(members)) is None:
            parts = [self._read_at(row, at, size) for at, size in members]
        else:
            start, span = whole[0], self._read_at(row, *whole, span)
            parts = [span[at - start : at - start + size] for at, size in members]
        self._check(row, parts)
        return parts[:-1], parts[-1]

    def read_record(self, row: int, data: memoryview | DataError | None = None) -> memoryview:
        """The bytes of study `row`'s record alone, which no checksum covers; `data` is what `fetch_records` found."""
        self._refuse_unknown(row)
        return self._read_at(row, int(self.record[row, 0]), int(self.record[row, 1]), data)

    def record_of(self, row: int, data: memoryview) -> str:
        """The JSON of a study's record, checked; a foreign record {"id", "report", ...} becomes a `Study` first."""
        key = self.keys[row].decode()
        try:
            text = str(data, "utf-8")
            if self.foreign:
                return adopt(key, self.split, int((self.films[row, :, 0] >= 0).sum()), text).model_dump_json()
            if (found := Study.model_validate_json(text).key) != key:
                raise ValueError(f"the record there is of {found}")
        except ValueError as error:
            cause = f"{error.error_count()} fields do not fit" if isinstance(error, ValidationError) else error
            raise DataError(f"{self.tars[int(self.tar[row])]}: record of {key} is not readable: {cause}") from None
        return text

    def _members(self, row: int) -> list[tuple[int, int]]:
        """(offset, size) of the films in view order, then of the record."""
        films = [(at, size) for at, size in self.films[row].tolist() if at >= 0]
        return [*films, tuple(self.record[row].tolist())]

    def _located(self, row: int, span: tuple[int, int] | None) -> tuple[str, int, int] | None:
        return (self.tars[int(self.tar[row])], *span) if span and self.record[row, 0] >= 0 else None

    def _refuse_unknown(self, row: int) -> None:
        if self.record[row, 0] < 0:
            raise DataError(
                f"study {self.keys[row].decode()}: the index of {self.tars[int(self.tar[row])]} is torn and the tar is "
                "not whole, so nothing tells where the study lies or what its key is"
            )

    def _check(self, row: int, parts: list[memoryview]) -> None:
        crc = 0
        for part in parts:
            crc = zlib.crc32(part, crc)
        if self.crc32[row] not in (-1, crc):
            raise DataError(
                f"study {self.keys[row].decode()}: its bytes in {self.tars[int(self.tar[row])]} are not those that "
                f"were written (checksum {crc:08x}, the index says {int(self.crc32[row]):08x})"
            )

    def _read_at(self, row: int, at: int, size: int, fetched: memoryview | DataError | None = None) -> memoryview:
        tar = int(self.tar[row])
        try:
            if isinstance(fetched, DataError):
                raise fetched
            if fetched is not None:
                return fetched
            return read_at(self.root, self.tars[tar], at, size, self.stamps[tar])
        except DataError as error:
            raise DataError(f"study {self.keys[row].decode()}: {error}") from error


def _span(members: list[tuple[int, int]]) -> tuple[int, int] | None:
    """Offset and size of one read that covers all members; None when they lie too far apart for that."""
    start, stop = min(at for at, _ in members), max(at + size for at, size in members)
    return (start, stop - start) if stop - start <= sum(size for _, size in members) + SLACK_BYTES else None


def _entries(root: Place, shard: Shard, on_bad: OnBad) -> list[Entry]:
    """The studies of one of our tars, by its index or, under "skip", by what can be had without one."""
    try:
        return list(_fitting_index(root, shard).studies)
    except DataError:
        if on_bad == "fail":
            raise
    path = root / shard.name
    if size_of(path) == shard.bytes and sha256_of(path) == shard.sha256:
        return samples_of(shard.name, shard.split, walk_tar(path))[0]
    stem = shard.name.removesuffix(".tar")
    return [Entry(key=f"{stem}-{number}", id="", members={"json": (-1, 0)}) for number in range(shard.studies)]


def _fitting_index(root: Place, shard: Shard) -> ShardIndex:
    path = index_path(root / shard.name)
    index = read_shard_index(path)
    if index.sha256 != shard.sha256 or len(index.studies) != shard.studies:
        raise DataError(
            f"{path} describes {len(index.studies)} studies in sha256 {index.sha256[:12]}, the manifest "
            f"{shard.studies} in {shard.sha256[:12]}: its offsets belong to another tar. Run `r2kg shard` again, whole "
            "shards are kept"
        )
    return index


@dataclass(frozen=True)
class _Part:
    """The arrays of one tar."""

    keys: list[bytes]
    tar: NDArray[np.int32]
    record: NDArray[np.int64]
    films: NDArray[np.int64]
    crc32: NDArray[np.int64]

    @classmethod
    def of(cls, number: int, entries: list[Entry]) -> "_Part":
        views = max((len(entry.members) - 1 for entry in entries), default=1)
        films = np.full((len(entries), max(views, 1), 2), -1, np.int64)
        record = np.zeros((len(entries), 2), np.int64)
        for row, entry in enumerate(entries):
            for member, span in entry.members.items():
                if member == "json":
                    record[row] = span
                else:
                    films[row, int(member.split(".")[0])] = span
        crc32 = np.array([entry.crc32 for entry in entries], np.int64)
        keys = [entry.key.encode() for entry in entries]
        return cls(keys, np.full(len(entries), number, np.int32), record, films, crc32)


def _join(root: Place, split, tars, stamps, parts: list[_Part], drops: tuple[Drop, ...], foreign: bool) -> Index:
    views = max(part.films.shape[1] for part in parts)
    films = [np.pad(p.films, ((0, 0), (0, views - p.films.shape[1]), (0, 0)), constant_values=-1) for p in parts]
    keys = [key for part in parts for key in part.keys]
    return Index(
        root=str(root),
        split=split,
        tars=tuple(tars),
        stamps=tuple(stamps),
        keys=np.array(keys or [b""], dtype=np.bytes_)[: len(keys)],
        tar=np.concatenate([part.tar for part in parts]),
        record=np.concatenate([part.record for part in parts]),
        films=np.concatenate(films),
        crc32=np.concatenate([part.crc32 for part in parts]),
        drops=drops,
        foreign=foreign,
    )
