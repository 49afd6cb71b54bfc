"""IU X-Ray as CSV: Kaggle's indiana_reports.csv and indiana_projections.csv, or one plain reports.csv."""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from shards.sources.iu_xray.exam import (
    SECTIONS,
    Exam,
    Film,
    Listing,
    Position,
    check_id,
    exam_id,
    film_name,
    listed_films,
    patient_of,
    position_of,
)
from shards.sources.iu_xray.table import Row, read_table
from shards.study import BadStudy, Drop

PROJECTIONS = "indiana_projections.csv"
UID = re.compile(r"\d{1,9}")
FACTS = {"MeSH": "mesh", "Problems": "problems", "image": "caption"}
BETWEEN_FILMS = re.compile(r"[;|]")
BROKEN = "row has another number of cells"


@dataclass
class _Projections:
    films: defaultdict[str, list[tuple[str, Position]]] = field(default_factory=lambda: defaultdict(list))
    """CXR number → (file name, position) as listed."""
    faults: dict[str, BadStudy] = field(default_factory=dict)
    """CXR number → why its films are not known."""
    drops: list[Drop] = field(default_factory=list)
    """Films that belong to no number."""
    odd: list[str] = field(default_factory=list)
    """Files whose projection is neither word."""


def read_kaggle(path: Path) -> Listing:
    """Every row of the reports with its films, and a drop for every examination that has films and no report.

    Raises:
        DataError: one of the two files is missing or is not such a table.
    """
    beside = path.with_name(PROJECTIONS)
    films = _projections(beside)
    listing = Listing("kaggle", path)
    rows = read_table(path, ("uid", *sorted(SECTIONS))).rows
    for row in rows:
        patient, place = _patient(row), f"{path.name} line {row.line}"
        try:
            listing.entries.append(_kaggle_exam(row, patient, place, films))
        except BadStudy as error:
            listing.entries.append(error.drop(patient or place))
    listing.entries += [*_without_report(path, films, {_patient(row) for row in rows}), *films.drops]
    if films.odd:
        some = ", ".join(repr(name[:100]) for name in films.odd[:5])
        listing.notes.append(f"{beside.name}: {len(films.odd)} films are neither Frontal nor Lateral: {some}")
    return listing


def _without_report(path: Path, projections: _Projections, listed: set[str]) -> Iterator[Drop]:
    for patient in sorted((projections.films.keys() | projections.faults.keys()) - listed):
        files = [name for name, _ in projections.films.get(patient, ())]
        detail = f"{PROJECTIONS} lists {', '.join(files)[:200]!r}, {path.name} has no row of {patient}"
        yield Drop(id=exam_id(patient, map(film_name, files)), reason="no report", detail=detail)


def _projections(path: Path) -> _Projections:
    found = _Projections()
    for row in read_table(path, ("uid", "filename", "projection")).rows:
        patient, place = _patient(row), f"{path.name} line {row.line}"
        if not patient:
            detail = f"{place}: uid {row.cells.get('uid', '')[:50]!r} is no number"
            found.drops.append(Drop(id=place, reason="film of no examination", detail=detail))
        elif row.fault:
            found.faults[patient] = BadStudy(BROKEN, f"{place}: {row.fault}")
        else:
            position = position_of(row.cells["projection"])
            found.films[patient].append((row.cells["filename"].strip(), position))
            if position == "unknown":
                found.odd.append(row.cells["filename"])
    return found


def _patient(row: Row) -> str:
    uid = row.cells.get("uid", "").strip()
    return f"CXR{int(uid)}" if UID.fullmatch(uid) else ""


def _kaggle_exam(row: Row, patient: str, place: str, projections: _Projections) -> Exam:
    if row.fault:
        raise BadStudy(BROKEN, f"{place}: {row.fault}")
    if not patient:
        raise BadStudy("id is not a name", f"{place}: uid {row.cells['uid'][:50]!r} is no number")
    if patient in projections.faults:
        raise projections.faults[patient]
    films = listed_films(patient, projections.films.get(patient, ()), place)
    return Exam(
        id=exam_id(patient, [film.name for film in films]),
        patient=patient,
        row=row.line,
        place=f"line {row.line}",
        films=films,
        sections={name: row.cells[name] for name in SECTIONS},
        split=row.cells.get("split", "").strip(),
        facts={fact: row.cells[column] for column, fact in FACTS.items() if row.cells.get(column)},
    )


def read_plain(path: Path, needed: tuple[str, ...] = ("findings",)) -> Listing:
    """Every row of a table with the columns id, image and `needed`; other sections and `split` where they are there.

    A cell of `image` holds one path below images/, or several divided by `;` or `|`, frontal first.
    """
    return Listing("plain", path, list(_plain_entries(path, needed)))


def _plain_entries(path: Path, needed: tuple[str, ...]) -> Iterator[Exam | Drop]:
    for row in read_table(path, ("id", "image", *needed)).rows:
        place = f"{path.name} line {row.line}"
        try:
            yield _plain_exam(row, place)
        except BadStudy as error:
            yield error.drop(row.cells.get("id", "") or place)


def _plain_exam(row: Row, place: str) -> Exam:
    if row.fault:
        raise BadStudy(BROKEN, f"{place}: {row.fault}")
    cell = row.cells["image"]
    shown = f"{place}: id {row.cells['id'][:200]!r} with image {cell[:200]!r}"
    identifier = check_id(row.cells["id"].strip(), shown)
    paths = [part.strip() for part in BETWEEN_FILMS.split(cell) if part.strip()]
    return Exam(
        id=identifier,
        patient=patient_of(identifier),
        row=row.line,
        place=f"line {row.line}",
        films=tuple(Film(file=part.removeprefix("images/")) for part in paths),
        sections={name: row.cells[name] for name in SECTIONS if name in row.cells},
        split=row.cells.get("split", "").strip(),
    )
