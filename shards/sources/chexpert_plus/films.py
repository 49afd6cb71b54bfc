"""Films of CheXpert Plus: what their paths say, where they lie, and which rows of the CSV describe one."""

import re
from pathlib import Path
from typing import Literal, NamedTuple

from shards.errors import DataError
from shards.sources.chexpert_plus.table import Row, read_header
from shards.sources.spans import Span, shown_names
from shards.study import BadStudy

Position = Literal["frontal", "lateral", "unknown"]
PATH = re.compile(r"(?:train|valid|test)/(patient[0-9]{1,12})/(study[0-9]{1,12})/(\w[\w-]{0,59})\.\w{2,4}", re.ASCII)
FOLDERS = {"png": ("PNG", "PNG/PNG", "PNGs"), "dicom": ("DICOM", "DICOM/DICOM")}
"""Where the archives unpack to, below the root."""
ALWAYS = ("path_to_image", "deid_patient_id", "frontal_lateral", "split")


class Film(NamedTuple):
    """One film, as a row of the CSV describes it."""

    path: str
    file: str
    """Where it lies below its folder, but for the suffix: `path`, or the CSV's path_to_dcm."""
    position: Position
    split: str
    """As released: train or valid."""
    row: int
    span: Span
    text: int
    """Hash of the target section, case and white space left out; 0 where the section is blank."""


def patient_of(path: str) -> str:
    """patientN of a film's path."""
    return path.split("/")[1]


def study_of(path: str) -> str:
    """patientN/studyM of a film's path: studies are counted from 1 for every patient."""
    return "/".join(path.split("/")[1:3])


def stem_of(path: str) -> str:
    """A film's path without its suffix: tables say .jpg where the released files are .png."""
    return path.rpartition(".")[0] or path


def folder_of(root: Path, films: str) -> str:
    """The folder below `root` that holds train/ or valid/ with films of the kind asked for, "auto" being PNG first."""
    kinds = list(FOLDERS) if films == "auto" else [films]
    folders = [folder for kind in kinds for folder in FOLDERS[kind]]
    for folder in folders:
        if any((root / folder / part).is_dir() for part in ("train", "valid")):
            return folder
    raise DataError(f"{root} has no films: none of {', '.join(folders)} is there with train/ or valid/ in it")


def suffix_of(folder: str) -> str:
    """The suffix of the films that a folder of `FOLDERS` holds."""
    return ".dcm" if folder in FOLDERS["dicom"] else ".png"


def refuse_path(path: str, place: str) -> None:
    """BadStudy unless the path is split/patientN/studyM/film.suffix, so that it cannot lead elsewhere either."""
    if PATH.fullmatch(path):
        return
    shown = repr(path) if re.fullmatch(r"[\w./\\:~-]{1,200}", path, re.ASCII) else f"a text of {len(path)} characters"
    leaves = path.startswith("/") or "\\" in path or ".." in path.split("/")
    reason = "path leaves the data root" if leaves else "path names no film of a study"
    raise BadStudy(reason, f"{place}: {shown} is not train or valid/patientN/studyM/film.jpg")


def position_of(word: str) -> Position:
    """The position that a word of the CSV or a film's name tells."""
    return "frontal" if "frontal" in word.lower() else "lateral" if "lateral" in word.lower() else "unknown"


def order(position: Position, path: str) -> tuple[bool, bool, str]:
    """Sorts the films of a study: frontal first, lateral last, then by path."""
    return position != "frontal", position == "lateral", path


def columns_of(path: Path, section: str, dicom: bool) -> dict[str, int]:
    """Column name → its place; DataError when one that is needed is missing."""
    names = read_header(path)
    needed = [*ALWAYS, f"section_{section}", *(["path_to_dcm"] if dicom else [])]
    if missing := [name for name in needed if name not in names]:
        raise DataError(f"{path}: missing columns: {', '.join(missing)}; found: {shown_names(names)}")
    return {name: at for at, name in enumerate(names)}


def film_of(row: Row, columns: dict[str, int], section: str, dicom: bool) -> Film:
    """The film of one row; BadStudy when the row does not describe one."""
    place = f"row {row.number}, {row.span.place}"
    if row.fault:
        raise BadStudy("row cannot be read", f"{place}: {row.fault}", row.begins)
    path, patient, view, split = (row.cells[columns[name]].strip() for name in ALWAYS)
    file = row.cells[columns["path_to_dcm"]].strip() if dicom else path
    refuse_path(path, place)
    refuse_path(file, f"{place}, path_to_dcm")
    text = " ".join(row.cells[columns[f"section_{section}"]].split()).casefold()
    hashed = (hash(text) or 1) if text else 0
    film = Film(path, file, position_of(view or path), split.lower(), row.number, row.span, hashed)
    if patient not in ("", patient_of(path)):
        raise BadStudy("patients differ", f"{place}: deid_patient_id is not the patient of the path", path)
    return film
