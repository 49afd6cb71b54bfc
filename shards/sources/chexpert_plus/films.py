"""Films of CheXpert Plus: what their paths say, where they lie, and what a row of the CSV says of one."""

import re
from pathlib import Path
from typing import Literal, NamedTuple

from shards.errors import DataError
from shards.sources.split import hash_split
from shards.sources.tables import Row, Span
from shards.study import BadStudy, Split

Position = Literal["frontal", "lateral", "unknown"]
RANK: dict[Position, int] = {"frontal": 0, "unknown": 1, "lateral": 2}
"""Order of the views of a study."""
PATH = re.compile(r"(?:train|valid|test)/(patient[0-9]{1,12})/(study[0-9]{1,12})/\w[\w-]{0,59}\.\w{2,4}", re.ASCII)
BEGINS = re.compile(rb'(?:[^,"\r\n]*,)??"?((?:train|valid|test)/patient\d+/study\d+/[^,"\r\n]*)"?,')
"""How a row begins whose first or second column is the film's path, and how no line inside a report does."""
FOLDERS = {"PNG": ".png", "PNG/PNG": ".png", "PNGs": ".png", "DICOM": ".dcm", "DICOM/DICOM": ".dcm"}
"""Where the archives unpack to, below the root, and the suffix of the films there."""
COLUMNS = ("path_to_image", "deid_patient_id", "frontal_lateral", "split")
"""Needed of the CSV, beside the target's section and, for DICOM, path_to_dcm."""
OFFICIAL: dict[str, Split] = {"train": "train", "valid": "val", "test": "test"}
"""Split as released → ours."""


class FilmRow(NamedTuple):
    """One film, as a row of the CSV describes it."""

    path: str
    file: str
    """Where it lies below its folder, but for the suffix: `path`, or the CSV's path_to_dcm."""
    patient: str
    """patientN of the path."""
    study: str
    """patientN/studyM of the path: studies are counted from 1 for every patient."""
    position: Position
    split: Split | Literal[""]
    """Empty where the CSV's split is none of `OFFICIAL`."""
    row: int
    span: Span
    text: int
    """Hash of the target section, case and white space left out; 0 where the section is blank."""


def folder_of(root: Path, films: str) -> str:
    """The folder below `root` that holds train/ or valid/ with films of the kind asked for, "auto" being PNG first."""
    folders = [folder for folder in FOLDERS if films == "auto" or folder.lower().startswith(films)]
    for folder in folders:
        if any((root / folder / part).is_dir() for part in ("train", "valid")):
            return folder
    raise DataError(f"{root} has no films: none of {', '.join(folders)} is there with train/ or valid/ in it")


def patient_and_study(path: str, place: str) -> tuple[str, str]:
    """patientN and studyM of split/patientN/studyM/film.suffix; BadStudy of a path that is none and may lead out."""
    if parts := PATH.fullmatch(path):
        return parts[1], parts[2]
    shown = repr(path) if re.fullmatch(r"[\w./\\:~-]{1,200}", path, re.ASCII) else f"a text of {len(path)} characters"
    leaves = path.startswith("/") or "\\" in path or ".." in path.split("/")
    reason = "path leaves the data root" if leaves else "path names no film of a study"
    raise BadStudy(reason, f"{place}: {shown} is not train or valid/patientN/studyM/film.jpg")


def position_of(word: str) -> Position:
    """The position that a word of the CSV or a film's name tells."""
    return "frontal" if "frontal" in word.lower() else "lateral" if "lateral" in word.lower() else "unknown"


def film_of(row: Row, section: str, dicom: bool, official: bool) -> FilmRow:
    """The film of one row; BadStudy when the row does not describe one.

    `section` is the target's name, `dicom` takes the place of the film from path_to_dcm, `official` the split from the
    row; else the patient's hash decides it.
    """
    place = f"row {row.number}, {row.span.place}"
    if row.fault:
        raise BadStudy("row cannot be read", f"{place}: {row.fault}", row.begins)
    path, patient, view, split = (row.cells[name].strip() for name in COLUMNS)
    owner, study = patient_and_study(path, place)
    file = row.cells["path_to_dcm"].strip() if dicom else path
    patient_and_study(file, f"{place}, path_to_dcm")
    if patient not in ("", owner):
        raise BadStudy("patients differ", f"{place}: deid_patient_id is not the patient of the path", path)
    text = " ".join(row.cells[f"section_{section}"].split()).casefold()
    return FilmRow(
        path=path,
        file=file,
        patient=owner,
        study=f"{owner}/{study}",
        position=position_of(view or path),
        split=OFFICIAL.get(split.lower(), "") if official else hash_split(owner),
        row=row.number,
        span=row.span,
        text=(hash(text) or 1) if text else 0,
    )
