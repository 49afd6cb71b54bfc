"""The subgraph of one study as arrays: from triples or from a graph, to bytes and back, into batches.

N nodes and E edges of a study. Everything that names what a study's report says is a target or a label, never an input
at test time: a model that is given it reads the reference.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from shards.errors import ConfigError, DataError

Triple = tuple[str, str, str]
"""(head, relation, tail)"""
Ids = NDArray[np.int64]
MAX_BYTES = 16_000_000
MAX_HEAD_BYTES = 10_000


class Subgraph(NamedTuple):
    """Nodes are ids into the side's node names; edges join positions in `node`."""

    node: Ids
    """[N], ascending."""
    edge_index: Ids
    """[2, E] positions of head and tail."""
    edge_type: Ids
    """[E] ids into the side's relation names."""


EMPTY = Subgraph(np.zeros(0, np.int64), np.zeros((2, 0), np.int64), np.zeros(0, np.int64))


@dataclass(frozen=True)
class Vocabulary:
    """Names of nodes and relations; an id is a position."""

    nodes: tuple[str, ...]
    relations: tuple[str, ...]

    @cached_property
    def node(self) -> dict[str, int]:
        """Name → id."""
        return {name: number for number, name in enumerate(self.nodes)}

    @cached_property
    def relation(self) -> dict[str, int]:
        """Name → id."""
        return {name: number for number, name in enumerate(self.relations)}

    def edge(self, triple: Triple) -> tuple[int, int, int] | None:
        """(head, tail, relation) as ids; None when a name is unknown."""
        head, relation, tail = triple
        found = self.node.get(head), self.node.get(tail), self.relation.get(relation)
        return None if None in found else found  # type: ignore[return-value]

    def known(self, triples: Iterable[Triple]) -> set[int]:
        """Ids of the entities that triples name."""
        return {self.node[name] for head, _, tail in triples for name in (head, tail) if name in self.node}


@dataclass(frozen=True)
class Graph:
    """A graph of the whole training data."""

    vocabulary: Vocabulary
    edges: tuple[tuple[int, int, int], ...]
    """(head, tail, relation), distinct."""

    @cached_property
    def leaving(self) -> dict[int, list[tuple[int, int, int]]]:
        """Head → its edges."""
        found: dict[int, list[tuple[int, int, int]]] = {}
        for edge in self.edges:
            found.setdefault(edge[0], []).append(edge)
        return found

    def induced(self, nodes: set[int]) -> Subgraph | None:
        """The nodes and every edge of the graph between two of them; None without nodes."""
        return _build(nodes, (edge for node in nodes for edge in self.leaving.get(node, ()) if edge[1] in nodes))


def subgraph_of(triples: Iterable[Triple], vocabulary: Vocabulary) -> Subgraph | None:
    """A study's triples as a graph: entities that the vocabulary lacks are left out with their triples.

    An entity that is known keeps its node also when all its triples are left out; None when no entity is known.
    """
    triples = list(triples)
    edges = (edge for triple in triples if (edge := vocabulary.edge(triple)) is not None)
    return _build(vocabulary.known(triples), edges)


def _build(nodes: set[int], edges: Iterable[tuple[int, int, int]]) -> Subgraph | None:
    """Sorted nodes and distinct sorted edges, so that the same graph is the same bytes."""
    if not nodes:
        return None
    node = np.array(sorted(nodes), np.int64)
    table = np.array(sorted(set(edges)), np.int64).reshape(-1, 3)
    return Subgraph(node, np.searchsorted(node, table[:, :2].T), table[:, 2].copy())


def pack(graph: Subgraph) -> bytes:
    """The arrays as safetensors: the same bytes for the same graph."""
    return save({name: np.ascontiguousarray(array, "<i8") for name, array in graph._asdict().items()})


def unpack(data: bytes | memoryview, nodes: int | None = None, relations: int | None = None) -> Subgraph:
    """The arrays of a packed subgraph, checked; no bytes are the empty graph.

    Args:
        nodes, relations: sizes of the vocabulary, if ids are to be compared with them.

    Raises:
        DataError: no safetensors of these three int64 arrays, or numbers that point outside.
    """
    if not len(data):
        return EMPTY
    try:
        if len(data) > MAX_BYTES:
            raise ValueError(f"{len(data)} bytes; at most {MAX_BYTES} are read")
        head = bytes(data[8 : 8 + int.from_bytes(data[:8], "little")])
        if len(head) > MAX_HEAD_BYTES:
            raise ValueError(f"a header of {len(head)} bytes; at most {MAX_HEAD_BYTES} are read")
        arrays = load(bytes(data))
        if arrays.keys() != set(Subgraph._fields) or any(array.dtype != np.int64 for array in arrays.values()):
            kinds = ", ".join(sorted({str(array.dtype) for array in arrays.values()}))
            raise ValueError(f"{len(arrays)} arrays of {kinds}; {', '.join(Subgraph._fields)} of int64 are needed")
        node, edge_index, edge_type = graph = Subgraph(**arrays)
        if node.ndim != 1 or edge_type.ndim != 1 or edge_index.shape != (2, len(edge_type)):
            shapes = f"{node.shape}, {edge_index.shape}, {edge_type.shape}"
            raise ValueError(f"shapes {shapes}; [N], [2, E], [E] are needed")
        limits = (("node", node, nodes), ("edge_index", edge_index, len(node)), ("edge_type", edge_type, relations))
        for name, array, end in limits:
            if array.size and (array.min() < 0 or (end is not None and array.max() >= end)):
                raise ValueError(f"{name} has values {array.min()} to {array.max()}, outside 0 to {end}")
        if (np.diff(node) <= 0).any():
            raise ValueError("its nodes do not ascend")
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        cause = str(error) if type(error) is ValueError else type(error).__name__  # others quote what they read
        raise DataError(f"not a subgraph: {cause}") from None
    return graph


def collate_disjoint(graphs: Sequence[Subgraph]) -> dict[str, Ids]:
    """One graph of unconnected parts, as PyG's `Batch`: node [ΣN], edge_index [2, ΣE], edge_type [ΣE], graph [ΣN].

    `graph` tells to which of the n subgraphs a node belongs; an empty one has no node there, so hand n on beside it.
    """
    sizes = np.array([len(graph.node) for graph in graphs], np.int64)
    starts = np.cumsum(sizes) - sizes
    moved = [graph.edge_index + start for graph, start in zip(graphs, starts, strict=True)]
    return {
        "node": np.concatenate([EMPTY.node, *(graph.node for graph in graphs)]),
        "edge_index": np.concatenate([EMPTY.edge_index, *moved], axis=1),
        "edge_type": np.concatenate([EMPTY.edge_type, *(graph.edge_type for graph in graphs)]),
        "graph": np.repeat(np.arange(len(graphs)), sizes),
    }


def collate_padded(
    graphs: Sequence[Subgraph], max_nodes: int | None = None, max_edges: int | None = None
) -> dict[str, NDArray]:
    """n subgraphs padded with zeros to N nodes and E edges, by default those of the largest.

    Returns:
        node int64 [n, N], node_mask bool [n, N], edge_index int64 [n, 2, E] (positions in the own row's nodes),
        edge_type int64 [n, E], edge_mask bool [n, E].

    Raises:
        ConfigError: a subgraph is larger than asked for; nothing is cut. side.json says how large the largest is.
    """
    most = max((len(graph.node) for graph in graphs), default=0), max((len(g.edge_type) for g in graphs), default=0)
    wide, long = (size if limit is None else limit for size, limit in zip(most, (max_nodes, max_edges), strict=True))
    if most[0] > wide or most[1] > long:
        raise ConfigError(
            f"a subgraph has {most[0]} nodes or {most[1]} edges, max_nodes={wide} and max_edges={long}: raise them to "
            'what side.json calls "largest"'
        )
    n = len(graphs)
    out = {"node": np.zeros((n, wide), np.int64), "node_mask": np.zeros((n, wide), bool)}
    out |= {"edge_index": np.zeros((n, 2, long), np.int64), "edge_type": np.zeros((n, long), np.int64)}
    out["edge_mask"] = np.zeros((n, long), bool)
    for row, (node, edge_index, edge_type) in enumerate(graphs):
        out["node"][row, : len(node)], out["node_mask"][row, : len(node)] = node, True
        out["edge_index"][row, :, : len(edge_type)], out["edge_type"][row, : len(edge_type)] = edge_index, edge_type
        out["edge_mask"][row, : len(edge_type)] = True
    return out
