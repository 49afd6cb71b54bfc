"""JSON too large to be held, such as an annotation.json: read element by element, each with the bytes it lies in."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.errors import DataError
from shards.sources.tables import Span, shown_names, span_of
from shards.study import SPLITS, BadStudy, Split

MAX_BYTES = 400_000_000
"""Of a file, which is held twice while it is read; R2Gen's of MIMIC-CXR has half of that."""
MAX_ENTRIES = 500_000
"""Of a file; R2Gen's of MIMIC-CXR has 276,778."""
MAX_VALUE_BYTES = 1_000_000
"""Of one entry; a report has a few thousand."""
MAX_NAMES = 100
BLANKS = re.compile(r"[ \t\r\n]*")
DECODER = json.JSONDecoder()
BYTE_ORDER_MARK = "ï»¿"
"""As it reads in latin-1."""


def read_entries(
    path: Path, max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_BYTES
) -> Iterator[tuple[Split, int, Span, bytes]]:
    """(split, row, span, JSON) of every entry of `{"train": [...], "val": [...], "test": [...]}`, one at a time.

    Raises DataError naming file and place when it is missing, larger than it can be or not of that shape.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing: annotation must be a JSON file with lists {', '.join(SPLITS)}")
    cursor, names, count = open_json(path, max_bytes), list[str](), 0
    if (first := cursor.peek()) in ("[", '"'):
        kind = "a list" if first == "[" else "a text"
        raise DataError(f"{path} holds {kind} where an object is needed; missing keys: {', '.join(SPLITS)}")
    try:
        for name in cursor.members():
            if name in names or len(names) == MAX_NAMES:
                what = f"the key {name!r} twice" if name in SPLITS else f"a key twice, or more than {MAX_NAMES} keys"
                raise DataError(f"{path} has {what}: nobody can tell which is meant. Remove one")
            names.append(name)
            split = next((split for split in SPLITS if split == name), None)
            if split is None:
                cursor.value()
                continue
            for row, (at, end, _) in enumerate(cursor.elements()):
                if (count := count + 1) > max_entries:
                    raise DataError(f"{path} has more than {max_entries:,} entries, which no such file has")
                data = cursor.text[at:end].encode("latin-1")
                yield split, row, span_of(at, data), data
        cursor.end()
    except DataError:
        raise
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
    except RecursionError:
        raise BadStudy("entry nests too deep", place) from None
    if not isinstance(entry, dict):
        raise BadStudy("entry is not an object", f"{place} is a {type(entry).__name__}")
    return entry


def refuse_surrogates(entry: dict[str, Any], place: str) -> None:
    """BadStudy when a text of an entry is none: JSON can escape half of a surrogate pair, no path or shard holds it."""
    try:
        json.dumps(entry, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise BadStudy("text is not Unicode", f"{place}: {error.reason}") from None
    except RecursionError:
        raise BadStudy("entry nests too deep", place) from None


@dataclass
class Cursor:
    """A place in JSON text. Faults are ValueError or RecursionError, mostly JSONDecodeError with that place."""

    text: str
    at: int = 0

    def peek(self) -> str:
        """The next character that is no white space, which stays; "" at the end."""
        if blanks := BLANKS.match(self.text, self.at):
            self.at = blanks.end()
        return self.text[self.at : self.at + 1]

    def take(self, wanted: str) -> str:
        """The next character that is no white space, which must be one of `wanted`."""
        taken = self.peek()
        if not taken or taken not in wanted:
            raise json.JSONDecodeError(f"Expecting {' or '.join(wanted)}", self.text, self.at)
        self.at += 1
        return taken

    def value(self) -> Any:
        """The value that begins here, of at most `MAX_VALUE_BYTES`: more is not taken apart."""
        self.peek()
        for size in (1 << 12, 1 << 16, MAX_VALUE_BYTES):
            part, whole = self.text[self.at : self.at + size], self.at + size >= len(self.text)
            try:
                value, end = DECODER.raw_decode(part)
                fault = "Extra data"
                if whole or end < size:
                    self.at += end
                    return value
            except json.JSONDecodeError as error:
                fault, end = error.msg, error.pos
            if whole:
                break
        fault += "" if whole else f", or a value of more than {MAX_VALUE_BYTES:,} bytes"
        raise json.JSONDecodeError(fault, self.text, self.at + end)

    def elements(self) -> Iterator[tuple[int, int, Any]]:
        """(place, end, value) of every element of the list that begins here."""
        for _ in self._parts("[", "]"):
            self.peek()
            at, value = self.at, self.value()
            yield at, self.at, value

    def members(self) -> Iterator[str]:
        """Every name of the object that begins here; its value must be consumed before the next is asked for."""
        for _ in self._parts("{", "}"):
            if self.peek() != '"':
                raise json.JSONDecodeError("Expecting a name in quotes", self.text, self.at)
            name = self.value()
            self.take(":")
            yield name

    def end(self) -> None:
        """Refuse anything that follows."""
        if self.peek():
            raise json.JSONDecodeError("Extra data", self.text, self.at)

    def _parts(self, opening: str, closing: str) -> Iterator[None]:
        """Once where each part of a list or an object begins; whoever asks for the next has consumed it."""
        self.take(opening)
        closed = self.peek() == closing
        self.at += closed
        while not closed:
            yield
            closed = self.take("," + closing) == closing


def open_json(path: Path, max_bytes: int = MAX_BYTES) -> Cursor:
    """A cursor over a file of at most `max_bytes` in which one character is one byte, so that places are offsets.

    Latin-1 does that. It leaves ASCII and JSON's own characters as they are; other text must be decoded again.
    """
    if (size := path.stat().st_size) > max_bytes:
        raise DataError(f"{path} has {size:,} bytes; at most {max_bytes:,} are read")
    text = path.read_bytes().decode("latin-1")
    return Cursor(text, len(BYTE_ORDER_MARK) if text.startswith(BYTE_ORDER_MARK) else 0)


def json_fault(path: Path, error: Exception) -> DataError:
    """What to say of a file that is not the JSON it should be: the place, never the text there."""
    where = f"({type(error).__name__})"
    if isinstance(error, json.JSONDecodeError):
        where = f"at line {error.lineno}, byte {error.pos} of {len(error.doc)}: {error.msg}"
    return DataError(f"{path} is not valid JSON {where}. Nothing of it is used; if it ends there, fetch it again")
