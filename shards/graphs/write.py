"""A side of subgraphs: every study's triples, or the part of a graph they name, as KEY.kg.npz.

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
from dataclasses import dataclass

import numpy as np
import ray
import ray.data

from shards.errors import DataError, OnBad
from shards.graphs.subgraph import Graph, Triple, Vocabulary, pack, subgraph_of
from shards.graphs.triples import TripleFile, read_graph
from shards.privacy import Names, terms_of
from shards.session import in_our_words, quiet
from shards.stream.index import Index
from shards.study import Study
from shards.tars.manifest import Manifest, read_manifest, sha256_of
from shards.tars.place import Place, place
from shards.tars.private import names_for
from shards.tars.side_manifest import MEMBER, UNREAD, SideManifest
from shards.tars.side_write import Made, open_splits, write_side

NAME = "subgraphs"
"""Place below SHARDS/side."""
UNKNOWN = "study not in the shards"
USE = "target or label only: it tells what the study's own report says"
FETCH = 256


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
    found = _Located() if not triples else locate(TripleFile(place(triples)), root, manifest, indices)
    given = read_graph(graph) if graph else None
    vocabulary = given.vocabulary if given else _training_names(indices, found, on_bad)
    if not vocabulary.nodes:
        source = place(triples).name if triples else f"the records of these {manifest.source} shards"
        raise DataError(f"{source}: no training study has a triple. Way out: give --triples FILE, or another one")
    maker = StudyGraphs(vocabulary, given, found.file, on_bad)
    sources = {"triples_file": triples, "graph_file": graph}
    description = {"origin": "graph" if given else "report", "use": USE}
    description |= {"names_from": "graph_file" if given else "train split"}
    description |= {what: _named(file) for what, file in sources.items() if file}
    description |= {"nodes": vocabulary.nodes, "relations": vocabulary.relations}
    return write_side(
        root, out, "subgraphs", manifest, indices, description, lambda: maker,
        found.by_tar(indices), {UNKNOWN: found.unknown} if found.unknown else None,
    )  # fmt: skip


def _named(file: str | Place) -> dict[str, str]:
    return {"name": place(file).name, "sha256": sha256_of(place(file))}


class _Located:
    """Where in a triple file the studies of the shards are, and what else it holds."""

    def __init__(self, file: TripleFile | None = None):
        """Nothing located yet; no file: triples are in the records."""
        self.file, self.unknown = file, ()
        self.rows, self.ats, self.sizes = array("q"), array("q"), array("q")
        self.nodes: set[str] = set()
        self.relations: set[str] = set()

    def add(self, row: int, at: int, size: int) -> None:
        """A record of study `row` of all splits one after the other."""
        for column, value in zip((self.rows, self.ats, self.sizes), (row, at, size), strict=True):
            column.append(value)

    def learn(self, triples: Iterable[Triple]) -> None:
        """Names of a training study."""
        for head, relation, tail in triples:
            self.nodes |= {head, tail}
            self.relations.add(relation)

    def by_tar(self, indices: Mapping[str, Index]) -> dict[str, bytes]:
        """Tar → int64 [m, 3] (row of the split's index, at, size) of its records, by row and place in the file."""
        table = np.stack([np.array(column, np.int64) for column in (self.rows, self.ats, self.sizes)], axis=1)
        table = table[np.lexsort((table[:, 1], table[:, 0]))]
        found, start = {}, 0
        for index in indices.values():
            own = table[np.searchsorted(table[:, 0], start) : np.searchsorted(table[:, 0], start + len(index))]
            own = own - [start, 0, 0]
            for number, name in enumerate(index.tars):
                found[name] = own[index.tar[own[:, 0]] == number].tobytes()
            start += len(index)
        return found


def locate(file: TripleFile, root: Place, manifest: Manifest, indices: Mapping[str, Index]) -> _Located:
    """Find every record's study in one pass over a triple file; the triples themselves are not kept.

    Studies that the shards do not hold are listed, for credentialed data by line.
    """
    keys = [key for index in indices.values() for key in index.keys.tolist()]
    rows = {key: row for row, key in enumerate(keys)}
    training = len(indices["train"]) if "train" in indices else 0
    private = terms_of(manifest.licence).credentialed
    names: Names | None = None
    found, unknown = _Located(file), {}
    for entry in file.entries():
        if not entry.by_key and names is None:
            names = names_for(root, manifest.licence)
        key = entry.study if entry.by_key else names.key(entry.study)
        if (row := rows.get(key.encode(), -1)) < 0:
            unknown.setdefault(key, f"line {entry.line}" if private else entry.study)
            continue
        found.add(row, entry.at, entry.size)
        if row < training:
            found.learn(entry.triples)
    found.unknown = tuple(unknown.values())
    return found


def _training_names(indices: Mapping[str, Index], found: _Located, on_bad: OnBad) -> Vocabulary:
    """The names that triples of training studies use, sorted."""
    if found.file is None and "train" in indices:
        ref, tars = ray.put(indices["train"]), len(indices["train"].tars)

        def names(row: dict) -> dict:
            index, tar = ray.get(ref), _Located()
            for _, triples in own_triples(index, index.rows_of(int(row["id"])), on_bad):
                tar.learn(triples or ())
            return {"names": json.dumps([sorted(tar.nodes), sorted(tar.relations)])}

        dataset = ray.data.range(tars, override_num_blocks=tars).map(names)
        with in_our_words():
            for nodes, relations in (json.loads(row["names"]) for row in quiet(dataset).iter_rows()):
                found.nodes |= set(nodes)
                found.relations |= set(relations)
    return Vocabulary(tuple(sorted(found.nodes)), tuple(sorted(found.relations)))


def own_triples(index: Index, rows: range, on_bad: OnBad) -> Iterator[tuple[int, tuple[Triple, ...] | None]]:
    """(row, triples of the study's record), None for a record that cannot be read, which under "fail" is an error."""
    for start in range(rows.start, rows.stop, FETCH):
        part = range(start, min(start + FETCH, rows.stop))
        fetched = index.fetch_records(part)
        for row in part:
            try:
                record = index.read_record(row, fetched.get(row))
                yield row, Study.model_validate_json(index.record_of(row, record)).triples
            except DataError:
                if on_bad == "fail":
                    raise
                yield row, None


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
        table = np.frombuffer(given, np.int64).reshape(-1, 3)
        records = zip(table[:, 0].tolist(), self.file.read(table[:, 1:].tolist()), strict=True)
        of: dict[int, dict[Triple, None]] = {}
        for row, triples in records:
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
        return Made(members | {MEMBER["subgraphs"]: pack(graph)}, totals=totals | sizes, largest=sizes)
