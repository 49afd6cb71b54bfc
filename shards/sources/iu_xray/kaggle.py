"""IU X-Ray as two CSV files, Kaggle's indiana_reports.csv and indiana_projections.csv."""

import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from shards.sources.iu_xray.exam import SECTIONS, Exam, Form, Position, exam_id, film_name, listed_films, position_of
from shards.sources.iu_xray.films import PROJECTIONS, read_rows
from shards.sources.tables import Row
from shards.study import BadStudy, Drop

UID = re.compile(r"\d{1,9}")
FACTS = {"MeSH": "mesh", "Problems": "problems", "image": "caption"}
BROKEN = "row has another number of cells"


@dataclass
class Projections:
    """The films that indiana_projections.csv lists."""

    films: defaultdict[str, list[tuple[str, Position]]] = field(default_factory=lambda: defaultdict(list))
    """CXR number → (file name, position) as listed."""
    faults: dict[str, BadStudy] = field(default_factory=dict)
    """CXR number → why its films are not known."""
    drops: list[Drop] = field(default_factory=list)
    """Films that belong to no number."""
    others: list[str] = field(default_factory=list)
    """Files whose projection is neither word."""


def read_kaggle(path: Path) -> Form:
    """Every row of the reports with its films, and a drop for every examination that has films and no report.

    Raises:
        DataError: one of the two files is missing or is not such a table.
    """
    projections, form, listed = _read_projections(path.with_name(PROJECTIONS)), Form("csv", path), set[str]()
    for row in read_rows(path, ("uid", *sorted(SECTIONS))):
        patient, place = _patient(row), f"{path.name} line {row.line}"
        listed.add(patient)
        try:
            form.entries.append(_exam(row, patient, place, projections))
        except BadStudy as error:
            form.entries.append(error.drop(patient or place))
    for patient in sorted((projections.films.keys() | projections.faults.keys()) - listed):
        files = [name for name, _ in projections.films.get(patient, ())]
        detail = f"{PROJECTIONS} lists {', '.join(files)[:200]!r}, {path.name} has no row of {patient}"
        form.entries.append(Drop(id=exam_id(patient, map(film_name, files)), reason="no report", detail=detail))
    form.entries += projections.drops
    if others := projections.others:
        some = ", ".join(repr(name[:100]) for name in others[:5])
        form.notes.append(f"{PROJECTIONS}: {len(others)} films are neither Frontal nor Lateral: {some}")
    return form


def _read_projections(path: Path) -> Projections:
    projections = Projections()
    for row in read_rows(path, ("uid", "filename", "projection")):
        patient, place = _patient(row), f"{path.name} line {row.line}"
        if not patient:
            detail = f"{place}: uid {row.cells.get('uid', '')[:50]!r} is no number"
            projections.drops.append(Drop(id=place, reason="film of no examination", detail=detail))
        elif row.fault:
            projections.faults[patient] = BadStudy(BROKEN, f"{place}: {row.fault}")
        else:
            position = position_of(row.cells["projection"])
            projections.films[patient].append((row.cells["filename"].strip(), position))
            if position == "unknown":
                projections.others.append(row.cells["filename"])
    return projections


def _patient(row: Row) -> str:
    uid = row.cells.get("uid", "").strip()
    return f"CXR{int(uid)}" if UID.fullmatch(uid) else ""


def _exam(row: Row, patient: str, place: str, projections: Projections) -> Exam:
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
        facts={fact: row.cells[column] for column, fact in FACTS.items() if row.cells.get(column)},
    )
