"""Sections of a report as the dataset's owner cuts them (MIT-LCP/mimic-cxr, txt/section_parser.py), by code of our own.

Much published work took its findings from that parser: its sections are an option beside those of `parse_report`.
Its rules:

- a header is a line of one blank or more, then capitals, blanks and ( ) / , - only, and a colon before white space;
  never the first line, nor the line after a header that has nothing behind its colon
- names are looked up in `NAMES`; else one that contains impression, findings, history, comparison or addendum is that;
  else one that names the film (`FILM`) is findings; else it stays what it is
- an empty findings or impression is none; of equal names the last wins; FINDINGS AND IMPRESSION is the impression
- where neither is, the last section ends at its first empty paragraph, and what follows is `last_paragraph`

The owner's script that writes mimic_cxr_sectioned.csv leaves out 54 studies that it cuts by hand; here they are cut as
all others are. That table can be read in place of the reports.
"""

import re
from collections.abc import Collection, Iterator
from functools import lru_cache
from pathlib import Path

from shards.errors import DataError
from shards.sources.tables import Row, Span, Table, read_span

HEADER = re.compile(r"\n ([A-Z ()/,-]+):\s")
PARAGRAPH = "\n \n"
NAMES = {
    "impression": (
        "conclusion", "findings and impression", "findings/impression", "findings/ impression", "ndication",
        "impresson", "imprression", "imoression", "impressoin", "imprssion", "impresion", "imperssion", "mpression",
        "impession",
    ),
    "findings": (
        "chest, two views", "finding", "findins", "findindgs", "findgings", "findngs", "findnings", "finidngs",
        "reference findings",
    ),
    "comparison": (
        "comparisons", "reference exam", "comparison exam", "comparison film", "comparision", "comparsion",
        "comparrison", "comparisions",
    ),
    "indication": ("reason for examination", "reason for exam", "clinical indication", "idication"),
    "history": ("clinical history", "clinical information", "patient history", "pfi"),
    "examination": ("exam", "type of examination"),
    "recommendations": ("recommendation(s)", "recommendation"),
    "wet read": ("wetread",),
    "technique": (), "notification": (), "addendum": (), "date": (), "comment": (), "preamble": (),
}  # fmt: skip
"""Section → other headers that mean it, in small letters."""
MEANING = {header: name for name, headers in NAMES.items() for header in (name, *headers)}
CONTAINED = ("impression", "findings", "history", "comparison", "addendum")
FILM = (
    "chest", "portable", "pa and lateral", "lateral and pa", "ap and lateral", "lateral and ap", "frontal and",
    "two views", "frontal view", "pa view", "ap view", "one view", "lateral view", "bone window", "frontal upright",
    "frontal semi-upright", "ribs", "pa and lat",
)  # fmt: skip
TARGETS = ("impression", "findings")


def owner_sections(text: str) -> dict[str, str]:
    """Section name → text without the blanks around it, empty ones left out; `preamble` is before the first header.

    A report without any header is `full report`.
    """
    text = re.sub(r"\r\n?", "\n", text)  # as Python reads text files
    cut = [[name, words] for name, words in _cut(text) if name not in TARGETS or words.strip()]
    if not {name for name, _ in cut} & set(TARGETS) and cut and PARAGRAPH in cut[-1][1]:
        cut[-1][1], last = cut[-1][1].split(PARAGRAPH, 1)
        cut.append(["last_paragraph", last])
    texts = {name: words.strip() for name, words in cut}
    return {name: words for name, words in texts.items() if words}


def _cut(text: str) -> Iterator[tuple[str, str]]:
    """(name, text) of every section in order."""
    name, start, header = "preamble", 0, HEADER.search(text)
    if header is None:
        yield "full report", text
        return
    while header is not None:
        yield name, text[start : header.start() if start else header.start(1)]
        name, start = _meant(header[1]), header.end()
        line_end = max(start, text.find("\n", start))
        header = HEADER.search(text, line_end)
    yield name, text[start:]


def _meant(header: str) -> str:
    """The section that a header in capitals names."""
    said = header.lower().strip()
    if said in MEANING:
        return MEANING[said]
    named = next((name for name in CONTAINED if name in said), "")
    return named or ("findings" if any(film in said for film in FILM) else said)


COLUMNS = ("impression", "findings", "last_paragraph", "comparison")
"""Of mimic_cxr_sectioned.csv, behind `study`."""
STUDY = re.compile(r"s\d{8}")


def read_sectioned(path: Path, studies: Collection[str]) -> dict[str, Span]:
    """Where the rows of these studies (eight digits) lie in the owner's table of sections.

    Raises:
        DataError: it is no such table; a row cannot be read, or a study has two.
    """
    spans = dict[str, Span]()
    for row in Table(path, ("study", *COLUMNS)).rows():
        study = _study_of(path, row)
        if study in spans:
            raise DataError(f"{path}: row {row.number} is of a study that an earlier row has: remove one of the two")
        if study in studies:
            spans[study] = row.span
    return spans


def _study_of(path: Path, row: Row) -> str:
    if row.fault or not STUDY.fullmatch(row.cells["study"].strip()):
        raise DataError(
            f"{path}: row {row.number} on line {row.line}: {row.fault or 'its study is not s and 8 digits'}"
        )
    return row.cells["study"].strip()[1:]


def sections_in(path: Path, span: Span) -> dict[str, str]:
    """Section name → text of one row; BadStudy when the table is not what it was when it was listed."""
    cells = dict(zip(_columns(path), Table.parse(read_span(path, span)), strict=False))
    return {name: cells[name].strip() for name in COLUMNS if cells[name].strip()}


@lru_cache(maxsize=2)
def _columns(path: Path) -> tuple[str, ...]:
    return tuple(Table(path, ("study", *COLUMNS)).columns)
