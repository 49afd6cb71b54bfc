"""CSV files read whole and strictly: every row is given, understood or with its fault, or the file is refused."""

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.errors import DataError

MAX_BYTES = 300_000_000
MAX_CELL = 131_072
"""Characters; also the csv module's own limit at its start."""
OTHER_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}


@dataclass(frozen=True)
class Row:
    """One row below the header."""

    line: int
    """Line of the file on which the row begins, from 1; a cell may hold line feeds."""
    cells: dict[str, str]
    fault: str = ""
    """Why the cells cannot be trusted; empty when there are as many as the header has."""


@dataclass(frozen=True)
class Table:
    """A whole CSV file."""

    columns: tuple[str, ...]
    rows: list[Row]


def read_table(path: Path, required: Iterable[str]) -> Table:
    """All rows of a CSV file in UTF-8 (a byte-order mark is allowed), divided by commas; blank lines are no rows.

    Raises:
        DataError: no such file, not UTF-8, a required column missing, a column name used twice, no rows, or a quote
            that is never closed or closed in the middle of a cell: rows after it would be swallowed.
    """
    rows = _rows(path, _text(path))
    header = next(rows, (1, []))[1]
    columns = tuple(name.strip() for name in header)
    if missing := [name for name in required if name not in columns]:
        raise DataError(f"{path} has no column {', '.join(missing)}; the columns found are {_shown(columns)}")
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise DataError(f"{path} has more than one column {_shown(twice)}: which one is meant? Rename or remove one")
    found = [_row(line, cells, columns) for line, cells in rows if cells]
    if not found:
        raise DataError(f"{path} holds a header and no rows")
    return Table(columns, found)


def _text(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"{path} is missing")
    if not 0 < (size := path.stat().st_size) <= MAX_BYTES:
        raise DataError(f"{path} has {size} bytes; between 1 and {MAX_BYTES} are read")
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        start = len(data) - len(error.object) + error.start
        at = f"line {data.count(10, 0, start) + 1}, byte {start} (0x{data[start]:02x})"
        raise DataError(f"{path} is not UTF-8 at {at}: save it again with that encoding; none of it is used") from None


def _rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """(line on which it begins, cells) of every row, the header first."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
            if any(len(cell) > MAX_CELL for cell in cells):  # the csv module's own limit may have been raised
                raise csv.Error("a cell is too long")
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{path}: the row that begins on line {line} cannot be divided into cells: {error}. A quote is not "
                f"closed, or stands in the middle of a quoted cell (there it must be doubled), or a cell has more than "
                f"{MAX_CELL:,} characters. What follows cannot be told apart, so none of the file is used"
            ) from None
        yield line, cells


def _row(line: int, cells: list[str], columns: tuple[str, ...]) -> Row:
    counts = f"{len(cells)} cells, the header has {len(columns)}"
    return Row(line, dict(zip(columns, cells, strict=False)), "" if len(cells) == len(columns) else counts)


def _shown(columns: Iterable[str]) -> str:
    """Column names for a message. What is no name may be a report, where a file has no header, and is not shown."""
    columns = list(columns)
    if len(columns) == 1:
        for mark, name in OTHER_DELIMITERS.items():
            if mark in columns[0]:
                parts = mark.join(_name(part) for part in columns[0].split(mark))
                return f"{parts!r}, one name: the file is divided by {name}; save it again with commas"
    return ", ".join(_name(column) or "''" for column in columns[:30]) or "none"


def _name(column: str) -> str:
    is_name = len(column) <= 40 and column.count(" ") <= 2 and column.isprintable()
    return column if is_name else f"<{len(column)} characters>"
