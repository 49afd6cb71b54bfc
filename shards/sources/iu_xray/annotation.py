"""IU X-Ray as R2Gen released it: annotation.json."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

from shards.errors import DataError
from shards.sources import Published, SplitCount
from shards.sources.annotation import object_in, read_entries, refuse_surrogates
from shards.sources.films import MAX_FILMS
from shards.sources.iu_xray.exam import SECTIONS, Exam, Form, ListedFilm, check_id, position_of
from shards.study import SPLITS, BadStudy, Split

R2GEN = Published(
    citation="annotation.json of R2Gen (Chen et al., EMNLP 2020), as released and counted",
    splits={
        "train": SplitCount(studies=2069, images=4138),
        "val": SplitCount(studies=296, images=592),
        "test": SplitCount(studies=590, images=1180),
    },
)
MAX_ENTRIES, MAX_BYTES = 50_000, 50_000_000
"""Of the file; R2Gen's has 2,955 entries in 2 million bytes."""
PATIENT = re.compile(r"CXR\d+")


def read_annotation(path: Path) -> Form:
    """Every entry of an annotation file; DataError when the file as a whole is not one or trains nothing."""
    form, counts = Form("annotation", path), Counter[str]()
    for split, row, _, data in read_entries(path, MAX_ENTRIES, MAX_BYTES):
        counts[split] += 1
        entry: dict[str, Any] = {}
        try:
            entry = object_in(data, f"{path.name} {split}[{row}]")
            form.entries.append(_exam(entry, split, row, path.name))
        except BadStudy as error:
            name = str(entry.get("id", "")).encode(errors="replace").decode()
            form.entries.append(error.drop(name or f"{split}[{row}]", split))
    if not counts["train"]:
        shown = ", ".join(f"{split} {counts[split]}" for split in SPLITS)
        raise DataError(f"{path}: split 'train' is empty ({shown}): a run on it would train nothing")
    return form


def _exam(entry: dict[str, Any], split: Split, row: int, file: str) -> Exam:
    """One entry of `file`; BadStudy when it is no examination."""
    shown = f"{file} {split}[{row}]"
    refuse_surrogates(entry, shown)
    report, paths, views = entry.get("report"), entry.get("image_path"), entry.get("views")
    identifier = entry.get("id")
    named = f"{shown}: id {str(identifier)[:200]!r} with image_path {str(paths)[:200]}"
    identifier = check_id(identifier if isinstance(identifier, str) else "", named)
    if not isinstance(report, str):
        kind = "a number" if isinstance(report, float | int) else type(report).__name__
        raise BadStudy("report is not a string", f"{shown}: it is {'missing or null' if report is None else kind}")
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str) and path for path in paths):
        raise BadStudy("image_path is not a list of paths", f"{shown}: it is {str(paths)[:200]!r}")
    if len(paths) > MAX_FILMS:
        raise BadStudy("too many films", f"{shown}: {len(paths):,}, no study has more than {MAX_FILMS}")
    if not isinstance(views, list) or len(views) != len(paths):
        views = [""] * len(paths)
    patient = PATIENT.match(identifier)
    return Exam(
        id=identifier,
        patient=patient[0] if patient else "",
        row=row,
        place=f"{split}[{row}]",
        films=tuple(ListedFilm(file=path, position=position_of(str(v))) for path, v in zip(paths, views, strict=True)),
        sections={"findings": report} | {name: entry[name] for name in SECTIONS if isinstance(entry.get(name), str)},
        report=report,
        split=split,
    )
