"""IU X-Ray as R2Gen released it: annotation.json."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shards.errors import DataError
from shards.sources import Published, SplitCount
from shards.sources.iu_xray.exam import SECTIONS, Exam, Film, Listing, check_id, patient_of, position_of
from shards.study import SPLITS, BadStudy, Drop, Split

MAX_BYTES = 1_000_000_000
R2GEN = Published(
    citation="annotation.json of R2Gen (Chen et al., EMNLP 2020), as released and counted",
    splits={
        "train": SplitCount(studies=2069, images=4138),
        "val": SplitCount(studies=296, images=592),
        "test": SplitCount(studies=590, images=1180),
    },
)


def read_listing(path: Path) -> Listing:
    """Every entry of an annotation file, split by split; DataError when the file as a whole is not one."""
    return Listing("annotation", path, list(_entries(path)))


def _entries(path: Path) -> Iterator[Exam | Drop]:
    annotation = read_annotation(path)
    for split in SPLITS:
        for row, entry in enumerate(annotation[split]):
            try:
                yield _exam(path.name, split, row, entry)
            except BadStudy as error:
                name = str(entry.get("id", "")) if isinstance(entry, dict) else ""
                yield error.drop(name or f"{split}[{row}]", split)


def _exam(file: str, split: Split, row: int, entry: Any) -> Exam:
    place = f"{file} {split}[{row}]"
    if not isinstance(entry, dict):
        raise BadStudy("entry is not an object", f"{place} is a {type(entry).__name__}")
    _refuse_half_characters(place, entry)
    report, paths = entry.get("report"), entry.get("image_path")
    identifier = check_id(
        entry.get("id"), f"{place}: id {str(entry.get('id'))[:200]!r} with image_path {str(paths)[:200]}"
    )
    if not isinstance(report, str):
        raise BadStudy("report is not a string", f"{place}: it is {_kind(report)}")
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str) and path for path in paths):
        raise BadStudy("image_path is not a list of paths", f"{place}: it is {str(paths)[:200]!r}")
    named = entry.get("views")
    views = named if isinstance(named, list) and len(named) == len(paths) else [""] * len(paths)
    own = {name: entry[name] for name in SECTIONS if isinstance(entry.get(name), str)}
    return Exam(
        id=identifier,
        patient=patient_of(identifier),
        row=row,
        place=f"{split}[{row}]",
        films=tuple(Film(file=path, position=position_of(str(v))) for path, v in zip(paths, views, strict=True)),
        sections={"findings": report, **own},
        report=report,
        split=split,
    )


def _refuse_half_characters(place: str, entry: dict) -> None:
    """JSON can escape half of a surrogate pair, which no file, path or shard can hold."""
    try:
        json.dumps(entry, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise BadStudy("text is not Unicode", f"{place}: {error.reason}") from None


def read_annotation(path: Path) -> dict[str, list[Any]]:
    """The three lists of an annotation file (a byte-order mark is allowed); DataError names what is wrong."""
    if not path.is_file():
        raise DataError(f"{path} is missing: raw must be a JSON file of R2Gen's shape, or a directory that holds one")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise DataError(f"{path} has {size} bytes; at most {MAX_BYTES} are read")
    data = path.read_bytes()
    try:
        listing = json.loads(data.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        at = len(data) - len(error.doc[error.pos :].encode())
        raise DataError(
            f"{path} is not valid JSON at line {error.lineno}, byte {at} of {len(data)}: {error.msg}. Nothing of it is "
            "used; if the file ends there, the copy broke off: fetch it again"
        ) from None
    except (RecursionError, ValueError) as error:
        raise DataError(f"{path} is not UTF-8 JSON: {type(error).__name__}: {error}") from None
    return _checked(path, listing)


def _checked(path: Path, listing: Any) -> dict[str, list[Any]]:
    keys = sorted(listing) if isinstance(listing, dict) else []
    missing = [split for split in SPLITS if split not in keys]
    if missing:
        found = f"an object with {keys[:9]}" if isinstance(listing, dict) else f"a {type(listing).__name__}"
        raise DataError(f"{path} holds {found}; missing keys: {', '.join(missing)}. It must be an object with {SPLITS}")
    if wrong := [split for split in SPLITS if not isinstance(listing[split], list)]:
        raise DataError(f"{path}: {', '.join(wrong)} must be lists of studies")
    if not listing["train"]:
        counts = ", ".join(f"{split} {len(listing[split])}" for split in SPLITS)
        raise DataError(f"{path}: split 'train' is empty ({counts}): a run on it would train nothing")
    return listing


def _kind(value: Any) -> str:
    if value is None:
        return "missing or null"
    return f"the number {value}" if isinstance(value, float | int) else type(value).__name__
