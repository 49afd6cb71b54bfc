"""A drawn directory in the layout of CheXpert Plus: its CSV, PNG or DICOM films, CheXbert labels."""

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from shards.sources.phantom.source import Phantom
from shards.study import FINDINGS

CSV = "df_chexpert_plus_240401.csv"
COLUMNS = (
    "path_to_image",
    "path_to_dcm",
    "frontal_lateral",
    "ap_pa",
    "deid_patient_id",
    "patient_report_date_order",
    "report",
    "section_narrative",
    "section_clinical_history",
    "section_history",
    "section_comparison",
    "section_technique",
    "section_procedure_comments",
    "section_findings",
    "section_impression",
    "section_end_of_impression",
    "section_summary",
    "section_accession_number",
    "age",
    "sex",
    "race",
    "ethnicity",
    "interpreter_needed",
    "insurance_type",
    "recent_bmi",
    "deceased",
    "split",
)
"""The 27 columns of the release, in their order."""
HISTORY = 'Drawn "patient", coughing,\nfor a week'
"""A cell with quotes, a comma and a line feed."""


@dataclass
class ChexpertTree:
    """What was written."""

    root: Path
    rows: list[dict[str, str]] = field(default_factory=list)
    """The CSV's rows; change them and call `write`."""
    labels: list[dict] = field(default_factory=list)
    """One object per row."""
    sentences: set[str] = field(default_factory=set)
    """Every sentence of every findings section: none of them may stand in a listing, a log or an error."""

    @property
    def table(self) -> Path:
        """The CSV."""
        return self.root / CSV

    @property
    def patients(self) -> list[str]:
        """Patients, each once."""
        return list(dict.fromkeys(row["deid_patient_id"] for row in self.rows))

    @property
    def studies(self) -> list[str]:
        """patientN/studyM, each once."""
        return list(dict.fromkeys("/".join(row["path_to_image"].split("/")[1:3]) for row in self.rows))

    def write(self, newline: str = "\n", encoding: str = "utf-8", columns: list[str] | None = None) -> None:
        """Write the CSV and the three label files anew, from `rows` and `labels`."""
        with open(self.table, "w", newline="", encoding=encoding) as file:
            writer = csv.DictWriter(file, columns or list(COLUMNS), lineterminator=newline, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(self.rows)
        folder = self.root / "chexbert_labels"
        folder.mkdir(exist_ok=True)
        for name in ("findings", "impression", "report"):
            lines = "".join(json.dumps(record) + "\n" for record in self.labels)
            (folder / f"{name}_fixed.json").write_text(lines)

    def write_annotation(self, splits: dict[str, list[int]], suffix: str = ".png") -> Path:
        """Write annotation.json in the shape of the benchmark's, of the rows that `splits` counts from 0."""
        listing: dict[str, list] = {"train": [], "val": [], "test": []}
        for split, rows in splits.items():
            for row in (self.rows[at] for at in rows):
                stem = row["path_to_image"].rpartition(".")[0]
                _, patient, study, film = stem.split("/")
                entry = {"id": f"{patient}_{study}_{film}", "report": row["section_findings"]}
                listing[split].append(entry | {"image_path": [stem + suffix]})
        (self.root / "annotation.json").write_text(json.dumps(listing, indent=1, ensure_ascii=False))
        return self.root / "annotation.json"


def write_chexpert_tree(
    root: Path, patients: int = 6, seed: int = 0, dicom: bool = False, size: int = 64
) -> ChexpertTree:
    """Draw `patients` patients with one study each, and a second for every other one; the last is of valid.

    A study has a frontal film, and a lateral one for two thirds of the studies, which its rows name first. Films have
    `size` px.
    """
    tree = ChexpertTree(Path(root))
    phantom = Phantom(studies=2 * patients, seed=seed, size=size)
    for number, item in enumerate(phantom.listing().items):
        patient, order = number // 2 + 1, number % 2 + 1
        if order == 2 and patient % 2:
            continue
        study, films = phantom.read(item)
        split = "valid" if patient == patients else "train"
        folder = f"{split}/patient{patient:05d}/study{order}"
        tree.sentences |= {f"{sentence.strip(' .')}." for sentence in study.report.split(". ")}
        for view, position in ((2, "lateral"), (1, "frontal"))[number % 3 == 0 :]:
            film = f"{folder}/view{view}_{position}"
            _save(tree.root, film, films[view - 1], dicom)
            row = {"path_to_image": f"{film}.jpg", "path_to_dcm": f"{film}.dcm", "frontal_lateral": position.title()}
            tree.rows.append(row | _text(patient, order, study.report) | {"split": split})
            tree.labels.append({"path_to_image": f"{film}.jpg", **{name: study.labels.get(name) for name in FINDINGS}})
    tree.write()
    return tree


def _text(patient: int, order: int, findings: str) -> dict[str, str]:
    """Cells of a row, blank where the release is often blank."""
    findings = findings.replace(". ", ".\n", 1)
    return {
        "deid_patient_id": f"patient{patient:05d}",
        "patient_report_date_order": str(order),
        "report": f'NARRATIVE:\nDrawn chest\n\nFINDINGS: {findings}\n\nIMPRESSION:\n\n1. "Drawn", as above.',
        "section_narrative": "Drawn chest",
        "section_clinical_history": HISTORY,
        "section_findings": findings,
        "section_impression": '\n1. "Drawn", as above.\n',
        "section_accession_number": f"{1000 + patient}",
        "age": "61.0",
        "sex": "Female",
        "recent_bmi": "22.2",
        "deceased": "No",
    }


def _save(root: Path, film: str, pixels: np.ndarray, dicom: bool) -> None:
    path = root / ("DICOM" if dicom else "PNG") / f"{film}{'.dcm' if dicom else '.png'}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if dicom:
        _write_dicom(path, pixels)
    else:
        Image.fromarray(pixels).save(path)


def _write_dicom(path: Path, pixels: np.ndarray) -> None:
    """A computed radiograph as CheXpert Plus holds them: 16 bits allocated, 12 stored, MONOCHROME2."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

    record = Dataset()
    record.file_meta = FileMetaDataset()
    record.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    record.SOPClassUID = record.file_meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    record.SOPInstanceUID = record.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(path)])
    record.Modality, record.PhotometricInterpretation = "CR", "MONOCHROME2"
    record.Rows, record.Columns = pixels.shape
    record.SamplesPerPixel, record.PixelRepresentation = 1, 0
    record.BitsAllocated, record.BitsStored, record.HighBit = 16, 12, 11
    record.PixelData = (pixels.astype("<u2") * 16).tobytes()
    record.save_as(path, enforce_file_format=True)
