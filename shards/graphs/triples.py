"""Triples as JSON and CSV: files of single studies' triples, a study's member of a side, whole graphs.

Errors name file and line, never what stands there: triples are made from reports.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

from shards.errors import ConfigError, DataError
from shards.graphs.subgraph import Graph, Triple, Vocabulary
from shards.graphs.text import MAX_CHUNK, MAX_TEXT, normal_triple, triples_in, triples_text
from shards.sources.tables import Span, Table, span_of
from shards.study import refuse_bomb
from shards.tars.place import Place, place

MAX_LINE_BYTES = 4_000_000
MAX_GRAPH_BYTES = 50_000_000
MAX_EDGES = 1_000_000
"""Most triples, and most names, of a graph."""
MAX_NAME = 500
COLUMNS = ("head", "relation", "tail")
KEY, ID = "key", "id"


class Statement(NamedTuple):
    """What one record of a triple file says of one study."""

    span: Span
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

    def __post_init__(self) -> None:
        self.path = place(self.path)
        if not self.path.name.endswith((".csv", ".jsonl")):
            raise ConfigError(f"{self.path} is no file of triples: give a .csv or a .jsonl")
        if not self.path.is_file():
            raise DataError(f"{self.path} is missing: give the file with the studies' triples")
        self.columns = Table(self.path, COLUMNS).columns if self.path.name.endswith(".csv") else []
        """What a CSV's first row named when it was listed."""

    def statements(self) -> Iterator[Statement]:
        """All records in order, one in memory at a time; DataError names the first line that is malformed."""
        if self.path.name.endswith(".jsonl"):
            yield from self._lines()
            return
        table = Table(self.path, COLUMNS, max_rows=None)
        if not (name := next((name for name in (KEY, ID) if name in table.columns), "")):
            raise DataError(
                f"{self.path} names no study: a column key (as in the shards) or id (the owner's) is needed"
            )
        for row in table.rows():
            try:
                if row.fault:
                    raise ValueError(row.fault)
                yield Statement(
                    row.span, row.line, name_in(row.cells[name], name), name == KEY, (triple_of(row.cells),)
                )
            except ValueError as error:
                raise malformed(self.path, row.line, error) from None

    def _lines(self) -> Iterator[Statement]:
        at = number = 0
        with self._open() as file:
            while raw := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                try:
                    if len(raw) > MAX_LINE_BYTES:
                        raise ValueError(f"it has more than {MAX_LINE_BYTES:,} bytes")
                    if raw.strip():
                        yield Statement(span_of(at, raw), number, *statement_in(raw))
                except (ValueError, RecursionError) as error:
                    raise malformed(self.path, number, error) from None
                at += len(raw)

    def read(self, spans: Iterable[Span]) -> Iterator[tuple[Triple, ...]]:
        """The triples of the records at `spans`, as `statements` gave them; DataError when the file has changed."""
        if self.columns and Table(self.path, COLUMNS).columns != self.columns:
            raise DataError(f"{self.path} is not what was listed (its first row differs): run again")
        with self._open() as file:
            for span in spans:
                file.seek(span.at)
                raw = file.read(span.size)
                if span_of(span.at, raw) != span:
                    raise DataError(f"{self.path} is not what was listed ({span.place} differ): run again")
                if self.columns:
                    yield (triple_of(dict(zip(self.columns, Table.parse(raw), strict=True))),)
                    continue
                try:
                    yield statement_in(raw)[2]
                except RecursionError:  # a worker has less of the stack left than whoever listed the file
                    raise DataError(f"{self.path}: {span.place} hold lists in lists too deep to be read") from None

    def _open(self) -> IO[bytes]:
        try:
            return self.path.open("rb")
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror or type(error).__name__}") from None


def malformed(path: Place, line: int, error: Exception) -> DataError:
    """Names the line; json's messages tell a position, csv's a rule, ours what is wrong: none quotes a value."""
    if isinstance(error, DataError):
        return error
    cause = f"not JSON: {error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
    cause = f"not UTF-8 at its byte {error.start}" if isinstance(error, UnicodeDecodeError) else cause
    return DataError(f"{path} line {line} is malformed: {cause}. Nothing of the file is used")


def name_in(value: Any, what: str) -> str:
    """The name of a node, relation or study, without white space around it; ValueError when it is none."""
    name = value.strip() if isinstance(value, str) else ""
    faults = not name or len(name) > MAX_NAME or any(letter < " " or "\ud800" <= letter < "\ue000" for letter in name)
    if faults:
        kind = f"{len(value)} characters" if isinstance(value, str) else type(value).__name__
        raise ValueError(f"{what} is no name of 1 to {MAX_NAME} characters without controls ({kind})")
    return name


def triple_of(row: dict[str, Any]) -> Triple:
    """The triple of a row of a CSV."""
    return name_in(row["head"], "head"), name_in(row["relation"], "relation"), name_in(row["tail"], "tail")


def listed_triple(triple: Any) -> Triple:
    """The triple that JSON lists."""
    if not isinstance(triple, list) or len(triple) != 3:
        raise ValueError("a triple is a list of head, relation and tail")
    return triple_of(dict(zip(COLUMNS, triple, strict=True)))


def statement_in(raw: bytes) -> tuple[str, bool, tuple[Triple, ...]]:
    """(study, whether by key, triples) of a line of JSON."""
    refuse_bomb(raw, MAX_LINE_BYTES)
    value = json.loads(raw.decode("utf-8-sig"))
    if not isinstance(value, dict) or not isinstance(value.get("triples"), list):
        raise ValueError('no object with "key" or "id" and a list "triples"')
    by_key = KEY in value
    name = name_in(value.get(KEY if by_key else ID), "key" if by_key else "id")
    return name, by_key, tuple(listed_triple(triple) for triple in value["triples"])


def pack_triples(triples: Iterable[Triple]) -> bytes:
    """A study's triples as its member of a side: JSON [[head, relation, tail], ...], each once, in their order.

    Raises:
        DataError: names that are none; triples of which `triples_in` would not read back all that `triples_text`
            writes, because they are too long or nothing is left of a name without its punctuation. It quotes nothing.
    """
    try:
        distinct = [*dict.fromkeys(triple_of(dict(zip(COLUMNS, triple, strict=True))) for triple in triples)]
    except ValueError as error:
        raise DataError(f"triples that cannot be kept: {error}") from None
    normal = dict.fromkeys(normal_triple(*triple) for triple in distinct)
    if triples_in(triples_text(distinct)).triples != tuple(normal):
        raise DataError(
            f"triples that cannot be read as text: a name without letters or digits, a triple of more than "
            f"{MAX_CHUNK:,} characters or all of more than {MAX_TEXT:,}"
        )
    return json.dumps(distinct, ensure_ascii=False, separators=(",", ":")).encode()


def unpack_triples(data: bytes | memoryview) -> tuple[Triple, ...]:
    """What `pack_triples` wrote, checked.

    Raises:
        DataError: no JSON of that shape, or names that are none. It quotes nothing.
    """
    try:
        refuse_bomb(data)
        value = json.loads(str(data, "utf-8"))
        if not isinstance(value, list):
            raise ValueError("no list of triples")
        return tuple(listed_triple(triple) for triple in value)
    except (ValueError, RecursionError) as error:
        what = str(error) if type(error) is ValueError else type(error).__name__
        raise DataError(f"a study's triples are not readable: {what}") from None


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
        fault = f"has more than {MAX_GRAPH_BYTES:,} bytes" if path.is_file() else "is missing"
        raise DataError(f"{path} {fault}: give the graph's file")
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
    for row in Table(path, COLUMNS, max_rows=MAX_EDGES).rows():
        try:
            if row.fault:
                raise ValueError(row.fault)
            triples.append(triple_of(row.cells))
        except ValueError as error:
            raise malformed(path, row.line, error) from None
    names = {name for head, _, tail in triples for name in (head, tail)}
    return tuple(sorted(names)), tuple(sorted({relation for _, relation, _ in triples})), triples


def _graph_json(path: Place) -> tuple[tuple[str, ...], tuple[str, ...], list[Triple]]:
    try:
        data = path.read_bytes()
        refuse_bomb(data, MAX_GRAPH_BYTES)
        value = json.loads(data.decode("utf-8-sig"))
        lists: list[Any] = (
            [value.get(name) for name in ("nodes", "relations", "triples")] if isinstance(value, dict) else [None]
        )
        if not all(isinstance(each, list) for each in lists):
            raise ValueError('no object with lists "nodes", "relations" and "triples"')
        if max(map(len, lists)) > MAX_EDGES:
            raise ValueError(f"more than {MAX_EDGES:,} nodes, relations or triples")
        nodes, relations = (tuple(name_in(name, "a name") for name in each) for each in lists[:2])
        return nodes, relations, [listed_triple(triple) for triple in lists[2]]
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise malformed(path, getattr(error, "lineno", 1), error) from None
