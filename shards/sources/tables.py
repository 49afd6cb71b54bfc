"""CSV files read row by row: every row known by the bytes it lies in, its faults told and never guessed over.

One row is in memory at a time and all sizes are bounded. Messages name file, line and byte, never what stands there: a
cell may hold a report, or an identifier where columns were mixed up.
"""

import csv
import gzip
import hashlib
import re
import zlib
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from shards.errors import DataError
from shards.study import BadStudy

MAX_ROW_BYTES = 2_000_000
"""Longest row that is read; a report has a few thousand bytes."""
MAX_ROWS = 500_000
"""The tables of MIMIC-CXR have 377,110."""
MAX_COLUMNS = 1_000
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
UNCLOSED, TOO_LONG, CUT = "a quote is never closed", f"no end within {MAX_ROW_BYTES:,} bytes", "the file ends inside it"
OTHER_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
NOT_UTF8 = "not UTF-8"
"""How the fault of a row begins that is not UTF-8."""
AGAIN = "If the copy broke off, fetch the file again"


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


class Row(NamedTuple):
    """One row below the header."""

    number: int
    """From 1, blank lines not counted."""
    line: int
    """Line of the file on which it begins, from 1: the header's is 1, and a cell may hold line feeds."""
    span: Span
    """Its bytes, of the unpacked file."""
    cells: dict[str, str]
    """Column → cell as written; empty when there is a fault."""
    fault: str = ""
    """Why the cells cannot be trusted."""
    begins: str = ""
    """Of a row with a fault, what `Table.begins` found at its start."""


class Record(NamedTuple):
    """The bytes of one row before they are taken apart."""

    line: int
    at: int
    size: int
    data: bytes
    """The first `MAX_ROW_BYTES` of it, at least."""
    fault: str


class Table:
    """A CSV file (RFC 4180) in UTF-8, a byte-order mark allowed, packed by gzip where its name ends in .gz.

    A damaged row costs itself where the next one can be told: everywhere with `one_line`, and with `begins` up to the
    next row that begins so. Elsewhere a quote that is never closed, or bytes that are no UTF-8, make all that follows
    doubtful and refuse the file. A row with more or fewer cells than the header costs itself in every case; with
    `one_line` it is taken as long as the needed columns are there.

    Args:
        path: local or remote file.
        needed: columns that must be there.
        begins: how a row begins and no line inside a cell does; its first group is given as `Row.begins`.
        one_line: no cell holds a line break; rows then have no digest.
        max_rows: more, blank ones counted, are refused; None is no limit.
        max_bytes: of the unpacked file, likewise.

    Raises:
        DataError: no such file, a needed column is missing or a name is used twice.
    """

    def __init__(
        self,
        path: Any,
        needed: Iterable[str],
        begins: re.Pattern[bytes] | None = None,
        one_line: bool = False,
        max_rows: int | None = MAX_ROWS,
        max_bytes: int | None = None,
    ) -> None:
        self.path, self.begins, self.one_line, self.max_rows = path, begins, one_line, max_rows
        self.max_bytes = max_bytes
        self.columns: list[str] = []
        if not path.is_file():
            raise DataError(f"{path} is missing")
        with closing(self._records()) as records:
            header = next(records, None)
        if header is None:
            raise DataError(f"{path} is empty: it must be CSV whose first row names the columns")
        try:
            if header.fault or b"\r" in header.data.replace(b"\r\n", b""):
                raise ValueError(header.fault or "a line ends with a carriage return and no line feed")
            self.columns = [name.strip() for name in self.parse(header.data.removeprefix(BYTE_ORDER_MARK))]
        except (ValueError, csv.Error) as error:
            raise DataError(f"{path}: the first row holds no column names: {error}. It must be CSV in UTF-8") from None
        if len(self.columns) > MAX_COLUMNS:
            raise DataError(
                f"{path} has {len(self.columns):,} columns, which no such table has: {MAX_COLUMNS:,} are read"
            )
        needed = list(needed)
        if missing := [name for name in needed if name not in self.columns]:
            raise DataError(f"{path}: missing columns: {', '.join(missing)}; found: {self._shown()}")
        if twice := sorted({name for name in self.columns if self.columns.count(name) > 1}):
            raise DataError(f"{path} has more than one column {shown_names(twice)}: rename or remove one")
        self.enough = 1 + max((self.columns.index(name) for name in needed), default=0)

    @staticmethod
    def parse(data: bytes) -> list[str]:
        """Cells of one row; UnicodeDecodeError or csv.Error when it is none."""
        csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))
        return next(csv.reader([data.decode()], strict=True), [])

    def rows(self) -> Iterator[Row]:
        """Every row in order, one in memory at a time.

        A row that cannot be parsed comes with its fault, and with `begins` reaches to where the next row begins.

        Raises:
            DataError: naming line and byte where what follows is lost: the file is cut, unreadable, or no later row
                can be recognised.
        """
        number, broken = 0, None
        with closing(self._records()) as records:
            next(records, None)
            for record in records:
                row = self._row(record, number + 1)
                if broken and row.fault and not row.begins and row.fault != CUT:
                    broken = broken._replace(span=Span(broken.span.at, record.at + record.size - broken.span.at))
                    continue
                number += 1
                one_row = row.cells or self.begins or (self.one_line and row.fault != TOO_LONG)
                if row.fault and (row.fault == CUT or not one_row):
                    raise DataError(
                        f"{self.path}: row {number}, which begins on line {row.line} at byte {row.span.at}, and all "
                        f"that follows cannot be read: {row.fault}. {AGAIN}; if a quote is not closed there, close it, "
                        "and one inside a quoted cell must be doubled"
                    )
                if broken:
                    yield broken
                broken = row if row.fault and self.begins else None
                if not broken:
                    yield row
        if broken:
            yield broken

    def _records(self) -> Generator[Record]:
        """Every row that is not blank, the header first: a row ends with the line where its quotes become even."""
        at = size = quotes = lines = count = 0
        begun, held, begins = 1, list[bytes](), self.begins
        try:
            with self.path.open("rb") as file, gzip.open(file) if self.path.name.endswith(".gz") else file as text:
                while line := text.readline(MAX_ROW_BYTES):
                    if held and begins and begins.match(line):
                        yield Record(begun, at, size, b"".join(held), TOO_LONG if size > MAX_ROW_BYTES else UNCLOSED)
                        at, size, quotes, begun, held = at + size, 0, 0, lines + 1, []
                    if size <= MAX_ROW_BYTES:
                        held.append(line)
                    ended = line.endswith(b"\n")
                    size, lines = size + len(line), lines + ended
                    quotes += 0 if self.one_line else line.count(b'"')
                    whole = ended or len(line) < MAX_ROW_BYTES
                    if self.one_line and not whole:
                        break
                    if self.max_bytes and at + size > self.max_bytes:
                        raise DataError(
                            f"{self.path} has more than {self.max_bytes:,} bytes, unpacked: no such table has"
                        )
                    if quotes % 2 and len(held) == 1 and self._is_row(line):
                        quotes = 0  # inside a cell that is not quoted, a quote is a character: 2" nodule
                    if quotes % 2 == 0 and size <= MAX_ROW_BYTES and whole:
                        if self.max_rows and (count := count + 1) > self.max_rows + 1:  # the header is one
                            raise DataError(
                                f"{self.path} has more than {self.max_rows:,} rows, which no such table has"
                            )
                        if any(map(bytes.strip, held)):
                            yield Record(begun, at, size, b"".join(held), "")
                        at, size, quotes, begun, held = at + size, 0, 0, lines + 1, []
        except (OSError, EOFError, zlib.error) as error:
            cause = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            raise DataError(f"{self.path} cannot be read after line {lines}: {cause}. {AGAIN}") from None
        if held:
            cut = size < MAX_ROW_BYTES or (begins and quotes % 2)
            yield Record(begun, at, size, b"".join(held), CUT if cut else TOO_LONG)

    def _is_row(self, line: bytes) -> bool:
        try:
            return bool(self.columns) and len(self.parse(line)) == len(self.columns)
        except (UnicodeDecodeError, csv.Error):
            return False

    def _row(self, record: Record, number: int) -> Row:
        data = record.data.removeprefix(BYTE_ORDER_MARK) if record.at == 0 else record.data
        fault, cells = record.fault, list[str]()
        try:
            cells = [] if fault else self.parse(data)
        except UnicodeDecodeError as error:
            fault = f"{NOT_UTF8} at byte {record.at + error.start}"
        except csv.Error as error:
            fault = f"not CSV: {error}"
        if not fault and len(cells) != len(self.columns) and not (self.one_line and len(cells) >= self.enough):
            cut = self.begins and len(cells) < len(self.columns) and not data.endswith(b"\n")
            fault = CUT if cut else f"{len(cells)} cells where the header has {len(self.columns)}"
        span = Span(record.at, record.size) if fault or self.one_line else span_of(record.at, record.data)
        found = self.begins.match(data) if fault and self.begins else None
        begins = found[1].decode("ascii", "replace") if found else ""
        return Row(number, record.line, span, dict(zip(self.columns, cells, strict=False)), fault, begins)

    def _shown(self) -> str:
        for mark, name in OTHER_DELIMITERS.items():
            if len(self.columns) == 1 and mark in self.columns[0]:
                parts = shown_names(self.columns[0].split(mark))
                return f"{parts}, one name: the file is divided by {name}; save it again with commas"
        return shown_names(self.columns)
