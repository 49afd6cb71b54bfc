"""The labels that come with CheXpert Plus: one JSON object per film, by the CheXbert labeler run on one section."""

import json
from collections.abc import Collection, Iterator
from os.path import splitext
from pathlib import Path
from typing import Any

from shards.errors import DataError
from shards.sources.annotation import json_fault, open_json
from shards.study import FINDINGS, Label

VALUES: dict[str, Label] = {"1": 1, "0": 0, "u": -1, ".": None}
"""A label in one character: present, absent, uncertain, not mentioned."""
CODES = {value: code for code, value in VALUES.items()}
MAX_LINE_BYTES = 100_000
MAX_RECORDS = 500_000


def read_labels(path: Path, wanted: Collection[str]) -> dict[str, str]:
    """Film without suffix → its labels, one character each in the order of `FINDINGS`, for films in `wanted`.

    Reads one object per line, as released, or one list of objects. Raises DataError naming file and place where that is
    not JSON, a label is missing or has a value other than 1, 0, -1 and null, or one film has two different objects.
    """
    labels: dict[str, str] = {}
    for place, record in _objects(path):
        if not isinstance(record, dict) or not isinstance(record.get("path_to_image"), str):
            raise DataError(f"{path} {place}: not an object with path_to_image and {len(FINDINGS)} labels")
        film = splitext(record["path_to_image"])[0]
        if film not in wanted:
            continue
        if missing := [name for name in FINDINGS if name not in record]:
            raise DataError(f"{path} {place}: missing labels: {', '.join(missing)}; {len(record)} names are there")
        codes = ""
        for name in FINDINGS:
            value = record[name]
            is_number = isinstance(value, int | float)
            if value is None or (is_number and value != value):  # NaN, as pandas writes an empty cell
                codes += "."
            elif is_number and not isinstance(value, bool) and value in CODES:
                codes += CODES[value]
            else:
                shown = (
                    "another number"
                    if is_number and not abs(value) < 100
                    else value
                    if is_number
                    else f"a {type(value).__name__}"
                )
                what = f"{name} is {shown}; read are 1 present, 0 absent, -1 uncertain, null not mentioned"
                raise DataError(f"{path} {place}: {what}")
        if labels.setdefault(film, codes) != codes:
            raise DataError(f"{path} {place}: its film has other labels on an earlier line: remove one of the two")
    return labels


def labels_of(codes: str) -> dict[str, Label]:
    """Finding → value, from the characters that `read_labels` gives; "" gives no labels."""
    return {name: VALUES[code] for name, code in zip(FINDINGS, codes, strict=True)} if codes else {}


def _objects(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, object) of every object of the file: of the one list it holds, or of its lines."""
    too_many = f"{path} has more than {MAX_RECORDS:,} records, blank lines counted: CheXpert Plus has 223,462 films"
    with open(path, "rb") as file:
        is_list = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
        if is_list:
            cursor = open_json(path)
            try:
                for number, (at, _, record) in enumerate(cursor.elements(), start=1):
                    if number > MAX_RECORDS:
                        raise DataError(too_many)
                    yield f"byte {at}", record
                cursor.end()
            except (ValueError, RecursionError) as error:
                raise json_fault(path, error) from None
            return
        file.seek(0)
        number = 0
        while line := file.readline(MAX_LINE_BYTES):
            if (number := number + 1) > MAX_RECORDS:
                raise DataError(too_many)
            try:
                if text := line.decode("utf-8-sig").strip():
                    yield f"line {number}", json.loads(text)
            except (ValueError, RecursionError) as error:
                what = "not UTF-8" if isinstance(error, UnicodeDecodeError) else type(error).__name__
                if isinstance(error, json.JSONDecodeError):
                    what = f"column {error.colno}: {error.msg}"
                raise DataError(
                    f"{path} line {number} is no JSON object of at most {MAX_LINE_BYTES:,} bytes ({what}). Nothing of "
                    "it is used; if the file ends there, fetch it again. labels=none does without"
                ) from None
