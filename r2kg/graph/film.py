"""A part of the graph for every film, from the film alone: what the reports of the training studies nearest to it say.

Frozen-encoder features of a study's films → the nearest training studies → a vote of theirs over triples of the graph →
a personalised PageRank (Page et al. 1999) over the whole graph from what was voted for → the best nodes, and the best
triples between them. No report of the study itself is looked at, and a training study has neither itself nor another
study of its patient for a neighbour: it is shown what it would be shown if it were new. So, unlike the sides of
`shards.graphs.write`, this one may be an input of a model that is tested.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import ray
from numpy.typing import NDArray
from scipy import sparse

from r2kg.graph.artefact import KnowledgeGraph
from r2kg.graph.build import load_training_graph, said_in
from r2kg.graph.schema import RELATIONS, Certainty
from shards.errors import ConfigError, DataError
from shards.graphs.subgraph import Subgraph, pack
from shards.stream.index import Index, open_splits
from shards.stream.side import Side
from shards.tars.format import Manifest, read_index, read_manifest
from shards.tars.kinds import KINDS, UNREAD, SideManifest, read_side
from shards.tars.place import Place, place
from shards.tars.sides import write_side
from shards.tars.write import Made

NAME = "film_subgraphs"
"""Place below SHARDS/side."""
EVIDENCE = "film.json"
"""Suffix of a further member: neighbours and triples with their weights, to be read by people."""
STEPS = 30
"""Of the PageRank; what is left moves less than damping ** STEPS."""
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class FilmSettings:
    """How much of the graph a film is given."""

    neighbours: int = 16
    """Training studies that vote."""
    temperature: float = 0.1
    """Of the softmax over their cosines: small lets the nearest one speak for all."""
    nodes: int = 48
    """Most nodes of a film's part of the graph."""
    triples: int = 96
    """Most triples."""
    damping: float = 0.85
    """Share of the PageRank that goes on along edges; the rest begins anew at what was voted for."""
    certainty: tuple[Certainty, ...] = ("present", "uncertain")
    """Statements of neighbours that vote: what they deny says nothing of the film."""

    def __post_init__(self) -> None:
        positive = min(self.neighbours, self.nodes, self.triples) >= 1 and self.temperature > 0
        if not positive or not 0 <= self.damping < 1:
            raise ConfigError(f"{self}: numbers from 1, a temperature above 0 and a damping below 1 are needed")


class Memory(NamedTuple):
    """What is known of the N training studies, and the graph of V nodes and T triples; workers share it."""

    vectors: Floats
    """[N, D], of length 1."""
    mean: Floats
    scale: Floats
    """[D] each, what was taken from features before."""
    patients: NDArray[Any]
    """[N] as the shards name them; "" where it is not known."""
    keys: NDArray[np.bytes_]
    """[N]"""
    starts: NDArray[np.int64]
    """[N + 1], into `said`."""
    said: NDArray[np.int32]
    """Triples of the graph, study after study."""
    head: NDArray[np.int64]
    tail: NDArray[np.int64]
    relation: NDArray[np.int64]
    """[T] each, ids."""
    often: NDArray[np.int64]
    """[T] counts."""


class Neighbours(NamedTuple):
    """The nearest training studies."""

    row: NDArray[np.int64]
    """[K] in `Memory`, the nearest first."""
    weight: Floats
    """[K], adding up to 1."""


def write_film_subgraphs(
    root: str | Place,
    graph_place: str | Place,
    features: str | Place,
    annotations: str | Place,
    out: str | Place,
    settings: FilmSettings | None = None,
) -> SideManifest:
    """Write a part of the graph for every study of all splits into `out`; tars that are whole are kept.

    Args:
        features: the side of a frozen encoder's features (`r2kg features`).
        annotations: the side that the graph was built of: what training studies say.

    Raises:
        ConfigError: `out` cannot be used.
        DataError: a graph of other shards or one that other splits' reports speak in, sides of other shards, a training
            split in which nothing of the graph is said.
    """
    settings, manifest = settings or FilmSettings(), read_manifest(root)
    indices, graph = open_splits(root, manifest), load_training_graph(graph_place, root, manifest)
    films = {split: Side.open(features, index, manifest, "features") for split, index in indices.items()}
    patients = patients_of(root, manifest)
    memory = remember(graph, indices["train"], films["train"], annotations, manifest, patients, settings)
    refs = ray.put(memory), ray.put(films), ray.put(patients)
    described = {
        "nodes": graph.names,
        "relations": RELATIONS,
        "graph": graph.manifest.fingerprint,
        "annotations": read_side(annotations).fingerprint,
        "features": read_side(features).fingerprint,
        "settings": asdict(settings),
    }

    def build() -> "FilmGraphs":
        held: list[Any] = ray.get(list(refs))
        return FilmGraphs(held[0], held[1], held[2], settings)

    return write_side(root, out, NAME, manifest, indices, described, build)


def patients_of(root: str | Place, manifest: Manifest) -> dict[str, str]:
    """Key → patient as the shards name them, from the tars' indices."""
    return {
        entry.key: entry.patient
        for shard in manifest.shards
        if shard.studies
        for entry in read_index(place(root), shard).studies
    }


def remember(
    graph: KnowledgeGraph,
    index: Index,
    films: Side,
    annotations: str | Place,
    manifest: Manifest,
    patients: Mapping[str, str],
    settings: FilmSettings,
) -> Memory:
    """Vectors and triples of the training studies; DataError where none says a triple of the graph."""
    raw = np.stack([vector_of(films, row, index.films(row)) for row in range(len(index))])
    mean, scale = raw.mean(0), raw.std(0) + 1e-6
    head, tail, count = (graph.triples[name].to_numpy().astype(np.int64) for name in ("head", "tail", "count"))
    relation = np.array([RELATIONS.index(name) for name in graph.triples["relation"].to_pylist()], np.int64)
    known = {triple: at for at, triple in enumerate(graph.named_triples())}
    aliases = zip(graph.names, graph.nodes["aliases"].to_pylist(), strict=True)
    node_of = {alias: name for name, others in aliases for alias in others}
    said = dict[str, set[int]]()
    for part in said_in(Side.open(annotations, index, manifest, "annotations")):
        for one in part.statements:
            first, last = (node_of.get(end, end) for end in (one.head, one.tail))
            if one.certainty in settings.certainty:
                at = known.get((first, one.relation, last), known.get((last, one.relation, first), -1))
                if at >= 0:
                    said.setdefault(one.study, set()).add(at)
    if not said:
        raise DataError(f"no training study says a triple of the graph: it was not built of {annotations}")
    keys = [key.decode() for key in index.keys.tolist()]
    lists = [sorted(said.get(key, ())) for key in keys]
    return Memory(
        vectors=unit((raw - mean) / scale), mean=mean, scale=scale,
        patients=np.array([patients[key] for key in keys]), keys=index.keys,
        starts=np.cumsum([0, *map(len, lists)]), said=np.array([at for of in lists for at in of], np.int32),
        head=head, tail=tail, relation=relation, often=count,
    )  # fmt: skip


def vector_of(films: Side, row: int, count: int) -> Floats:
    """The mean over films and places of a study's features, fp32 [D]; zeros where nothing can be read."""
    try:
        bits = films.read_films(row, count)  # bf16, [V, P, D]
    except DataError:
        return np.zeros(films.extent[-1], np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32).reshape(-1, bits.shape[-1]).mean(0)


def unit(vectors: Floats) -> Floats:
    """Each of length 1; zeros stay."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


class FilmGraphs:
    """The maker of a side of film subgraphs."""

    def __init__(
        self, memory: Memory, films: Mapping[str, Side], patients: Mapping[str, str], settings: FilmSettings
    ) -> None:
        """Nothing is read before a study is asked for."""
        self.memory, self.films, self.patients, self.settings = memory, films, patients, settings
        nodes = int(max(memory.head.max(), memory.tail.max())) + 1
        weight = np.log1p(memory.often)
        edges = sparse.coo_matrix((weight, (memory.head, memory.tail)), (nodes, nodes)).tocsr()
        both = edges + edges.T
        sums = np.asarray(both.sum(1)).ravel()
        self.step = sparse.diags(1 / np.maximum(sums, 1e-12)) @ both

    def __call__(self, index: Index, rows: range, given: bytes) -> Iterator[Made]:
        """One part of the graph for every row."""
        films = self.films[index.split]
        for row in rows:
            key = index.keys[row].decode()
            vector = vector_of(films, row, index.films(row))
            if not vector.any():
                yield Made(cause=UNREAD)
                continue
            near = self.nearest(vector, key, self.patients[key])
            graph, evidence = self.part(near)
            if graph is None:
                yield Made(cause="no neighbour says a triple")
                continue
            sizes = {"nodes": len(graph.node), "edges": len(graph.edge_type)}
            members = {EVIDENCE: json.dumps(evidence).encode(), KINDS[NAME].suffix: pack(graph)}
            yield Made(members, totals=sizes, largest=sizes)

    def nearest(self, vector: Floats, key: str, patient: str) -> Neighbours:
        """The nearest training studies of other patients, by cosine."""
        memory, settings = self.memory, self.settings
        cosine = memory.vectors @ unit((vector - memory.mean) / memory.scale)
        own = memory.keys == key.encode()
        if patient:
            own |= memory.patients == patient
        cosine = np.where(own, -np.inf, cosine)
        most = min(settings.neighbours, int((~own).sum()))
        row = np.argsort(-cosine, kind="stable")[:most]
        power = np.exp((cosine[row] - cosine[row].max(initial=-np.inf)) / settings.temperature)
        return Neighbours(row, (power / power.sum()).astype(np.float32) if most else power)

    def part(self, near: Neighbours) -> tuple[Subgraph | None, dict[str, Any]]:
        """The part of the graph that neighbours vote for, and what speaks for it; None where they say nothing."""
        memory, settings = self.memory, self.settings
        vote = np.zeros(len(memory.head), np.float32)
        for row, weight in zip(near.row, near.weight, strict=True):
            vote[memory.said[memory.starts[row] : memory.starts[row + 1]]] += weight
        if not vote.any():
            return None, {}
        begin = np.zeros(self.step.shape[0])
        np.add.at(begin, memory.head, vote)
        np.add.at(begin, memory.tail, vote)
        begin /= begin.sum()
        rank = begin.copy()
        for _ in range(STEPS):
            rank = (1 - settings.damping) * begin + settings.damping * (self.step.T @ rank)
        node = np.sort(np.argsort(-rank, kind="stable")[: min(settings.nodes, int((rank > 0).sum()))])
        inside = np.flatnonzero(np.isin(memory.head, node) & np.isin(memory.tail, node))
        worth = vote[inside] + rank[memory.head[inside]] * rank[memory.tail[inside]]
        edge = np.sort(inside[np.argsort(-worth, kind="stable")[: settings.triples]])
        ends = np.stack([np.searchsorted(node, ends[edge]) for ends in (memory.head, memory.tail)])
        voted = edge[np.argsort(-vote[edge], kind="stable")]
        evidence = {
            "neighbours": [
                [memory.keys[row].decode(), round(float(weight), 4)]
                for row, weight in zip(near.row, near.weight, strict=True)
            ],
            "triples": [[int(at), round(float(vote[at]), 4)] for at in voted if vote[at] > 0],
        }
        return Subgraph(node.astype(np.int64), ends.astype(np.int64), memory.relation[edge]), evidence
