"""CSV tables in general: every row is given, given with its fault, or the file is refused; nothing is quoted."""

import csv
import gzip
import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import DataError
from shards.sources.tables import Table, read_span

BEGINS = re.compile(rb"(p\d+),")
Write = Callable[..., Path]


def short(value: object) -> str:
    """Name of a test's value, which may have megabytes."""
    return repr(value)[:40]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Function (text or bytes, name) → the file."""

    def to(data: str | bytes, name: str = "t.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    return to


@given(st.lists(st.lists(st.text('ab",\n\r é', max_size=8), min_size=3, max_size=3)), st.sampled_from(["\n", "\r\n"]))
def test_any_cells_are_found_again_by_their_bytes(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], newline: str
) -> None:
    out = io.StringIO()
    csv.writer(out, lineterminator=newline, quoting=csv.QUOTE_ALL).writerows([["one", "two", "three"], *rows])
    path = tmp_path_factory.getbasetemp() / "any_table.csv"
    path.write_bytes(out.getvalue().encode())
    table = Table(path, ("two",))
    found = list(table.rows())
    assert table.columns == ["one", "two", "three"]
    assert [list(row.cells.values()) for row in found] == rows
    assert [row.number for row in found] == list(range(1, len(rows) + 1))
    assert [table.parse(read_span(path, row.span)) for row in found] == rows


def test_rows_with_line_feeds_in_cells_are_known_by_number_line_and_bytes(write: Write) -> None:
    data = '\ufeffid, text \r\nx,"One\r\n""two"", three"\r\n\r\n \r\ny,x\u2028y\x0bz\0\r\nz,'
    path = write(data)
    rows = list(Table(path, ("id", "text")).rows())
    assert [(row.number, row.line, row.cells, row.fault) for row in rows] == [
        (1, 2, {"id": "x", "text": 'One\r\n"two", three'}, ""),
        (2, 6, {"id": "y", "text": "x\u2028y\x0bz\0"}, ""),
        (3, 7, {"id": "z", "text": ""}, ""),
    ]
    assert [read_span(path, row.span)[:2] for row in rows] == [b"x,", b"y,", b"z,"]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_packed_file_gives_the_same_rows(write: Write, newline: str, mark: str) -> None:
    data = (mark + newline.join(["id,text", 'x,"One', 'two"', "", "y,three"])).encode()
    plain, packed = Table(write(data), ("id",)), Table(write(gzip.compress(data), "t.csv.gz"), ("id",))
    assert plain.columns == packed.columns == ["id", "text"]
    assert list(plain.rows()) == list(packed.rows())
    assert [row.line for row in packed.rows()] == [2, 5]


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-20], lambda data: b"no gzip", lambda data: data[:20] + b"x" * 60]
)
def test_a_packed_file_that_is_damaged_is_refused(write: Write, damage: Callable[[bytes], bytes]) -> None:
    data = gzip.compress(b"id,text\n" + b"".join(b"%d,secret %d\n" % (at, at * at) for at in range(200)))
    with pytest.raises(DataError, match=r"t.csv.gz cannot be read after line \d+: .*fetch the file again") as caught:
        list(Table(write(damage(data), "t.csv.gz"), ("id",)).rows())
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("row", "cells"), [("x,secret", 2), ("x,secret,a,b", 4)])
@pytest.mark.parametrize("options", [{}, {"begins": re.compile(rb"(\w),")}])
def test_a_row_with_another_number_of_cells_costs_itself(write: Write, options: dict, row: str, cells: int) -> None:
    rows = list(Table(write(f"id,a,b\nw,1,2\n{row}\ny,3,4\n"), ("id",), **options).rows())
    assert [row.cells["id"] for row in rows] == ["w", "x", "y"]
    assert [row.fault for row in rows] == ["", f"{cells} cells where the header has 3", ""]


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        ("", "is empty: it must be CSV"),
        ("\n \n", "is empty: it must be CSV"),
        ("id,image\nx,a\n", "missing columns: findings; found: id, image"),
        ("id;findings\nx;t\n", "missing columns: id, findings; found: id, findings, one name: .* by semicolons"),
        ("id\tfindings\nx\tt\n", "found: id, findings, one name: the file is divided by tabs; save it again"),
        ("id|findings\nx|t\n", "found: id, findings, one name: the file is divided by vertical bars"),
        ("id,findings,findings\nx,t,u\n", "more than one column findings: rename or remove one"),
        ("x,a,The secret is in the heart\n", "found: x, a, 1 that are no plain names"),
        ("id,findings\rx,t\r", "the first row holds no column names: a line ends with a carriage return"),
        ("\ufeffid,findings\nx,t\n".encode("utf-16-le"), "the first row holds no column names: .* byte 0xff"),
        ('id,"findings\nx,t\n', "the first row holds no column names: the file ends inside it"),
        (b"x" * 2_100_000, "the first row holds no column names: no end within 2,000,000 bytes"),
    ],
    ids=short,
)
def test_files_without_the_columns_are_refused(write: Write, data: str | bytes, cause: str) -> None:
    with pytest.raises(DataError, match=rf"t\.csv.*{cause}") as caught:
        Table(write(data), ("id", "findings"))
    assert "secret" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"t\.csv is missing"):
        Table(tmp_path / "t.csv", ("id",))


@pytest.mark.parametrize(
    ("rows", "where", "cause"),
    [
        (b'x,t\ny,"secret\nz,t\n', "row 2, which begins on line 3 at byte 16", "the file ends inside it"),
        (b'x,"secret\ny,"u"\nz,t\n', "row 1, which begins on line 2 at byte 12", "the file ends inside it"),
        (b'x,"a "secret" b"\n', "row 1, which begins on line 2 at byte 12", "not CSV: ',' expected"),
        ("\nx,t\ny,secret é".encode("latin-1"), "row 2, which begins on line 4 at byte 17", "not UTF-8 at byte 26"),
        (b'x,"' + b"secret" * 340_000 + b'"\n', "row 1, which begins on line 2 at byte 12", "no end within 2,000,000"),
        (b"x,t\ny,sec\rret\n", "row 2, which begins on line 3 at byte 16", "not CSV"),
    ],
    ids=short,
)
def test_what_makes_all_that_follows_doubtful_is_refused(write: Write, rows: bytes, where: str, cause: str) -> None:
    table = Table(write(b"id,findings\n" + rows), ("id",))
    with pytest.raises(DataError, match=rf"t\.csv: {where}, and all that follows cannot be read: {cause}") as caught:
        list(table.rows())
    assert "secret" not in str(caught.value)


def test_short_rows_of_one_line_serve_while_the_needed_columns_are_there(write: Write) -> None:
    path = write(b"id,view,more,last\na,PA,1\nb,AP,1,2,3\nc\n")
    rows = list(Table(path, ("id", "view"), one_line=True).rows())
    assert [(row.cells.get("view"), bool(row.fault)) for row in rows] == [("PA", False), ("AP", False), (None, True)]
    assert [bool(row.fault) for row in Table(path, ("id", "view")).rows()] == [True, True, True]


def test_a_quote_inside_a_cell_that_is_not_quoted_is_a_character(write: Write) -> None:
    path = write(b'id,text\na,2" nodule\nb,"two\nlines, 3"" long"\nc,1" and 2"\n')
    texts = [row.cells["text"] for row in Table(path, ("id",)).rows()]
    assert texts == ['2" nodule', 'two\nlines, 3" long', '1" and 2"']


def test_more_rows_than_allowed_are_refused(write: Write) -> None:
    path = write(b"id\n" + b"a\n" * 30)
    assert len(list(Table(path, ("id",), max_rows=None).rows())) == 30
    with pytest.raises(DataError, match="has more than 29 rows"):
        list(Table(path, ("id",), max_rows=29).rows())


def test_packed_blanks_and_endless_rows_are_refused_before_they_are_all_unpacked(write: Write) -> None:
    """Thirty megabytes of nothing, packed to a thousandth, are refused after half a million lines."""
    blanks = write(gzip.compress(b"id\n" + b"\n" * 30_000_000, 1), "blanks.csv.gz")
    merged = write(b"id,text\np1,\xff\n" + b"a\n" * 2_000)
    for table in (Table(blanks, ("id",)), Table(merged, ("id",), begins=BEGINS, max_rows=1_000)):
        with pytest.raises(DataError, match=r"has more than [\d,]+ rows, which no such table has"):
            list(table.rows())
    with pytest.raises(DataError, match="more than 500 bytes, unpacked"):
        list(Table(write(gzip.compress(b"id\n" + b"a\n" * 300), "t.csv.gz"), ("id",), max_bytes=500).rows())


def test_more_columns_than_a_table_has_are_refused(write: Write) -> None:
    with pytest.raises(DataError, match="has 200,000 columns, which no such table has"):
        Table(write(",".join(f"c{at}" for at in range(200_000)) + "\n"), ("c1",))


BROKEN = [
    (b'"secret', "not CSV|a quote is never closed"),
    (b'"a"secret"b"', "not CSV"),
    (b"secret \xff", r"not UTF-8 at byte \d+"),
    (b"sec\rret", "not CSV"),
    (b'"' + b"secret\n" * 300_000 + b'"', "no end within 2,000,000 bytes"),
]


@pytest.mark.parametrize(("cell", "fault"), BROKEN, ids=short)
def test_where_rows_can_be_told_apart_a_broken_one_costs_itself(write: Write, cell: bytes, fault: str) -> None:
    head = b'id,text\np1,"One\ntwo"\n'
    path = write(head + b"p2," + cell + b"\np3,three\n")
    rows = list(Table(path, ("id",), begins=BEGINS).rows())
    assert [(row.number, row.begins) for row in rows] == [(1, ""), (2, "p2"), (3, "")]
    assert [row.cells.get("text") for row in rows] == ["One\ntwo", None, "three"]
    assert re.match(fault, rows[1].fault) and (rows[0].fault, rows[2].fault) == ("", "")
    assert (rows[1].line, rows[1].span.at, rows[1].span.size) == (4, len(head), len(cell) + 4)


@pytest.mark.parametrize("tail", ['p2,"two', "p2"])
def test_a_file_cut_inside_a_row_is_refused_where_rows_can_be_told_apart(write: Write, tail: str) -> None:
    table = Table(write(f"id,text\np1,one\n{tail}"), ("id",), begins=BEGINS)
    with pytest.raises(DataError, match="row 2, which begins on line 3 at byte 15, .*: the file ends inside it"):
        list(table.rows())


@pytest.mark.parametrize(
    ("row", "fault"), [(b'y,"secret', "not CSV"), (b'y,"a"secret', "not CSV"), (b"y,\xff", "not UTF-8 at byte 14")]
)
def test_where_a_row_is_one_line_a_broken_one_costs_itself(write: Write, row: bytes, fault: str) -> None:
    rows = list(Table(write(b"id,text\nx,1\n" + row + b"\nz,3\n"), ("id",), one_line=True).rows())
    assert [row.cells.get("id") for row in rows] == ["x", None, "z"]
    assert rows[1].fault.startswith(fault) and rows[1].line == 3


def test_a_line_that_is_too_long_is_refused_where_a_row_is_one_line(write: Write) -> None:
    with pytest.raises(DataError, match="row 2, which begins on line 3 at byte 12, .*: no end within 2,000,000 bytes"):
        list(Table(write(b"id,text\nx,1\ny," + b"a" * 2_100_000 + b"\nz,3\n"), ("id",), one_line=True).rows())
