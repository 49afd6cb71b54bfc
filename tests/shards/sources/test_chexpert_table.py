"""The table of CheXpert Plus: every form of its CSV gives the same studies, a broken row costs itself and no other."""

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import DataError
from shards.sources.chexpert_plus.source import ChexpertPlus
from shards.sources.tables import Table, read_span
from shards.study import BadStudy
from tests.shards.sources.chexpert_tree import COLUMNS, CSV, ChexpertTree, write_chexpert_tree

LATERAL = 1
"""Row, from 0, of the lateral film of patient00002/study1, whose frontal film follows."""

LONG = f"{'x' * 59}\n" * 35_000


@pytest.fixture
def tree(tmp_path: Path) -> ChexpertTree:
    return write_chexpert_tree(tmp_path / "raw")


def reports(source: ChexpertPlus) -> dict[str, str]:
    """Study → report, of everything that is listed."""
    return {item.id: source.read(item)[0].report for item in source.listing().items}


@given(st.lists(st.lists(st.text('ab",\n\r é', max_size=8), min_size=3, max_size=3)), st.sampled_from(["\n", "\r\n"]))
def test_any_cells_are_found_again_by_their_bytes(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], newline: str
) -> None:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator=newline, quoting=csv.QUOTE_ALL)
    writer.writerows([["one", "two", "three"], *rows])
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(out.getvalue().encode())
    table = Table(path, ["two"])
    found = list(table.rows())
    assert table.columns == ["one", "two", "three"]
    assert [list(row.cells.values()) for row in found] == rows
    assert [row.number for row in found] == list(range(1, len(rows) + 1))
    assert [table.parse(read_span(path, row.span)) for row in found] == rows


def reorder(columns: tuple[str, ...]) -> list[str]:
    return sorted(columns, key=lambda name: name.split("_")[-1])


@pytest.mark.parametrize(
    "form",
    [
        {"encoding": "utf-8-sig"},
        {"newline": "\r\n"},
        {"newline": "\r\n", "encoding": "utf-8-sig", "columns": reorder(COLUMNS)},
        {"columns": ["index", *COLUMNS]},
        {"columns": [name for name in COLUMNS if name not in ("race", "section_history", "path_to_dcm", "report")]},
    ],
    ids=["mark", "crlf", "other order", "index column", "fewer columns"],
)
def test_forms_of_the_csv_give_the_same_studies(tree: ChexpertTree, form: dict) -> None:
    tree.rows[3]["section_findings"] = 'Größe "normal", \u2028 1 cm\r\nand, \x0b more.'
    tree.write()
    wanted = reports(ChexpertPlus(raw=tree.root))
    tree.write(**form)
    tree.table.write_bytes(tree.table.read_bytes().rstrip(b"\r\n"))
    assert reports(ChexpertPlus(raw=tree.table)) == wanted
    assert "Größe" in wanted["patient00002/study2"]


def change_row(tree: ChexpertTree, change: Callable[[bytes], bytes], number: int = LATERAL) -> int:
    """Change the bytes of one row of the CSV; returns the byte at which it begins."""
    starts = [tree.table.read_bytes().index(row["path_to_image"].encode() + b",") for row in tree.rows]
    data = tree.table.read_bytes()
    at, end = starts[number], [*starts, len(data)][number + 1]
    tree.table.write_bytes(data[:at] + change(data[at:end]) + data[end:])
    return at


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda row: row.replace(b'"NARR', b'"NA"RR', 1), "not CSV"),
        (lambda row: row.replace(b"Drawn chest,", b'"Drawn chest,', 1), "not CSV: ',' expected"),
        (lambda row: row.replace(b",No,", b',"No,', 1), "a quote is never closed"),
        (lambda row: row.replace(b'"NARRATIVE', b"NARRATIVE", 1), "cells where the header has 27"),
        (lambda row: row.replace(b"Female,", b"", 1), "26 cells where the header has 27"),
        (lambda row: row.replace(b"Female,", b"Female,,", 1), "28 cells where the header has 27"),
        (lambda row: row.replace(b"Female", b"Fem\xffle", 1), r"not UTF-8 at byte \d+"),
        (lambda row: row.replace(b"Female", b"x" * 2_100_000, 1), "no end within 2,000,000 bytes"),
        (lambda row: row.replace(b"Drawn chest", LONG.encode(), 1), "no end within 2,000,000 bytes"),
        (lambda row: row.replace(b"Female", b"Fem\rale", 1), "not CSV"),
    ],
)
def test_a_broken_row_costs_itself_and_is_named(
    tree: ChexpertTree, change: Callable[[bytes], bytes], fault: str
) -> None:
    wanted = reports(ChexpertPlus(raw=tree.root))
    at = change_row(tree, change)
    source = ChexpertPlus(raw=tree.root)
    assert reports(source) == wanted
    [drop] = source.listing().drops
    assert (drop.id, drop.reason) == ("train/patient00002/study1/view2_lateral", "row cannot be read")
    assert drop.detail.startswith(f"row 2, bytes {at} to ")
    assert re.search(fault, drop.detail)


@pytest.mark.parametrize("where", [b"Drawn chest,", b"coughing", b"\n1. ", b",Female", b"valid"])
def test_a_file_that_ends_inside_a_row_is_refused(tree: ChexpertTree, where: bytes) -> None:
    data = tree.table.read_bytes()
    at = data.rindex(tree.rows[-1]["path_to_image"].encode())
    tree.table.write_bytes(data[: data.rindex(where)])
    if where == b"valid":
        tree.table.write_bytes(data[: data.rindex(where) - 1])
    with pytest.raises(
        DataError, match=rf"{CSV}: row {len(tree.rows)}, which begins on line \d+ at byte {at}, and all that"
    ):
        ChexpertPlus(raw=tree.root).listing()


@pytest.mark.parametrize("number", [LATERAL, -1])
def test_a_row_that_is_too_long_is_skipped_where_rows_can_be_told_apart(tree: ChexpertTree, number: int) -> None:
    tree.rows[number]["report"] = LONG
    tree.write()
    source = ChexpertPlus(raw=tree.root)
    assert [drop.id for drop in source.listing().drops] == [tree.rows[number]["path_to_image"].removesuffix(".jpg")]
    tree.write(columns=reorder(COLUMNS))
    with pytest.raises(DataError, match="and all that follows cannot be read: no end within 2,000,000 bytes"):
        source.listing()


def test_a_file_that_ends_inside_a_row_too_long_is_refused(tree: ChexpertTree) -> None:
    tree.rows[-1]["report"] = LONG
    tree.write()
    data = tree.table.read_bytes()
    tree.table.write_bytes(data[: data.rindex(b"x" * 59)])
    with pytest.raises(DataError, match=f"row {len(tree.rows)}, which .*: the file ends inside it"):
        ChexpertPlus(raw=tree.root).listing()


def test_a_quote_that_swallows_the_rest_is_refused_in_any_order_of_columns(tree: ChexpertTree) -> None:
    tree.write(columns=reorder(COLUMNS))
    data = tree.table.read_bytes()
    at = data.index(b"Female")
    tree.table.write_bytes(data[:at] + b'"' + data[at:].replace(b'"', b""))
    with pytest.raises(DataError, match="row 1, which begins on line 2 at byte .*: the file ends inside it"):
        ChexpertPlus(raw=tree.root).listing()


def test_a_csv_changed_after_it_was_listed_is_noticed(tree: ChexpertTree) -> None:
    source = ChexpertPlus(raw=tree.root)
    item = source.listing().items[1]
    change_row(tree, lambda row: row.replace(b"Female", b"Femine", 1), LATERAL + 1)
    with pytest.raises(BadStudy, match=rf"report file changed: {CSV} is not what was listed"):
        source.read(item)
    tree.table.unlink()
    with pytest.raises(DataError, match=rf"{CSV}.*cannot be read"):
        source.read(item)
