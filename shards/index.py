"""`Index`: where every study of a split lies, as numpy arrays, so that a reader needs one `pread` per study."""

import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from shards.errors import DataError
from shards.foreign import adopt, samples_of
from shards.manifest import FILE, HOW_TO_SHARD, Drop, read_manifest
from shards.shard_index import Entry, index_path, read_shard_index
from shards.study import Study
from shards.tar import walk_tar

MAX_OPEN = 128
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
    def open(cls, root: Path, split: str) -> "Index":
        """Index of a split: our own shards by their manifest, else the archives root/SPLIT*.tar of others."""
        root = Path(root)
        if not (root / FILE).is_file():
            tars = [tar for tar in sorted(root.glob(f"{split}*.tar")) if tar.is_file()]
            if not tars:
                raise DataError(
                    f"no shards of split {split!r} at {root}: neither {FILE} nor {split}*.tar. {HOW_TO_SHARD}"
                )
            return cls.of_tars(root, split, [tar.name for tar in tars])
        manifest = read_manifest(root)
        shards = [shard for shard in manifest.shards if shard.split == split and shard.studies]
        if not shards:
            held = ", ".join(name for name, count in manifest.splits.items() if count.studies)
            raise DataError(f"no studies of split {split!r} at {root}: its splits are {held}")
        indices = [read_shard_index(index_path(root / shard.name)) for shard in shards]
        for shard, index in zip(shards, indices, strict=True):
            if index.sha256 != shard.sha256:
                described = f"{index_path(root / shard.name)} describes sha256 {index.sha256[:12]}"
                raise DataError(
                    f"{described}, the manifest {shard.sha256[:12]}: its offsets belong to another tar. Run "
                    "`r2kg shard` again, whole shards are kept"
                )
        entries = [(number, entry) for number, index in enumerate(indices) for entry in index.studies]
        return _build(root, split, [i.name for i in indices], [i.sha256 for i in indices], entries, (), False)

    @classmethod
    def of_tars(cls, root: Path, split: str, names: list[str]) -> "Index":
        """Index of WebDataset archives that others wrote, by one walk over each; what cannot be used is in `drops`."""
        entries, drops, stamps = [], [], []
        for number, name in enumerate(names):
            found, dropped = samples_of(name, split, walk_tar(Path(root) / name))
            entries += [(number, entry) for entry in found]
            drops += dropped
            stat = os.stat(Path(root) / name)
            stamps.append(f"{stat.st_mtime_ns}-{stat.st_size}")
        return _build(Path(root), split, names, stamps, entries, tuple(drops), True)

    def read(self, row: int) -> tuple[list[memoryview], memoryview]:
        """The encoded films of study `row` in view order, and the bytes of its record; DataError naming tar and key."""
        spans = [(int(at), int(size)) for at, size in self.films[row] if at >= 0]
        spans.append((int(self.record[row, 0]), int(self.record[row, 1])))
        start, stop = min(at for at, _ in spans), max(at + size for at, size in spans)
        tar = int(self.tar[row])
        if stop - start > sum(size for _, size in spans) + SLACK_BYTES:
            parts = [self._pread(tar, at, size, row) for at, size in spans]
        else:
            whole = self._pread(tar, start, stop - start, row)
            parts = [whole[at - start : at - start + size] for at, size in spans]
        return parts[:-1], parts[-1]

    def read_record(self, row: int) -> memoryview:
        """The bytes of study `row`'s record alone."""
        return self._pread(int(self.tar[row]), int(self.record[row, 0]), int(self.record[row, 1]), row)

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
            raise DataError(f"{self.tars[int(self.tar[row])]}: record of {key} is not readable: {cause}") from error
        return text

    def _pread(self, tar: int, at: int, size: int, row: int) -> memoryview:
        path = os.path.join(self.root, self.tars[tar])
        try:
            data = os.pread(_descriptor(path, self.stamps[tar]), size, at)
        except OSError as error:
            raise DataError(f"{path} cannot be read at study {self.keys[row].decode()}: {error.strerror}") from error
        if len(data) != size:
            raise DataError(f"{path} ends inside study {self.keys[row].decode()}: {len(data)} of {size} bytes at {at}")
        return memoryview(data)


_open: OrderedDict[tuple[str, str], int] = OrderedDict()


def _descriptor(path: str, stamp: str) -> int:
    """An open file per tar and process; the stamp keeps a tar written anew from being read through an old one."""
    if (found := _open.get((path, stamp))) is None:
        if len(_open) >= MAX_OPEN:
            os.close(_open.popitem(last=False)[1])
        found = _open[path, stamp] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return found


def _build(
    root, split, tars, stamps, entries: list[tuple[int, Entry]], drops: tuple[Drop, ...], foreign: bool
) -> Index:
    views = max((len(entry.members) - 1 for _, entry in entries), default=1)
    films = np.full((len(entries), views, 2), -1, np.int64)
    record = np.zeros((len(entries), 2), np.int64)
    for row, (_, entry) in enumerate(entries):
        for member, span in entry.members.items():
            if member == "json":
                record[row] = span
            else:
                films[row, int(member.split(".")[0])] = span
    keys = np.array([entry.key.encode() for _, entry in entries] or [b""], dtype=np.bytes_)[: len(entries)]
    tar = np.array([number for number, _ in entries], np.int32)
    return Index(str(root), split, tuple(tars), tuple(stamps), keys, tar, record, films, drops, foreign)
