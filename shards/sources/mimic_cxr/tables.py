"""The tables of MIMIC-CXR-JPG 2.0.0 and 2.1.0, which kept their names: splits, view positions, labels.

They are read row by row; row 1 is the header. Nothing said here of a row quotes it: a cell may hold an identifier, or a
report where columns were mixed up.
"""

import csv
import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from sys import intern
from typing import IO, NamedTuple

from shards.errors import DataError
from shards.study import BadStudy, Drop, Split

VERSION = "2.0.0"
MAX_ROWS = 2_000_000
MAX_LINE = 65_536
DICOM = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{8}){4}")
NUMBER = re.compile(r"[0-9]{8}")
COLUMN_NAME = re.compile(r"[A-Za-z_]{1,60}( [A-Za-z_]{1,60})?")
SPLIT_NAMES: dict[str, Split] = {"train": "train", "validate": "val", "test": "test"}
LABELS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)
CODES = {"1.0": "1", "1": "1", "0.0": "0", "0": "0", "-1.0": "-", "-1": "-", "": "."}
"""Cell of a label file → the letter that stands for it in a study's labels."""
FETCH = "If the copy broke off, fetch the file again"


def find_table(raw: Path, table: str) -> Path | None:
    """The file of a table below `raw`, packed as distributed or unpacked; None when it is not there."""
    names = (f"mimic-cxr-{VERSION}-{table}.csv.gz", f"mimic-cxr-{VERSION}-{table}.csv")
    return next((raw / name for name in names if (raw / name).is_file()), None)


def need_table(raw: Path, table: str, else_: str = "") -> Path:
    """The same; DataError where there is none, with `else_` as another way out."""
    if (found := find_table(raw, table)) is None:
        there = ", ".join(sorted(path.name for path in raw.glob("mimic-cxr-*.csv*"))) or "no table at all"
        raise DataError(
            f"{raw} has no mimic-cxr-{VERSION}-{table}.csv.gz (or .csv); found: {there}. raw must be the directory of "
            f"MIMIC-CXR-JPG 2.0.0 or 2.1.0, or hold its tables beside files/{else_}"
        )
    return found


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """(row, cells of the columns asked for) of every row; no cells when the row is too short or its quotes are open.

    Raises DataError when a column is missing, or naming the row where the file is no UTF-8, no gzip or breaks off.
    """
    row = 0
    try:
        with _open(path) as file:
            places: list[int] = []
            for row, line in enumerate(_lines(path, file), 1):
                cells = _cells(line)
                if row == 1:
                    places = _places(path, cells, columns)
                elif line.strip():
                    whole = len(cells) > max(places)
                    yield row, [cells[place].strip() for place in places] if whole else []
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        cause = "it is no UTF-8" if isinstance(error, UnicodeDecodeError) else f"{type(error).__name__}: {error}"
        raise DataError(f"{path} cannot be read after row {row}: {cause}. {FETCH}") from None
    if row == 0:
        _places(path, [], columns)


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return open(path, encoding="utf-8-sig", newline="")


def _lines(path: Path, file: IO[str]) -> Iterator[str]:
    """Lines of bounded length and number: gzip can make gigabytes out of nothing."""
    for row in range(1, MAX_ROWS + 2):
        line = file.readline(MAX_LINE)
        if len(line) == MAX_LINE or row > MAX_ROWS:
            bounds = f"{MAX_LINE:,} characters in a row or {MAX_ROWS:,} rows"
            raise DataError(f"{path}: row {row} goes beyond {bounds}, which no table of MIMIC-CXR has")
        if not line:
            return
        yield line


def _cells(line: str) -> list[str]:
    """Cells of one line: in these tables no cell holds a line break, so an open quote costs one row."""
    try:
        return next(csv.reader([line], strict=True), [])
    except csv.Error:
        return []


def _places(path: Path, header: list[str], columns: Sequence[str]) -> list[int]:
    names = [name.strip() for name in header]
    if missing := [name for name in columns if name not in names]:
        shown = [name for name in names if COLUMN_NAME.fullmatch(name)][:20]
        hidden = f" and {len(names) - len(shown)} cells that are no column names" if len(names) > len(shown) else ""
        raise DataError(
            f"{path}: row 1 lacks the columns {', '.join(missing)}; it has {', '.join(shown) or 'none'}{hidden}. It "
            f"must be the table of MIMIC-CXR-JPG with its header"
        )
    return [names.index(name) for name in columns]


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
class Listed:
    """A study as the split table lists it."""

    row: int
    patient: str
    """Eight digits."""
    split: Split
    films: list[str] = field(default_factory=list)
    """dicom_ids in the order listed."""


def read_split(path: Path) -> tuple[dict[str, Listed], list[Drop]]:
    """study_id → its films, and the rows that cannot be used.

    Raises DataError naming both rows when two rows of one study differ in split or patient.
    """
    studies: dict[str, Listed] = {}
    drops, seen = [], set[str]()
    for row, cells in read_rows(path, ("dicom_id", "study_id", "subject_id", "split")):
        try:
            dicom, study, patient, split = _checked(path, row, cells, seen)
        except BadStudy as error:
            drops.append(error.drop(f"row {row}", SPLIT_NAMES.get(cells[3], "") if cells else ""))
            continue
        seen.add(dicom)
        listed = studies.setdefault(study, Listed(row, intern(patient), split))
        if (listed.patient, listed.split) != (patient, split):
            what = "patients" if listed.patient != patient else f"splits, {listed.split} and {split}"
            raise DataError(
                f"{path}: rows {listed.row} and {row} put one study into two {what}. A model would be tested on what "
                f"it was trained on. {FETCH}; else mend the rows"
            )
        listed.films.append(dicom)
    return studies, drops


def _checked(path: Path, row: int, cells: list[str], seen: set[str]) -> tuple[str, str, str, Split]:
    """The cells of one row of the split table; BadStudy when they are not what they should be."""
    place = f"{path.name} row {row}"
    if not cells:
        raise BadStudy("row is malformed", f"{place}: too few cells, or a quote that is not closed")
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
    return dicom, study, patient, SPLIT_NAMES[split]


def read_positions(path: Path) -> dict[str, str]:
    """dicom_id → ViewPosition, "" where it is empty or two rows differ."""
    positions: dict[str, str] = {}
    for _, cells in read_rows(path, ("dicom_id", "ViewPosition")):
        if cells and DICOM.fullmatch(cells[0]):
            position = intern(cells[1].upper()[:40])
            if positions.setdefault(cells[0], position) != position:
                positions[cells[0]] = ""
    return positions


def read_labels(path: Path) -> tuple[dict[str, str], dict[str, int]]:
    """study_id → 14 letters in the order of `LABELS` (see `CODES`), and study_id → row for rows that are no labels.

    A study is in the second when a cell is neither 1, 0, -1 nor empty, or when two of its rows differ.
    """
    labels: dict[str, str] = {}
    faults: dict[str, int] = {}
    for row, cells in read_rows(path, ("study_id", *LABELS)):
        if not cells or not NUMBER.fullmatch(cells[0]):
            continue
        code = "".join(CODES.get(cell, "?") for cell in cells[1:])
        if "?" in code or labels.setdefault(cells[0], intern(code)) != code:
            faults.setdefault(cells[0], row)
    return labels, faults
