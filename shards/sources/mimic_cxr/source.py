"""MIMIC-CXR-JPG 2.0.0 and 2.1.0 (Johnson et al., Sci Data 2019) with the reports of MIMIC-CXR, from local copies.

Films and reports are two downloads: `raw` is the directory of MIMIC-CXR-JPG (its tables beside files/), `reports` the
directory or mimic-cxr-reports.zip of MIMIC-CXR. Films may be DICOM where MIMIC-CXR itself was downloaded; they look
different, for the owner's JPG films are histogram-equalised. The driver reads the tables only; a report is opened by
the worker that needs it.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from sys import intern
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from shards.errors import DataError, patiently
from shards.sources import Item, Listing, Published, Source, SplitCount
from shards.sources.films import Films
from shards.sources.mimic_cxr.annotation import compare_splits, read_samples, report_in
from shards.sources.mimic_cxr.owner import owner_sections, read_sectioned, sections_in
from shards.sources.mimic_cxr.report import (
    BOTH,
    find_reports,
    has_any,
    known_reports,
    parse_report,
    read_report,
    report_files,
    report_name,
)
from shards.sources.mimic_cxr.tables import (
    TEST_SET,
    VALUES,
    Sample,
    find_table,
    need_table,
    read_labels,
    read_positions,
    read_split,
)
from shards.sources.tables import Span
from shards.study import FINDINGS, BadStudy, Drop, Study, View, key_of

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
ROOTS = ("files", "images", "")
"""Where p10/ may lie below raw: MIMIC-CXR-JPG, R2Gen's form, either of them entered one level deeper."""
SUFFIXES = (".jpg", ".dcm")
LOOKED_AT = 1000
"""Samples, from all over the listing, whose films are looked for to tell which of them a run reads."""
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


UNLIKE = "target differs from what the other sections= takes"
UNLIKE_TOO = ", where the other sections= has one"


class MimicCxr(Source):
    """Studies of the official split with one section of their report as the target.

    Policy for views: the films of a study in the order PA, AP, unknown, lateral, then by dicom_id. One film that is
    missing or does not decode drops the sample whole, so that none silently loses a view. A run reads JPEG, or DICOM
    where there is more of it, and no other: their pixels are not the same. Rows of the tables that
    cannot be used are drops of their own. A report without the section asked for drops its samples by name.

    `per="image"` is the form of R2Gen and its successors: one sample per film, of every view, each with the study's
    report. `annotation` takes samples, reports and splits from R2Gen's own annotation.json instead of the tables.
    """

    name: ClassVar[str] = "mimic_cxr"
    licence: ClassVar[str] = "physionet-credentialed-1.5.0"
    cleaning: ClassVar[str] = "r2gen-2020-mimic"

    raw: Path
    """The directory of MIMIC-CXR-JPG, or of R2Gen's images."""
    reports: Path | None = None
    """Directory above p10/ … p19/, or mimic-cxr-reports.zip; default: whichever lies below raw."""
    per: Literal["study", "image"] = "study"
    """A sample: a study with its films, or one film of it."""
    views: Literal["all", "frontal"] = "all"
    """frontal: PA and AP films only; others are left out and counted in the notes."""
    section: Literal["findings", "impression", "findings+impression"] = "findings"
    """What of the report is the target."""
    sections: Literal["ours", "owner"] = "ours"
    """Who takes reports apart: the rules of `shards.sources.mimic_cxr.report`, or the owner's parser's."""
    sectioned: Path | None = None
    """The owner's mimic_cxr_sectioned.csv, to be read in place of the reports, whatever `sections` says."""
    min_views: int = Field(default=1, ge=1)
    """Fewest films a study may have, after `views`."""
    annotation: Path | None = None
    """R2Gen's annotation.json for MIMIC-CXR."""
    labels: Literal["chexpert", "negbio", "radiologists", "none"] = "chexpert"
    """The labeler whose table gives the studies' labels; radiologists have labelled studies of the test split only."""

    @model_validator(mode="after")
    def _options_fit(self) -> Self:
        if self.per == "image" and self.min_views != 1:
            raise ValueError(f"per=image, min_views={self.min_views}: a sample of per=image has one film")
        if self.sectioned and (self.annotation or self.reports):
            raise ValueError("sectioned, with annotation or reports: each holds the texts of studies, so give one")
        if self.annotation and (self.per, self.section) != ("image", "findings"):
            raise ValueError(
                f"annotation, per={self.per}, section={self.section}: R2Gen's annotation lists the findings once per "
                "image: add per=image, and section=findings"
            )
        return self

    def listing(self) -> Listing:
        """One item per sample, without its report; DataError when a table is amiss.

        Published are R2Gen's counts where its form is read, else those of the official split before any report was
        opened.
        """
        if not any((self.raw / root).is_dir() for root in ROOTS[:2]) and not any(self.raw.glob("p[0-9][0-9]")):
            raise DataError(f"{self.raw} has neither files/ nor images/: raw must be the directory of MIMIC-CXR-JPG")
        notes, samples = list[str](), list[Sample]()
        if self.annotation:
            samples, drops = read_samples(self.annotation)
            notes.append(compare_splits(samples, self.annotation, find_table(self.raw, "split")))
        else:
            table = need_table(self.raw, "split")
            studies, drops = read_split(table)
            for study, listed in studies.items():
                known = (study, f"p{listed.patient}", listed.split, table.name, listed.row)
                per_film = [Sample(film, *known, [film]) for film in listed.films]
                samples += per_film if self.per == "image" else [Sample(f"s{study}", *known, listed.films)]
        items, unusable, counts = self._join(samples)
        where = self._films_at(items)
        for item in items:
            item.payload["at"] = where
        if self.sectioned:
            items, without = self._cut_by_owner(items)
            unusable += without
        store = None if self.annotation or self.sectioned or not items else find_reports(self.raw, self.reports)
        if store and not has_any(store, (report_name(item.patient, f"s{item.payload['study']}") for item in items)):
            raise DataError(
                f"{store} has no report of any study listed: it must hold files/p10/... or p10/.... Reports come with "
                "MIMIC-CXR, not with MIMIC-CXR-JPG: say reports=DIRECTORY or reports=.../mimic-cxr-reports.zip"
            )
        published = R2GEN if (self.per, self.views, self.section) == ("image", "all", "findings") else OFFICIAL
        return Listing(items, [*drops, *unusable], [*notes, *counts], published)

    def _cut_by_owner(self, items: list[Item]) -> tuple[list[Item], list[Drop]]:
        """The items with the place of their row in the owner's table; drops of those that have none there."""
        assert self.sectioned is not None
        spans = read_sectioned(self.sectioned, {item.payload["study"] for item in items})
        why = f"{self.sectioned.name} has no row of it"
        drops = [
            Drop(id=item.id, reason="not in the table of sections", detail=why, split=item.split)
            for item in items
            if item.payload["study"] not in spans
        ]
        kept = [item for item in items if item.payload["study"] in spans]
        for item in kept:
            item.payload["row_of_sections"] = list(spans[item.payload["study"]])
        return kept, drops

    def _films_at(self, items: Sequence[Item]) -> list[str]:
        """(directory below raw, suffix) of most films, by a look at some; JPEG unless there is twice as much DICOM.

        All of a run have one suffix: the pixels of JPEG and DICOM are not the same. And one directory: to look for a
        film in three costs three requests to the storage.
        """
        ways = [(root, suffix) for suffix in SUFFIXES for root in ROOTS]
        found = Counter[tuple[str, str]]()
        for item in items[:: max(1, len(items) // LOOKED_AT)]:
            for way in ways:
                name = self._film_names(item, way)[0]
                found[way] += patiently("a raw film", (self.raw / name).is_file)
        most = max(found.values(), default=0)
        return list(next(way for way in ways if 2 * found[way] > most or not most))

    def _join(self, samples: list[Sample]) -> tuple[list[Item], list[Drop], list[str]]:
        """Items of the samples that have films enough, with views in order and labels; the others as drops; notes."""
        positions, labels, faults = dict[str, str](), dict[str, str](), dict[str, int]()
        if find_table(self.raw, "metadata") or not self.annotation or self.views != "all":
            positions = read_positions(need_table(self.raw, "metadata"))
        if self.labels != "none":
            table = TEST_SET if self.labels == "radiologists" else self.labels
            labels, faults = read_labels(need_table(self.raw, table, ". To do without labels say labels=none"))
        items, drops, counts = list[Item](), list[Drop](), Counter[str]()
        for sample in samples:
            placed = sorted((*POSITIONS.get(positions.get(film, ""), UNKNOWN), film) for film in sample.films)
            kept = [(name, film) for _, name, film in placed if self.views == "all" or name == "frontal"]
            counts["films"] += len(placed)
            counts["not in the table"] += sum(film not in positions for film in sample.films)
            counts["unknown"] += sum(name == "unknown" for _, name, _ in placed)
            counts["left out"] += len(placed) - len(kept)
            counts["without labels"] += self.labels != "none" and sample.study not in labels
            if not kept and self.per == "image":
                continue
            try:
                items.append(self._item(sample, kept, labels.get(sample.study), faults.get(sample.study)))
            except BadStudy as error:
                drops.append(error.drop(sample.id, sample.split))
        of_films = f"of {counts['films']:,} films"
        notes = {
            "not in the table": f"{of_films} are not in the metadata table",
            "unknown": f"{of_films} have no known view position",
            "left out": f"{of_films} are left out by views={self.views}",
            "without labels": f"of {len(samples):,} samples have no row in the {self.labels} table",
        }
        return items, drops, [f"{counts[what]:,} {note}" for what, note in notes.items() if counts[what]]

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

    def raw_files(self, item: Item) -> Iterable[Path | str]:
        """The films of an item, and wherever its report may lie."""
        films = [self.raw / name for name in self._film_names(item, item.payload["at"])]
        if self.annotation or self.sectioned:
            return films
        store = known_reports(self.raw, self.reports)
        return [*films, *report_files(store, report_name(item.patient, f"s{item.payload['study']}"))]

    def _film_names(self, item: Item, where: Sequence[str]) -> list[str]:
        """Path below `raw` of every film, given `_films_at`."""
        root, suffix = where
        beneath = f"{root}/{item.patient[:3]}/{item.patient}/s{item.payload['study']}".lstrip("/")
        return [f"{beneath}/{dicom}{suffix}" for dicom in item.payload["films"]]

    def read(self, item: Item) -> tuple[Study, list[np.ndarray]]:
        """The study and its films uint8 [H, W]; BadStudy names the report or the first film that cannot be used."""
        entry, study, films = item.payload, f"s{item.payload['study']}", Films(self.raw)
        sections, report, unlike = self._report(entry, report_name(item.patient, study))
        root, suffix = entry["at"]
        missing = f"this run reads {suffix} films below {root or 'raw itself'}, as are most"
        files = [films.find([name], f"no {name}: {missing}") for name in self._film_names(item, entry["at"])]
        return Study(
            key=key_of(item.id),
            id=item.id,
            patient=item.patient,
            split=item.split,
            views=tuple(
                View(position=LETTERS[letter], file=file) for letter, file in zip(entry["views"], files, strict=True)
            ),
            sections=sections,
            report=report,
            target="",
            labels=dict(zip(FINDINGS, (VALUES[letter] for letter in entry.get("labels", "")), strict=False)),
            provenance={
                **{"source": self.name, "file": entry["table"], "row": str(entry["row"])},
                **({"unlike": unlike} if unlike else {}),
            },
        ), [films.read(file) for file in files]

    def remarks(self, study: Study) -> tuple[str, ...]:
        """Whether the other of the two ways to take reports apart gives another target, or none."""
        return (study.provenance["unlike"],) if "unlike" in study.provenance else ()

    def _report(self, entry: dict[str, Any], name: str) -> tuple[dict[str, str], str, str]:
        """(sections, target, how the owner's parser and ours differ in it) of one study."""
        if self.annotation:
            report = report_in(self.annotation, entry["span"])
            return {"findings": report}, report, ""
        if self.sectioned:
            name = f"{self.sectioned.name}, row of s{entry['study']}"
            owner = ours = sections_in(self.sectioned, Span(*entry["row_of_sections"]))
        else:
            text = read_report(known_reports(self.raw, self.reports), name)
            owner, ours = owner_sections(text), parse_report(text)
        sections = owner if self.sections == "owner" else ours
        if not sections:
            raise BadStudy("empty report", f"{name} holds no text", name)
        wanted = self.section.split("+")
        target, other = (target_of(each, wanted) for each in ((owner, ours) if sections is owner else (ours, owner)))
        if target is None:
            missing = next(section for section in wanted if section not in sections)
            why = f"no {missing} section" + (UNLIKE_TOO if other and other.strip() else "")
            raise BadStudy(why, f"{name} has {', '.join(sections)}", name)
        unlike = "" if other is not None and other.split() == target.split() else UNLIKE
        return sections, target, unlike


def target_of(sections: dict[str, str], wanted: list[str]) -> str | None:
    """The text of the sections asked for; None where one is missing."""
    if all(section in sections for section in wanted):
        return "\n".join(sections[section] for section in wanted)
    return sections.get(BOTH) if len(wanted) > 1 else None
