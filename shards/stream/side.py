"""`Side`: where what belongs to the studies of an `Index` lies beside their shards, row by row."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import DataError, OnBad
from shards.stream.index import Index
from shards.stream.members import ABSENT, Members
from shards.stream.order import Indices
from shards.tars.format import Manifest, read_index
from shards.tars.kinds import KINDS, Kind, read_side, refuse_other
from shards.tars.place import Place, place

PORTION = 1024
"""Members of a remote directory that are asked for at once."""


@dataclass(frozen=True, eq=False)
class Side(Members):
    """Pointers to the one streamed member (M = 1) of an `Index`'s n studies, row by row."""

    kind: str
    """Key of `shards.tars.kinds.KINDS`."""
    entry: Kind
    """The kind itself, which travels along: a worker does not know a kind that was added in the driver."""
    extent: tuple[int, ...]
    """See `SideManifest.extent`."""

    @classmethod
    def open(cls, where: str | Place, index: Index, parent: Manifest, kind: str, on_bad: OnBad = "fail") -> "Side":
        """The side of the studies of `index`, which are those of `parent`.

        Under on_bad="skip" one tar's index may be torn: `read` then raises for its studies.

        Raises:
            DataError: no side, another kind, other shards, other keys; under "fail" also a torn index.
        """
        root, side = place(where), read_side(where, kind)
        refuse_other(where, side, parent, kind)
        tars, suffix = {tar.name: tar for tar in side.shards}, KINDS[kind].suffix
        span, torn = np.full((len(index), 1, 3), ABSENT, np.int64), list[str]()
        for number, name in enumerate(index.tars):
            rows = index.rows_of(number)
            torn.append("")
            try:
                entries = read_index(root, tars[name]).studies
            except DataError as error:
                if on_bad == "fail":
                    raise
                torn[number] = str(error)
                continue
            if index.torn[number]:
                continue
            if [key.decode() for key in index.keys[rows.start : rows.stop]] != [entry.key for entry in entries]:
                raise DataError(
                    f"the side index of {root / name} lists other studies, or in another order, than the shards' tar "
                    "of that name: studies would get what belongs to others. Write the side again"
                )
            span[rows.start : rows.stop, 0] = [entry.members.get(suffix, (ABSENT,) * 3) for entry in entries]
        return cls(
            root=str(root),
            tars=index.tars,
            stamps=tuple(tars[name].sha256 for name in index.tars),
            torn=tuple(torn),
            keys=index.keys,
            tar=index.tar,
            span=span,
            kind=kind,
            entry=KINDS[kind],
            extent=side.extent,
        )

    @property
    def present(self) -> Indices:
        """Rows that have a member, or may have one behind a torn index, rising: int64 [k]."""
        torn = np.array([bool(why) for why in self.torn])[self.tar]
        return np.flatnonzero((self.span[:, 0, 0] != ABSENT) | torn)

    def read(self, row: int, fetched: memoryview | DataError | None = None) -> memoryview | None:
        """The member of study `row`, None when it has none; `fetched` is what `fetch` had for it.

        Raises:
            DataError: naming tar and study, when it cannot be read, is not what was written, or not of the side's kind.
        """
        data = next(iter(self.members(row, 0, fetched)), None)
        if data is None or not (unpack := self.entry.unpack):
            return data
        module, _, name = unpack.partition(":")
        try:
            getattr(import_module(module), name)(data, *self.extent)
        except DataError as error:
            raise DataError(f"study {self.keys[row].decode()}: {error}") from None
        return data

    def held(self, rows: range | list[int], unread: dict[str, str] | None = None) -> Iterator[tuple[int, memoryview]]:
        """(row, member) of those rows that have one; `PORTION` of a remote directory are asked for at once.

        One that cannot be read is left out and noted in `unread` (key → cause) if that is given.

        Raises:
            DataError: as `read`, without `unread`.
        """
        for at in range(0, len(rows), PORTION):
            some = rows[at : at + PORTION]
            fetched = self.fetch(some)
            for row in some:
                try:
                    member = self.read(row, fetched.pop(row, None))
                except DataError as error:
                    if unread is None:
                        raise
                    unread[self.keys[row].decode()] = str(error)
                    continue
                if member is not None:
                    yield row, member

    def read_films(self, row: int, films: int, fetched: memoryview | DataError | None = None) -> NDArray[Any]:
        """What is stored of each film of study `row`, which has `films` films: uint16 [V, *extent[1:]] of the first V.

        Raises:
            DataError: there is nothing, or not of that many films of the described shape.
        """
        views, *shape = self.extent
        key, stored = self.keys[row].decode(), min(films, views)
        if (data := self.read(row, fetched)) is None:
            raise DataError(f"study {key}: the side holds no {self.kind} of it")
        if len(data) != (wanted := stored * int(np.prod(shape)) * 2):
            raise DataError(
                f"study {key}: its {self.kind} have {len(data)} bytes; {stored} films of "
                f"{' x '.join(map(str, shape))} bf16 values have {wanted}"
            )
        return np.frombuffer(data, "<u2").reshape(-1, *shape)
