"""Nested graphs of several sizes: the nodes of the triples that are said often enough (R2GenKG, Fig. 2; fitted in §3).

M3KG's five levels have 101, 206, 319, 400 and 558 nodes: of its published table the end points of all triples with a
count of at least 2000, 645, 300, 181 and 100, composites left out. Counts grow with the reports they are of, so that a
level is asked for by its size, and the threshold follows.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from r2kg.graph.artefact import KnowledgeGraph
from r2kg.graph.published import COMPOSITE
from r2kg.graph.schema import RELATIONS
from shards.errors import ConfigError

Edges = Literal["kept", "induced"]


class Level(NamedTuple):
    """One graph: N nodes, E edges."""

    node: NDArray[np.int64]
    """[N] ids in the whole graph, ascending: the most frequent first."""
    edge_index: NDArray[np.int64]
    """[2, E] positions of head and tail in `node`."""
    edge_type: NDArray[np.int64]
    """[E] positions in `r2kg.graph.schema.RELATIONS`."""
    threshold: int
    """Least count of the triples whose end points the nodes are."""


def sample_levels(
    graph: KnowledgeGraph,
    sizes: Sequence[int] = (),
    thresholds: Sequence[int] = (),
    edges: Edges = "kept",
) -> tuple[Level, ...]:
    """Levels of about so many nodes each, or of triples said at least so often; the smaller one lies in the larger.

    Args:
        sizes: numbers of nodes. Thresholds step over some: the level whose size is nearest is taken, of two the larger.
        thresholds: in place of `sizes`.
        edges: "kept", the triples that are said often enough; "induced", all between the nodes.

    Raises:
        ConfigError: neither or both are given; a size that the graph does not have; a threshold that leaves nothing;
            two levels that are the same.
    """
    if bool(sizes) == bool(thresholds):
        raise ConfigError("levels are asked for by sizes or by thresholds: give one of the two")
    composite = np.array([bool(COMPOSITE.fullmatch(name)) for name in graph.nodes["id"].to_pylist()])
    head, tail, count = (graph.triples[name].to_numpy().astype(np.int64) for name in ("head", "tail", "count"))
    kind = np.array([RELATIONS.index(name) for name in graph.triples["relation"].to_pylist()], np.int64)
    whole = ~(composite[head] | composite[tail])
    head, tail, count, kind = (array[whole] for array in (head, tail, count, kind))
    if not len(count):
        raise ConfigError("the graph has no triple between nodes that are no composites: it has no levels")
    steps = np.unique(count)[::-1]
    reached = np.array([len(np.union1d(head[count >= step], tail[count >= step])) for step in steps])
    if sizes and (most := max(sizes)) > reached[-1]:
        raise ConfigError(
            f"a level of {most} nodes is larger than the graph, in which {reached[-1]} have a triple: ask for less, or "
            "build the graph with a lower --min-count or of more reports"
        )
    chosen = [steps[::-1][np.abs(reached[::-1] - size).argmin()] for size in sizes] or list(thresholds)
    levels = []
    for threshold in map(int, chosen):
        often = count >= threshold
        node = np.union1d(head[often], tail[often])
        if not len(node):
            raise ConfigError(f"no triple is said {threshold} times, the most frequent {steps[0]}: lower the threshold")
        if edges == "induced":
            often = np.isin(head, node) & np.isin(tail, node)
        ends = np.stack((np.searchsorted(node, head[often]), np.searchsorted(node, tail[often])))
        levels.append(Level(node, ends, kind[often], threshold))
    if len({len(level.node) for level in levels}) < len(levels):
        shown = ", ".join(f"{len(level.node)} (count {level.threshold})" for level in levels)
        raise ConfigError(f"two levels are the same: {shown}; ask for sizes further apart")
    return tuple(sorted(levels, key=lambda level: len(level.node)))
