"""IU X-Ray (Demner-Fushman et al., JAMIA 2016; doi:10.1093/jamia/ocv080) in any of its raw forms."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from shards.errors import DataError
from shards.sources import Item, Listing, Source
from shards.sources.films import Films
from shards.sources.iu_xray.exam import Exam, Form, check_id
from shards.sources.iu_xray.films import IMAGES, FilmIndex
from shards.sources.iu_xray.forms import SPREADSHEET, choose_form, compare, forms_there, read_form, root_of
from shards.sources.iu_xray.split import SplitBy, SplitRule, split_rule
from shards.study import BadStudy, Drop, Study, View, key_of

PLACEHOLDER = re.compile(r"(nan|none|null|n/?a|<na>)", re.IGNORECASE)


class IuXray(Source):
    """Studies of annotation.json (R2Gen), of Open-i's XML reports, or of Kaggle's two CSV files.

    All forms give the same examination the same id, key, split, patient, findings, and films in the same order. The id
    is R2Gen's (`exam_id`), the patient its CXR number: IU X-Ray tells no more, so one patient's examinations may carry
    different numbers. Where films are looked up is said in `shards.sources.iu_xray.films`.

    Policy for views: a study is kept with all the films its form lists, frontal first where positions are known, else
    as listed; one with fewer than `min_views`, or of which any film is missing or does not decode, is dropped whole and
    by name, so that no study silently loses a view. R2Gen's annotation lists two films of each study, Open-i and Kaggle
    list all of them.
    """

    name: ClassVar[str] = "iu_xray"
    licence: ClassVar[str] = "cc-by-nc-nd-4.0"
    cleaning: ClassVar[str] = "r2gen-2020-iu"

    raw: Path
    """The directory with one or more forms and images/, or the file of one form in it."""
    min_views: int = Field(default=1, ge=1)
    """Fewest films a study may have; 2 is R2Gen's own requirement."""
    form: Literal["auto", "annotation", "xml", "csv"] = "auto"
    """What to read: "annotation" (R2Gen), "xml" (Open-i), "csv" (Kaggle); "auto" takes the first that is there."""
    split: SplitBy = "auto"
    """"annotation": as annotation.json says, other studies are dropped by name. "hash": of the CXR number. "train":
    all. "auto": annotation where it is, else hash."""
    section: Literal["auto", "findings", "impression", "findings+impression"] = "auto"
    """The target. "auto" is the annotation's own `report`, elsewhere the findings, which R2Gen's reports are."""
    crosscheck: bool = True
    """Whether to compare with the other forms that are there; what differs goes to the notes."""

    def listing(self) -> Listing:
        """Every study of one form; DataError when that form as a whole is not what it should be."""
        name, path = choose_form(self.raw, self.form)
        index = FilmIndex(root_of(self.raw))
        form = read_form(name, path, index)
        if name != "annotation":
            index.refuse_empty()
        elif not (index.root / IMAGES).is_dir():
            raise DataError(f"{path} is there, the directory {index.root / IMAGES} with its films is not")
        rule = split_rule(self.split, form, index.root)
        items, drops, seen = list[Item](), list[Drop](), set[tuple[str, str]]()
        for entry in form.entries:
            if isinstance(entry, Drop):
                drops.append(entry)
                continue
            try:
                items.append(self._item(form, entry, index, rule, seen))
            except BadStudy as error:
                drops.append(error.drop(entry.id, entry.split))
        notes = [rule.note, *form.notes, *index.notes]
        for other, file in forms_there(self.raw).items() if self.crosscheck else ():
            if other != name:
                try:
                    notes += compare(form, read_form(other, file, index))
                except DataError as error:
                    notes.append(f"{file.name} could not be compared: {error}")
        return Listing(items, drops, notes, rule.published)

    def _item(self, form: Form, exam: Exam, index: FilmIndex, rule: SplitRule, seen: set[tuple[str, str]]) -> Item:
        """The item of one examination, which joins those `seen`; BadStudy when it cannot be used."""
        place = f"{form.file.name} {exam.place}"
        identifier, split = rule.of(exam)
        check_id(identifier, f"{place}: id {identifier[:200]!r}")
        if not exam.films:
            raise BadStudy("no film is listed", place)
        folder, files = IMAGES, [film.file for film in exam.films]
        if not all(files):
            folder, files = index.find(exam.films, place)
        films = Films(index.root / folder)
        for file in files:
            if not films.holds(file):
                raise BadStudy("path leaves the data root", f"{place}: {file[:200]!r} is not below {folder}/", file)
        if len(files) < self.min_views:
            raise BadStudy("too few views", f"{place}: films listed {len(files)}, min_views={self.min_views}")
        if (split, identifier) in seen:
            raise BadStudy("duplicate id", f"{place}: id {identifier!r} stands earlier in this split, which is kept")
        payload = {
            "file": form.file.name,
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

    def _target(self, exam: Exam, place: str) -> str:
        names = ["findings"] if self.section == "auto" else self.section.split("+")
        parts = [exam.sections[name] for name in names if name in exam.sections]
        if self.section == "auto" and exam.report is not None:
            parts = [exam.report]
        if not parts:
            there = ", ".join(sorted(exam.sections)) or "none"
            raise BadStudy("section is missing", f"{place}: section={self.section!r}, the sections there are: {there}")
        report = parts[0] if len(parts) == 1 else " ".join(part.strip() for part in parts if part.strip())
        if PLACEHOLDER.fullmatch(report.strip()) or SPREADSHEET.fullmatch(report.strip()):
            raise BadStudy("report is a placeholder", f"{place}: it reads {report.strip()!r} and nothing else")
        return report

    def raw_files(self, item: Item) -> Iterable[Path | str]:
        """The films of an item."""
        folder = root_of(self.raw) / item.payload["folder"]
        return [folder / file for file in item.payload["image_path"]]

    def read(self, item: Item) -> tuple[Study, list[np.ndarray]]:
        """The study and its films uint8 [H, W]; BadStudy names the first film that does not decode."""
        listed = item.payload
        folder = Films(root_of(self.raw) / listed["folder"])
        films = [folder.read(file) for file in listed["image_path"]]
        views = zip(listed["views"], listed["image_path"], strict=True)
        study = Study(
            key=key_of(item.id),
            id=item.id,
            patient=item.patient,
            split=item.split,
            views=tuple(View(position=position, file=file) for position, file in views),
            sections=listed["sections"],
            report=listed["report"],
            target="",
            provenance={"source": self.name, "file": listed["file"], "row": listed["place"], **listed["facts"]},
        )
        return study, films
