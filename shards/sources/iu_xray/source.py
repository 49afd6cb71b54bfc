"""IU X-Ray (Demner-Fushman et al., JAMIA 2016; doi:10.1093/jamia/ocv080) in any of its raw forms."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np

import shards.sources as contract
from shards.errors import ConfigError, DataError
from shards.films.raw import open_film
from shards.sources import Item, Published
from shards.sources.iu_xray.annotation import R2GEN
from shards.sources.iu_xray.compare import SPREADSHEET, compare
from shards.sources.iu_xray.exam import Exam, Listing, check_id
from shards.sources.iu_xray.films import IMAGES, FilmIndex
from shards.sources.iu_xray.forms import Form, chosen, forms_there, read_form, root_of
from shards.sources.iu_xray.split import ANNOTATION, SplitBy, SplitOf, split_by, split_rule, told
from shards.sources.paths import is_inside
from shards.study import BadStudy, Drop, Study, View, key_of

Section = Literal["auto", "findings", "impression", "findings+impression"]
PLACEHOLDER = re.compile(r"(nan|none|null|n/?a|<na>)", re.IGNORECASE)
YES = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@dataclass
class IuXray:
    """Studies of annotation.json (R2Gen), of Open-i's XML reports, of Kaggle's two CSV files or of a plain reports.csv.

    All forms give the same examination the same id, key, split, patient, findings, and films in the same order. The id
    is R2Gen's (`exam_id`), the patient its CXR number: IU X-Ray tells no more, so one patient's examinations may carry
    different numbers. Where films are looked up is said in `iu_films`.

    Policy for views: a study is kept with all the films its form lists, frontal first where positions are known, else
    as listed; one with fewer than `min_views`, or of which any film is missing or does not decode, is dropped whole and
    by name, so that no study silently loses a view. R2Gen's annotation lists two films of each study, Open-i and Kaggle
    list all of them.
    """

    raw: Path
    """The directory with one or more forms and images/, or the file of one form in it."""
    min_views: int = 1
    """Fewest films a study may have; 2 is R2Gen's own requirement."""
    form: Form = "auto"
    """What to read: "annotation", "xml", "csv" (Kaggle's, else reports.csv); "auto" takes the first that is there."""
    split: SplitBy = "auto"
    """"annotation": as annotation.json says, other studies are dropped by name. "column": of the CSV file. "hash": of
    the CXR number. "train": all. "auto": the first of these that applies (`split_by`)."""
    section: Section = "auto"
    """The target. "auto" is the annotation's own `report`, elsewhere the findings, which R2Gen's reports are."""
    crosscheck: bool = True
    """Whether to compare with the other forms that are there; what differs goes to `notes`."""
    drops: list[Drop] = field(default_factory=list, init=False)
    notes: list[str] = field(default_factory=list, init=False)
    published: Published | None = field(default=None, init=False)
    """R2Gen's counts, when its annotation.json decides what is read; known once `items` has returned."""

    name = "iu_xray"
    licence = "cc-by-nc-nd-4.0"
    cleaning = "r2gen-2020-iu"

    def __post_init__(self) -> None:
        self.raw = Path(self.raw)
        for option, choices in (("form", Form), ("split", SplitBy), ("section", Section)):
            if (value := getattr(self, option)) not in get_args(choices):
                raise ConfigError(f"iu_xray with {option}={value!r}: use one of {', '.join(get_args(choices))}")
        if (flag := YES.get(str(self.crosscheck).lower())) is None:
            raise ConfigError(f"iu_xray with crosscheck={self.crosscheck!r}: use true or false")
        if not str(self.min_views).isdecimal() or int(self.min_views) < 1:
            raise ConfigError(f"iu_xray with min_views={self.min_views!r}: use a number of 1 or more")
        self.crosscheck, self.min_views = flag, int(self.min_views)

    @property
    def images(self) -> Path:
        """The directory below which the films of annotation.json and reports.csv must lie."""
        return root_of(self.raw) / IMAGES

    def listing(self) -> contract.Listing:
        """What is listed, with what was refused and what is worth telling."""
        return contract.Listing(self.items(), self.drops, self.notes, self.published)

    def items(self) -> list[Item]:
        """One item per usable study; DataError when the form as a whole is not what it should be."""
        kind, path = chosen(self.raw, self.form)
        listing = read_form(kind, path, self._sections if kind == "plain" else ())
        index = FilmIndex(root_of(self.raw))
        self._refuse_no_films(listing, index)
        entries = [index.completed(entry) if isinstance(entry, Exam) else entry for entry in listing.entries]
        by = split_by(self.split, listing, index.root)
        self.published = R2GEN if by == "annotation" and (kind != "annotation" or path.name == ANNOTATION) else None
        self.notes = [told(by, listing), *listing.notes, *index.notes]
        items = self._usable(listing, entries, index, split_rule(by, listing, index.root))
        if self.crosscheck:
            self.notes += self._compared(listing, [entry for entry in entries if isinstance(entry, Exam)], index)
        return items

    def read(self, item: Item) -> tuple[Study, list[np.ndarray]]:
        """The study and its films uint8 [H, W]; BadStudy names the first film that does not decode."""
        found = item.payload
        folder = root_of(self.raw) / found["folder"]
        films = []
        for file in found["image_path"]:
            try:
                films.append(open_film(folder / file))
            except DataError as error:
                raise BadStudy("image does not decode", _short(str(error), folder), file) from error
        views = zip(found["views"], found["image_path"], strict=True)
        study = Study(
            key=key_of(item.id),
            id=item.id,
            patient=item.patient,
            split=item.split,
            views=tuple(View(position=position, file=file) for position, file in views),
            sections=found["sections"],
            report=found["report"],
            target="",
            provenance={"source": self.name, "file": found["file"], "row": found["place"], **found["facts"]},
        )
        return study, films

    @property
    def _sections(self) -> tuple[str, ...]:
        return ("findings",) if self.section == "auto" else tuple(self.section.split("+"))

    def _refuse_no_films(self, listing: Listing, index: FilmIndex) -> None:
        if listing.kind in ("xml", "kaggle"):
            index.refuse_empty()
        elif not self.images.is_dir():
            raise DataError(f"{listing.file} is there, the directory {self.images} with its films is not")

    def _usable(
        self, listing: Listing, entries: Iterable[Exam | Drop], index: FilmIndex, split_of: SplitOf
    ) -> list[Item]:
        self.drops, items = [], []
        seen: set[tuple[str, str]] = set()
        for entry in entries:
            if isinstance(entry, Drop):
                self.drops.append(entry)
                continue
            try:
                items.append(self._item(listing, entry, index, split_of, seen))
            except BadStudy as error:
                self.drops.append(error.drop(entry.id, entry.split))
        return items

    def _item(
        self, listing: Listing, exam: Exam, index: FilmIndex, split_of: SplitOf, seen: set[tuple[str, str]]
    ) -> Item:
        """The item of one examination; BadStudy when it cannot be used."""
        place = f"{listing.file.name} {exam.place}"
        identifier, split = split_of(exam)
        check_id(identifier, f"{place}: id {identifier[:200]!r}")
        if not exam.films:
            raise BadStudy("no film is listed", place)
        folder, files = self._located(exam, index, place)
        if len(files) < self.min_views:
            raise BadStudy("too few views", f"{place}: films listed {len(files)}, min_views={self.min_views}")
        if (split, identifier) in seen:
            raise BadStudy("duplicate id", f"{place}: id {identifier!r} stands earlier in this split, which is kept")
        payload = {
            "file": listing.file.name,
            "row": exam.row,
            "place": exam.place,
            "folder": folder,
            "image_path": files,
            "views": [film.position for film in exam.films],
            "report": self._target(exam, place),
            "sections": exam.sections,
            "facts": exam.facts,
        }
        seen.add((split, identifier))
        return Item(id=identifier, split=split, patient=exam.patient, payload=payload)

    def _located(self, exam: Exam, index: FilmIndex, place: str) -> tuple[str, list[str]]:
        """(folder below the root, films below that); BadStudy for one that is missing or lies outside."""
        listed = [film.file for film in exam.films]
        folder, files = (IMAGES, listed) if all(listed) else index.find(exam.films, place)
        for file in files:
            if not is_inside(file, index.root / folder):
                raise BadStudy("path leaves the data root", f"{place}: {file[:200]!r} is not below {folder}/", file)
        return folder, files

    def _target(self, exam: Exam, place: str) -> str:
        own = [exam.report] if self.section == "auto" and exam.report is not None else []
        parts = own or [exam.sections[name] for name in self._sections if name in exam.sections]
        if not parts:
            there = ", ".join(sorted(exam.sections)) or "none"
            raise BadStudy("section is missing", f"{place}: section={self.section!r}, the sections there are: {there}")
        report = parts[0] if len(parts) == 1 else " ".join(part.strip() for part in parts if part.strip())
        if PLACEHOLDER.fullmatch(report.strip()) or SPREADSHEET.fullmatch(report.strip()):
            raise BadStudy("report is a placeholder", f"{place}: it reads {report.strip()!r} and nothing else")
        return report

    def _compared(self, listing: Listing, exams: list[Exam], index: FilmIndex) -> list[str]:
        notes = []
        for kind, path in forms_there(self.raw).items():
            if kind != listing.kind:
                try:
                    other = read_form(kind, path)
                    notes += compare(listing, exams, other, [index.completed(exam) for exam in other.exams])
                except DataError as error:
                    notes.append(f"{path.name} could not be compared: {error}")
        return notes


def _short(message: str, root: Path) -> str:
    """The message with paths below the root: a manifest may be shown to others."""
    return message.replace(f"{root}{os.sep}", "")
