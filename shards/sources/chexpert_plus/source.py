"""CheXpert Plus (Chambon et al., arXiv 2405.19538): a CSV with a row per film, films as PNG or DICOM, CheXbert labels.

Of the release of 240401 it is known: 223,462 rows (223,228 of train, 234 of valid), 187,711 studies, 64,725 patients;
59,469 rows have a findings section. Rows of one study repeat its sections, in 96.5 % of studies with the same findings.
"""

from collections.abc import Iterable
from os.path import splitext
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from pydantic import model_validator

from shards.errors import ConfigError, DataError
from shards.sources import Item, Listing, Published, Source, SplitCount
from shards.sources.annotation import object_in
from shards.sources.chexpert_plus.annotation import list_entries
from shards.sources.chexpert_plus.films import BEGINS, COLUMNS, FOLDERS, OFFICIAL, RANK, FilmRow, film_of, folder_of
from shards.sources.chexpert_plus.labels import labels_of, read_labels
from shards.sources.films import MAX_FILMS, Films
from shards.sources.split import patients_in_two_splits
from shards.sources.tables import Span, Table, read_span
from shards.study import BadStudy, Drop, Study, View, key_of

MAX_ROWS, MAX_BYTES = 300_000, 3_000_000_000
"""Of the CSV."""
ACCESSION = "section_accession_number"
"""A number, no section."""
RELEASED = "published are 223,228 films of train (234 more are valid), 187,711 studies, 64,725 patients"
LABEL_FOLDERS = ("chexbert_labels", "CheXpert_Labels")
"""As in the archive, and as on Redivis."""
LabelText = Literal["findings", "impression", "report", "none"]
BENCHMARK = Published(
    citation="CXPMRG-Bench (Wang et al., CVPR 2025), findings of CheXpert Plus",
    splits={"train": SplitCount(studies=40463), "val": SplitCount(studies=5780), "test": SplitCount(studies=11562)},
)


class ChexpertPlus(Source):
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
    """Which films of a study are used."""
    labels: LabelText = "findings"
    """Which text the labels were read from: chexbert_labels/*_fixed.json."""
    films: Literal["auto", "png", "dicom"] = "auto"
    """"auto": PNG where there is PNG."""

    name: ClassVar[str] = "chexpert_plus"
    licence: ClassVar[str] = "stanford-aimi-rua"
    cleaning: ClassVar[str] = "r2gen-2020-mimic"

    @model_validator(mode="after")
    def _annotation_decides(self) -> "ChexpertPlus":
        if self.annotation and (self.split, self.section, self.per) != ("hash", "findings", "study"):
            raise ValueError(
                f"{self.name} with an annotation and split={self.split}, section={self.section}, per={self.per}: the "
                "annotation decides all three. Leave them out, or leave out the annotation"
            )
        return self

    @property
    def usual_cleaning(self) -> str:
        """With the benchmark's annotation that of its code, which is R2GenGPT's."""
        return "r2gengpt-2023-mimic" if self.annotation else self.cleaning

    @property
    def root(self) -> Path:
        """The directory below which all files lie."""
        return self.raw.parent if self.raw.suffix == ".csv" else self.raw

    def listing(self) -> Listing:
        """One item per usable study: reads the CSV or the annotation, and the labels, once; opens no film.

        Published are the benchmark's counts; the release itself is not split for report generation.
        """
        try:
            if not self.annotation:
                items, drops, notes = self._list_table(self._csv())
                return Listing(items, drops, notes + self._add_labels(items))
            items, drops = list_entries(self.annotation, folder_of(self.root, self.films), self.views)
            shared = patients_in_two_splits((item.patient, item.split) for item in items)
            patients = len({item.patient for item in items})
            note = f"{self.annotation.name}: {len(shared):,} of {patients:,} patients are in more than one split"
            return Listing(items, drops, [note, *self._add_labels(items)], BENCHMARK)
        except OSError as error:
            raise DataError(f"{error.filename} cannot be read: {error.strerror}") from None

    def raw_files(self, item: Item) -> Iterable[Path | str]:
        """The films of an item, under both names that each may have."""
        return [self.root / item.payload["folder"] / name for names in self._film_names(item) for name in names]

    def _film_names(self, item: Item) -> list[tuple[str, str]]:
        """Of every film: tables say .jpg where released ones are .png; one that was made a JPEG has the name listed."""
        suffix = FOLDERS[item.payload["folder"]]
        return [(splitext(path)[0] + suffix, path) for path in item.payload["films"]]

    def read(self, item: Item) -> tuple[Study, list[np.ndarray]]:
        """The study and its films uint8 [H, W]; BadStudy names the film that is missing or does not decode."""
        kept = item.payload
        try:
            report, sections = self._read_text(kept)
        except OSError as error:
            raise DataError(f"{kept['file']} cannot be read: {error.strerror}") from None
        folder, views, films = Films(self.root / kept["folder"]), [], []
        for position, names in zip(kept["positions"], self._film_names(item), strict=True):
            file = folder.find(dict.fromkeys(names), f"{names[0]} is not below {kept['folder']}/")
            views.append(View(position=position, file=file))
            films.append(folder.read(file))
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
        return study, films

    def _read_text(self, kept: dict[str, Any]) -> tuple[str, dict[str, str]]:
        """(report, sections) from the bytes that were listed."""
        span = Span(kept["at"], kept["size"], kept["digest"])
        if self.annotation:
            report = object_in(read_span(self.annotation, span), self.annotation.name)["report"]
            return report, {"findings": report}
        path = self.root / kept["file"]
        cells = Table.parse(read_span(path, span))
        row = dict(zip(Table(path, ()).columns, cells, strict=False))
        named = {name.removeprefix("section_"): row[name] for name in row if name.startswith("section_")}
        sections = {name: text for name, text in named.items() if text.strip() and f"section_{name}" != ACCESSION}
        if self.section not in sections:
            raise BadStudy("report file changed", f"{path.name} has other columns than when it was listed: run again")
        return sections[self.section], sections

    def _csv(self) -> Path:
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

    def _list_table(self, path: Path) -> tuple[list[Item], list[Drop], list[str]]:
        """(items, drops, notes) of the CSV."""
        folder = folder_of(self.root, self.films)
        rows, groups, drops = self._read_films(path, dicom=FOLDERS[folder] == ".dcm")
        items, differ = list[Item](), 0
        for name, films in groups.items():
            try:
                items.append(self._item(name, films, {"file": path.name, "folder": folder}))
                differ += len({film.text for film in films if film.text}) > 1
            except BadStudy as error:
                drops.append(error.drop(name, films[0].split))
        studies = len({films[0].study for films in groups.values()})
        patients = len({films[0].patient for films in groups.values()})
        notes = [
            f"{path.name} lists {rows:,} films, {studies:,} studies, {patients:,} patients; {RELEASED}. {len(items):,} "
            f"of {len(groups):,} {'films' if self.per == 'image' else 'studies'} can be used for the {self.section}"
        ]
        if differ:
            notes.append(
                f"{differ:,} studies have films whose {self.section} differ: that of the first film which has one is "
                "used, frontal films first. per=image keeps every film with its own"
            )
        if self.split == "official":
            notes.append("The official split has train and valid, which is val here, and no test")
        if (self.root / "annotation.json").is_file():
            notes.append("annotation.json is there and not used: annotation=PATH uses its split and reports")
        return items, drops, notes

    def _read_films(self, path: Path, dicom: bool) -> tuple[int, dict[str, list[FilmRow]], list[Drop]]:
        """(rows, study → its films, drops): dropped are rows that describe no film or one that an earlier row does."""
        needed = [*COLUMNS, f"section_{self.section}", *(["path_to_dcm"] if dicom else [])]
        table = Table(path, needed, BEGINS, max_rows=MAX_ROWS, max_bytes=MAX_BYTES)
        if "path_to_image" not in table.columns[:2]:
            table.begins = None
        groups: dict[str, list[FilmRow]] = {}
        first: dict[str, int] = {}
        drops = []
        number = 0
        for row in table.rows():
            number = row.number
            try:
                film = film_of(row, self.section, dicom, self.split == "official")
                if (before := first.setdefault(film.path, number)) != number:
                    raise BadStudy("duplicate id", f"row {number}: the film of row {before}, which is kept", film.path)
            except BadStudy as error:
                drops.append(error.drop(splitext(error.file)[0] or f"row {number}"))
                continue
            name = film.study if self.per == "study" else splitext(film.path)[0].partition("/")[2]
            groups.setdefault(name, []).append(film)
        return number, groups, drops

    def _item(self, name: str, films: list[FilmRow], payload: dict[str, Any]) -> Item:
        """The study of these films; BadStudy when it cannot be used."""
        rows = ", ".join(str(film.row) for film in films[:5])
        used = sorted(films, key=lambda film: (RANK[film.position], film.path))
        if self.views == "frontal":
            used = [film for film in used if film.position == "frontal"]
        if not used:
            raise BadStudy("no frontal film", f"row {rows}")
        if len(used) > MAX_FILMS:
            raise BadStudy("too many films", f"row {rows}: {len(used):,}, no study has more than {MAX_FILMS}")
        reported = next((film for film in used if film.text), None)
        if reported is None:
            raise BadStudy(f"no {self.section} section", f"row {rows}")
        if {film.split for film in films} - {reported.split}:
            raise BadStudy("study in two splits", f"rows {rows} name more than one split")
        if not reported.split:
            raise BadStudy("unknown split", f"row {reported.row}: split is none of {', '.join(OFFICIAL)}")
        payload |= {"row": reported.row, **reported.span._asdict(), "labels": splitext(reported.path)[0]}
        payload |= {"films": [film.file for film in used], "positions": [film.position for film in used]}
        return Item(id=name, split=reported.split, patient=reported.patient, payload=payload)

    def _add_labels(self, items: list[Item]) -> list[str]:
        """Put in the place of every item's labelled film that film's labels, "" where there are none; returns notes."""
        labels, notes = dict[str, str](), list[str]()
        if self.labels != "none":
            paths = [self.root / folder / f"{self.labels}_fixed.json" for folder in LABEL_FOLDERS]
            path = next((path for path in paths if path.is_file()), paths[0])
            if not path.is_file():
                others = ", ".join(text for text in get_args(LabelText) if text not in (self.labels, "none"))
                raise DataError(f"{path} is missing. labels=none does without; other labels are {others}")
            labels = read_labels(path, {item.payload["labels"] for item in items})
            if without := sum(item.payload["labels"] not in labels for item in items):
                notes.append(f"{without:,} of {len(items):,} studies have no labels in {path.name}")
            if self.labels != self.section:
                notes.append(f"Labels were read from the {self.labels}, the target is the {self.section}")
        for item in items:
            item.payload["labels"] = labels.get(item.payload["labels"], "")
        return notes
