"""Reports of MIMIC-CXR: where they lie, and how one is taken apart into sections.

A report is a text file whose lines begin with a blank. Before the line FINAL REPORT may stand wet reads (a first look,
17,551 of 227,835 reports), addenda and notes; after it, sections under headers such as " FINDINGS:  The lungs ...".
The rules, each with a test:

- What stands before FINAL REPORT is never findings or impression: it is `wet read`, `addendum`, `preliminary` (PFI) or
  `preamble`. An addendum after the findings or impression keeps all that follows, headers included.
- A header is a known name at the beginning of a line: in capitals with a colon or alone on its line; as "Findings:"; as
  "findings:" after an empty line only. In findings or impression that were headed in capitals only "Findings:" and
  "Impression:" are headers without capitals, where a sentence may begin: "Comparison:" and the like are their text.
  Misspelt capitals count (IMPRESSOIN); brackets and underscores do not matter (RECOMMENDATION(S)).
- What follows an empty line below the text of an indication or history is `narrative`: who dictates findings without a
  header puts them there, and a model that is given the indication must not be given the answer.
- Any other capitals with a colon (NOTE:, LUNGS:) are text of the section they stand in. The exception is a line that
  names the film (PORTABLE CHEST:, PA AND LATERAL VIEWS OF THE CHEST:) outside findings and impression: what follows is
  the findings when no findings header is there, as in the owner's own parser; `examination` otherwise.
- FINDINGS AND IMPRESSION is a section of its own, for it is neither. Headers that repeat are joined in order.
- Text after FINAL REPORT and before any header is `body`. No paragraph is promoted to findings: the owner's parser
  takes the last one when there is neither findings nor impression, but for labelling only.
- Lines lose the blanks around them; nothing else is changed.

Header names and their frequencies: MIT-LCP/mimic-cxr, txt/section_parser.py.
"""

import os
import re
import struct
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

from shards.errors import DataError, RetryableError, patiently
from shards.sources import ABSENT
from shards.sources.films import Films
from shards.study import BadStudy

BOTH = "findings and impression"
TARGETS = ("findings", "impression", BOTH)
PRELIMINARY = ("wet read", "addendum", "preliminary")
OPENING = ("examination", "indication", "history", "technique", "comparison")
REASONS, NARRATIVE = ("indication", "history"), "narrative"
FILM = "film"
ALIASES = {
    "examination": (
        "exam",
        "examination",
        "type of exam",
        "type of examination",
        "study",
        "procedure",
        "date",
        "date of exam",
    ),
    "history": ("clinical information", "clinical information question to be answered"),
    "comparison": ("reference exam", "reference examination", "prior study", "prior exam"),
    "impression": ("conclusion", "opinion"),
    "body": ("report", "main report"),
    "comment": ("comment",),
}
EXACT = {alias: name for name, aliases in ALIASES.items() for alias in aliases}
"""Headers known as a whole only: "STUDY LIMITATION:" is none."""
WORDS = (
    ({"wet", "read"}, "wet read"),
    ({"wetread"}, "wet read"),
    ({"provisional"}, "preliminary"),
    ({"pfi"}, "preliminary"),
    ({"preliminary", "report"}, "preliminary"),
    ({"addendum"}, "addendum"),
    ({"amendment"}, "addendum"),
    ({"finding", "impression"}, BOTH),
    ({"impression"}, "impression"),
    ({"finding"}, "findings"),
    ({"indication"}, "indication"),
    ({"reason"}, "indication"),
    ({"history"}, "history"),
    ({"comparison"}, "comparison"),
    ({"technique"}, "technique"),
    ({"recommendation"}, "recommendation"),
    ({"notification"}, "notification"),
)
"""The first row all of whose words are in the header decides; a plural counts as its singular."""
MAX_WORDS = 6
"""Of a header: more words in capitals are a sentence."""
FILM_WORDS = {"chest", "view", "portable", "radiograph", "frontal", "lateral", "rib"}
SPELLINGS = (
    "findings",
    "impression",
    "indication",
    "comparison",
    "conclusion",
    "technique",
    "examination",
    "recommendation",
    "notification",
)
UNCAPITALISED = re.compile(
    r"(clinical )?(findings?|impression|indication|history|comparison|technique|examination|conclusion)"
    r"|recommendations?|notification|(final )?addendum|wet read|findings (and |/ ?)impression|impression and findings",
    re.IGNORECASE,
)
"""Names that are headers without being in capitals."""
HEADER = re.compile(r"[\[\]\"'_]*([A-Za-z][A-Za-z0-9_ ()/,&'#.-]{0,90}?) ?:(.*)")
BRACKETS = re.compile(r"\([^()]*\)")
RULE = re.compile(r"_{20,}")
FINAL = re.compile(r"FINAL REPORT\b[ :]*(.*)|(?i:final report:?)()")
WET_READ = re.compile(r"WET ?(READ|_{2,})")
MAX_REPORT_BYTES = 100_000
"""Real ones have a few thousand."""
PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""How the owner packs, and what unpacks no further than it is read."""
ZIP_FAULTS = (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error, struct.error)
"""What the standard reader raises of a damaged archive: NotImplementedError and UnicodeDecodeError are among them."""
FOLDERS = ("files/", "", "mimic-cxr-reports/files/")
"""Where p10/ may lie below what `reports` names."""
REPORTS_ZIP = "mimic-cxr-reports.zip"


def parse_report(text: str) -> dict[str, str]:
    """Section name → text, in order of first appearance; empty sections are left out, an empty text has none.

    Names: findings, impression, findings and impression, indication, history, narrative, comparison, technique,
    examination, recommendation, notification, comment, addendum, wet read, preliminary, preamble, body.
    """
    lines = [line.strip(" \t\f\v\ufeff") for line in re.split(r"\r\n|\n|\r", text)]
    reading = _Reading(headed=any(FINAL.fullmatch(line) for line in lines))
    for line in lines:
        reading.take(line)
    texts = {name: "\n".join(lines).strip() for name, lines in reading.texts.items()}
    # Text under a film's name goes to the findings when nothing else is there.
    has_words = len(re.findall(r"[^\W\d_]{2,}", texts.get(FILM, ""))) >= 3
    film = "findings" if has_words and not texts.get("findings") and not texts.get(BOTH) else "examination"
    sections: dict[str, str] = {}
    for name, text in texts.items():
        name = film if name == FILM else name
        if text:
            sections[name] = f"{sections[name]}\n{text}" if name in sections else text
    return sections


class _Reading:
    """The text so far by section, and where the next line goes."""

    def __init__(self, headed: bool):
        """`headed`: a line FINAL REPORT is still to come."""
        self.texts: defaultdict[str, list[str]] = defaultdict(list)
        self.headed = headed
        self.here = "preamble" if headed else "body"
        self.blank = self.fresh = True
        """Whether the line above is empty; whether a new sentence may begin here."""
        self.uncapitalised = False
        """Whether the last header had no capitals: then the next has none either."""

    def take(self, line: str) -> None:
        """Put one line where it belongs."""
        if final := FINAL.fullmatch(line):
            self.headed, self.here, self.blank, self.fresh = False, "body", True, True
            line = final[1] or ""
        has_target = any(name in self.texts for name in TARGETS)
        if RULE.fullmatch(line):
            if self.here in PRELIMINARY and not has_target:
                self.here = "preamble" if self.headed else "body"
            self.blank = self.fresh = True
            return
        name, rest = header_of(line, self.blank, self.fresh or self.uncapitalised or self.here not in TARGETS)
        # A header may be mere text of the section being read.
        if name in PRELIMINARY:
            absorbed = False
        elif self.headed:
            absorbed = True
        elif self.here in PRELIMINARY:
            absorbed = has_target or (self.here != "addendum" and name not in OPENING)
        else:
            absorbed = name == FILM and self.here in TARGETS
            strict = self.here in TARGETS and not self.uncapitalised and not line.partition(":")[0].isupper()
            absorbed = absorbed or (strict and name not in TARGETS)
        opens = bool(name) and not absorbed
        if not opens and line and self.blank and self.here in REASONS and any(self.texts[self.here]):
            self.here = NARRATIVE
        if opens:
            self.uncapitalised = not line.partition(":")[0].isupper()
            self.here, line = name, rest.strip()
        self.texts[self.here].append(line)
        self.blank = not line and not opens
        self.fresh = not line or line[-1] in ".:!?"


def header_of(line: str, blank: bool = True, fresh: bool = True) -> tuple[str, str]:
    """(section a line opens, text after its header); ("", line) for a line of text.

    `blank`: the line above is empty; `fresh`: a sentence may begin here. Both matter only without capitals.
    """
    if WET_READ.match(line):
        return "wet read", line
    match = HEADER.match(line)
    phrase, rest = (match[1], match[2]) if match else (line, "")
    phrase = BRACKETS.sub("", phrase).strip() or phrase
    known = bool(UNCAPITALISED.fullmatch(phrase))
    if phrase.isupper():
        name = section_named(phrase) if match or known else ""
    else:
        name = section_named(phrase) if match and known and (blank or (fresh and phrase[0].isupper())) else ""
    return (name, rest) if name else ("", line)


def section_named(header: str) -> str:
    """The section that a header's words name, `FILM` for a film, "" for anything else."""
    words = [_spelt(word) for word in re.findall(r"[a-z]+", header.lower())]
    if header[-1].isdigit():
        return ""
    if name := EXACT.get(" ".join(word for word in words if word)):
        return name
    if len(words) <= MAX_WORDS and (name := next((name for needed, name in WORDS if needed <= set(words)), "")):
        return name
    return FILM if FILM_WORDS & set(words) else ""


@lru_cache(maxsize=4096)
def _spelt(word: str) -> str:
    """The word as the tables have it: misspelt headers put right, the singular for the plural."""
    if len(word) > 6 and (close := get_close_matches(word, SPELLINGS, 1, cutoff=0.87)):
        word = close[0]
    return word.rstrip("s")


def report_name(patient: str, study: str) -> str:
    """Path of a report below files/: `p10/p10000032/s50414267.txt` for p10000032 and s50414267."""
    return f"{patient[:3]}/{patient}/{study}.txt"


def find_reports(raw: Path, reports: Path | None) -> Path:
    """The directory or zip that holds the reports: `reports` where given, else what lies below `raw`.

    Raises DataError when `reports` is neither.
    """
    if reports is None:
        places = (raw / REPORTS_ZIP, raw / "mimic-cxr-reports", raw / "reports")
        return next((place for place in places if place.is_dir() or place.is_file()), raw)
    if reports.is_dir() or (reports.is_file() and zipfile.is_zipfile(reports)):
        return reports
    fault = "is there but is no zip (if the copy broke off, fetch it again)" if reports.exists() else "is not there"
    raise DataError(f"reports={reports} {fault}: name the directory above p10/ ... p19/, or {REPORTS_ZIP}")


@lru_cache(maxsize=4)
def known_reports(raw: Path, reports: Path | None) -> Path:
    """`find_reports`, asked once a process: for every study it would cost some requests to the storage."""
    return find_reports(raw, reports)


def has_any(store: Path, names: Iterable[str]) -> bool:
    """Whether at least one of the reports is in the store; DataError when its zip cannot be opened."""
    if store.is_dir():
        return any((store / folder / name).is_file() for name in names for folder in FOLDERS)
    try:
        with zipfile.ZipFile(store) as archive:
            known = set(archive.namelist())
    except ZIP_FAULTS as error:
        cause = getattr(error, "strerror", None) or type(error).__name__
        raise DataError(f"{store} cannot be opened: {cause}. If the copy broke off, fetch it again") from error
    return any(folder + name in known for name in names for folder in FOLDERS)


def report_files(store: Path, name: str) -> list[Path | str]:
    """Where the report may lie; in a zip what the zip says of it, `ABSENT` where it is not there."""
    if store.is_dir():
        return [store / folder / name for folder in FOLDERS]
    try:
        known = patiently("the reports", lambda: _zip(store)).NameToInfo
    except RetryableError:
        raise
    except ZIP_FAULTS:
        return [ABSENT]
    return [f"{known[place].CRC} {known[place].file_size}" for f in FOLDERS if (place := f + name) in known] or [ABSENT]


def read_report(store: Path, name: str) -> str:
    """The text of one report: UTF-8, with or without a byte-order mark, or Latin-1 where it is not UTF-8.

    Raises BadStudy when it is missing, larger than `MAX_REPORT_BYTES`, damaged, or reached through a link that leaves
    the store.
    """
    try:
        data = patiently("a raw report", lambda: _report_bytes(store, name))
    except (BadStudy, RetryableError):
        raise
    except ZIP_FAULTS as error:
        raise BadStudy("report cannot be read", f"{name} in {store.name}: {type(error).__name__}", name) from error
    if len(data) > MAX_REPORT_BYTES:
        raise BadStudy("report is too large", f"{name} has more than {MAX_REPORT_BYTES:,} bytes", name)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _report_bytes(store: Path, name: str) -> bytes:
    """At most one byte more than a report may have."""
    places = [folder + name for folder in FOLDERS]
    if store.is_dir():
        place = next((place for place in places if (store / place).is_file()), None)
        if place is None:
            raise BadStudy("report is missing", f"{name} is not below {store.name}/", name)
        if not Films(store).holds(place):
            raise BadStudy("path leaves the data root", f"{place} is a link out of {store.name}/", place)
        with open(store / place, "rb") as file:
            return file.read(MAX_REPORT_BYTES + 1)
    archive = _zip(store)
    place = next((place for place in places if place in archive.NameToInfo), None)
    if place is None:
        raise BadStudy("report is missing", f"{name} is not in {store.name}", name)
    if (packing := archive.NameToInfo[place].compress_type) not in PACKINGS:
        raise zipfile.BadZipFile(packing)
    with archive.open(place) as member:
        return member.read(MAX_REPORT_BYTES + 1)


def _zip(store: Path) -> zipfile.ZipFile:
    facts = store.stat()
    return _open_zip(str(store), facts.st_mtime_ns, facts.st_size, os.getpid())


@lru_cache(maxsize=2)
def _open_zip(path: str, mtime_ns: int, size: int, process: int) -> zipfile.ZipFile:
    """The archive, opened once per process and content: its table of 227,835 members takes a second to read."""
    return zipfile.ZipFile(path)
