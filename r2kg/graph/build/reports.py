"""What annotations or triples say of the training reports → the graph: names made alike, mentions counted, nodes and
triples sifted.

As M3KG was made (the pipeline of ReXKG): the majority decides a node's kind, and which way and by which relation two
nodes are joined; all statements on the two count for it. Statements on denied findings count too, as there; the tables
tell them apart.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import pyarrow as pa
import ray
import ray.data

from r2kg.graph.artefact import (
    NODES,
    PROVENANCE,
    TRIPLES,
    GraphManifest,
    KnowledgeGraph,
    load_graph,
    save_graph,
)
from r2kg.graph.build.said import Said, Statement, add, add_triples, alike
from r2kg.graph.schema import CERTAINTIES, Certainty, Kind
from shards.errors import ConfigError, DataError
from shards.graphs.triples import MAX_EDGES, malformed, name_in, unpack_triples
from shards.session import in_our_words, quiet
from shards.sources.tables import Table
from shards.stream.index import Index
from shards.stream.side import Side
from shards.study import SPLITS
from shards.tars.format import Manifest, read_manifest
from shards.tars.kinds import read_side, refuse_other
from shards.tars.place import Place, place

EMPTY = GraphManifest(licence="", origin="reports", description={}, counts={}, tables={})


@dataclass(frozen=True)
class Sifting:
    """How names become nodes, and which stay."""

    min_count: int = 1
    """Mentions a node needs."""
    min_triple_count: int = 1
    """Statements a triple needs."""
    certainty: tuple[Certainty, ...] = CERTAINTIES
    """Statements and mentions that count; all, as M3KG counts."""
    self_loops: bool = False
    """Whether a node may be joined to itself."""
    without: tuple[Kind, ...] = ("size",)
    """Kinds that become no nodes: every length would be one."""
    merge: Mapping[str, str] = field(default_factory=dict)
    """Name → the name it is merged into, such as `r2kg.graph.embed.near_synonyms` finds."""


Joined = tuple[int, str, int, list[Statement]]
"""(head, relation, tail, statements)"""


def build_graph(
    root: str | Place,
    annotations: str | Place,
    out: str | Place,
    sifting: Sifting | None = None,
    force: bool = False,
    synonyms: Callable[[KnowledgeGraph], Mapping[str, str]] | None = None,
    kind: Literal["annotations", "triples"] = "annotations",
) -> KnowledgeGraph:
    """Make the graph of the training reports of the shards at `root` and write it into `out`.

    Args:
        annotations: the side that `r2kg.graph.extract.annotate` wrote, or one of triples.
        force: take the annotations of other splits too. The graph says so, and `refuse_leak` refuses it.
        synonyms: what else is merged, told by the graph that there is without (`r2kg.graph.embed.near_synonyms`).
        kind: of that side. Of triples the place of a statement is its study.

    Raises:
        ConfigError: `out` holds something else.
        DataError: annotations of other shards, without the training split, or of others without `force`; nothing is
            left to make a graph of.
    """
    root, out, sifting = place(root), place(out), sifting or Sifting()
    if out in (root, place(annotations)):
        raise ConfigError(f"{out} holds something else: a graph needs a place of its own, such as {root / 'graph'}")
    manifest, side = read_manifest(root), read_side(annotations, kind)
    refuse_other(annotations, side, manifest, kind)
    annotated = [split for split in SPLITS if split in side.description.get("splits", ())]
    if "train" not in annotated:
        does = f"{annotations} {'annotates' if kind == 'annotations' else 'holds triples of'}"
        raise DataError(f"{does} {', '.join(annotated) or 'nothing'}: a graph is made of train")
    splits, said = annotated if force else ["train"], Said(Counter(), [])
    for split in splits:
        index = Index.open(root, split, manifest=manifest)
        for part in said_in(Side.open(annotations, index, manifest, kind)):
            said.mentions.update(part.mentions)
            said.statements.extend(part.statements)
            said = said._replace(unused=said.unused + part.unused)
    tables, notes = integrated(said, sifting)
    if synonyms:
        alike_too = synonyms(KnowledgeGraph(EMPTY, **tables))
        merge = {name: alike_too.get(node, node) for name, node in sifting.merge.items()} | dict(alike_too)
        sifting = replace(sifting, merge=merge)
        tables, notes = integrated(said, sifting)
    if kind == "triples":
        description = {"extractor": "triples", "settings": side.description, "triples": side.fingerprint}
    else:
        description = {name: side.description[name] for name in ("extractor", "settings")}
    description["splits"] = splits
    merged = hashlib.sha256(json.dumps(sorted(sifting.merge.items())).encode()).hexdigest() if sifting.merge else ""
    description["sifting"] = asdict(sifting) | {"merge": merged}
    notes["names merged into others"] = len(sifting.merge)
    notes["triples of other relations"] = said.unused
    made = GraphManifest(
        licence=manifest.licence, origin="reports", parent=manifest.fingerprint,
        annotations=side.fingerprint if kind == "annotations" else "",
        description=json.loads(json.dumps(description)), counts={}, tables={},
        warnings={note: count for note, count in notes.items() if count},
    )  # fmt: skip
    return save_graph(out, made, tables)


def read_merge(path: str | Place) -> dict[str, str]:
    """A table of names that mean the same: CSV with the columns name and node, such as a linker of UMLS makes it.

    Raises:
        DataError: missing columns, a row that is none, a name merged into two or into one that is merged itself.
    """
    merge, table = dict[str, str](), Table(place(path), ("name", "node"), max_rows=MAX_EDGES)
    for row in table.rows():
        try:
            if row.fault:
                raise ValueError(row.fault)
            name, node = alike(name_in(row.cells["name"], "name")), alike(name_in(row.cells["node"], "node"))
            if name != node and merge.setdefault(name, node) != node:
                raise ValueError("its name is merged into another node by a line above")
        except ValueError as error:
            raise malformed(table.path, row.line, error) from None
    if chained := sorted(merge.keys() & {*merge.values()}):
        raise DataError(f"{path}: {len(chained)} nodes are merged into others themselves: name the last node for all")
    return merge


def said_in(side: Side) -> Iterable[Said]:
    """What the annotations, or triples, of a split say, tar by tar on the cluster."""
    ref, tars = ray.put(side), len(side.tars)

    def read(row: dict) -> dict:
        mine: Side = ray.get(ref)
        rows, said, unused = mine.rows_of(int(row["id"])), Said(Counter(), []), 0
        for at, data in mine.held(rows):
            if mine.kind == "triples":
                unused += add_triples(said, mine.keys[at].decode(), unpack_triples(data))
            else:
                add(said, mine.keys[at].decode(), data)
        statements = json.dumps(said.statements)
        return {"mentions": json.dumps(list(said.mentions.items())), "statements": statements, "unused": unused}

    with in_our_words():
        for row in quiet(ray.data.range(tars, override_num_blocks=tars).map(read)).iter_rows():
            mentions = Counter({tuple(name): count for name, count in json.loads(row["mentions"])})
            statements = [Statement(*statement) for statement in json.loads(row["statements"])]
            yield Said(mentions, statements, int(row["unused"]))


def integrated(said: Said, sifting: Sifting) -> tuple[dict[str, pa.Table], dict[str, int]]:
    """Tables of the graph, and what was dropped or turned on the way there.

    Raises:
        DataError: no triple is left.
    """
    notes = Counter[str]()
    kinds, counts = defaultdict[str, Counter[str]](Counter), defaultdict[str, Counter[str]](Counter)
    aliases = defaultdict[str, set[str]](set)
    for (name, kind, certainty), count in said.mentions.items():
        if kind in sifting.without:
            continue
        node = sifting.merge.get(name, name)
        aliases[node] |= {name} - {node}
        if certainty in sifting.certainty:
            kinds[node][kind] += count
            counts[node][certainty] += count
    kept = [name for name, of in counts.items() if of.total() >= sifting.min_count]
    notes["nodes below min_count"] = len(counts) - len(kept)
    names = sorted(kept, key=lambda name: (-counts[name].total(), name))
    number = {name: at for at, name in enumerate(names)}
    pairs = defaultdict[tuple[int, int], list[Statement]](list)
    for statement in said.statements:
        ends = [number.get(sifting.merge.get(name, name), -1) for name in (statement.head, statement.tail)]
        if -1 in ends or statement.certainty not in sifting.certainty:
            notes["statements on nodes that were dropped" if -1 in ends else "statements of another certainty"] += 1
        elif ends[0] == ends[1] and not sifting.self_loops:
            notes["self-loops"] += 1
        else:
            pairs[min(ends), max(ends)].append(statement)
    triples = [joined(pair, statements, number, sifting, notes) for pair, statements in pairs.items()]
    triples = [triple for triple in triples if len(triple[3]) >= sifting.min_triple_count]
    notes["triples below min_triple_count"] = len(pairs) - len(triples)
    if not triples:
        raise DataError(f"nothing to make a graph of: {len(names)} nodes and no triple are left ({dict(notes)})")
    triples.sort(key=lambda triple: (-len(triple[3]), triple[:3]))
    nodes = [
        {
            "id": name,
            "name": name,
            "kind": min(kinds[name], key=lambda kind: (-kinds[name][kind], kind)),
            "aliases": sorted(aliases[name]),
            **tally(counts[name]),
        }
        for name in names
    ]
    return tables_of(nodes, triples), {note: count for note, count in notes.items() if count}


def tables_of(nodes: list[dict[str, Any]], triples: list[Joined]) -> dict[str, pa.Table]:
    """Nodes, triples and where each was said, as they are stored."""
    edges = [
        {"head": head, "relation": relation, "tail": tail, **tally(Counter(s.certainty for s in statements))}
        for head, relation, tail, statements in triples
    ]
    columns = ("study", "sentence", "start", "end", "certainty", "rule")
    origins = [
        {"triple": at, **{column: getattr(statement, column) for column in columns}}
        for at, (*_, statements) in enumerate(triples)
        for statement in sorted(statements, key=lambda s: (s.study, s.sentence, s.start))
    ]
    tables = {"nodes": (nodes, NODES), "triples": (edges, TRIPLES), "provenance": (origins, PROVENANCE)}
    return {name: pa.Table.from_pylist(rows, schema=schema) for name, (rows, schema) in tables.items()}


def tally(of: Counter[str]) -> dict[str, int]:
    """The columns of counts."""
    return {"count": of.total(), **{certainty: of[certainty] for certainty in CERTAINTIES}}


def joined(
    pair: tuple[int, int],
    statements: list[Statement],
    number: Mapping[str, int],
    sifting: Sifting,
    notes: Counter[str],
) -> Joined:
    """How two nodes are joined: as most statements say, the others counted in `notes`."""

    def said(statement: Statement) -> tuple[int, str, int]:
        head, tail = (number[sifting.merge.get(name, name)] for name in (statement.head, statement.tail))
        return head, statement.relation, tail

    ways = Counter(map(said, statements))
    head, relation, tail = min(ways, key=lambda way: (-ways[way], way))
    notes["statements the other way round"] += sum(n for (h, _, _), n in ways.items() if h != head)
    notes["statements of a rarer relation"] += sum(n for (h, r, _), n in ways.items() if h == head and r != relation)
    return head, relation, tail, statements


def load_training_graph(where: str | Place, root: str | Place, manifest: Manifest) -> KnowledgeGraph:
    """The graph at `where`, which training reports of the shards at `root` alone may have made.

    Raises:
        DataError: no graph, a finding graph, one of other shards, one that other splits' reports speak in.
    """
    graph = load_graph(where)
    if graph.manifest.origin == "findings":
        raise DataError(
            f"the graph at {where} is a finding graph ({graph.manifest.description.get('kind')}): its edges are of "
            "findings in the same report or organ, and triples that reports say are needed. Build a graph with "
            "`r2kg graph build SHARDS`, or name another"
        )
    if graph.manifest.parent not in ("", manifest.fingerprint):
        raise DataError(
            f"the graph at {where} is of shards {graph.manifest.parent[:12]}, these have "
            f"{manifest.fingerprint[:12]}: their studies are not its training studies. Build it of these with "
            "`r2kg graph build SHARDS`, or name another"
        )
    training = Index.open(root, "train", manifest=manifest)
    refuse_leak(graph, [key.decode() for key in training.keys.tolist()])
    return graph


def refuse_leak(graph: KnowledgeGraph, training: Sequence[str] | frozenset[str]) -> None:
    """Refuse a graph that reports outside the training split speak in.

    Args:
        training: keys of the training studies.

    Raises:
        DataError: naming a triple that no training study supports, or a study of another split.
    """
    keys, known = graph.provenance["study"].to_pylist(), frozenset(training)
    of = graph.provenance["triple"].to_pylist()
    strange = sum(key not in known for key in keys)
    if graph.manifest.origin != "reports" or not strange:
        return
    supported = {triple for triple, key in zip(of, keys, strict=True) if key in known}
    alone = next((t for t in range(graph.triples.num_rows) if t not in supported), None)
    named = " ".join(graph.named_triples()[alone]) if alone is not None else ""
    what = f"no training report says {named!r}" if named else "training reports say all of its triples too"
    raise DataError(
        f"{strange} of {len(keys)} statements in the graph are of studies outside the training split ({what}): a model "
        "given it would know what it is tested on. Build it of annotations of train alone"
    )
