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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from shards.errors import DataError
from shards.sources.iu_xray.exam import FRONTAL_FIRST, SUFFIX, Exam, Film, Position, film_name, position_of
from shards.sources.iu_xray.table import Row, read_table
from shards.study import BadStudy

IMAGES = "images"
FOLDERS = ((IMAGES, ""), (IMAGES, "images_normalized/"), ("NLMCXR_png", ""))
TABLE = "images.csv"
PROJECTIONS = "indiana_projections.csv"
LOOKED = "images/, images/images_normalized/, NLMCXR_png/ and, by images.csv, below images/"


@dataclass
class _Known:
    """What images.csv and the projections tell, each as far as it is there."""

    files: dict[str, str] = field(default_factory=dict)
    """Film name → path below images/."""
    positions: dict[str, Position] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    """Film name → id of its examination."""


class FilmIndex:
    """The films below one raw directory. Directories are listed once, when a film is first looked up."""

    def __init__(self, root: Path):
        """Read the tables that are there; one that cannot be used is told in `notes`, never an error."""
        self.root, self.notes, self._known = root, list[str](), _Known()
        self._contradicted: list[str] = []
        self._read(PROJECTIONS, ("filename", "projection"), self._learn_projection)
        self._read(TABLE, ("file", "nlm_image_id"), self._learn_film)
        self._names = {file: name for name, file in self._known.files.items()}
        if self._contradicted:
            some = ", ".join(self._contradicted[:5])
            self.notes.append(f"{TABLE}: another view than in {PROJECTIONS}, which counts: {some}")

    def completed(self, exam: Exam) -> Exam:
        """The examination with what the tables add: names, positions, its id; films of known names frontal first."""
        films = tuple(self._completed(film) for film in exam.films)
        looked_up = all(not film.file for film in exam.films)
        order = sorted(films, key=lambda film: (FRONTAL_FIRST[film.position], film.name if looked_up else ""))
        known = next((self._known.ids[film.name] for film in films if film.name in self._known.ids), "")
        return replace(exam, films=tuple(order), id=known if known and looked_up else exam.id)

    def find(self, films: Iterable[Film], place: str) -> tuple[str, list[str]]:
        """(folder below the root, paths below that folder) of films listed by name.

        BadStudy "film is missing" names the first that is not where most of them are.
        """
        films = list(films)
        found = {at: sum(film.name in files for film in films) for at, (_, files) in enumerate(self._places)}
        best = max(found, key=lambda at: (found[at], -at))
        folder, files = self._places[best]
        if missing := [film.name for film in films if film.name not in files]:
            detail = f"{place}: {missing[0]!r} is in none of {LOOKED}; {found[best]} of {len(films)} films are there"
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
        below = {folder: sorted(_files(self.root / folder)) for folder, _ in FOLDERS}
        places = [(folder, _by_name(below[folder], prefix)) for folder, prefix in FOLDERS]
        there = set(below[IMAGES])
        return [*places, (IMAGES, {name: file for name, file in self._known.files.items() if file in there})]

    def _completed(self, film: Film) -> Film:
        name = film.name or self._names.get(film.file, "")
        known = self._known.positions.get(name, "unknown")
        return replace(film, name=name, position=known if film.position == "unknown" else film.position)

    def _read(self, file: str, columns: tuple[str, ...], learn: Callable[[Row], None]) -> None:
        if not (self.root / file).is_file():
            return
        before = _Known(dict(self._known.files), dict(self._known.positions), dict(self._known.ids))
        try:
            for row in read_table(self.root / file, columns).rows:
                if row.fault:
                    raise DataError(f"{file} line {row.line}: {row.fault}")
                learn(row)
        except DataError as error:
            self._known = before
            self.notes.append(f"{file} is not used for film names and positions: {error}")

    def _learn_projection(self, row: Row) -> None:
        self._know_position(film_name(row.cells["filename"]), row.cells["projection"])

    def _learn_film(self, row: Row) -> None:
        name, file = film_name(row.cells["nlm_image_id"]), row.cells["file"]
        if self._known.files.setdefault(name, file) != file:
            raise DataError(
                f"{TABLE} line {row.line}: {name!r} has two files, the other is {self._known.files[name]!r}"
            )
        self._know_position(name, row.cells.get("view", ""))
        if identifier := row.cells.get("exam_id", ""):
            self._known.ids.setdefault(name, identifier)

    def _know_position(self, name: str, written: str) -> None:
        position = position_of(written)
        if position != "unknown" and self._known.positions.setdefault(name, position) != position:
            self._contradicted.append(name)


def _files(folder: Path) -> Iterator[str]:
    """Paths, below `folder`, of the films directly in it and in its directories."""
    if not folder.is_dir():
        return
    for entry in os.scandir(folder):
        if entry.is_dir():
            yield from (f"{entry.name}/{inner.name}" for inner in os.scandir(entry.path) if SUFFIX.search(inner.name))
        elif SUFFIX.search(entry.name):
            yield entry.name


def _by_name(files: list[str], prefix: str) -> dict[str, str]:
    """Film name → path, of the files directly in the directory `prefix`; .png before .jpg where both are there."""
    here = [file for file in files if file.startswith(prefix) and "/" not in file.removeprefix(prefix)]
    found: dict[str, str] = {}
    for file in sorted(here, key=lambda file: (not file.lower().endswith(".png"), file)):
        found.setdefault(film_name(file), file)
    return found
