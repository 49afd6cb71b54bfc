"""`Members`: where the members of n studies lie, as numpy arrays, so that a reader needs one request per study."""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from shards.errors import DataError
from shards.tars.place import REMOTE, read_at, read_ranges

Fetched: TypeAlias = dict[int, memoryview | DataError]
"""Row → the bytes that hold its members, or why they could not be had."""
ABSENT = -1


@dataclass(frozen=True, eq=False)
class Members:
    """Pointers to M members of n studies. Picklable; its arrays travel without a copy."""

    root: str
    tars: tuple[str, ...]
    """Names below `root`."""
    stamps: tuple[str, ...]
    """One per tar: changes when the tar's content does."""
    torn: tuple[str, ...]
    """Per tar why nothing of it can be read; "" when it can."""
    keys: NDArray[np.bytes_]
    """[n] names inside the shards."""
    tar: NDArray[np.int32]
    """[n] position in `tars`."""
    span: NDArray[np.int64]
    """[n, M, 3] offset, size and CRC-32; `ABSENT` where a study has no such member. Ascending in a row."""

    def __len__(self) -> int:
        return len(self.keys)

    def rows_of(self, tar: int) -> range:
        """The rows of a tar; a tar's studies stand together."""
        return range(*np.searchsorted(self.tar, [tar, tar + 1]).tolist())

    def fetch(self, rows: Iterable[int], first: int = 0) -> Fetched:
        """The bytes of many studies of a remote directory at once, to be given to `members`; {} for a local one.

        `first` as in `members`.
        """
        if REMOTE not in self.root:
            return {}
        spans = {row: self.span[row, first:] for row in rows}
        wanted = {row: span[span[:, 0] >= 0] for row, span in spans.items() if (span[:, 0] >= 0).any()}
        ranges = [
            (self.tars[int(self.tar[row])], int(span[0, 0]), int(span[-1, :2].sum() - span[0, 0]))
            for row, span in wanted.items()
        ]
        return dict(zip(wanted, read_ranges(self.root, ranges), strict=True)) if wanted else {}

    def members(self, row: int, first: int = 0, fetched: memoryview | DataError | None = None) -> list[memoryview]:
        """The members of study `row` that are there, from the one numbered `first` on, by one read; each is checked.

        Args:
            fetched: what `fetch` had for it, with the same `first`.

        Raises:
            DataError: naming tar and study, when they cannot be read or are not what was written.
        """
        key, tar = self.keys[row].decode(), int(self.tar[row])
        if self.torn[tar]:
            raise DataError(f"study {key}: {self.torn[tar]}")
        spans = [span for span in self.span[row, first:].tolist() if span[0] >= 0]
        if not spans:
            return []
        start, end = spans[0][0], spans[-1][0] + spans[-1][1]
        try:
            if isinstance(fetched, DataError):
                raise fetched
            data = fetched if fetched is not None else read_at(
                self.root, self.tars[tar], start, end - start, self.stamps[tar]
            )  # fmt: skip
        except DataError as error:
            raise DataError(f"study {key}: {error}") from error
        parts = [data[at - start : at - start + size] for at, size, _ in spans]
        for part, (_, _, written) in zip(parts, spans, strict=True):
            if (crc := zlib.crc32(part)) != written:
                raise DataError(
                    f"study {key}: its bytes in {self.tars[tar]} are not those that were written (checksum {crc:08x}, "
                    f"the index says {written:08x})"
                )
        return parts
