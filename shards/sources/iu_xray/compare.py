"""Where two raw forms of IU X-Ray tell different things of the same examination: counts, causes and ids, never text."""

import html
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace

from shards.sources.iu_xray.exam import Exam, Listing

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


def why_different(one: str, other: str) -> str:
    """The one cause by which two texts differ, white space apart; "" when they are equal."""
    if one == other:
        return ""
    if SPREADSHEET.fullmatch(one.strip()) or SPREADSHEET.fullmatch(other.strip()):
        return "a spreadsheet's error value"
    if not one.strip() or not other.strip():
        return "one is empty"
    for cause, reduce in REDUCED:
        if _close(reduce(one)) == _close(reduce(other)):
            return cause
    for _, reduce in REDUCED:
        one, other = reduce(one), reduce(other)
    return "several of these at once" if one == other else "other words"


def _close(text: str) -> str:
    return " ".join(text.split())


def compare(mine: Listing, my_exams: list[Exam], other: Listing, other_exams: list[Exam]) -> list[str]:
    """Notes on two listings with their `completed` examinations, by CXR number: who lists what, then what differs."""
    one, two = _by_patient(my_exams), _by_patient(other_exams)
    title = f"{mine.file.name} against {other.file.name}"
    both = [(exam, two[number]) for number, exam in one.items() if number in two]
    here = [exam.id for number, exam in one.items() if number not in two]
    there = [exam.id for number, exam in two.items() if number not in one]
    unread = {form.file.name: len(form.entries) - len(form.exams) for form in (mine, other)}
    refused = "".join(f"; {count:,} entries of {file} cannot be understood" for file, count in unread.items() if count)
    head = f"{title}: {len(both):,} studies in both, only in the first {_some(here)}, only in the second {_some(there)}"
    notes = [head + refused]
    for what, differences in _differences(both).items():
        told = "; ".join(f"{cause} {_some(ids)}" for cause, ids in sorted(differences.items()))
        notes.append(f"{title}: {what} in {sum(map(len, differences.values())):,} studies: {told}")
    return notes


def _by_patient(exams: list[Exam]) -> dict[str, Exam]:
    """CXR number, or id where there is none, → the first examination listed under it."""
    found: dict[str, Exam] = {}
    for exam in exams:
        found.setdefault(exam.patient or exam.id, exam)
    return found


def _differences(both: Iterable[tuple[Exam, Exam]]) -> dict[str, dict[str, list[str]]]:
    """What differs → cause → ids."""
    found: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for one, two in both:
        for section in sorted(one.sections.keys() & two.sections.keys()):
            if cause := why_different(one.sections[section], two.sections[section]):
                found[f"another text of {section}"][cause].append(one.id)
        if one.id != two.id:
            found["another id"]["differing"].append(f"{one.id}/{two.id}")
        if one.split and two.split and one.split != two.split:
            found["another split"]["differing"].append(one.id)
        if cause := _films_differ(one, two):
            found["other films"][cause].append(one.id)
    return {what: dict(causes) for what, causes in sorted(found.items())}


def _films_differ(one: Exam, two: Exam) -> str:
    if len(one.films) != len(two.films):
        return "more films in the first" if len(one.films) > len(two.films) else "more films in the second"
    if not all(film.name for film in (*one.films, *two.films)):
        return ""
    first, second = ([replace(film, file="") for film in exam.films] for exam in (one, two))
    names = [film.name for film in first], [film.name for film in second]
    if sorted(names[0]) != sorted(names[1]):
        return "other films of the same number"
    known = dict(zip(names[1], (film.position for film in second), strict=True))
    if any(known[film.name] != film.position for film in first if "unknown" not in (known[film.name], film.position)):
        return "another position"
    return "another order" if names[0] != names[1] else ""


def _some(ids: list[str]) -> str:
    shown = ", ".join(ids[:SHOWN]) + (", ..." if len(ids) > SHOWN else "")
    return f"{len(ids):,} ({shown})" if ids else "0"
