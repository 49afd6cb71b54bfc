"""A part of the graph for every film, from the film alone: what the reports of the training studies nearest to it say.

Frozen-encoder features of a study's films → the nearest training studies → a vote of theirs over triples of the graph →
a personalised PageRank (Page et al. 1999) over the whole graph from what was voted for → the best nodes, and the best
triples between them. No report of the study itself is asked, and a training study has neither itself nor another study
of its patient for a neighbour: it is shown what it would be shown if it were new, but that its own statements are among
all those that the graph was counted from. So, unlike the sides of
`shards.graphs.write`, this one may be an input of a model that is tested.

The search is exact, and what is written for a study does not depend on which others are computed beside it, nor on how
studies lie in tars.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import ray
from scipy import sparse

from r2kg.graph.build.reports import load_training_graph
from r2kg.graph.film import FILMS, OTHERS
from r2kg.graph.film.memory import PORTION, Doubles, Memory, Neighbours, largest, nearest, remember
from r2kg.graph.schema import RELATIONS, Certainty
from shards.errors import ConfigError, DataError
from shards.graphs.subgraph import Subgraph, pack
from shards.stream.index import Index, open_splits
from shards.stream.side import Side
from shards.tars.format import read_manifest
from shards.tars.kinds import KINDS, UNREAD, SideManifest, read_side
from shards.tars.place import Place, place
from shards.tars.sides import refuse_place, write_side
from shards.tars.write import Made

EVIDENCE = "film.json"
"""Suffix of a further member: neighbours and triples with their weights, to be read by people."""
STEPS = 30
"""Of the PageRank; what is left moves less than damping ** STEPS."""


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


def write_film_subgraphs(
    root: str | Place,
    graph_place: str | Place,
    features: str | Place,
    annotations: str | Place,
    out: str | Place,
    settings: FilmSettings | None = None,
    of_another: bool = False,
) -> SideManifest:
    """Write a part of the graph for every study of all splits into `out`; tars that are whole are kept.

    Args:
        features: the side of a frozen encoder's features (`r2kg features`).
        annotations: the side that the graph was built of: what training studies say.
        of_another: give each study the part of another one of its split, for a control.

    Raises:
        ConfigError: `out` cannot be used.
        DataError: a graph of other shards or annotations, or one that other splits' reports speak in; sides of other
            shards; a split without features, features that are not finite; training studies that say no triple.
    """
    settings, manifest = settings or FilmSettings(), read_manifest(root)
    refuse_place(place(root), place(out))
    indices, graph = open_splits(root, manifest), load_training_graph(graph_place, root, manifest)
    films = {split: Side.open(features, index, manifest, "features") for split, index in indices.items()}
    reports, said = Side.open(annotations, indices["train"], manifest, "annotations"), read_side(annotations)
    if graph.manifest.annotations not in ("", said.fingerprint):
        raise DataError(
            f"the graph at {graph_place} was built of annotations {graph.manifest.annotations[:12]} "
            f"({graph.manifest.description.get('extractor')}), those at {annotations} are {said.fingerprint[:12]} "
            f"({said.description.get('extractor')}), which say other things than it holds. Way out: give those that it "
            "was built of, or build it again of these with `r2kg graph build SHARDS --annotations PLACE`"
        )
    ref = ray.put(remember(root, manifest, indices, films, reports, graph, settings.certainty))
    described = {
        "nodes": graph.names,
        "relations": RELATIONS,
        "graph": graph.manifest.fingerprint,
        "annotations": said.fingerprint,
        "features": read_side(features).fingerprint,
        "settings": asdict(settings),
    }

    def build() -> "FilmGraphs":
        memory: Memory = ray.get(ref)
        return FilmGraphs(memory, settings, of_another=of_another)

    kind = OTHERS if of_another else FILMS
    return write_side(root, out, kind, manifest, indices, described, build)


class FilmGraphs:
    """The maker of a side of film subgraphs."""

    def __init__(
        self, memory: Memory, settings: FilmSettings, portion: int = PORTION, of_another: bool = False
    ) -> None:
        """`portion`: studies that are searched for at once; what is made does not depend on it."""
        self.whose = {split: np.arange(len(vectors)) for split, vectors in memory.vectors.items()}
        """Split → [n], the study whose part a study gets."""
        for own in self.whose.values() if of_another else ():
            order = np.random.default_rng(0).permutation(len(own))
            own[order] = np.roll(order, 1)
        self.memory, self.settings, self.portion = memory, settings, portion
        nodes, triples = int(max(memory.head.max(), memory.tail.max())) + 1, len(memory.head)
        edges = sparse.coo_matrix((np.log1p(memory.often), (memory.head, memory.tail)), (nodes, nodes)).tocsr()
        both = edges + edges.T
        sums = np.asarray(both.sum(1)).ravel()
        self.step = (sparse.diags(1 / np.maximum(sums, 1e-12)) @ both).T.tocsr()  # [V, V], columns add up to 1
        where = np.concatenate([memory.head, memory.tail]), np.tile(np.arange(triples), 2)
        self.ends = sparse.coo_matrix((np.full(2 * triples, 0.5), where), (nodes, triples)).tocsr()  # [V, T]

    def __call__(self, index: Index, rows: range, given: bytes) -> Iterator[Made]:
        """One part of the graph for every row."""
        unread = self.memory.unread[index.split]
        for start in range(0, len(rows), self.portion):
            some = rows[start : start + self.portion]
            whose = self.whose[index.split][some.start : some.stop].tolist()
            read = [(row, other) for row, other in zip(some, whose, strict=True) if other not in unread]
            near = self.nearest(index.split, [other for _, other in read], [row for row, _ in read])
            parts = iter(self.parts(near))
            for other in whose:
                if other in unread:
                    yield Made(cause=UNREAD, detail=unread[other])
                    continue
                graph, evidence = next(parts)
                if graph is None:
                    yield Made(cause="no neighbour says a triple")
                    continue
                sizes = {"nodes": len(graph.node), "edges": len(graph.edge_type)}
                members = {EVIDENCE: json.dumps(evidence).encode(), KINDS[FILMS].suffix: pack(graph)}
                yield Made(members, totals=sizes, largest=sizes)

    def nearest(self, split: str, rows: Sequence[int], besides: Sequence[int] | None = None) -> list[Neighbours]:
        """Those that vote for the parts of these studies (`r2kg.graph.film.memory.nearest`)."""
        return nearest(self.memory, split, rows, self.settings.neighbours, self.settings.temperature, besides)

    def parts(self, near: Sequence[Neighbours]) -> list[tuple[Subgraph | None, dict[str, Any]]]:
        """The parts of the graph that B studies' neighbours vote for, and what speaks for each; None for no vote."""
        memory, damping = self.memory, self.settings.damping
        votes = np.zeros((len(near), len(memory.head)))  # [B, T]
        for vote, (rows, weights) in zip(votes, near, strict=True):
            for row, weight in zip(rows, weights, strict=True):
                vote[memory.said[memory.starts[row] : memory.starts[row + 1]]] += weight
        sums = np.array([vote.sum() for vote in votes])  # one by one: along an axis the order may depend on B
        begin = self.ends @ (votes / np.maximum(sums, 1e-12)[:, None]).T  # [V, B]
        rank = begin
        for _ in range(STEPS):
            rank = (1 - damping) * begin + damping * (self.step @ rank)
        ranks = np.ascontiguousarray(rank.T)
        return [self.part(*of) if of[1].any() else (None, {}) for of in zip(near, votes, ranks, strict=True)]

    def part(self, near: Neighbours, vote: Doubles, rank: Doubles) -> tuple[Subgraph, dict[str, Any]]:
        """The best by the votes for triples [T] and the rank of nodes [V], and what speaks for it."""
        memory, settings = self.memory, self.settings
        node = np.sort(largest(rank, min(settings.nodes, int((rank > 0).sum()))))
        held = np.zeros(len(rank), bool)
        held[node] = True
        inside = np.flatnonzero(held[memory.head] & held[memory.tail])
        worth = vote[inside] + rank[memory.head[inside]] * rank[memory.tail[inside]]
        edge = inside[largest(worth, settings.triples)]  # the best first
        ends = np.stack([np.searchsorted(node, ends[edge]) for ends in (memory.head, memory.tail)])
        voted = edge[largest(vote[edge], len(edge))]
        names = [[memory.keys[row].decode(), round(float(weight), 4)] for row, weight in zip(*near, strict=True)]
        spoken = [[int(at), round(float(vote[at]), 4)] for at in voted if vote[at] > 0]
        graph = Subgraph(node.astype(np.int64), ends.astype(np.int64), memory.relation[edge])
        return graph, {"neighbours": names, "triples": spoken}
