"""Files of triples: those of single studies (CSV or JSONL) and whole graphs (CSV or JSON).

Errors name file and line, never what stands there: triples are made from reports.
"""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

from shards.errors import ConfigError, DataError
from shards.graphs.subgraph import Graph, Triple, Vocabulary
from shards.tars.place import Place, place

MAX_LINE_BYTES = 4_000_000
MAX_GRAPH_BYTES = 200_000_000
MAX_NAME = 500
COLUMNS = ("head", "relation", "tail")
KEY, ID = "key", "id"


class Entry(NamedTuple):
    """What one record of a triple file says of one study."""

    at: int
    """Byte at which the record begins."""
    size: int
    line: int
    """Number of its first line, from 1."""
    study: str
    by_key: bool
    """`study` is the name in the shards, not the owner's."""
    triples: tuple[Triple, ...]


@dataclass
class TripleFile:
    """Triples of studies, in any order. A study may stand on many lines: all its triples count, each once.

    CSV: columns head, relation, tail and key (as in the shards) or id (as the data's owner writes it); one triple a
    line, further columns are not read. JSONL: {"key" or "id": ..., "triples": [[head, relation, tail], ...]} a line.
    """

    path: Place
    columns: list[str] = field(default_factory=list, init=False)
    """Header of a CSV; known once `entries` has begun."""

    def __post_init__(self) -> None:
        self.path = place(self.path)
        if not self.path.name.endswith((".csv", ".jsonl")):
            raise ConfigError(f"{self.path} is no file of triples: give a .csv or a .jsonl")
        if not self.path.is_file():
            raise DataError(f"{self.path} is missing: give the file with the studies' triples")

    @property
    def is_csv(self) -> bool:
        """One triple a line, else one study."""
        return self.path.name.endswith(".csv")

    def entries(self) -> Iterator[Entry]:
        """All records in order, one in memory at a time; DataError names the first line that is malformed."""
        with self.path.open("rb") as file:
            lines = _Lines(file, self.path)
            yield from self._csv(lines) if self.is_csv else self._jsonl(lines)

    def read(self, spans: list[tuple[int, int]]) -> Iterator[tuple[Triple, ...]]:
        """The triples of the records at (at, size), as `entries` gave them; for CSV after `entries`."""
        with self.path.open("rb") as file:
            for at, size in spans:
                file.seek(at)
                text = file.read(size).decode("utf-8-sig")
                if self.is_csv:
                    cells = next(csv.reader(io.StringIO(text, newline="")))
                    yield (_triple(dict(zip(self.columns, cells, strict=True))),)
                else:
                    yield _study(json.loads(text))[2]

    def _csv(self, lines: "_Lines") -> Iterator[Entry]:
        self.columns, rows = _table(lines)
        if not (name := next((name for name in (KEY, ID) if name in self.columns), "")):
            raise DataError(
                f"{self.path} names no study: a column key (as in the shards) or id (the owner's) is needed"
            )
        for at, line, row in rows:
            try:
                yield Entry(at, lines.at - at, line, _text(row[name], name), name == KEY, (_triple(row),))
            except ValueError as error:
                raise _malformed(self.path, line, error) from None

    def _jsonl(self, lines: "_Lines") -> Iterator[Entry]:
        at = lines.at
        for text in lines:
            try:
                if text.strip():
                    yield Entry(at, lines.at - at, lines.number, *_study(json.loads(text)))
            except (ValueError, RecursionError) as error:
                raise _malformed(self.path, lines.number, error) from None
            at = lines.at


class _Lines:
    """Lines of an open file as text, of bounded length, that know where they end."""

    def __init__(self, file: BinaryIO, path: Place):
        self.file, self.path, self.at, self.number = file, path, 0, 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        if not (raw := self.file.readline(MAX_LINE_BYTES + 1)):
            raise StopIteration
        self.number += 1
        if len(raw) > MAX_LINE_BYTES:
            raise DataError(f"{self.path} line {self.number} has more than {MAX_LINE_BYTES:,} bytes")
        try:
            text = raw.decode("utf-8" if self.at else "utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{self.path} line {self.number} is not UTF-8 at its byte {error.start}") from None
        self.at += len(raw)
        return text


def _table(lines: _Lines) -> tuple[list[str], Iterator[tuple[int, int, dict[str, str]]]]:
    """Columns of a CSV of triples, and its rows with their first byte and line."""
    reader = csv.reader(lines, strict=True)
    try:
        columns = next(reader, [])
    except csv.Error as error:
        raise _malformed(lines.path, 1, error) from None
    if missing := [name for name in COLUMNS if name not in columns]:
        raise DataError(f"{lines.path} lacks {', '.join(missing)} in the {len(columns)} cells of its first line")

    def rows() -> Iterator[tuple[int, int, dict[str, str]]]:
        while True:
            at, line = lines.at, lines.number + 1
            try:
                if (cells := next(reader, None)) is None:
                    return
                if cells and len(cells) != len(columns):
                    raise ValueError(f"{len(cells)} cells where the header has {len(columns)}")
            except (ValueError, csv.Error) as error:
                raise _malformed(lines.path, line, error) from None
            if cells:
                yield at, line, dict(zip(columns, cells, strict=True))

    return columns, rows()


def _malformed(path: Place, line: int, error: Exception) -> DataError:
    """Names the line; json's messages tell a position, csv's a rule, ours what is wrong: none quotes a value."""
    if isinstance(error, DataError):
        return error
    cause = f"not JSON: {error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
    return DataError(f"{path} line {line} is malformed: {cause}. Nothing of the file is used")


def _text(value: Any, what: str) -> str:
    name = value.strip() if isinstance(value, str) else ""
    if not name or len(name) > MAX_NAME or any(letter < " " for letter in name):
        kind = f"{len(value)} characters" if isinstance(value, str) else type(value).__name__
        raise ValueError(f"{what} is no name of 1 to {MAX_NAME} characters without controls ({kind})")
    return name


def _triple(row: dict[str, Any]) -> Triple:
    return _text(row["head"], "head"), _text(row["relation"], "relation"), _text(row["tail"], "tail")


def _listed(triple: Any) -> Triple:
    if not isinstance(triple, list) or len(triple) != 3:
        raise ValueError("a triple is a list of head, relation and tail")
    return _triple(dict(zip(COLUMNS, triple, strict=True)))


def _study(value: Any) -> tuple[str, bool, tuple[Triple, ...]]:
    if not isinstance(value, dict) or not isinstance(value.get("triples"), list):
        raise ValueError('no object with "key" or "id" and a list "triples"')
    by_key = KEY in value
    name = _text(value.get(KEY if by_key else ID), "key" if by_key else "id")
    return name, by_key, tuple(_listed(triple) for triple in value["triples"])


def read_graph(path: str | Place) -> Graph:
    """A graph of names: JSON {"nodes", "relations", "triples": [[head, relation, tail], ...]}, or CSV of triples.

    The ids are positions in "nodes" and "relations"; a CSV's names are sorted. Columns other than head, relation and
    tail, such as a count, are not read. That the graph was made from training data only is for its maker to see to:
    nothing here can tell.
    """
    path = place(path)
    if not path.name.endswith((".csv", ".json")):
        raise ConfigError(f"{path} is no graph: give a .csv or a .json")
    if not path.is_file() or path.stat().st_size > MAX_GRAPH_BYTES:
        found = f"has more than {MAX_GRAPH_BYTES:,} bytes" if path.is_file() else "is missing"
        raise DataError(f"{path} {found}: give the graph's file")
    nodes, relations, triples = _graph_csv(path) if path.name.endswith(".csv") else _graph_json(path)
    vocabulary = Vocabulary(nodes, relations)
    if len(vocabulary.node) != len(nodes) or len(vocabulary.relation) != len(relations):
        raise DataError(f"{path}: a node or a relation is listed twice")
    edges = [vocabulary.edge(triple) for triple in triples]
    if not edges or None in edges:
        cause = f"triples[{edges.index(None)}] names what nodes or relations do not list" if edges else "no triples"
        raise DataError(f"{path}: {cause}")
    return Graph(vocabulary, tuple(dict.fromkeys(edge for edge in edges if edge)))


def _graph_csv(path: Place) -> tuple[tuple[str, ...], tuple[str, ...], list[Triple]]:
    triples = []
    with path.open("rb") as file:
        for _, line, row in _table(_Lines(file, path))[1]:
            try:
                triples.append(_triple(row))
            except ValueError as error:
                raise _malformed(path, line, error) from None
    names = {name for head, _, tail in triples for name in (head, tail)}
    return tuple(sorted(names)), tuple(sorted({relation for _, relation, _ in triples})), triples


def _graph_json(path: Place) -> tuple[tuple[str, ...], tuple[str, ...], list[Triple]]:
    try:
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
        lists = [value.get(name) if isinstance(value, dict) else None for name in ("nodes", "relations", "triples")]
        if not all(isinstance(found, list) for found in lists):
            raise ValueError('no object with lists "nodes", "relations" and "triples"')
        nodes, relations = (tuple(_text(name, "a name") for name in found) for found in lists[:2])
        return nodes, relations, [_listed(triple) for triple in lists[2]]
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise _malformed(path, getattr(error, "lineno", 1), error) from None
