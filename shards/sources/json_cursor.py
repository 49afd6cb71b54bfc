"""JSON read element by element, each with its place in the file: large lists need neither be held nor parsed twice."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shards.errors import DataError

BLANKS = re.compile(r"[ \t\r\n]*")
DECODER = json.JSONDecoder()
MARK = "ï»¿"
"""A byte-order mark read as latin-1."""


class Cursor:
    """A place in JSON text. Faults are ValueError or RecursionError, mostly JSONDecodeError with that place."""

    def __init__(self, text: str):
        self.text, self.at = text, len(MARK) if text.startswith(MARK) else 0

    def peek(self) -> str:
        """The next character that is no white space, which stays; "" at the end."""
        self.at = BLANKS.match(self.text, self.at).end()  # type: ignore[union-attr]
        return self.text[self.at : self.at + 1]

    def take(self, wanted: str) -> str:
        """The next character that is no white space, which must be one of `wanted`."""
        found = self.peek()
        if not found or found not in wanted:
            raise json.JSONDecodeError(f"Expecting {' or '.join(wanted)}", self.text, self.at)
        self.at += 1
        return found

    def value(self) -> Any:
        """The value that begins here."""
        self.peek()
        value, self.at = DECODER.raw_decode(self.text, self.at)
        return value

    def elements(self) -> Iterator[tuple[int, int, Any]]:
        """(place, end, value) of every element of the list that begins here."""
        closed = self._open("[", "]")
        while not closed:
            self.peek()
            at, value = self.at, self.value()
            yield at, self.at, value
            closed = self.take(",]") == "]"

    def members(self) -> Iterator[str]:
        """Every name of the object that begins here; its value must be consumed before the next is asked for."""
        closed = self._open("{", "}")
        while not closed:
            if self.peek() != '"':
                raise json.JSONDecodeError("Expecting a name in quotes", self.text, self.at)
            name = self.value()
            self.take(":")
            yield name
            closed = self.take(",}") == "}"

    def end(self) -> None:
        """Refuse anything that follows."""
        if self.peek():
            raise json.JSONDecodeError("Extra data", self.text, self.at)

    def _open(self, opening: str, closing: str) -> bool:
        """Enter a list or an object; whether it is empty and was left again."""
        self.take(opening)
        empty = self.peek() == closing
        self.at += empty
        return empty


def open_json(path: Path, limit: int) -> Cursor:
    """A cursor over a file of at most `limit` bytes in which one character is one byte, so that places are offsets.

    Latin-1 does that. It leaves ASCII and JSON's own characters as they are; other text must be decoded again.
    """
    if (size := path.stat().st_size) > limit:
        raise DataError(f"{path} has {size:,} bytes; at most {limit:,} are read")
    return Cursor(path.read_bytes().decode("latin-1"))


def json_fault(path: Path, error: Exception) -> DataError:
    """What to say of a file that is not the JSON it should be: the place, never the text there."""
    where = type(error).__name__
    if isinstance(error, json.JSONDecodeError):
        where = f"line {error.lineno}, byte {error.pos} of {len(error.doc)}: {error.msg}"
    return DataError(f"{path} cannot be read: {where}. Nothing of it is used; if it ends there, fetch it again")
