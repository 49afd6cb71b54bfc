"""The graph as files: nodes and triples with their counts, and where every triple was said.

GRAPH/graph.json names and seals the other files; nodes.parquet, triples.parquet and provenance.parquet are read by any
tool. Row numbers of nodes are the ids that triples, levels and subgraphs speak of: the most frequent node is 0, but in
a finding graph (`r2kg.graph.build.findings`), whose nodes stand in their published order.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field
from safetensors import SafetensorError

from r2kg.graph.schema import CERTAINTIES, FINDING_RELATIONS, KINDS, RELATIONS
from shards.errors import ConfigError, DataError
from shards.tars.format import SealedManifest, Sha256, read_sealed, write_sealed
from shards.tars.place import Place, make_directory, names_in, place, read_whole, sha256_of, write_atomic

FILE = "graph.json"
HOW = "make it with `r2kg graph build SHARDS`, `r2kg graph read TABLE` or `r2kg graph findings SHARDS`"
MAX_BYTES = 4 << 30
COUNTS = [("count", pa.int64()), *((name, pa.int64()) for name in CERTAINTIES)]
NODES = pa.schema(
    [("id", pa.string()), ("name", pa.string()), ("kind", pa.string()), ("aliases", pa.list_(pa.string())), *COUNTS]
)
"""`id` is the name, or what an imported table calls the node (a CUI). `count` is mentions; those of each certainty add
up to it. `aliases` are names that were merged into this one. Of a finding graph `count` is reports, no certainty is
told, and what was not published is null."""
TRIPLES = pa.schema([("head", pa.int32()), ("relation", pa.string()), ("tail", pa.int32()), *COUNTS])
"""Head and tail are rows of the nodes; a pair of nodes stands once, the most frequent triple first."""
PROVENANCE = pa.schema(
    [
        *(("triple", pa.int32()), ("study", pa.string()), ("sentence", pa.int32()), ("start", pa.int32())),
        *(("end", pa.int32()), ("certainty", pa.string()), ("rule", pa.string())),
    ]
)
"""A row a statement: row of the triple, key of the study, sentence, and the characters from the first entity's start
to the last one's end. Of a finding graph see `r2kg.graph.build.findings`: no sentence and no certainty."""
TABLES = {"nodes": NODES, "triples": TRIPLES, "provenance": PROVENANCE}
Held = TypeVar("Held")
LONG = 64
"""Characters of a hash: a value as long as that is not shown where two are compared."""


class GraphManifest(SealedManifest):
    """graph.json: what the graph was made from, and the hashes of its tables."""

    origin: str
    """"reports", of a graph that was imported "table", of a finding graph "findings"."""
    parent: str = ""
    """Fingerprint of the shards whose training reports it was made from."""
    annotations: str = ""
    """Fingerprint of the side that holds what was said of the reports."""
    description: dict[str, Any]
    """What decides the content: the extractor and its settings, how nodes were merged and sifted."""
    counts: dict[str, int]
    tables: dict[str, Sha256]
    """Name of a table → SHA-256 of its file."""
    warnings: dict[str, int] = Field(default_factory=dict)
    """What was dropped, merged or is unusual → how often."""


@dataclass(frozen=True)
class KnowledgeGraph:
    """A graph in memory."""

    manifest: GraphManifest
    nodes: pa.Table
    triples: pa.Table
    provenance: pa.Table

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of the nodes by id."""
        return tuple(self.nodes["name"].to_pylist())

    def named_triples(self) -> list[tuple[str, str, str]]:
        """(head, relation, tail) by name, the most frequent first."""
        heads, kinds, tails = (self.triples[name].to_pylist() for name in ("head", "relation", "tail"))
        return [(self.names[h], kind, self.names[t]) for h, kind, t in zip(heads, kinds, tails, strict=True)]


def save_graph(where: str | Place, manifest: GraphManifest, tables: dict[str, pa.Table]) -> KnowledgeGraph:
    """Write the tables, then graph.json, which seals them; returns what was written."""
    where = place(where)
    make_directory(where)
    hashes = {}
    for name, schema in TABLES.items():
        table, sink = tables[name].select(schema.names).cast(schema), io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        write_atomic(where / f"{name}.parquet", sink.getvalue())
        hashes[name] = sha256_of(where / f"{name}.parquet")
    counts = {name: table.num_rows for name, table in tables.items()}
    sealed = write_sealed(where / FILE, manifest.model_copy(update={"tables": hashes, "counts": counts}))
    return load_graph(where, sealed)


def read_graph_manifest(where: str | Place) -> GraphManifest:
    """graph.json; DataError when it is missing, malformed, old or was edited by hand."""
    return read_sealed(place(where) / FILE, GraphManifest, f"no graph at {where}", HOW)


def load_graph(where: str | Place, manifest: GraphManifest | None = None) -> KnowledgeGraph:
    """The graph at `where`, each table compared with its hash, its schema and the other tables.

    Raises:
        DataError: something is missing, changed or contradicts itself; an empty graph.
    """
    where, tables = place(where), dict[str, pa.Table]()
    manifest = manifest or read_graph_manifest(where)
    for name, schema in TABLES.items():
        path = where / f"{name}.parquet"
        with reading(str(path), HOW):
            content = read_hashed(path, manifest.tables.get(name), FILE, HOW, MAX_BYTES)
            tables[name] = pq.read_table(io.BytesIO(content)).cast(schema)
    if fault := fault_of(tables, manifest):
        raise DataError(f"the graph at {where} contradicts itself: {fault}. {HOW}")
    return KnowledgeGraph(manifest, **tables)


def read_hashed(path: Place, sha256: str | None, told_by: str, how: str, most: int) -> bytes:
    """The content of a file of at most so many bytes; DataError where it has not the hash that a manifest tells.

    Args:
        told_by: the manifest's file name.
        how: the command that makes the artefact, for the error.
    """
    if sha256_of(path) != sha256:
        raise DataError(f"{path} is not what {told_by} says: {how}")
    return read_whole(path, most)


@contextmanager
def reading(what: str, how: str) -> Iterator[None]:
    """Raise what reading a damaged file raises as a DataError: that `what` cannot be read, and how it is made."""
    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError, KeyError, SafetensorError, pa.ArrowException) as error:
        raise DataError(f"{what} cannot be read ({type(error).__name__}): {how}") from None


def standing_alike(
    out: Place,
    what: str,
    files: Set[str],
    load: Callable[[Place], Held],
    told: Callable[[Held], Mapping[str, Any]],
    asked: Mapping[str, Any],
    replace: bool,
) -> Held | None:
    """What stands at `out` where it was made of just this, which is said; None where it is to be made.

    It is asked before anything is read for what is to be made.

    Args:
        what: the artefact, such as "bank".
        files: all that it consists of.
        load: reads one, and raises DataError for one that a kill or damage has left.
        told: what decided the content of the one that was loaded, by name.
        asked: what decides it now.
        replace: one that was made otherwise may be written over.

    Raises:
        ConfigError: `out` holds something else, or such a thing that was made otherwise.
    """
    named = {name for name in names_in(out) if not name.startswith(".")}  # a kill leaves hidden ones
    if strange := sorted(named - files):
        raise ConfigError(
            f"{out} holds something else ({strange[0]}): a {what} needs a place of its own, give another --out"
        )
    with suppress(DataError):
        there = load(out)
        before, changed = told(there), list[str]()
        for name, now in asked.items():
            was = before.get(name)
            brief = name in before and all(not isinstance(v, dict | list) and len(str(v)) < LONG for v in (was, now))
            if was != now:
                changed.append(f"{name} was {was}, is now {now}" if brief else f"other {name}")
        if not changed:
            print(f"{out} is made already; delete it to have it made again.")
            return there
        if not replace:
            raise ConfigError(
                f"{out} holds a {what} that was made otherwise ({', '.join(changed)}): say --replace, or give another "
                "--out"
            )
    return None


def fault_of(tables: dict[str, pa.Table], manifest: GraphManifest) -> str:
    """What in the tables contradicts itself or the manifest; "" for nothing."""
    findings = manifest.origin == "findings"
    names, ids = (tables["nodes"][column].to_pylist() for column in ("name", "id"))
    if not names or not tables["triples"].num_rows:
        return f"it is empty ({len(names)} nodes, {tables['triples'].num_rows} triples)"
    if len(set(names)) != len(names) or len(set(ids)) != len(ids) or None in (*names, *ids):
        return "a node stands twice"
    if strange := set(tables["nodes"]["kind"].to_pylist()) - set(KINDS):
        return f"unknown kinds of nodes {sorted(map(str, strange))[:3]}"
    if strange := set(tables["triples"]["relation"].to_pylist()) - set(FINDING_RELATIONS if findings else RELATIONS):
        return f"unknown relations {sorted(map(str, strange))[:3]}"
    for table, column, most in (
        *(("triples", "head", len(names)), ("triples", "tail", len(names))),
        ("provenance", "triple", tables["triples"].num_rows),
    ):
        numbers = tables[table][column].to_pylist()
        if any(number is None or not 0 <= number < most for number in numbers):
            return f"{table} name a {column} that is not there"
    if findings:
        pairs = list(zip(*(tables["triples"][column].to_pylist() for column in ("head", "tail")), strict=True))
        if len({*pairs}) < len(pairs) or any(head >= tail for head, tail in pairs):
            return "an edge between findings stands twice, or not from the smaller row to the larger one"
        learned, groups = (manifest.description.get(what) for what in ("supervised", "groups"))
        if type(learned) is not int or not 1 <= learned <= len(names):
            return f"supervised is {str(learned)[:20]!r}, which is no number of its {len(names)} findings"
        lists = list(groups.values()) if isinstance(groups, dict) else []
        grouped = [str(name) for own in lists if isinstance(own, list) for name in own]
        if sorted(grouped) != sorted(names):
            return "its groups do not name every finding once"
    return ""
