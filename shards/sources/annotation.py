"""An annotation.json too large to be held: its entries one at a time, each with the bytes it lies in."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shards.errors import DataError
from shards.sources.json_cursor import json_fault, open_json
from shards.sources.spans import Span, shown_names, span_of
from shards.study import SPLITS, BadStudy, Split

MAX_BYTES = 1_000_000_000


def read_entries(path: Path) -> Iterator[tuple[Split, int, Span, bytes]]:
    """(split, row, span, JSON) of every entry of `{"train": [...], "val": [...], "test": [...]}`, one at a time."""
    if not path.is_file():
        raise DataError(f"{path} is missing: annotation must be a JSON file with lists {', '.join(SPLITS)}")
    cursor, names = open_json(path, MAX_BYTES), []
    try:
        for name in cursor.members():
            names.append(name)
            if name not in SPLITS:
                cursor.value()
                continue
            for row, (at, end, _) in enumerate(cursor.elements()):
                data = cursor.text[at:end].encode("latin-1")
                yield name, row, span_of(at, data), data  # type: ignore[misc]
        cursor.end()
    except (ValueError, RecursionError) as error:
        raise json_fault(path, error) from None
    if missing := [split for split in SPLITS if split not in names]:
        raise DataError(f"{path}: missing keys: {', '.join(missing)}; found: {shown_names(names)}")


def object_in(data: bytes, place: str) -> dict[str, Any]:
    """The JSON object of one entry; BadStudy, in words that name `place` and quote nothing, when it is none."""
    try:
        entry = json.loads(data)
    except ValueError as error:
        raise BadStudy("entry is not UTF-8", f"{place}: {type(error).__name__}") from None
    if not isinstance(entry, dict):
        raise BadStudy("entry is not an object", f"{place} is a {type(entry).__name__}")
    return entry
