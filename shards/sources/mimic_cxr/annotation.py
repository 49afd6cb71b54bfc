"""MIMIC-CXR as R2Gen prepared it: annotation.json, one entry per film with the findings of its study."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shards.errors import DataError
from shards.sources.annotation import object_in, read_entries, refuse_surrogates
from shards.sources.mimic_cxr.tables import DICOM, NUMBER, Sample, read_split
from shards.sources.tables import Span, read_span
from shards.study import SPLITS, BadStudy, Drop, Split


def read_samples(annotation: Path) -> tuple[list[Sample], list[Drop]]:
    """The samples of an annotation, and the entries that cannot be used; DataError when it is no annotation."""
    if not annotation.is_file():
        raise DataError(f"annotation={annotation} is no file: it must be R2Gen's annotation.json for MIMIC-CXR")
    samples, drops = [], []
    seen: dict[str, set[str]] = {split: set() for split in SPLITS}
    for split, row, span, data in read_entries(annotation):
        try:
            sample = _sample(data, split, f"{annotation.name} {split}[{row}]", seen[split])
        except BadStudy as error:
            drops.append(error.drop(f"{split}[{row}]", split))
            continue
        seen[split].add(sample.id)
        samples.append(sample._replace(table=annotation.name, row=row, span=(span.at, span.size, span.digest)))
    return samples, drops


def _sample(data: bytes, split: Split, place: str, seen: set[str]) -> Sample:
    """The sample of one entry; BadStudy when it cannot be used."""
    entry = object_in(data, place)
    refuse_surrogates(entry, place)
    ids = (entry.get(name) for name in ("id", "study_id", "subject_id"))
    film, study, patient = (str(value) if isinstance(value, int | str) else "" for value in ids)
    if not DICOM.fullmatch(film) or not NUMBER.fullmatch(study) or not NUMBER.fullmatch(patient):
        raise BadStudy("id is not an id", f"{place}: id must be a dicom_id, study_id and subject_id eight digits")
    if not isinstance(entry.get("report"), str):
        raise BadStudy("report is not a string", f"{place}: it is a {type(entry.get('report')).__name__}")
    paths, named = entry.get("image_path"), [f"p{patient[:2]}", f"p{patient}", f"s{study}", f"{film}.jpg"]
    if not isinstance(paths, list) or [str(path).split("/")[-4:] for path in paths] != [named]:
        raise BadStudy("image_path is not the film", f"{place}: it must hold one path, that of the entry's own ids")
    if film in seen:
        raise BadStudy("duplicate id", f"{place}: its id stands earlier in this split, which is kept")
    return Sample(film, study, f"p{patient}", split, "", 0, [film])


def report_in(annotation: Path, span: Sequence[Any]) -> str:
    """The report of one entry; BadStudy when the file is gone or changed after it was listed."""
    try:
        return object_in(read_span(annotation, Span(*span)), annotation.name)["report"]
    except OSError as error:
        raise BadStudy("report cannot be read", f"{annotation.name}: {type(error).__name__}") from None


def compare_splits(samples: list[Sample], annotation: Path, table: Path | None) -> str:
    """How the samples' splits compare with the official ones, where their table is there: a note."""
    if table is None:
        return f"no split table: the splits of {annotation.name} were compared with nothing"
    official = {film: listed.split for listed in read_split(table)[0].values() for film in listed.films}
    absent = sum(sample.id not in official for sample in samples)
    differ = sum(official.get(sample.id, sample.split) != sample.split for sample in samples)
    return (
        f"{annotation.name} and {table.name}: {differ:,} of {len(samples):,} films are in another split, {absent:,} "
        "are not in the table; the annotation's split is used"
    )
