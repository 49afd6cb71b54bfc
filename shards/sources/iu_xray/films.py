"""Where the films of an IU X-Ray directory lie, and what the tables beside them say of each.

The films of an examination are taken from the first of these places that holds all of them, by the name that
`film_name` gives, so that CXR12_IM-0137-2001.png and 12_IM-0137-2001.dcm.png are the same film:

1. images/
2. images/images_normalized/ (Kaggle's archive)
3. NLMCXR_png/ (Open-i's archive)
4. images/, by the columns file and nlm_image_id of images.csv

Two places are never mixed within an examination: they hold different renderings of a film.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from shards.errors import DataError
from shards.sources.iu_xray.exam import FRONTAL_FIRST, SUFFIX, Exam, ListedFilm, Position, film_name, position_of
from shards.sources.tables import Row, Table
from shards.study import BadStudy

IMAGES = "images"
FOLDERS = ((IMAGES, ""), (IMAGES, "images_normalized/"), ("NLMCXR_png", ""))
TABLE = "images.csv"
PROJECTIONS = "indiana_projections.csv"
LOOKED = "images/, images/images_normalized/, NLMCXR_png/ and, by images.csv, below images/"
MAX_ROWS, MAX_TABLE_BYTES = 50_000, 30_000_000
"""Of a table; Kaggle's longest has 7,466 rows, its largest 2 million bytes."""


def read_rows(path: Path, needed: Sequence[str]) -> Iterator[Row]:
    """The rows of a `Table` with the columns `needed`; DataError also when it is too large or has none."""
    table, row = Table(path, needed, max_rows=MAX_ROWS, max_bytes=MAX_TABLE_BYTES), None
    for row in table.rows():
        yield row
    if row is None:
        raise DataError(f"{path} holds a header and no rows")


class FilmIndex:
    """The films below one raw directory. Directories are listed once, when a film is first looked up."""

    def __init__(self, root: Path):
        """Read the tables that are there; what is wrong with one is said in `notes`, never an error."""
        self.root, self.notes = root, list[str]()
        self._files: dict[str, str] = {}
        """Film name → path below images/."""
        self._positions: dict[str, Position] = {}
        self._ids: dict[str, str] = {}
        """Film name → id of its examination."""
        self._learn(PROJECTIONS, "filename", "projection", needed=("filename", "projection"))
        self._learn(TABLE, "nlm_image_id", "view", needed=("file", "nlm_image_id"))
        self._names = {file: name for name, file in self._files.items()}

    def _learn(self, table: str, name_column: str, view_column: str, needed: Sequence[str]) -> None:
        """Add what a table tells; of one with any fault nothing is used."""
        if not (self.root / table).is_file():
            return
        files, positions, ids = dict(self._files), dict(self._positions), dict(self._ids)
        contradicted = []
        try:
            for row in read_rows(self.root / table, needed):
                if row.fault:
                    raise DataError(f"{table} line {row.line}: {row.fault}")
                name, position = film_name(row.cells[name_column]), position_of(row.cells.get(view_column, ""))
                if position != "unknown" and positions.setdefault(name, position) != position:
                    contradicted.append(name)
                if table == TABLE:
                    if files.setdefault(name, row.cells["file"]) != row.cells["file"]:
                        other = f"{name!r} has two files, the other is {files[name]!r}"
                        raise DataError(f"{table} line {row.line}: {other}")
                    if identifier := row.cells.get("exam_id", ""):
                        ids.setdefault(name, identifier)
        except DataError as error:
            self.notes.append(f"{table} is not used for film names and positions: {error}")
            return
        self._files, self._positions, self._ids = files, positions, ids
        if contradicted:
            some = ", ".join(contradicted[:5])
            self.notes.append(f"{table}: another view than in {PROJECTIONS}, which counts: {some}")

    def completed(self, exam: Exam) -> Exam:
        """The examination with what the tables add: names, positions, its id; films of known names frontal first."""
        films = []
        for film in exam.films:
            name, position = film.name or self._names.get(film.file, ""), film.position
            if position == "unknown":
                position = self._positions.get(name, "unknown")
            films.append(replace(film, name=name, position=position))
        looked_up = all(not film.file for film in films)
        known = next((self._ids[film.name] for film in films if film.name in self._ids), "")
        films.sort(key=lambda film: (FRONTAL_FIRST[film.position], film.name if looked_up else ""))
        return replace(exam, films=tuple(films), id=known if known and looked_up else exam.id)

    def find(self, films: Sequence[ListedFilm], place: str) -> tuple[str, list[str]]:
        """(folder below the root, paths below that folder) of films listed by name.

        BadStudy "film is missing" names the first that is not where most of them are.
        """
        counts = [sum(film.name in files for film in films) for _, files in self._places]
        folder, files = self._places[counts.index(max(counts))]
        if missing := [film.name for film in films if film.name not in files]:
            detail = f"{place}: {missing[0]!r} is in none of {LOOKED}; {max(counts)} of {len(films)} films are there"
            raise BadStudy("film is missing", detail, missing[0])
        return folder, [files[film.name] for film in films]

    def refuse_empty(self) -> None:
        """DataError when no film at all is there."""
        if not any(files for _, files in self._places):
            why = f" ({'; '.join(self.notes)})" if self.notes else ""
            raise DataError(
                f"{self.root} holds no films: none found in {LOOKED}{why}. R2Gen's images/ID/0.png do not say which "
                "film they are; images.csv with the columns file and nlm_image_id does"
            )

    @cached_property
    def _places(self) -> list[tuple[str, dict[str, str]]]:
        """(folder below the root, film name → path below that folder) of each place, in the order they are tried."""
        below = {folder: [*filter(_is_unicode, _films_below(self.root / folder))] for folder in dict(FOLDERS)}
        places = []
        for folder, prefix in FOLDERS:
            names: dict[str, str] = {}
            for file in sorted(below[folder], key=lambda file: (not file.lower().endswith(".png"), file)):
                if file.startswith(prefix) and "/" not in file.removeprefix(prefix):
                    names.setdefault(film_name(file), file)  # .png before .jpg where both are there
            places.append((folder, names))
        there = set(below[IMAGES])
        return [*places, (IMAGES, {name: file for name, file in self._files.items() if file in there})]


def _films_below(folder: Path) -> Iterator[str]:
    """Paths, below `folder`, of the films directly in it and in its directories."""
    for entry in os.scandir(folder) if folder.is_dir() else ():
        if entry.is_dir():
            yield from (f"{entry.name}/{inner.name}" for inner in os.scandir(entry.path) if SUFFIX.search(inner.name))
        elif SUFFIX.search(entry.name):
            yield entry.name


def _is_unicode(file: str) -> bool:
    """Whether the bytes of a path are UTF-8; no shard can hold another."""
    return file.encode(errors="replace").decode() == file
