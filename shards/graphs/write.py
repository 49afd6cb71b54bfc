"""A side of subgraphs: every study's triples, or the part of a graph they name, as KEY.kg.safetensors.

The triples are those of the shards' own records or of a file; a file's are also kept to be read, as KEY.kg.json. Names
of nodes and relations get their ids from the training split, or from the graph: what only validation and test reports
name is left out and counted. Names are compared as they are written, but for white space around them.

`description["origin"]` says where the edges come from. "report": from the study's own report. "graph": from a graph of
the training data, between the entities that the study's own report names. Both tell what that report says: they are a
target, a label or a teacher while training, and never an input of a model that is tested, which would read the
reference.
"""

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.data

from shards.errors import DataError, OnBad
from shards.graphs.subgraph import Graph, Triple, Vocabulary, pack, subgraph_of
from shards.graphs.triples import TripleFile, read_graph
from shards.privacy import Names, terms_of
from shards.session import in_our_words, quiet
from shards.sources.tables import Span
from shards.stream.index import Index, open_splits, studies_of
from shards.tars.format import Manifest, read_manifest
from shards.tars.kinds import KINDS, UNREAD, SideManifest
from shards.tars.place import Place, place, sha256_of
from shards.tars.private import names_of
from shards.tars.sides import write_side
from shards.tars.write import Made

NAME = "subgraphs"
"""Place below SHARDS/side."""
UNKNOWN = "study not in the shards"
USE = "target or label only: it tells what the study's own report says"


def write_subgraphs(
    root: str | Place,
    out: str | Place,
    triples: str | Place = "",
    graph: str | Place = "",
    on_bad: OnBad = "skip",
) -> SideManifest:
    """Write the subgraphs of the shards at `root` into `out`.

    Args:
        triples: a file of the studies' triples (`TripleFile`); "": those in the shards' records.
        graph: a graph (`read_graph`); "": the triples themselves are the graph.
        on_bad: a record that cannot be read while triples come from the records: no subgraph, or stop.

    Raises:
        ConfigError: `out` cannot be used, files of another kind.
        DataError: a malformed file, no triple of a training study, torn indices of the shards.
    """
    root = place(root)
    manifest = read_manifest(root)
    indices = open_splits(root, manifest)
    file = TripleFile(place(triples)) if triples else None
    located = locate(file, manifest, indices) if file else Located()
    given = read_graph(graph) if graph else None
    if given:
        vocabulary = given.vocabulary
    else:
        names = located.names if file or "train" not in indices else training_names(indices["train"], on_bad)
        vocabulary = Vocabulary(tuple(sorted(names.nodes)), tuple(sorted(names.relations)))
    if not vocabulary.nodes:
        source = place(triples).name if triples else f"the records of these {manifest.source} shards"
        raise DataError(f"{source}: no training study has a triple. Way out: give --triples FILE, or another one")
    maker = StudyGraphs(vocabulary, given, file, on_bad)
    files = {"triples_file": triples, "graph_file": graph}
    description: dict[str, Any] = {"origin": "graph" if given else "report", "use": USE}
    description["names_from"] = "graph_file" if given else "train split"
    for what, path in files.items():
        if path:
            description[what] = {"name": place(path).name, "sha256": sha256_of(place(path))}
    description |= {"nodes": vocabulary.nodes, "relations": vocabulary.relations}
    return write_side(
        root, out, "subgraphs", manifest, indices, description, lambda: maker,
        located.by_tar(indices), {UNKNOWN: located.unknown} if located.unknown else None,
    )  # fmt: skip


@dataclass
class TripleNames:
    """Names that triples of training studies use."""

    nodes: set[str] = field(default_factory=set)
    relations: set[str] = field(default_factory=set)

    def learn(self, triples: Iterable[Triple]) -> None:
        """Add the names of a training study's triples."""
        for head, relation, tail in triples:
            self.nodes |= {head, tail}
            self.relations.add(relation)


class Located:
    """Where in a triple file the studies of the shards are, and what else it holds."""

    def __init__(self) -> None:
        """Nothing located yet."""
        self.rows, self.ats, self.sizes, self.digests = array("q"), array("q"), array("q"), array("Q")
        self.names, self.unknown = TripleNames(), tuple[str, ...]()

    def add(self, row: int, span: Span) -> None:
        """A record of study `row` of all splits one after the other."""
        self.rows.append(row)
        self.ats.append(span.at)
        self.sizes.append(span.size)
        self.digests.append(int(span.digest, 16))

    def by_tar(self, indices: Mapping[str, Index]) -> dict[str, bytes]:
        """Tar → its records as JSON: [row of the split's index, at, size, digest], by row and place in the file."""
        records = sorted(zip(self.rows, self.ats, self.sizes, self.digests, strict=True))
        given, start, at = dict[str, bytes](), 0, 0
        for index in indices.values():
            for number, name in enumerate(index.tars):
                mine, end = [], start + index.rows_of(number).stop
                while at < len(records) and records[at][0] < end:
                    row, place_, size, digest = records[at]
                    mine.append([row - start, place_, size, f"{digest:016x}"])
                    at += 1
                given[name] = json.dumps(mine).encode()
            start += len(index)
        return given


def locate(file: TripleFile, manifest: Manifest, indices: Mapping[str, Index]) -> Located:
    """Find every record's study in one pass over a triple file; the triples themselves are not kept.

    Studies that the shards do not hold are listed, for credentialed data by line.
    """
    keys = [key for index in indices.values() for key in index.keys.tolist()]
    rows = {key: row for row, key in enumerate(keys)}
    training = len(indices["train"]) if "train" in indices else 0
    private = terms_of(manifest.licence).credentialed
    names: Names | None = None
    located, unknown = Located(), dict[str, str]()
    for said in file.statements():
        if not said.by_key and names is None:
            names = names_of(manifest)
        key = said.study if said.by_key or names is None else names.key(said.study)
        if (row := rows.get(key.encode(), -1)) < 0:
            unknown.setdefault(key, f"line {said.line}" if private else said.study)
            continue
        located.add(row, said.span)
        if row < training:
            located.names.learn(said.triples)
    located.unknown = tuple(unknown.values())
    return located


def training_names(index: Index, on_bad: OnBad) -> TripleNames:
    """The names in the records of the training split, tar by tar on the cluster."""
    ref, tars = ray.put(index), len(index.tars)

    def names(row: dict) -> dict:
        pointers, mine = ray.get(ref), TripleNames()
        for _, triples in own_triples(pointers, pointers.rows_of(int(row["id"])), on_bad):
            mine.learn(triples or ())
        return {"names": json.dumps([sorted(mine.nodes), sorted(mine.relations)])}

    learned = TripleNames()
    with in_our_words():
        for row in quiet(ray.data.range(tars, override_num_blocks=tars).map(names)).iter_rows():
            nodes, relations = json.loads(row["names"])
            learned.nodes |= set(nodes)
            learned.relations |= set(relations)
    return learned


def own_triples(index: Index, rows: range, on_bad: OnBad) -> Iterator[tuple[int, tuple[Triple, ...] | None]]:
    """(row, triples of the study's record), None for a record that cannot be read, which under "fail" is an error."""
    for row, study in studies_of(index, rows, {} if on_bad == "skip" else None):
        yield row, study.triples if study else None


@dataclass
class StudyGraphs:
    """The maker: the triples of every study of a tar, as its subgraph."""

    vocabulary: Vocabulary
    graph: Graph | None
    file: TripleFile | None
    on_bad: OnBad

    def __call__(self, index: Index, rows: range, given: bytes) -> Iterator[Made]:
        """One subgraph for every row; `given` says where in the file the tar's studies are."""
        if self.file is None:
            yield from (self._made(triples, {}) for _, triples in own_triples(index, rows, self.on_bad))
            return
        records, of = json.loads(given), dict[int, dict[Triple, None]]()
        spans = [Span(at, size, digest) for _, at, size, digest in records]
        for (row, *_), triples in zip(records, self.file.read(spans), strict=True):
            of.setdefault(row, {}).update(dict.fromkeys(triples))
        for row in rows:
            triples = tuple(of.get(row, ()))
            shown = json.dumps({"triples": triples}, ensure_ascii=False).encode()
            yield self._made(triples, {"kg.json": shown} if triples else {})

    def _made(self, triples: tuple[Triple, ...] | None, members: dict[str, bytes]) -> Made:
        if not triples:
            return Made(members, "no triples" if triples is not None else UNREAD)
        known = self.vocabulary.known(triples)
        names = {name for head, _, tail in triples for name in (head, tail)}
        graph = self.graph.induced(known) if self.graph else subgraph_of(triples, self.vocabulary)
        outside = sum(self.vocabulary.edge(triple) is None for triple in set(triples))
        totals = {"triples": len(set(triples)), "triples with an unknown name": outside}
        totals |= {"entities": len(names), "unknown entities": len(names) - len(known)}
        if graph is None:
            return Made(members, "no entity is known", totals=totals)
        sizes = {"nodes": len(graph.node), "edges": len(graph.edge_type)}
        return Made(members | {KINDS["subgraphs"].suffix: pack(graph)}, totals=totals | sizes, largest=sizes)
