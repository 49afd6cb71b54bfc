"""Nested graphs of several sizes: the nodes of the triples that are said often enough (R2GenKG, Fig. 2; fitted in §3).

M3KG's five levels have 101, 206, 319, 400 and 558 nodes: of its published table the end points of all triples with a
count of at least 2000, 645, 300, 181 and 100, composites left out. Counts grow with the reports they are of, so that a
level is asked for by its size, and the threshold follows.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from r2kg.graph.artefact import KnowledgeGraph
from r2kg.graph.build.published import COMPOSITE
from r2kg.graph.schema import RELATIONS
from shards.errors import ConfigError, DataError
from shards.tars.place import write_atomic

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


FILE, ARRAYS = "levels.json", "levels.safetensors"


class Levels(NamedTuple):
    """Nested graphs with the features of the whole graph's nodes, as a model takes them."""

    names: tuple[str, ...]
    """Of the graph's nodes by id."""
    features: NDArray[np.float32]
    """[nodes, D] vectors of the names."""
    graphs: tuple[Level, ...]
    """The smallest first."""
    graph: str
    """Fingerprint of the graph they are of."""
    studies: tuple[tuple[str, ...], ...] = ()
    """Training studies in which the nodes' most frequent triples stand, by id, at most `WITNESSES`."""


WITNESSES = 3


def write_levels(graph: KnowledgeGraph, levels: Sequence[Level], features: NDArray[np.float32], folder: Path) -> Levels:
    """Write levels of a graph and the features of its nodes into a directory.

    Args:
        features: [nodes, D], one vector for every name (`r2kg.graph.embed.embed`).

    Raises:
        ConfigError: no levels, features of another number of nodes.
        DataError: a feature that is not finite, naming its node.
    """
    if not levels or len(features) != graph.nodes.num_rows:
        raise ConfigError(f"{len(levels)} levels, features of {len(features)} nodes for {graph.nodes.num_rows}")
    held = np.ascontiguousarray(features, np.float32)
    if len(odd := np.flatnonzero(~np.isfinite(held).all(1))):
        raise DataError(f"the feature of node {graph.names[odd[0]]!r} is not finite: take another text encoder")
    arrays = {"features": held} | {
        f"{name}.{number}": np.ascontiguousarray(getattr(level, name))
        for number, level in enumerate(levels)
        for name in ("node", "edge_index", "edge_type")
    }
    thresholds = [level.threshold for level in levels]
    told = {
        "names": graph.names,
        "thresholds": thresholds,
        "graph": graph.manifest.fingerprint,
        "studies": witnesses(graph),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / ARRAYS, save(arrays))
    write_atomic(folder / FILE, json.dumps(told, indent=1).encode())
    return read_levels(folder)


def witnesses(graph: KnowledgeGraph) -> list[list[str]]:
    """Keys of training studies by node: those in which its most frequent triples are said and not denied, each once."""
    said = dict[int, list[str]]()
    columns = (graph.provenance[name].to_pylist() for name in ("triple", "study", "certainty"))
    for triple, study, certainty in zip(*columns, strict=True):
        if certainty == "absent":
            continue
        if len(keys := said.setdefault(triple, [])) < WITNESSES and study not in keys:
            keys.append(study)
    found: list[list[str]] = [[] for _ in graph.names]
    for triple, ends in enumerate(zip(*(graph.triples[name].to_pylist() for name in ("head", "tail")), strict=True)):
        for node in set(ends):
            fresh = [key for key in said.get(triple, ()) if key not in found[node]]
            found[node] += fresh[: WITNESSES - len(found[node])]
    return found


def read_levels(folder: Path) -> Levels:
    """What `write_levels` wrote; DataError for what is missing, damaged, or contradicts itself."""
    try:
        told, arrays = json.loads((folder / FILE).read_bytes()), load_file(folder / ARRAYS)
        names, features = tuple(map(str, told["names"])), arrays["features"]
        graphs = tuple(
            Level(
                arrays[f"node.{number}"], arrays[f"edge_index.{number}"], arrays[f"edge_type.{number}"], int(threshold)
            )
            for number, threshold in enumerate(told["thresholds"])
        )
        if features.ndim != 2 or len(features) != len(names) or not np.isfinite(features).all():
            raise ValueError("a node without a feature")
        for level in graphs:
            inside = [(level.node, len(names)), (level.edge_index, len(level.node)), (level.edge_type, len(RELATIONS))]
            if any(array.size and not 0 <= int(array.min()) <= int(array.max()) < most for array, most in inside):
                raise ValueError("a level that names what is not there")
        if not graphs or any(level.edge_index.shape != (2, len(level.edge_type)) for level in graphs):
            raise ValueError("no levels, or edges without a type")
        held = told.get("studies", [()] * len(names))  # there were levels without
        studies = tuple(tuple(map(str, those)) for those in held)
        if len(studies) != len(names):
            raise ValueError("nodes and their studies differ in number")
        return Levels(names, features, graphs, str(told["graph"]), studies)
    except (OSError, ValueError, LookupError, TypeError, SafetensorError) as error:
        what = error.strerror if isinstance(error, OSError) else str(error) or type(error).__name__
        raise DataError(f"no levels of a graph at {folder} ({what}): write them again") from None


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
        ConfigError: a finding graph; neither or both are given; a size that the graph does not have; a threshold that
            leaves nothing; two levels that are the same.
    """
    if graph.manifest.origin == "findings":
        raise ConfigError(
            "a finding graph has no levels: they are of the triples that reports say (`r2kg graph build`)"
        )
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
