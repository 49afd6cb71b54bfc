"""Records known by the bytes they lie in: listed by the driver, read again by a worker, noticed when changed."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from shards.study import BadStudy


class Span(NamedTuple):
    """Bytes of a file that hold one record, and the BLAKE2b digest by which to know them again."""

    at: int
    size: int
    digest: str = ""

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        return f"bytes {self.at} to {self.at + self.size}"


def span_of(at: int, data: bytes) -> Span:
    """The span of a record that was just read."""
    return Span(at, len(data), hashlib.blake2b(data, digest_size=8).hexdigest())


def read_span(path: Path, span: Span) -> bytes:
    """The record's bytes; BadStudy when they are no longer those that were listed."""
    with open(path, "rb") as file:
        file.seek(span.at)
        data = file.read(span.size)
    if span_of(span.at, data) != span:
        raise BadStudy("report file changed", f"{path.name} is not what was listed ({span.place} differ): run again")
    return data


def shown_names(names: Iterable[str]) -> str:
    """Names found in a file, for messages: what is no plain name may be a report, and is counted."""
    names = list(names)
    plain = [name for name in names if re.fullmatch(r"[A-Za-z_]{1,40}( [A-Za-z_]{1,40})?", name)]
    others = len(names) - len(plain)
    return ", ".join(plain[:40] + ([f"{others} that are no plain names"] if others else [])) or "none"
