"""MIMIC-CXR-JPG 2.0.0 and 2.1.0 (Johnson et al., Sci Data 2019) with the reports of MIMIC-CXR, from local copies.

Films and reports are two downloads: `raw` is the directory of MIMIC-CXR-JPG (its tables beside files/), `reports` the
directory or mimic-cxr-reports.zip of MIMIC-CXR. Films may be DICOM where MIMIC-CXR itself was downloaded; they look
different, for the owner's JPG films are histogram-equalised. The driver reads the tables only; a report is opened by
the worker that needs it.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from sys import intern
from typing import Any, Literal, get_args

import numpy as np

from shards.errors import ConfigError, DataError
from shards.films.raw import open_film
from shards.sources import Item, Listing, Published, SplitCount
from shards.sources.mimic_cxr.annotation import compare_splits, read_samples, report_in
from shards.sources.mimic_cxr.report import BOTH, find_reports, has_any, parse_report, read_report, report_name
from shards.sources.mimic_cxr.tables import (
    LABELS,
    Sample,
    find_table,
    need_table,
    read_labels,
    read_positions,
    read_split,
)
from shards.sources.paths import is_inside
from shards.study import BadStudy, Drop, Study, View, key_of

Position = Literal["frontal", "lateral", "unknown"]
POSITIONS: dict[str, tuple[int, Position]] = {
    "PA": (0, "frontal"),
    "AP": (1, "frontal"),
    "LATERAL": (3, "lateral"),
    "LL": (3, "lateral"),
    "RL": (3, "lateral"),
    "XTABLE LATERAL": (3, "lateral"),
}
"""ViewPosition → rank in a study, name. All else is unknown: empty in 15,769 films; AP AXIAL, LAO, SWIMMERS in 19."""
UNKNOWN: tuple[int, Position] = (2, "unknown")
LETTERS: dict[str, Position] = {"f": "frontal", "l": "lateral", "u": "unknown"}
VALUES: dict[str, Literal[-1, 0, 1] | None] = {"1": 1, "0": 0, "-": -1, ".": None}
ROOTS = ("files", "images", "")
"""Where p10/ may lie below raw: MIMIC-CXR-JPG, R2Gen's form, either of them entered one level deeper."""
SUFFIXES = (".jpg", ".dcm")
OFFICIAL = Published(
    citation="split table of MIMIC-CXR-JPG 2.0.0; Chen et al., EMNLP 2020 (R2Gen), table 1",
    splits={
        "train": SplitCount(studies=222_758, images=368_960, patients=64_586),
        "val": SplitCount(studies=1_808, images=2_991, patients=500),
        "test": SplitCount(studies=3_269, images=5_159, patients=293),
    },
)
R2GEN = Published(
    citation="annotation.json of R2Gen, one sample per image (github.com/cuhksz-nlp/R2Gen, issues 1 and 16)",
    splits={
        "train": SplitCount(studies=270_790, images=270_790),
        "val": SplitCount(studies=2_130, images=2_130),
        "test": SplitCount(studies=3_858, images=3_858),
    },
)


@dataclass
class MimicCxr:
    """Studies of the official split with one section of their report as the target.

    Policy for views: the films of a study in the order PA, AP, unknown, lateral, then by dicom_id. One film that is
    missing or does not decode drops the sample whole, so that none silently loses a view; rows of the tables that
    cannot be used are drops of their own. A report without the section asked for drops its samples by name.

    `per="image"` is the form of R2Gen and its successors: one sample per film, of every view, each with the study's
    report. `annotation` takes samples, reports and splits from R2Gen's own annotation.json instead of the tables.
    """

    raw: Path
    """The directory of MIMIC-CXR-JPG, or of R2Gen's images."""
    reports: Path | None = None
    """Directory above p10/ … p19/, or mimic-cxr-reports.zip; default: whichever lies below raw."""
    per: Literal["study", "image"] = "study"
    views: Literal["all", "frontal"] = "all"
    """frontal: PA and AP films only; others are left out and counted in the notes."""
    section: Literal["findings", "impression", "findings+impression"] = "findings"
    min_views: int = 1
    """Fewest films a study may have, after `views`."""
    annotation: Path | None = None
    """R2Gen's annotation.json for MIMIC-CXR."""
    labels: Literal["chexpert", "negbio", "none"] = "chexpert"
    drops: list[Drop] = field(default_factory=list, init=False)
    notes: list[str] = field(default_factory=list, init=False)

    name = "mimic_cxr"
    licence = "physionet-credentialed-1.5.0"
    cleaning = "r2gen-2020-mimic"

    def __post_init__(self) -> None:
        self.raw = Path(self.raw)
        self.reports = Path(self.reports) if self.reports else None
        self.annotation = Path(self.annotation) if self.annotation else None
        self._check_choices()
        if self.per == "image" and self.min_views != 1:
            raise ConfigError(
                f"mimic_cxr with per=image, min_views={self.min_views}: a sample of per=image has one film"
            )
        if self.annotation and (self.per, self.section) != ("image", "findings"):
            raise ConfigError(
                f"mimic_cxr with annotation, per={self.per}, section={self.section}: R2Gen's annotation lists the "
                "findings once per image: add per=image, and section=findings"
            )

    def _check_choices(self) -> None:
        for option in ("per", "views", "section", "labels"):
            choices = get_args(type(self).__annotations__[option])
            if (value := getattr(self, option)) not in choices:
                raise ConfigError(f"mimic_cxr with {option}={value!r}: choose one of {', '.join(choices)}")
        if not str(self.min_views).isdecimal() or int(self.min_views) < 1:
            raise ConfigError(f"mimic_cxr with min_views={self.min_views!r}: it must be a number of 1 or more")
        self.min_views = int(self.min_views)

    @property
    def published(self) -> Published:
        """R2Gen's counts where its form is read, else those of the official split before any report was opened."""
        return R2GEN if (self.per, self.views, self.section) == ("image", "all", "findings") else OFFICIAL

    def listing(self) -> Listing:
        """What is listed, with what was refused and what is worth telling."""
        return Listing(self.items(), self.drops, self.notes, self.published)

    def items(self) -> list[Item]:
        """One item per sample, without its report; DataError when a table is amiss."""
        self.drops, self.notes = [], []
        if not any((self.raw / root).is_dir() for root in ROOTS[:2]) and not any(self.raw.glob("p[0-9][0-9]")):
            raise DataError(f"{self.raw} has neither files/ nor images/: raw must be the directory of MIMIC-CXR-JPG")
        items = list(self._join(self._annotated(self.annotation) if self.annotation else self._listed()))
        if items and not self.annotation:
            self._check_reports(items)
        return items

    def read(self, item: Item) -> tuple[Study, list[np.ndarray]]:
        """The study and its films uint8 [H, W]; BadStudy names the report or the first film that cannot be used."""
        entry, study = item.payload, f"s{item.payload['study']}"
        sections, report = self._report(entry, report_name(item.patient, study))
        files = [self._file_of(f"{item.patient[:3]}/{item.patient}/{study}/{dicom}") for dicom in entry["films"]]
        films = [self._film(file) for file in files]
        positions = [LETTERS[letter] for letter in entry["views"]]
        labels = dict(zip(LABELS, (VALUES[letter] for letter in entry.get("labels", "")), strict=False))
        return Study(
            key=key_of(item.id),
            id=item.id,
            patient=item.patient,
            split=item.split,
            views=tuple(View(position=at, file=file) for at, file in zip(positions, files, strict=True)),
            sections=sections,
            report=report,
            target="",
            labels=labels,
            provenance={"source": self.name, "file": entry["table"], "row": str(entry["row"])},
        ), films

    def _listed(self) -> list[Sample]:
        """The samples of the official split."""
        table, samples = need_table(self.raw, "split"), []
        studies, self.drops = read_split(table)
        for study, listed in studies.items():
            named = [(f"s{study}", listed.films)] if self.per == "study" else [(film, [film]) for film in listed.films]
            known = (study, f"p{listed.patient}", listed.split, table.name, listed.row)
            samples += [Sample(name, *known, films) for name, films in named]
        return samples

    def _annotated(self, annotation: Path) -> list[Sample]:
        """The samples of R2Gen's annotation, compared with the official split where that is there."""
        samples, self.drops = read_samples(annotation)
        if table := find_table(self.raw, "split"):
            self.notes.append(f"{annotation.name} and {table.name}: {compare_splits(samples, table)}")
        else:
            self.notes.append(f"no split table: the splits of {annotation.name} were compared with nothing")
        return samples

    def _join(self, samples: list[Sample]) -> Iterator[Item]:
        """Items of the samples that have films enough, with views in order and labels; the others are drops."""
        positions, labels, faults = self._positions(), *self._labels()
        counts: Counter[str] = Counter()
        for sample in samples:
            placed = sorted((*POSITIONS.get(positions.get(film, ""), UNKNOWN), film) for film in sample.films)
            kept = [(name, film) for _, name, film in placed if self.views == "all" or name == "frontal"]
            counts["films"] += len(placed)
            counts["not in the table"] += sum(film not in positions for film in sample.films)
            counts["unknown"] += sum(name == "unknown" for _, name, _ in placed)
            counts["left out"] += len(placed) - len(kept)
            counts["without labels"] += sample.study not in labels
            if kept or self.per == "study":
                try:
                    yield self._item(sample, kept, labels.get(sample.study), faults.get(sample.study))
                except BadStudy as error:
                    self.drops.append(error.drop(sample.id, sample.split))
        self._note(counts, len(samples))

    def _item(self, sample: Sample, kept: list[tuple[Position, str]], labels: str | None, fault: int | None) -> Item:
        """The item of one sample with the films kept; BadStudy when these are too few or its labels are unclear."""
        if len(kept) < self.min_views:
            what = "films" if self.views == "all" else "frontal films"
            raise BadStudy("too few views", f"row {sample.row}: {len(kept)} {what}, min_views={self.min_views}")
        if fault:
            raise BadStudy(
                "labels are unclear",
                f"{self.labels} table row {fault}: a cell is none of 1, 0, -1, empty; or rows differ",
            )
        payload: dict[str, Any] = {"table": sample.table, "row": sample.row, "study": sample.study}
        payload |= {"films": [film for _, film in kept], "views": intern("".join(name[0] for name, _ in kept))}
        payload |= {"labels": labels} if labels else {}
        payload |= {"span": list(sample.span)} if sample.span else {}
        return Item(id=sample.id, split=sample.split, patient=sample.patient, payload=payload)

    def _note(self, counts: Counter[str], samples: int) -> None:
        films = f"of {counts['films']:,} films"
        said = {
            f"{counts['not in the table']:,} {films} are not in the metadata table": counts["not in the table"],
            f"{counts['unknown']:,} {films} have no known view position": counts["unknown"],
            f"{counts['left out']:,} {films} are left out by views={self.views}": counts["left out"],
            f"{counts['without labels']:,} of {samples:,} samples have no row in the {self.labels} table": (
                counts["without labels"] if self.labels != "none" else 0
            ),
        }
        self.notes += [note for note, count in said.items() if count]

    def _positions(self) -> dict[str, str]:
        table = find_table(self.raw, "metadata")
        if table is None and self.annotation and self.views == "all":
            return {}
        return read_positions(table or need_table(self.raw, "metadata"))

    def _labels(self) -> tuple[dict[str, str], dict[str, int]]:
        if self.labels == "none":
            return {}, {}
        return read_labels(need_table(self.raw, self.labels, ". To do without labels say labels=none"))

    def _check_reports(self, items: list[Item]) -> None:
        store = find_reports(self.raw, self.reports)
        if not has_any(store, (report_name(item.patient, f"s{item.payload['study']}") for item in items)):
            raise DataError(
                f"{store} has no report of any study listed: it must hold files/p10/... or p10/.... Reports come with "
                "MIMIC-CXR, not with MIMIC-CXR-JPG: say reports=DIRECTORY or reports=.../mimic-cxr-reports.zip"
            )

    def _report(self, entry: dict[str, Any], name: str) -> tuple[dict[str, str], str]:
        """(sections, target) of one study."""
        if self.annotation:
            report = report_in(self.annotation, entry["span"])
            return {"findings": report}, report
        sections = parse_report(read_report(find_reports(self.raw, self.reports), name))
        if not sections:
            raise BadStudy("empty report", f"{name} holds no text", name)
        wanted = self.section.split("+")
        if missing := [section for section in wanted if section not in sections]:
            if len(wanted) > 1 and BOTH in sections:
                return sections, sections[BOTH]
            raise BadStudy(f"no {missing[0]} section", f"{name} has {', '.join(sections)}", name)
        return sections, "\n".join(sections[section] for section in wanted)

    def _file_of(self, film: str) -> str:
        """Path below raw of the film, which is named as below files/ and without a suffix."""
        names = (f"{root}/{film}{suffix}".lstrip("/") for suffix in SUFFIXES for root in ROOTS)
        file = next((name for name in names if (self.raw / name).is_file()), None)
        if file is None:
            looked = f"neither {' nor '.join(SUFFIXES)} below {', '.join(filter(None, ROOTS))} or raw itself"
            raise BadStudy("film is missing", f"{film}: {looked}", f"{ROOTS[0]}/{film}{SUFFIXES[0]}")
        if not is_inside(file, self.raw):
            raise BadStudy("path leaves the data root", f"{file} is reached through a link out of raw", file)
        return file

    def _film(self, file: str) -> np.ndarray:
        try:
            return open_film(self.raw / file)
        except DataError as error:
            raise BadStudy("image does not decode", str(error).replace(f"{self.raw}{os.sep}", ""), file) from error
