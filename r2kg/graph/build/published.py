"""A graph that others published as a table of triples, such as M3KG's `kg_relations.csv`.

Columns source_index, target_index, source_entity, target_entity, type, count. An index names a node: a UMLS CUI,
several in a row (a term made of two nodes), or a bare string. The entity is how it is called, and several names may
stand for one index. What was seen in M3KG's table and is dealt with here: composites, self-loops, names of two words
without a blank. The table says neither where its triples were said nor how certainly, so nobody can tell from it
whether reports that a model is tested on speak in it; the graph's origin is "table" then.
"""

import re
from collections import Counter, defaultdict
from typing import Any

import pyarrow as pa

from r2kg.graph.artefact import NODES, PROVENANCE, TRIPLES, GraphManifest, KnowledgeGraph, save_graph
from r2kg.graph.build.reports import alike, tally
from r2kg.graph.extract.lexicon import spellings
from r2kg.graph.schema import RELATIONS, Kind
from shards.errors import ConfigError
from shards.graphs.triples import MAX_EDGES, MAX_NAME, malformed, name_in
from shards.privacy import TERMS
from shards.sources.tables import Table
from shards.tars.place import Place, place, sha256_of

COLUMNS = ("source_index", "target_index", "source_entity", "target_entity", "type", "count")
CUI = re.compile(r"C[0-9]{7}")
COMPOSITE = re.compile(r"(?:C[0-9]{7}){2,}")
"""A node that stands for a term of several: no level of M3KG's own has one."""


def read_published(table: str | Place, out: str | Place, licence: str) -> KnowledgeGraph:
    """Read a published table of triples and write it into `out` as a graph.

    Args:
        licence: tag of the terms of the reports that it was made from (`shards.privacy.TERMS`): a graph is under them.

    Raises:
        ConfigError: unknown terms.
        DataError: missing columns, a row that is none, an unknown relation, a count below 1; a pair of nodes twice.
    """
    if licence not in TERMS:
        raise ConfigError(f"unknown terms {licence!r}: one of {', '.join(TERMS)}")
    path = place(table)
    names, counts = defaultdict[str, Counter[str]](Counter), Counter[str]()
    notes, edges = Counter[str](), dict[tuple[str, str], tuple[str, int]]()
    for row in Table(path, COLUMNS, max_rows=MAX_EDGES).rows():
        try:
            if row.fault:
                raise ValueError(row.fault)
            cells = {column: row.cells[column].strip() for column in COLUMNS}
            relation, count = cells["type"], int(cells["count"]) if cells["count"].isascii() else 0
            if relation not in RELATIONS:
                raise ValueError(f"its type is none of {', '.join(RELATIONS)}")
            if count < 1 or len(cells["count"]) > 12:
                raise ValueError("its count is no number of 1 or more")
            pair = name_in(cells["source_index"], "an index"), name_in(cells["target_index"], "an index")
            if pair in edges or pair[::-1] in edges:
                raise ValueError("its two nodes are joined by a line above, one way or the other")
            for index, entity in zip(pair, ("source_entity", "target_entity"), strict=True):
                names[index][name_in(cells[entity], "an entity")] += count
                counts[index] += count
            edges[pair] = relation, count
        except ValueError as error:
            raise malformed(path, row.line, error) from None
        notes["self-loops"] += pair[0] == pair[1]
    order = sorted(names, key=lambda index: (-counts[index], index))
    number = {index: at for at, index in enumerate(order)}
    nodes = named(order, names, counts, notes)
    triples = [
        {"head": number[head], "relation": relation, "tail": number[tail], **said(count)}
        for (head, tail), (relation, count) in sorted(edges.items(), key=lambda edge: (-edge[1][1], edge[0]))
    ]
    notes["composite ids"] = sum(bool(COMPOSITE.fullmatch(index)) for index in order)
    notes["ids that are no CUI"] = sum(not CUI.match(index) for index in order)
    tables = {"nodes": (nodes, NODES), "triples": (triples, TRIPLES), "provenance": ([], PROVENANCE)}
    made = GraphManifest(
        licence=licence, origin="table", description={"table": path.name, "sha256": sha256_of(path)}, counts={},
        tables={}, warnings={note: count for note, count in notes.items() if count},
    )  # fmt: skip
    return save_graph(out, made, {n: pa.Table.from_pylist(rows, schema=schema) for n, (rows, schema) in tables.items()})


def said(count: int) -> dict[str, int]:
    """The columns of counts: a table that does not tell certainties says that all is there."""
    return tally(Counter(present=count))


def named(
    order: list[str], names: dict[str, Counter[str]], counts: Counter[str], notes: Counter[str]
) -> list[dict[str, Any]]:
    """Rows of the nodes: the commonest name of an index, words that were glued taken apart, no name twice."""
    rows, taken = list[dict[str, Any]](), set[str]()
    for index in order:
        common = min(names[index], key=lambda name: (-names[index][name], name))
        plain = " ".join(common.lower().split())
        name = alike(plain)
        notes["names that were glued"] += name.count(" ") > plain.count(" ") and name.replace(" ", "") == plain
        if name in taken:
            name = f"{name} ({index})"[:MAX_NAME]
            notes["names of several ids"] += 1
        taken.add(name)
        others = sorted({" ".join(other.lower().split()) for other in names[index]} - {name})
        rows.append({"id": index, "name": name, "kind": kind_of(plain), "aliases": others, **said(counts[index])})
    return rows


def kind_of(name: str) -> Kind:
    """What the lexicon takes a name for, or its last word; a concept where it knows neither."""
    known = spellings()
    return next((known[part][1] for part in (name, alike(name), name.split()[-1]) if part in known), "concept")
