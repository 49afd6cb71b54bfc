"""A miniature MIMIC-CXR-JPG with its reports: drawn films and phantom findings in the exact layout and typography.

Identifiers begin with 9, which no identifier of the real dataset does.
"""

import csv
import gzip
import io
import json
import textwrap
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from shards.sources import Source
from shards.sources.phantom.source import Phantom
from shards.sources.split import refuse_listing
from shards.study import FINDINGS, Study
from shards.tars.shards import Settings, plan_shards, recipe_of, write_shard

METADATA = (
    "dicom_id",
    "subject_id",
    "study_id",
    "PerformedProcedureStepDescription",
    "ViewPosition",
    "Rows",
    "Columns",
    "StudyDate",
    "StudyTime",
    "ProcedureCodeSequence_CodeMeaning",
    "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning",
)
LABELS = sorted(FINDINGS)
"""In the order of the owner's tables."""
SPLIT = ("dicom_id", "study_id", "subject_id", "split")
RULE = " " + "_" * 78
FINAL = " " * 33 + "FINAL REPORT"
CELLS = {1: "1.0", 0: "0.0", -1: "-1.0", None: ""}


@dataclass
class Written:
    """One study of the tree."""

    study: str
    """Like s90414267."""
    patient: str
    split: str
    """As in the owner's table: train, validate, test."""
    films: list[tuple[str, str]]
    """(dicom_id, ViewPosition) in the order of the table."""
    findings: str
    """Words of the findings, on one line."""
    labels: dict[str, int | None]
    quirk: str

    @property
    def folder(self) -> str:
        """Where its films are, below files/."""
        return f"{self.patient[:3]}/{self.patient}/{self.study}"


@dataclass
class MimicTree:
    """What was written, to look for where it must not appear."""

    root: Path
    reports: Path
    """The directory above files/, or the zip."""
    written: list[Written] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)
    """The sentences of all reports, each on one line; those of three words and more."""

    @property
    def patients(self) -> list[str]:
        """Like p90000032, each once."""
        return list(dict.fromkeys(study.patient for study in self.written))

    @property
    def studies(self) -> list[str]:
        """Like s90414267."""
        return [study.study for study in self.written]

    @property
    def dicoms(self) -> list[str]:
        """dicom_ids of all films."""
        return [dicom for study in self.written for dicom, _ in study.films]

    def table(self, name: str) -> Path:
        """The file of an unpacked table."""
        return self.root / f"mimic-cxr-2.0.0-{name}.csv"

    def edit(self, name: str, change: Callable[[list[str]], object]) -> None:
        """Change the lines of an unpacked table in place."""
        lines = self.table(name).read_text().splitlines()
        change(lines)
        self.table(name).write_text("\n".join(lines) + "\n")

    def report_of(self, study: int) -> Path:
        """The file of a report that lies in a directory."""
        return self.root / "files" / f"{self.written[study].folder}.txt"

    def found_in(self, text: str) -> list[str]:
        """Which sentences and identifiers stand in a text, wherever its lines are broken, in capitals or not.

        Identifiers count with and without their letter, sentences also without punctuation, as after cleaning.
        """
        folded = _fold(text)
        names = [*self.patients, *self.studies]
        secrets = [*self.sentences, *names, *(name[1:] for name in names), *self.dicoms]
        return [secret for secret in dict.fromkeys(secrets) if _fold(secret) in folded]


def _fold(text: str) -> str:
    kept = "".join(letter for letter in text.replace("\\n", " ").lower() if letter.isalnum() or letter in " \n\r\t-")
    return " ".join(kept.split())


def write_mimic_tree(
    root: Path, patients: int = 6, seed: int = 0, zipped: bool = False, gz: bool = True, size: int = 64
) -> MimicTree:
    """Write `patients` of 1 or 2 studies with 1 to 3 films each; the last patient is test, the one before validate.

    Every study can be used with section=findings; their reports go through the quirks of `QUIRKS`.
    """
    tree = MimicTree(root, root / "mimic-cxr-reports.zip" if zipped else root)
    rng = np.random.default_rng(seed)
    phantom = Phantom(studies=2 * patients, seed=seed, size=size)
    texts: dict[str, str] = {}
    for index, item in enumerate(phantom.listing().items):
        patient = index // 2
        if index % 2 and patient % 2 == 0:
            continue
        split = {patients - 1: "test", patients - 2: "validate"}.get(patient, "train")
        study, drawn = phantom.read(item)
        written = Written(
            study=f"s9{seed % 10}{414267 + 1009 * index:06d}",
            patient=f"p9{patient % 10}{seed % 10}{32 + 7 * patient:05d}",
            split=split,
            films=[(_dicom(rng), view) for view in VIEWS[len(tree.written) % len(VIEWS)]],
            findings=study.report,
            labels={name: study.labels[name] for name in LABELS},
            quirk=list(QUIRKS)[len(tree.written) % len(QUIRKS)],
        )
        tree.written.append(written)
        _draw(root, written, drawn)
        texts[f"files/{written.folder}.txt"] = QUIRKS[written.quirk](_Report(tree, written))
    _store(tree, texts, zipped)
    _tables(tree, gz)
    return tree


VIEWS = (("PA", "LATERAL"), ("AP",), ("LATERAL", "", "PA"), ("LL", "AP"))


def _dicom(rng: np.random.Generator) -> str:
    digits = rng.bytes(20).hex()
    return "-".join(digits[at : at + 8] for at in range(0, 40, 8))


def _draw(root: Path, study: Written, drawn: Sequence[np.ndarray]) -> None:
    folder = root / "files" / study.folder
    folder.mkdir(parents=True)
    for dicom, view in study.films:
        film = drawn[1] if view in ("LATERAL", "LL") else drawn[0] if view else drawn[0][:, ::-1]
        Image.fromarray(np.ascontiguousarray(film)).save(folder / f"{dicom}.jpg", quality=95)


class _Report:
    """Writes the parts of one report and keeps its sentences."""

    def __init__(self, tree: MimicTree, study: Written):
        self.tree, self.study, self.number = tree, study, len(tree.written)

    def part(self, header: str, text: str, apart: bool = False) -> str:
        """One section, wrapped as the hospital's system does; `apart`: the text begins on a line of its own."""
        sentences = [f"{sentence.rstrip('.')}." for sentence in text.split(". ")]
        told = [sentence for sentence in sentences if len(sentence.split()) > 2]
        self.tree.sentences += [sentence for sentence in told if sentence not in self.tree.sentences]
        body = textwrap.fill(text if apart else f"{header}:  {text}".removeprefix(":  "), 78)
        body = f"{header}: \n\n{body}" if apart else body
        return "".join(f" {line}\n" for line in body.split("\n")) + " \n"

    def indication(self) -> str:
        """A sentence that no other report has."""
        return f"___-year-old phantom number {self.number} with cough and planted findings."

    def impression(self) -> str:
        """A sentence that no other report has."""
        return f"Drawn study {self.number} as described."


def _usual(report: _Report) -> str:
    return (
        f"{FINAL}\n"
        + report.part("EXAMINATION", "CHEST (PA AND LAT)")
        + report.part("INDICATION", report.indication())
        + report.part("TECHNIQUE", "Chest PA and lateral")
        + report.part("COMPARISON", "___")
        + report.part("FINDINGS", report.study.findings, apart=True)
        + report.part("IMPRESSION", report.impression(), apart=True)
    )


def _wet_read(report: _Report) -> str:
    read = f" WET READ: ___ ___ ___ 9:14 AM\n  {report.part('', 'FINDINGS: No preliminary concern.')[1:]}{RULE}\n"
    return read + _usual(report)


def _film_named(report: _Report) -> str:
    return (
        f"{FINAL}\n"
        + report.part("HISTORY", report.indication())
        + report.part("COMPARISON", "None.")
        + report.part("PA AND LATERAL VIEWS OF THE CHEST", report.study.findings)
        + report.part("CONCLUSION", report.impression())
    )


def _addendum(report: _Report) -> str:
    note = report.part("ADDENDUM", "The phantom was drawn again on ___ at ___.")
    return f"{' ' * 33}FINAL ADDENDUM\n{note}{RULE}\n{_usual(report)}"


def _windows(report: _Report) -> str:
    return _usual(report).replace("\n", "\r\n")


def _notified(report: _Report) -> str:
    notified = report.part("NOTIFICATION", "Discussed with Doctor ___ at 9:14 AM on ___ by telephone.")
    return _usual(report) + notified + report.part("RECOMMENDATION(S)", "None.")


QUIRKS = {
    "usual": _usual,
    "wet read": _wet_read,
    "film named": _film_named,
    "addendum": _addendum,
    "windows": _windows,
    "notified": _notified,
}


def _store(tree: MimicTree, texts: dict[str, str], zipped: bool) -> None:
    if zipped:
        with zipfile.ZipFile(tree.reports, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in texts.items():
                archive.writestr(name, text)
        return
    for name, text in texts.items():
        (tree.root / name).write_text(text, newline="")


def write_table(root: Path, table: str, header: Sequence[str], rows: Iterable[Sequence[object]], gz: bool) -> Path:
    """Write one table under the owner's name."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    path = root / f"mimic-cxr-2.0.0-{table}.csv{'.gz' if gz else ''}"
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if gz else data)
    return path


def _tables(tree: MimicTree, gz: bool) -> None:
    films = [(dicom, view, study) for study in tree.written for dicom, view in study.films]
    rows = [(dicom, s.study[1:], s.patient[1:], s.split) for dicom, _, s in films]
    write_table(tree.root, "split", SPLIT, rows, gz)
    seen = [
        (dicom, s.patient[1:], s.study[1:], "CHEST (PA AND LAT)", view, 64, 64, 21800506, 213014.531, "", "", "Erect")
        for dicom, view, s in films
    ]
    write_table(tree.root, "metadata", METADATA, seen, gz)
    for table in ("chexpert", "negbio"):
        labels = [(s.patient[1:], s.study[1:], *(CELLS[s.labels[name]] for name in LABELS)) for s in tree.written]
        write_table(tree.root, table, ("subject_id", "study_id", *LABELS), labels, gz)


def write_annotation(tree: MimicTree, path: Path) -> dict[str, list[dict]]:
    """Write R2Gen's annotation.json of the tree: one entry per film; returns what was written."""
    listing: dict[str, list[dict]] = {"train": [], "val": [], "test": []}
    for study in tree.written:
        split = {"validate": "val"}.get(study.split, study.split)
        for dicom, _ in study.films:
            listing[split].append(
                {
                    "id": dicom,
                    "study_id": int(study.study[1:]),
                    "subject_id": int(study.patient[1:]),
                    "report": study.findings,
                    "image_path": [f"{study.folder}/{dicom}.jpg"],
                    "split": split,
                }
            )
    path.write_text(json.dumps(listing))
    return listing


def shard(source: Source, out: Path) -> tuple[list[Study], Counter[str]]:
    """The writer's own steps in this process: records written, and drops by reason. Nothing is lost on the way."""
    listing = source.listing()
    items = listing.items
    refuse_listing(source.name, items)
    out.mkdir()
    settings = Settings(out=str(out), cleaning=source.cleaning, size=64, quality=95, on_bad="skip")
    indices = [write_shard(source, settings, job) for job in plan_shards(items, 4, recipe_of(source, settings))]
    studies = [
        Study.model_validate_json((out / index.name).read_bytes()[at : at + size])
        for index in indices
        for at, size, _ in (entry.members["json"] for entry in index.studies)
    ]
    drops = [*listing.drops, *(drop for index in indices for drop in index.drops)]
    assert len(studies) + len(drops) == len(items) + len(listing.drops)
    return studies, Counter(drop.reason for drop in drops)
