"""The raw forms of IU X-Ray that a directory holds, and where two of them tell different things of an examination.

What differs is told in counts, causes and ids, never in text.
"""

import html
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from shards.errors import ConfigError, DataError
from shards.sources.iu_xray.annotation import read_annotation
from shards.sources.iu_xray.exam import Exam, Form, FormName
from shards.sources.iu_xray.films import FilmIndex
from shards.sources.iu_xray.kaggle import read_kaggle
from shards.sources.iu_xray.xml import read_xml

READERS: dict[FormName, Callable[[Path], Form]] = {"annotation": read_annotation, "xml": read_xml, "csv": read_kaggle}
FILES: dict[FormName, tuple[str, ...]] = {
    "annotation": ("annotation.json",),
    "xml": ("NLMCXR_reports.tgz", "NLMCXR_reports.tar.gz", "ecgen-radiology"),
    "csv": ("indiana_reports.csv",),
}
"""Form → names by which it is recognised, in this order when form="auto"."""
SUFFIXES: dict[str, FormName] = {".json": "annotation", ".tgz": "xml", ".gz": "xml", ".tar": "xml", ".csv": "csv"}
WANTED = (
    "annotation.json with images/ (R2Gen), NLMCXR_reports.tgz or ecgen-radiology/ (Open-i XML), or indiana_reports.csv "
    "with indiana_projections.csv (Kaggle)"
)
SHOWN = 5
SPREADSHEET = re.compile(r"#(NAME\?|REF!|VALUE!|DIV/0!|N/A|NUM!|NULL!)")
"""What a spreadsheet puts in place of a text that begins with + - = or @."""
MASK = re.compile(r"x{2,}", re.IGNORECASE)
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
REDUCED: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("white space", lambda text: "".join(text.split())),
    ("character entities", lambda text: html.unescape(html.unescape(text))),
    ("control characters", lambda text: CONTROL.sub("", text)),
    ("quotes", lambda text: re.sub("[\"'“”‘’]", "", text)),
    ("XXXX masks", lambda text: MASK.sub("", text)),
    ("letter case", str.casefold),
)
"""Cause → what makes two texts alike that differ by it."""


def root_of(raw: Path) -> Path:
    """The directory that holds films and tables, when `raw` names it or one file in it."""
    return raw.parent if raw.suffix in SUFFIXES or raw.name in FILES["xml"] else raw


def named_form(raw: Path) -> FormName | None:
    """The form of the one file that `raw` names; None when it names the directory."""
    return next((name for name, files in FILES.items() if raw.name in files), None) or SUFFIXES.get(raw.suffix)


def forms_there(raw: Path) -> dict[FormName, Path]:
    """Form → its file, for every form that lies at `raw` or, when `raw` is a file, beside it."""
    root, there = root_of(raw), dict[FormName, Path]()
    for name, files in FILES.items():
        if paths := [root / file for file in files if (root / file).exists()]:
            there[name] = paths[0]
    return there | ({named: raw} if (named := named_form(raw)) else {})


def choose_form(raw: Path, asked: FormName | Literal["auto"]) -> tuple[FormName, Path]:
    """The form to read and its file.

    Raises:
        ConfigError: `raw` names a file of another form.
        DataError: none of them is there; names what was looked for and what was found.
    """
    there, named = forms_there(raw), named_form(raw)
    if named and asked not in ("auto", named):
        raise ConfigError(
            f"raw is {raw}, which is the form {named!r}, not {asked!r}: name its directory, or form='auto'"
        )
    tried = [named] if named else [name for name in FILES if asked in ("auto", name)]
    for name in tried:
        if name in there and there[name].exists():
            return name, there[name]
    missing, seen = raw if named else root_of(raw) / FILES[tried[0]][0], f"{raw} is a file"
    if not raw.exists():
        seen = f"{raw} does not exist"
    elif raw.is_dir():
        files = sorted(entry.name for entry in raw.iterdir())
        seen = f"found there: {', '.join(files[:9]) or 'nothing'}{' and more' if len(files) > 9 else ''}"
    one = "" if asked == "auto" else f" (form={asked!r})"
    raise DataError(
        f"{missing} is missing: raw must be the directory with {WANTED}, or one of these files{one}; {seen}"
    )


def read_form(name: FormName, path: Path, index: FilmIndex) -> Form:
    """One form, its examinations `completed`; DataError when it is as a whole not what it should be."""
    form = READERS[name](path)
    form.entries = [index.completed(entry) if isinstance(entry, Exam) else entry for entry in form.entries]
    return form


def compare(mine: Form, other: Form) -> list[str]:
    """Notes on two forms, by CXR number: who lists what, then what differs."""
    one, two = dict[str, Exam](), dict[str, Exam]()
    for form, exams in ((mine, one), (other, two)):
        for exam in form.exams:
            exams.setdefault(exam.patient or exam.id, exam)
    title = f"{mine.file.name} against {other.file.name}"
    both = [(exam, two[number]) for number, exam in one.items() if number in two]
    here = [exam.id for number, exam in one.items() if number not in two]
    there = [exam.id for number, exam in two.items() if number not in one]
    head = f"{title}: {len(both):,} studies in both, only in the first {_some(here)}, only in the second {_some(there)}"
    for form in (mine, other):
        if unread := len(form.entries) - len(form.exams):
            head += f"; {unread:,} entries of {form.file.name} cannot be understood"
    notes = [head]
    for what, causes in sorted(_differences(both).items()):
        shown = "; ".join(f"{cause} {_some(ids)}" for cause, ids in sorted(causes.items()))
        notes.append(f"{title}: {what} in {sum(map(len, causes.values())):,} studies: {shown}")
    return notes


def _differences(both: list[tuple[Exam, Exam]]) -> dict[str, defaultdict[str, list[str]]]:
    """What differs → cause → ids."""
    differences: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for one, two in both:
        for section in sorted(one.sections.keys() & two.sections.keys()):
            if cause := why_different(one.sections[section], two.sections[section]):
                differences[f"another text of {section}"][cause].append(one.id)
        if one.id != two.id:
            differences["another id"]["differing"].append(f"{one.id}/{two.id}")
        if one.split and two.split and one.split != two.split:
            differences["another split"]["differing"].append(one.id)
        if cause := _why_other_films(one, two):
            differences["other films"][cause].append(one.id)
    return differences


def why_different(one: str, other: str) -> str:
    """The one cause by which two texts differ, white space apart; "" when they are equal."""
    if one == other:
        return ""
    if SPREADSHEET.fullmatch(one.strip()) or SPREADSHEET.fullmatch(other.strip()):
        return "a spreadsheet's error value"
    if not one.strip() or not other.strip():
        return "one is empty"
    for cause, reduce in REDUCED:
        if reduce(one).split() == reduce(other).split():
            return cause
    for _, reduce in REDUCED:
        one, other = reduce(one), reduce(other)
    return "several of these at once" if one == other else "other words"


def _why_other_films(one: Exam, two: Exam) -> str:
    """The cause by which two lists of films differ, as far as their names are known; "" when they are alike."""
    if len(one.films) != len(two.films):
        return "more films in the first" if len(one.films) > len(two.films) else "more films in the second"
    if not all(film.name for film in (*one.films, *two.films)):
        return ""
    names = [film.name for film in one.films], [film.name for film in two.films]
    if sorted(names[0]) != sorted(names[1]):
        return "other films of the same number"
    positions = {film.name: film.position for film in two.films}
    for film in one.films:
        if "unknown" not in (film.position, positions[film.name]) and film.position != positions[film.name]:
            return "another position"
    return "another order" if names[0] != names[1] else ""


def _some(ids: list[str]) -> str:
    shown = ", ".join(ids[:SHOWN]) + (", ..." if len(ids) > SHOWN else "")
    return f"{len(ids):,} ({shown})" if ids else "0"
