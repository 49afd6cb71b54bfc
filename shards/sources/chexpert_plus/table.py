"""The table of CheXpert Plus, a CSV of a gigabyte with reports in its cells: rows known by the bytes they lie in.

The driver learns where each row lies and its digest; a worker reads the span again. So no process holds the reports,
and a file that was changed in between is noticed.
"""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from shards.errors import DataError
from shards.sources.spans import Span, span_of

MAX_ROW_BYTES = 2_000_000
"""Longest row of the table that is read; a report has a few thousand bytes."""
BEGINS = re.compile(rb'(?:[^,"\r\n]*,)??"?((?:train|valid|test)/patient\d+/study\d+/[^,"\r\n]*)"?,')
"""How a row begins whose first or second column is the film's path, and how no line inside a report does."""
UNCLOSED, TOO_LONG, CUT = "a quote is never closed", f"no end within {MAX_ROW_BYTES:,} bytes", "the file ends inside it"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Row(NamedTuple):
    """One row of the table; where it has a `fault` it has no cells, and `begins` is the path it begins with or ""."""

    number: int
    """1 for the row after the header."""
    span: Span
    cells: list[str]
    fault: str = ""
    begins: str = ""


def parse_row(data: bytes) -> list[str]:
    """Cells of one row of CSV (RFC 4180, UTF-8); UnicodeDecodeError or csv.Error when it is none."""
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))
    return next(csv.reader([data.decode()], strict=True))


def read_header(path: Path) -> list[str]:
    """Column names, of which a byte-order mark is no part; DataError when the first row holds none."""
    with open(path, "rb") as file:
        _, _, data, fault = next(_records(file), (0, 0, b"", "the file is empty"))
    row = _row(Span(0, 0), data.removeprefix(BYTE_ORDER_MARK), fault)
    if row.fault:
        raise DataError(f"{path}: the first row holds no column names: {row.fault}. It must be CSV in UTF-8")
    return row.cells


def read_rows(path: Path) -> Iterator[Row]:
    """Every row after the header, in order, one in memory at a time.

    A row that cannot be parsed comes with its fault and reaches to where the next row begins, so that a quote which is
    never closed costs one row. Raises DataError, naming row and byte, where the file ends inside a row or no later row
    can be recognised: what should follow is lost, and nothing else would tell.
    """
    names = read_header(path)
    recognised = "path_to_image" in names[:2]
    number, broken = 0, None
    with open(path, "rb") as file:
        records = _records(file)
        next(records)
        for at, size, data, fault in records:
            row = _row(Span(at, size), data, fault, len(names))
            if broken and row.fault and row.fault != CUT and recognised and not row.begins:
                broken = broken._replace(span=Span(broken.span.at, at + size - broken.span.at))
                continue
            number += 1
            if row.fault == CUT or (row.fault == TOO_LONG and not recognised):
                raise DataError(
                    f"{path}: row {number}, which begins at byte {at}, and all that follows cannot be read: "
                    f"{row.fault}. If the copy broke off, fetch it again; if a quote is not closed there, close it"
                )
            if broken:
                yield broken
            broken = row._replace(number=number) if row.fault else None
            if not row.fault:
                yield row._replace(number=number)
    if broken:
        yield broken


def _records(file: BinaryIO) -> Iterator[tuple[int, int, bytes, str]]:
    """(byte, size, data, fault) of every record, which ends with the line where its quotes become even in number."""
    at, size, quotes = 0, 0, 0
    held: list[bytes] = []
    while line := file.readline(MAX_ROW_BYTES):
        if held and b"/patient" in line and BEGINS.match(line):
            yield at, size, b"".join(held), TOO_LONG if size > MAX_ROW_BYTES else UNCLOSED
            at, size, quotes, held = at + size, 0, 0, []
        if size <= MAX_ROW_BYTES:
            held.append(line)
        size, quotes = size + len(line), quotes + line.count(b'"')
        whole = line.endswith(b"\n") or len(line) < MAX_ROW_BYTES
        if quotes % 2 == 0 and size <= MAX_ROW_BYTES and whole:
            if any(map(bytes.strip, held)):
                yield at, size, b"".join(held), ""
            at, size, quotes, held = at + size, 0, 0, []
    if held:
        yield at, size, b"".join(held), CUT if quotes % 2 or size <= MAX_ROW_BYTES else TOO_LONG


def _row(span: Span, data: bytes, fault: str, width: int = 0) -> Row:
    """The row in `data`, which must have `width` cells where that is known."""
    begins = BEGINS.match(data)
    path = begins[1].decode("ascii", "replace") if begins else ""
    try:
        cells = [] if fault else parse_row(data)
    except UnicodeDecodeError as error:
        fault = f"not UTF-8 at byte {span.at + error.start}"
    except csv.Error as error:
        fault = f"not CSV: {error}"
    else:
        if not fault and width and len(cells) != width:
            cut = len(cells) < width and not data.endswith(b"\n")
            fault = CUT if cut else f"{len(cells)} cells where the header has {width}"
    return Row(0, span, [], fault, path) if fault else Row(0, span_of(span.at, data), cells)
