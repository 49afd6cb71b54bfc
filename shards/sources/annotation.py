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

MAX_BYTES = 1_000_000_000
BLANKS = re.compile(r"[ \t\r\n]*")
DECODER = json.JSONDecoder()
BYTE_ORDER_MARK = "ï»¿"
"""As it reads in latin-1."""


def read_entries(path: Path) -> Iterator[tuple[Split, int, Span, bytes]]:
    """(split, row, span, JSON) of every entry of `{"train": [...], "val": [...], "test": [...]}`, one at a time.

    Raises DataError naming file and place when it is missing, larger than `MAX_BYTES` or not of that shape.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing: annotation must be a JSON file with lists {', '.join(SPLITS)}")
    cursor, names = open_json(path), []
    if (first := cursor.peek()) in ("[", '"'):
        kind = "a list" if first == "[" else "a text"
        raise DataError(f"{path} holds {kind} where an object is needed; missing keys: {', '.join(SPLITS)}")
    try:
        for name in cursor.members():
            names.append(name)
            split = next((split for split in SPLITS if split == name), None)
            if split is None:
                cursor.value()
                continue
            for row, (at, end, _) in enumerate(cursor.elements()):
                data = cursor.text[at:end].encode("latin-1")
                yield split, row, span_of(at, data), data
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
        """The value that begins here."""
        self.peek()
        value, self.at = DECODER.raw_decode(self.text, self.at)
        return value

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


def open_json(path: Path) -> Cursor:
    """A cursor over a file of at most `MAX_BYTES` in which one character is one byte, so that places are offsets.

    Latin-1 does that. It leaves ASCII and JSON's own characters as they are; other text must be decoded again.
    """
    if (size := path.stat().st_size) > MAX_BYTES:
        raise DataError(f"{path} has {size:,} bytes; at most {MAX_BYTES:,} are read")
    text = path.read_bytes().decode("latin-1")
    return Cursor(text, len(BYTE_ORDER_MARK) if text.startswith(BYTE_ORDER_MARK) else 0)


def json_fault(path: Path, error: Exception) -> DataError:
    """What to say of a file that is not the JSON it should be: the place, never the text there."""
    where = f"({type(error).__name__})"
    if isinstance(error, json.JSONDecodeError):
        where = f"at line {error.lineno}, byte {error.pos} of {len(error.doc)}: {error.msg}"
    return DataError(f"{path} is not valid JSON {where}. Nothing of it is used; if it ends there, fetch it again")
