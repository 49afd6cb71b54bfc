"""The tables of MIMIC-CXR-JPG 2.0.0 and 2.1.0, which kept their names: splits, view positions, labels.

They are read row by row; row 1 is the header. Nothing said here of a row quotes it: a cell may hold an identifier, or a
report where columns were mixed up.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from sys import intern
from typing import NamedTuple

from shards.errors import DataError
from shards.sources.tables import AGAIN, NOT_UTF8, Row, Table
from shards.study import FINDINGS, BadStudy, Drop, Label, Split

VERSION = "2.0.0"
TEST_SET = "test-set-labeled"
"""Table of the labels that radiologists gave to studies of the test split, of release 2.1.0."""
VERSIONS = {TEST_SET: "2.1.0"}
"""In the names of tables that came with a later release."""
CALLED = {"Lung Opacity": "Airspace Opacity"}
"""Finding → its other name, by which the radiologists' table has it."""
MAX_BYTES = 300_000_000
"""Of an unpacked table; the largest has 60 million."""
DICOM = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{8}){4}")
NUMBER = re.compile(r"[0-9]{8}")
SPLIT_NAMES: dict[str, Split] = {"train": "train", "validate": "val", "test": "test"}
CODES = {"1.0": "1", "1": "1", "0.0": "0", "0": "0", "-1.0": "-", "-1": "-", "": "."}
"""Cell of a label file → the letter that stands for it in a study's labels."""
VALUES: dict[str, Label] = {"1": 1, "0": 0, "-": -1, ".": None}
"""That letter → the label."""


class Sample(NamedTuple):
    """What becomes one item, before views and labels are joined."""

    id: str
    study: str
    """Eight digits."""
    patient: str
    """Like p10000032."""
    split: Split
    table: str
    row: int
    films: list[str]
    span: tuple[int, int, str] | None = None
    """Where R2Gen's annotation holds it, when that lists the samples."""


@dataclass(slots=True)
class ListedStudy:
    """A study as the split table lists it."""

    row: int
    patient: str
    """Eight digits."""
    split: Split
    films: list[str] = field(default_factory=list)
    """dicom_ids in the order listed."""


def find_table(raw: Path, table: str) -> Path | None:
    """The file of a table below `raw`, packed as distributed or unpacked; None when it is not there."""
    version = VERSIONS.get(table, VERSION)
    names = (f"mimic-cxr-{version}-{table}.csv.gz", f"mimic-cxr-{version}-{table}.csv")
    return next((raw / name for name in names if (raw / name).is_file()), None)


def need_table(raw: Path, table: str, remedy: str = "") -> Path:
    """The same; DataError where there is none, with `remedy` as another way out."""
    if (path := find_table(raw, table)) is None:
        there = ", ".join(sorted(path.name for path in raw.glob("mimic-cxr-*.csv*"))) or "no table at all"
        name = f"mimic-cxr-{VERSIONS.get(table, VERSION)}-{table}.csv"
        raise DataError(
            f"{raw} has no {name}.gz (or .csv); found: {there}. raw must be the directory of "
            f"MIMIC-CXR-JPG 2.0.0 or 2.1.0, or hold its tables beside files/{remedy}"
        )
    return path


def read_split(path: Path) -> tuple[dict[str, ListedStudy], list[Drop]]:
    """study_id → its films, and the rows that cannot be used.

    Raises DataError naming both rows when two rows of one study differ in split or patient.
    """
    studies: dict[str, ListedStudy] = {}
    drops, seen = [], set[str]()
    for row, cells in _rows(path, ("dicom_id", "study_id", "subject_id", "split")):
        try:
            _check_split_row(row, cells, f"{path.name} row {row.line}", seen)
        except BadStudy as error:
            drops.append(error.drop(f"row {row.line}", SPLIT_NAMES.get(cells[3], "") if cells else ""))
            continue
        dicom, study, patient, split = *cells[:3], SPLIT_NAMES[cells[3]]
        seen.add(dicom)
        listed = studies.setdefault(study, ListedStudy(row.line, intern(patient), split))
        if (listed.patient, listed.split) != (patient, split):
            what = "patients" if listed.patient != patient else f"splits, {listed.split} and {split}"
            raise DataError(
                f"{path}: rows {listed.row} and {row.line} put one study into two {what}. A model would be tested on "
                f"what it was trained on. {AGAIN}; else mend the rows"
            )
        listed.films.append(dicom)
    return studies, drops


def _check_split_row(row: Row, cells: list[str], place: str, seen: set[str]) -> None:
    """BadStudy when the cells of a row of the split table are not what they should be."""
    if row.fault:
        raise BadStudy("row is malformed", f"{place}: {row.fault}; it must be one line with its quotes closed")
    dicom, study, patient, split = cells
    if not DICOM.fullmatch(dicom):
        raise BadStudy("id is not an id", f"{place}: dicom_id is not five groups of eight hexadecimal digits")
    for name, value in (("study_id", study), ("subject_id", patient)):
        if not NUMBER.fullmatch(value):
            raise BadStudy("id is not an id", f"{place}: {name} is not eight digits")
    if split not in SPLIT_NAMES:
        raise BadStudy("unknown split", f"{place}: split is none of {', '.join(SPLIT_NAMES)}")
    if dicom in seen:
        raise BadStudy("duplicate id", f"{place}: its dicom_id stands in an earlier row, which is kept")


def read_positions(path: Path) -> dict[str, str]:
    """dicom_id → ViewPosition, "" where it is empty or two rows differ."""
    positions: dict[str, str] = {}
    for _, cells in _rows(path, ("dicom_id", "ViewPosition")):
        if cells and DICOM.fullmatch(cells[0]):
            position = intern(cells[1].upper()[:40])
            if positions.setdefault(cells[0], position) != position:
                positions[cells[0]] = ""
    return positions


def read_labels(path: Path) -> tuple[dict[str, str], dict[str, int]]:
    """study_id → 14 letters in the order of `FINDINGS` (see `CODES`), and study_id → row for rows that are no labels.

    A study is in the second when a cell is neither 1, 0, -1 nor empty, or when two of its rows differ.
    """
    labels: dict[str, str] = {}
    faults: dict[str, int] = {}
    there = Table(path, ("study_id",), one_line=True, max_bytes=MAX_BYTES).columns
    named = [CALLED[name] if name in CALLED and name not in there else name for name in FINDINGS]
    for row, cells in _rows(path, ("study_id", *named)):
        if not cells or not NUMBER.fullmatch(cells[0]):
            continue
        code = "".join(CODES.get(cell, "?") for cell in cells[1:])
        if "?" in code or labels.setdefault(cells[0], intern(code)) != code:
            faults.setdefault(cells[0], row.line)
    return labels, faults


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[Row, list[str]]]:
    """Every row with its cells of the columns asked for, without blanks around them; no cells where it has a fault.

    Raises DataError when the file is no such table or cannot be read to its end.
    """
    for row in Table(path, columns, one_line=True, max_bytes=MAX_BYTES).rows():
        if row.fault.startswith(NOT_UTF8):
            raise DataError(f"{path} cannot be read from row {row.line} on: {row.fault}. {AGAIN}")
        yield row, [] if row.fault else [row.cells[name].strip() for name in columns]
