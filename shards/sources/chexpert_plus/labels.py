"""The labels that come with CheXpert Plus: one JSON object per film, by the CheXbert labeler run on one section."""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal

from shards.errors import DataError
from shards.sources.chexpert_plus.films import stem_of
from shards.sources.json_cursor import json_fault, open_json

Label = Literal[-1, 0, 1] | None
LABELS = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
    "No Finding",
)
"""In the order of the files."""
VALUES: dict[str, Label] = {"1": 1, "0": 0, "u": -1, ".": None}
"""A label in one character: present, absent, uncertain, not mentioned."""
CODES = {1: "1", 0: "0", -1: "u"}
MAX_LIST_BYTES = 1_000_000_000
MAX_LINE_BYTES = 100_000


def read_labels(path: Path, wanted: Collection[str]) -> dict[str, str]:
    """Film without suffix → its labels, one character each in the order of `LABELS`, for films in `wanted`.

    Reads one object per line, as released, or one list of objects. Raises DataError naming file and place where that is
    not JSON, a label is missing or has a value other than 1, 0, -1 and null, or one film has two different objects.
    """
    found: dict[str, str] = {}
    for place, record in _objects(path):
        if not isinstance(record, dict) or not isinstance(record.get("path_to_image"), str):
            raise DataError(f"{path} {place}: not an object with path_to_image and {len(LABELS)} labels")
        film = stem_of(record["path_to_image"])
        if film not in wanted:
            continue
        if missing := [name for name in LABELS if name not in record]:
            raise DataError(f"{path} {place}: missing labels: {', '.join(missing)}; {len(record)} names are there")
        codes = "".join(_code(record[name], f"{path} {place}: {name}") for name in LABELS)
        if found.setdefault(film, codes) != codes:
            raise DataError(f"{path} {place}: its film has other labels on an earlier line: remove one of the two")
    return found


def labels_of(codes: str) -> dict[str, Label]:
    """Label → value, from the characters that `read_labels` gives; "" gives no labels."""
    return {name: VALUES[code] for name, code in zip(LABELS, codes, strict=True)} if codes else {}


def _code(value: Any, place: str) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return "."
    if isinstance(value, int | float) and not isinstance(value, bool) and value in CODES:
        return CODES[int(value)]
    shown = value if isinstance(value, int | float) else f"a {type(value).__name__}"
    raise DataError(f"{place} is {shown}; read are 1 present, 0 absent, -1 uncertain, null not mentioned")


def _objects(path: Path) -> Iterator[tuple[str, Any]]:
    with open(path, "rb") as file:
        is_list = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    try:
        yield from _listed(path) if is_list else _lines(path)
    except (json.JSONDecodeError, RecursionError) as error:
        raise json_fault(path, error) from None


def _listed(path: Path) -> Iterator[tuple[str, Any]]:
    cursor = open_json(path, MAX_LIST_BYTES)
    for at, _, record in cursor.elements():
        yield f"byte {at}", record
    cursor.end()


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    number = 0
    with open(path, "rb") as file:
        while line := file.readline(MAX_LINE_BYTES):
            number += 1
            try:
                text = line.decode("utf-8-sig").strip()
                if text:
                    yield f"line {number}", json.loads(text)
            except (ValueError, RecursionError) as error:
                what = f"column {error.colno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else "not UTF-8"
                raise DataError(
                    f"{path} line {number} is no JSON object of at most {MAX_LINE_BYTES:,} bytes ({what}). Nothing of "
                    "it is used; if the file ends there, fetch it again. labels=none does without"
                ) from None
