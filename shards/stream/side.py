"""`Side`: what belongs to the studies of an `Index` and lies beside their shards, row by row."""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.errors import DataError, OnBad
from shards.stream.index import Index
from shards.tars.manifest import Manifest
from shards.tars.place import Fetched, Place, fetch, place, read_at
from shards.tars.side_manifest import MEMBER, Kind, SideEntry, entries_of, read_side, refuse_other

NONE = -1


@dataclass(frozen=True, eq=False)
class Side:
    """Pointers to the members of an `Index`'s n studies, row by row. Picklable; its arrays travel without a copy."""

    root: str
    kind: Kind
    extent: tuple[int, ...]
    """See `SideManifest.extent`."""
    tars: tuple[str, ...]
    stamps: tuple[str, ...]
    torn: tuple[str, ...]
    """Per tar why nothing of it can be read; "" when it can."""
    keys: NDArray[np.bytes_]
    tar: NDArray[np.int32]
    span: NDArray[np.int64]
    """[n, 2] offset and size; -1 where the study has no member."""
    crc32: NDArray[np.int64]
    """[n]"""

    @classmethod
    def open(cls, where: str | Place, index: Index, parent: Manifest, kind: Kind, on_bad: OnBad = "fail") -> "Side":
        """The side of the studies of `index`, which are those of `parent`.

        Under on_bad="skip" one tar's index may be torn: `read` then raises for its studies.

        Raises:
            DataError: no side, another kind, other shards, other keys; under "fail" also a torn index.
        """
        root, side = place(where), read_side(where)
        refuse_other(where, side, parent, kind)
        shards = {shard.name: shard for shard in side.shards}
        span, crc32 = np.full((len(index), 2), NONE, np.int64), np.full(len(index), NONE, np.int64)
        torn = []
        for number, name in enumerate(index.tars):
            own = index.rows_of(number)
            rows = slice(own.start, own.stop)
            entries, cause = entries_of(root, shards[name], on_bad)
            torn.append(cause)
            if cause or index.record[rows, 0].min() < 0:
                continue
            _refuse_other_keys(root / name, index.keys[rows].tolist(), entries)
            found = [entry.members.get(MEMBER[kind], (NONE, NONE, NONE)) for entry in entries]
            span[rows], crc32[rows] = [member[:2] for member in found], [member[2] for member in found]
        stamps = tuple(shards[name].sha256 for name in index.tars)
        return cls(str(root), kind, side.extent, index.tars, stamps, tuple(torn), index.keys, index.tar, span, crc32)

    def fetch(self, rows: Iterable[int]) -> Fetched:
        """The members of many studies of a remote side at once, to be given to `read`; {} for a local one."""
        return fetch(self.root, rows, self._located)

    def _located(self, row: int) -> tuple[str, int, int] | None:
        at, size = self.span[row].tolist()
        return (self.tars[int(self.tar[row])], at, size) if at >= 0 else None

    def read(self, row: int, data: memoryview | DataError | None = None) -> memoryview | None:
        """The member of study `row`, None when it has none; `data` is what `fetch` found.

        Raises:
            DataError: naming tar and study, when it cannot be read or is not what was written.
        """
        key, tar = self.keys[row].decode(), int(self.tar[row])
        if self.torn[tar]:
            raise DataError(f"study {key}: {self.torn[tar]}")
        if (at := int(self.span[row, 0])) < 0:
            return None
        try:
            if isinstance(data, DataError):
                raise data
            if data is None:
                data = read_at(self.root, self.tars[tar], at, int(self.span[row, 1]), self.stamps[tar])
        except DataError as error:
            raise DataError(f"study {key}: {self.kind}: {error}") from None
        if (crc := zlib.crc32(data)) != self.crc32[row]:
            raise DataError(
                f"study {key}: its {self.kind} in {self.tars[tar]} are not those that were written (checksum "
                f"{crc:08x}, the index says {int(self.crc32[row]):08x})"
            )
        return data


def _refuse_other_keys(path: Place, keys: list[bytes], entries: tuple[SideEntry, ...]) -> None:
    if keys != [entry.key.encode() for entry in entries]:
        raise DataError(
            f"the side index of {path} lists other studies, or in another order, than the shards' tar of that name: "
            "studies would get what belongs to others. Write the side again"
        )


def read_features(side: Side, row: int, films: int, data: memoryview | DataError | None = None) -> NDArray[np.uint16]:
    """Stored features of study `row`, which has `films` films: bf16 bit patterns [V, P, D] of the first V.

    Raises:
        DataError: there are none, or not of that many films of the described shape.
    """
    views, patches, width = side.extent
    if (found := side.read(row, data)) is None:
        raise DataError(f"study {side.keys[row].decode()}: the side holds no features of it")
    if len(found) != (wanted := min(films, views) * patches * width * 2):
        raise DataError(
            f"study {side.keys[row].decode()}: its features have {len(found)} bytes; {min(films, views)} films of "
            f"{patches} x {width} bf16 values have {wanted}"
        )
    return np.frombuffer(found, "<u2").reshape(-1, patches, width)
