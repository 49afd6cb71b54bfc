"""CheXpert Plus (Chambon et al., arXiv 2405.19538): a CSV with a row per film, films as PNG or DICOM, CheXbert labels.

Of the release of 240401 it is known: 223,462 rows (223,228 of train, 234 of valid), 187,711 studies, 64,725 patients;
59,469 rows have a findings section. Rows of one study repeat its sections, in 96.5 % of studies with the same findings.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from shards.errors import ConfigError, DataError
from shards.films.raw import open_film
from shards.sources import Item, Listing, Published, SplitCount
from shards.sources.annotation import read_entries
from shards.sources.chexpert_plus.annotation import distinct, entry_of
from shards.sources.chexpert_plus.films import (
    Film,
    columns_of,
    film_of,
    folder_of,
    order,
    patient_of,
    stem_of,
    study_of,
    suffix_of,
)
from shards.sources.chexpert_plus.labels import labels_of, read_labels
from shards.sources.chexpert_plus.table import parse_row, read_header, read_rows
from shards.sources.paths import is_inside
from shards.sources.spans import Span, read_span
from shards.sources.split import hash_split, patients_in_two_splits
from shards.study import BadStudy, Drop, Split, Study, View, key_of

OFFICIAL: dict[str, Split] = {"train": "train", "valid": "val", "test": "test"}
ACCESSION = "section_accession_number"
"""A number, no section."""
RELEASED = "published are 223,228 films of train (234 more are valid), 187,711 studies, 64,725 patients"
LABEL_FOLDERS = ("chexbert_labels", "CheXpert_Labels")
"""As in the archive, and as on Redivis."""
CHOICES = {
    "split": ("hash", "official"),
    "section": ("findings", "impression"),
    "per": ("study", "image"),
    "views": ("all", "frontal"),
    "labels": ("findings", "impression", "report", "none"),
    "films": ("auto", "png", "dicom"),
}
BENCHMARK = Published(
    citation="CXPMRG-Bench (Wang et al., CVPR 2025), findings of CheXpert Plus",
    splits={"train": SplitCount(studies=40463), "val": SplitCount(studies=5780), "test": SplitCount(studies=11562)},
)


@dataclass
class ChexpertPlus:
    """Studies of df_chexpert_plus_*.csv, or of the R2GenKG group's annotation.json over the same films.

    A study is the patientN/studyM in the paths of its films, which come frontal first, then by path. Its report is that
    of its first film whose row has the target section; labels and the other sections are those of the same row. Studies
    without the section are dropped by name. So is one any of whose films cannot be read: none silently loses a view.
    """

    raw: Path
    """The directory with df_chexpert_plus_*.csv, PNG/ or DICOM/, and chexbert_labels/; or that CSV."""
    annotation: Path | None = None
    """`{"train": [{"id", "report", "image_path"}], "val": ..., "test": ...}`: splits and reports to use instead of the
    CSV's. The benchmark's was drawn without regard to patients, so some may be in two splits."""
    split: Literal["hash", "official"] = "hash"
    """"hash": 70/10/20 by patient. "official": train and valid as released, valid as val; there is no test."""
    section: Literal["findings", "impression"] = "findings"
    """The target."""
    per: Literal["study", "image"] = "study"
    """"image": every film is a study of its own, with the report of its own row."""
    views: Literal["all", "frontal"] = "all"
    labels: Literal["findings", "impression", "report", "none"] = "findings"
    """Which text the labels were read from: chexbert_labels/*_fixed.json."""
    films: Literal["auto", "png", "dicom"] = "auto"
    """"auto": PNG where there is PNG."""
    drops: list[Drop] = field(default_factory=list, init=False)
    notes: list[str] = field(default_factory=list, init=False)

    name = "chexpert_plus"
    licence = "stanford-aimi-rua"
    cleaning = "r2gen-2020-mimic"

    def __post_init__(self) -> None:
        self.raw = Path(self.raw)
        self.annotation = Path(self.annotation) if self.annotation else None
        for option, choices in CHOICES.items():
            if (given := getattr(self, option)) not in choices:
                raise ConfigError(f"{self.name} with {option}={given!r}: use one of {', '.join(choices)}")
        if self.annotation and (self.split, self.section, self.per) != ("hash", "findings", "study"):
            raise ConfigError(
                f"{self.name} with an annotation and split={self.split}, section={self.section}, per={self.per}: the "
                "annotation decides all three. Leave them out, or leave out the annotation"
            )

    def __getstate__(self) -> dict[str, Any]:
        """What workers get: 130,000 drops stay behind."""
        return self.__dict__ | {"drops": [], "notes": []}

    @property
    def root(self) -> Path:
        """The directory below which all files lie."""
        return self.raw.parent if self.raw.suffix == ".csv" else self.raw

    @property
    def published(self) -> Published | None:
        """The benchmark's counts; the release itself is not split for report generation."""
        return BENCHMARK if self.annotation else None

    def listing(self) -> Listing:
        """What is listed, with what was refused and what is worth telling."""
        return Listing(self.items(), self.drops, self.notes, self.published)

    def items(self) -> list[Item]:
        """One item per usable study: reads the CSV or the annotation, and the labels, once; opens no film."""
        self.drops, self.notes = [], []
        try:
            items = self._annotated(self.annotation) if self.annotation else self._tabled(self._table())
            self._add_labels(items)
        except OSError as error:
            raise DataError(f"{error.filename} cannot be read: {error.strerror}") from None
        return items

    def read(self, item: Item) -> tuple[Study, list[np.ndarray]]:
        """The study and its films uint8 [H, W]; BadStudy names the film that is missing or does not decode."""
        kept = item.payload
        try:
            report, sections = self._read_text(kept)
        except OSError as error:
            raise DataError(f"{kept['file']} cannot be read: {error.strerror}") from None
        films = [self._open(kept["folder"], path) for path in kept["films"]]
        views = [View(position=at, file=file) for at, (file, _) in zip(kept["positions"], films, strict=True)]
        study = Study(
            key=key_of(item.id),
            id=item.id,
            patient=item.patient,
            split=item.split,
            views=tuple(views),
            sections=sections,
            report=report,
            target="",
            labels=labels_of(kept["labels"]),
            provenance={"source": self.name, "file": kept["file"], "row": str(kept["row"])},
        )
        return study, [film for _, film in films]

    def _read_text(self, kept: dict[str, Any]) -> tuple[str, dict[str, str]]:
        """(report, sections) from the bytes that were listed."""
        span = Span(kept["at"], kept["size"], kept["digest"])
        if self.annotation:
            report = json.loads(read_span(self.annotation, span))["report"]
            return report, {"findings": report}
        path = self.root / kept["file"]
        cells = parse_row(read_span(path, span))
        row = dict(zip(read_header(path), cells, strict=False))
        named = {name.removeprefix("section_"): row[name] for name in row if name.startswith("section_")}
        sections = {name: text for name, text in named.items() if text.strip() and f"section_{name}" != ACCESSION}
        if self.section not in sections:
            raise BadStudy("report file changed", f"{path.name} has other columns than when it was listed: run again")
        return sections[self.section], sections

    def _open(self, folder: str, path: str) -> tuple[str, np.ndarray]:
        """(file, film): with the suffix of the folder's films where that is there, else with the one listed."""
        root, wanted = self.root / folder, stem_of(path) + suffix_of(folder)
        for file in dict.fromkeys((wanted, path)):
            if not is_inside(file, root):
                raise BadStudy("path leaves the data root", f"{file} leads out of {folder}/", file)
            if (root / file).is_file():
                try:
                    return file, open_film(root / file)
                except DataError as error:
                    detail = str(error).replace(f"{root}{os.sep}", "")
                    raise BadStudy("image does not decode", detail, file) from error
        raise BadStudy("film is missing", f"{wanted} is not below {folder}/", wanted)

    def _drop(self, name: str, error: BadStudy, split: str = "") -> None:
        self.drops.append(error.drop(name, split))

    def _table(self) -> Path:
        """The CSV; ConfigError when there are several."""
        if self.raw.suffix == ".csv":
            tables = [self.raw] if self.raw.is_file() else []
        else:
            tables = sorted(self.raw.glob("df_chexpert_plus_*.csv"))
        if not tables:
            raise DataError(
                f"{self.raw}: df_chexpert_plus_*.csv is missing. raw must be its directory, or the CSV itself"
            )
        if len(tables) > 1:
            names = ", ".join(table.name for table in tables)
            raise ConfigError(f"{self.raw} holds {names}: give the path of the one to use as raw")
        return tables[0]

    def _tabled(self, path: Path) -> list[Item]:
        folder = folder_of(self.root, self.films)
        rows, groups = self._grouped(path, dicom=suffix_of(folder) == ".dcm")
        items, differ = [], 0
        for name, films in groups.items():
            try:
                items.append(self._item(name, films, {"file": path.name, "folder": folder}))
                differ += len({film.text for film in films if film.text}) > 1
            except BadStudy as error:
                self._drop(name, error, self._split_of(films[0]))
        self._note_table(path, rows, groups, len(items), differ)
        return items

    def _note_table(self, path: Path, rows: int, groups: dict[str, list[Film]], used: int, differ: int) -> None:
        studies = len({study_of(films[0].path) for films in groups.values()})
        patients = len({patient_of(films[0].path) for films in groups.values()})
        self.notes.append(
            f"{path.name} lists {rows:,} films, {studies:,} studies, {patients:,} patients; {RELEASED}. {used:,} of "
            f"{len(groups):,} {'films' if self.per == 'image' else 'studies'} can be used for the {self.section}"
        )
        if differ:
            self.notes.append(
                f"{differ:,} studies have films whose {self.section} differ: that of the first film which has one is "
                "used, frontal films first. per=image keeps every film with its own"
            )
        if self.split == "official":
            self.notes.append("The official split has train and valid, which is val here, and no test")
        if (self.root / "annotation.json").is_file():
            self.notes.append("annotation.json is there and not used: annotation=PATH uses its split and reports")

    def _grouped(self, path: Path, dicom: bool) -> tuple[int, dict[str, list[Film]]]:
        """(rows, study → its films), without the rows that describe no film or one that an earlier row describes."""
        columns = columns_of(path, self.section, dicom)
        groups: dict[str, list[Film]] = {}
        seen: dict[str, int] = {}
        number = 0
        for row in read_rows(path):
            number = row.number
            try:
                film = film_of(row, columns, self.section, dicom)
                if (first := seen.setdefault(film.path, number)) != number:
                    raise BadStudy("duplicate id", f"row {number}: the film of row {first}, which is kept", film.path)
            except BadStudy as error:
                self._drop(stem_of(error.file) or f"row {number}", error)
                continue
            name = study_of(film.path) if self.per == "study" else stem_of(film.path).partition("/")[2]
            groups.setdefault(name, []).append(film)
        return number, groups

    def _item(self, name: str, films: list[Film], kept: dict[str, Any]) -> Item:
        rows = ", ".join(str(film.row) for film in films[:5])
        used = sorted(films, key=lambda film: order(film.position, film.path))
        if self.views == "frontal":
            used = [film for film in used if film.position == "frontal"]
        if not used:
            raise BadStudy("no frontal film", f"row {rows}")
        told = next((film for film in used if film.text), None)
        if told is None:
            raise BadStudy(f"no {self.section} section", f"row {rows}")
        if self.split == "official" and {film.split for film in films} - {told.split}:
            raise BadStudy("study in two splits", f"rows {rows} name more than one split")
        if not (split := self._split_of(told)):
            raise BadStudy("unknown split", f"row {told.row}: split is none of {', '.join(OFFICIAL)}")
        kept |= {"row": told.row, **told.span._asdict(), "labels": stem_of(told.path)}
        kept |= {"films": [film.file for film in used], "positions": [film.position for film in used]}
        return Item(id=name, split=split, patient=patient_of(told.path), payload=kept)

    def _split_of(self, film: Film) -> Split | Literal[""]:
        return hash_split(patient_of(film.path)) if self.split == "hash" else OFFICIAL.get(film.split, "")

    def _annotated(self, path: Path) -> list[Item]:
        folder = folder_of(self.root, self.films)
        items: list[Item] = []
        seen: dict[str, tuple[str, Split]] = {}
        for split, row, span, data in read_entries(path):
            place = f"{path.name} {split}[{row}]"
            try:
                entry = distinct(entry_of(data, place, self.views), split, place, seen)
            except BadStudy as error:
                self._drop(f"{split}[{row}]", error, split)
                continue
            kept = {"file": path.name, "folder": folder, "row": row, **span._asdict()}
            kept |= {"labels": stem_of(entry.films[0]), "films": entry.films, "positions": entry.positions}
            items.append(Item(id=entry.id, split=split, patient=entry.patient, payload=kept))
        shared = patients_in_two_splits((item.patient, item.split) for item in items)
        patients = len({item.patient for item in items})
        self.notes.append(f"{path.name}: {len(shared):,} of {patients:,} patients are in more than one split")
        return items

    def _add_labels(self, items: list[Item]) -> None:
        """Put in the place of every item's labelled film that film's labels, "" where there are none."""
        found: dict[str, str] = {}
        if self.labels != "none":
            paths = [self.root / folder / f"{self.labels}_fixed.json" for folder in LABEL_FOLDERS]
            path = next((path for path in paths if path.is_file()), paths[0])
            if not path.is_file():
                others = ", ".join(choice for choice in CHOICES["labels"][:-1] if choice != self.labels)
                raise DataError(f"{path} is missing. labels=none does without; other labels are {others}")
            found = read_labels(path, {item.payload["labels"] for item in items})
            if without := sum(item.payload["labels"] not in found for item in items):
                self.notes.append(f"{without:,} of {len(items):,} studies have no labels in {path.name}")
            if self.labels != self.section:
                self.notes.append(f"Labels were read from the {self.labels}, the target is the {self.section}")
        for item in items:
            item.payload["labels"] = found.get(item.payload["labels"], "")
