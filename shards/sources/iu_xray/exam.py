"""One examination of IU X-Ray as any raw form tells it, and the rules by which the forms name it and its films."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from shards.sources.films import MAX_FILMS
from shards.study import KEY, BadStudy, Drop, Split, key_of

Position = Literal["frontal", "lateral", "unknown"]
FormName = Literal["annotation", "xml", "csv"]
POSITIONS: dict[str, Position] = {"frontal": "frontal", "lateral": "lateral"}
FRONTAL_FIRST = {"frontal": 0, "unknown": 1, "lateral": 2}
SECTIONS = ("findings", "impression", "indication", "comparison")
FILM_NAME = re.compile(r"(?:CXR)?(\d+)_(?:\1_)?(IM-[\w-]+)")
SUFFIX = re.compile(r"(\.(png|jpe?g|dcm))+$", re.IGNORECASE)
MAX_NAME = 255
"""Bytes that the name of a file has at most."""
FIRST_EXAM = {"CXR1": "CXR1_1"}
"""NLM doubles the number in the image ids of examination 1; Kaggle's file names have lost that."""


@dataclass(frozen=True)
class ListedFilm:
    """One film as listed. A form gives its name, which is looked up, or its path."""

    name: str = ""
    """`film_name` of it; empty when only a path is known."""
    file: str = ""
    """Path below images/; empty when it is to be looked up by name."""
    position: Position = "unknown"


@dataclass(frozen=True)
class Exam:
    """One examination as one form lists it. All forms agree on `patient`, so that is what they are compared by."""

    id: str
    patient: str
    """CXR number; IU X-Ray tells nothing more of patients. Empty where a form's id has none."""
    row: int
    """Where it is listed, as a number from 0 (in its split) or the line of a CSV file."""
    place: str
    """The same in words: "train[3]", "line 17", "ecgen-radiology/12.xml"."""
    films: tuple[ListedFilm, ...]
    sections: dict[str, str]
    """Section name in lower case → text as written."""
    report: str | None = None
    """The target as listed, in the form that has one."""
    split: Split | Literal[""] = ""
    """As listed; empty in forms without splits."""
    facts: dict[str, str] = field(default_factory=dict)
    """What else is known: MeSH codes, caption."""


@dataclass
class Form:
    """All that one form of the raw data lists."""

    name: FormName
    file: Path
    entries: list[Exam | Drop] = field(default_factory=list)
    """In the order listed; a `Drop` where an entry cannot be understood."""
    notes: list[str] = field(default_factory=list)

    @property
    def exams(self) -> list[Exam]:
        """The entries that can be understood."""
        return [entry for entry in self.entries if isinstance(entry, Exam)]


def film_name(written: str) -> str:
    """What a film is called in every form: examination number, `_`, NLM's series and image: `12_IM-0137-2001`.

    NLM's image id is `CXR12_IM-0137-2001`, Kaggle's file `12_IM-0137-2001.dcm.png`. Other names lose only directory and
    suffix.
    """
    base = SUFFIX.sub("", PurePosixPath(written).name[:MAX_NAME])
    match = FILM_NAME.fullmatch(base)
    return f"{match[1]}_{match[2]}" if match else base


def exam_id(patient: str, names: Iterable[str]) -> str:
    """R2Gen's id of an examination: the image id that sorts first, without its last hyphen and what follows.

    Holds for all 998 examinations of R2Gen's split that the tests can see, image ids of four parts included:
    `CXR63_IM-2210-0001-0001` gives `CXR63_IM-2210-0001`. Without films named by NLM's rule it is the CXR number.
    """
    stems = sorted(match[2] for name in names if (match := FILM_NAME.fullmatch(name)))
    return f"{FIRST_EXAM.get(patient, patient)}_{stems[0].rpartition('-')[0]}" if stems else patient


def listed_films(patient: str, written: Iterable[tuple[str, Position]], place: str) -> tuple[ListedFilm, ...]:
    """The films an examination lists as (image id or file name, position); BadStudy when one cannot be its own."""
    films: dict[str, ListedFilm] = {}
    for text, position in written:
        name = film_name(text)
        match = FILM_NAME.fullmatch(name)
        if not name or (match and f"CXR{match[1]}" != patient):
            raise BadStudy("film of another examination", f"{place}: {patient} lists film {text[:100]!r}", text[:200])
        if name in films:
            raise BadStudy("film is listed twice", f"{place}: {text[:100]!r}", text[:200])
        films[name] = ListedFilm(name=name, position=position)
        if len(films) > MAX_FILMS:
            raise BadStudy("too many films", f"{place}: no study has more than {MAX_FILMS}")
    return tuple(films.values())


def position_of(written: str) -> Position:
    """Position as Kaggle's projections and images.csv write it."""
    return POSITIONS.get(written.strip().lower(), "unknown")


def check_id(identifier: str, shown: str) -> str:
    """The id, when it can name a member of a shard; else BadStudy, whose detail begins with `shown`."""
    if ".." in identifier or not identifier.isprintable() or not KEY.fullmatch(key_of(identifier)):
        raise BadStudy("id is not a name", f"{shown}; it must be 1 to 120 characters without '..'")
    return identifier
