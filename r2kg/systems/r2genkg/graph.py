"""What R2GenKG is shown of a knowledge graph: made before the run, and encoded in the model.

Shapes: B batch, K graph tokens, D_k width of the graph, D_v width of the image encoder.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch_geometric.utils import to_dense_batch

from r2kg.config.needs import Artefact
from r2kg.config.run import Run
from r2kg.graph.artefact import KnowledgeGraph
from r2kg.graph.build.reports import load_training_graph
from r2kg.graph.embed import embed
from r2kg.graph.levels import Level, read_levels, sample_levels, write_levels
from r2kg.graph.schema import RELATIONS
from r2kg.modules.gnn import CrossBlock, RelationalEncoder, ScaleFusion
from r2kg.systems.r2genkg.parts import Graph
from shards.errors import ConfigError, DataError
from shards.graphs.subgraph import collate_disjoint, unpack
from shards.tars.format import Manifest
from shards.tars.kinds import KINDS, read_side


def artefact(config: Graph, source: str, run: Run, manifest: Manifest, into: str) -> Artefact:
    """Levels of the run's graph and the features of its nodes, as what a run needs made.

    Args:
        source: of the text encoder.

    Raises:
        ConfigError: levels that the graph does not have.
        DataError: no graph, one of other shards, one that other splits' reports speak in; films' parts of another, or
            of no film of a split.
    """
    graph = load_training_graph(config.place or f"{run.data.shards}/graph", run.data.shards, manifest)
    for kind in config.sides:
        refuse_parts(run.sides[kind], kind, graph, manifest)
    levels = sample_levels(graph, () if config.thresholds else config.sizes, config.thresholds)
    text = config.text.model_copy(update={"source": source})

    def make(folder: Path) -> None:
        write_levels(graph, *controlled(levels, embed(graph.names, text).numpy(), config.control), folder)

    return Artefact(
        name="graph",
        settings={
            "graph": graph.manifest.fingerprint,
            "sizes": [] if config.thresholds else list(config.sizes),
            "thresholds": list(config.thresholds),
            "text": text.model_dump(mode="json"),
        }
        | ({} if config.control == "none" else {"control": config.control}),
        make=make,
        into=into,
        sentence=f"Sampling levels of a graph of {graph.nodes.num_rows:,} nodes, and encoding their names",
    )


def refuse_parts(films: str, kind: str, graph: KnowledgeGraph, manifest: Manifest) -> None:
    """DataError for films' parts at `films` that are of another graph, or that no film of a split has."""
    side, again = read_side(films, kind), f"write them again with {KINDS[kind].how}"
    theirs, ours, parts = side.description.get("graph"), graph.manifest.fingerprint, f"the films' parts at {films}"
    if theirs != ours:
        raise DataError(f"{parts} are of graph {str(theirs)[:12]}, the run's is {ours[:12]}: {again}")
    if (nodes := side.extent[0]) != len(graph.names):
        raise DataError(f"{parts} are of {nodes} nodes, their graph has {len(graph.names)}: {again}")
    held = Counter[str]()
    for tar in side.shards:
        held[tar.split] += tar.held
    if without := [split for split, count in manifest.splits.items() if count.studies and not held[split]]:
        raise DataError(
            f"{parts} are there for no study of {' and '.join(without)} ({dict(side.without)}): a "
            f"model would be shown a graph in one split and none in another; {again}"
        )


def controlled(
    levels: Sequence[Level], features: NDArray[np.float32], control: str
) -> tuple[list[Level], NDArray[np.float32]]:
    """Levels and features [nodes, D] that say nothing in the way of `Graph.control`; for "none" as they are."""
    rng, kept = np.random.default_rng(0), list(levels)
    if control == "edges":
        for at, level in enumerate(levels):
            heads, tails = level.edge_index
            kept[at] = level._replace(edge_index=np.stack((heads, rng.permutation(tails))))
    elif control == "features":
        features = features[rng.permutation(len(features))]
    elif control == "empty":
        kept = [one._replace(edge_index=one.edge_index[:, :0], edge_type=one.edge_type[:0]) for one in levels]
        features = np.zeros_like(features)
    return kept, features


class GraphTokens(nn.Module):
    """Levels and films' parts of the graph as tokens of the image encoder's width (R2GenKG §1.3).

    Raises:
        ConfigError: no levels were made yet, or of another width, or larger than there are places.
    """

    features: Tensor

    def __init__(self, config: Graph, width: int) -> None:
        """`width` is D_v."""
        super().__init__()
        self.config, count = config, len(config.thresholds or config.sizes)
        self.relational = RelationalEncoder(config.width, config.hidden, config.dropout)
        self.project = nn.Linear(config.width, width)
        self.fusion: ScaleFusion | None = None
        if config.source != "film":
            layers, heads = config.fusion_layers, config.fusion_heads
            self.fusion = ScaleFusion(config.width, count, config.places, layers, heads, config.dropout)
        self.levels = self.nodes = 0
        self.names: tuple[str, ...] = ()
        self.studies: tuple[tuple[str, ...], ...] = ()
        self.kept: Tensor | None = None
        if config.levels_at:
            self._hold(config)
        elif torch.get_default_device().type != "meta":  # there it is only counted
            raise ConfigError("model.graph.levels_at is empty: the levels are made before the run (prepare)")

    def _hold(self, config: Graph) -> None:
        """Keep levels and features as buffers, which no checkpoint and no optimiser holds."""
        held = read_levels(Path(config.levels_at))
        if held.features.shape[1] != config.width:
            raise ConfigError(
                f"the nodes' features have {held.features.shape[1]} channels, model.graph.width={config.width}: make "
                "them equal"
            )
        self.register_buffer("features", torch.from_numpy(np.array(held.features)), persistent=False)
        self.nodes, self.names, self.studies = len(held.names), held.names, held.studies
        for number, level in enumerate(held.graphs if self.fusion else ()):
            if len(level.node) > config.places:
                raise ConfigError(f"a level has {len(level.node)} nodes, model.graph.places={config.places}: raise it")
            for name in ("node", "edge_index", "edge_type"):
                self.register_buffer(f"{name}_{number}", torch.from_numpy(np.array(getattr(level, name))), False)
            self.levels = number + 1

    @property
    def of_levels(self) -> int:
        """Tokens of the levels; of levels that are not made yet, as many as are asked for."""
        config = self.config
        sizes = [len(self.get_buffer(f"node_{number}")) for number in range(self.levels)] or list(config.sizes)
        return sum(sizes if config.fusion == "paper" else sizes[config.shown : config.shown + 1]) if self.fusion else 0

    def forward(self, rows: int, films: dict[str, Any] | None) -> tuple[Tensor, Tensor | None]:
        """Graph tokens [B, K, D_v] and bool [B, K] where they are there; None: all are.

        Args:
            rows: B.
            films: with source film or both, `collate` of the films' parts.
        """
        features = self.features.to(self.project.weight.dtype)
        parts, masks = list[Tensor](), list[Tensor]()
        if self.fusion:
            parts.append(self._of_levels(self.fusion, features).expand(rows, -1, -1))  # for all films the same
            masks.append(torch.ones(parts[0].shape[:2], dtype=torch.bool, device=features.device))
        if films is not None:
            states = self.relational(features[films["node"]], films["edge_index"], films["edge_type"])
            dense, there = to_dense_batch(self.project(states), films["graph"], 0, films["most"], rows)
            parts.append(dense)
            masks.append(there)
        return torch.cat(parts, 1), None if films is None else torch.cat(masks, 1)

    def train(self, mode: bool = True) -> "GraphTokens":
        """As nn.Module.train; what was kept of the levels is forgotten, as weights may change."""
        self.kept = None
        return super().train(mode)

    def node_ids(self, rows: int, films: dict[str, Any] | None) -> Tensor:
        """Of every token the node it stands for, int64 [B, K]; what stands where no token is has no meaning."""
        parts = list[Tensor]()
        if self.fusion:
            numbers = [self.config.shown] if self.config.fusion == "released" else range(self.levels)
            parts.append(torch.cat([self.get_buffer(f"node_{number}") for number in numbers]).expand(rows, -1))
        if films is not None:
            dense, _ = to_dense_batch(films["node"][:, None], films["graph"], 0, films["most"], rows)
            parts.append(dense[..., 0])
        return torch.cat(parts, 1)

    def _of_levels(self, fusion: ScaleFusion, features: Tensor) -> Tensor:
        """Tokens of the levels, [K, D_v]: no film is in them, so that where nothing is trained they are made once."""
        if self.kept is not None and not self.training and not torch.is_grad_enabled():
            return self.kept
        states = [self.states(features, number) for number in range(self.levels)]
        made = self.project(fusion(states, self.config.shown if self.config.fusion == "released" else None))
        self.kept = None if self.training or torch.is_grad_enabled() else made
        return made

    def states(self, features: Tensor, number: int) -> Tensor:
        """Node states of a level, [N_g, D_k]."""
        node, edge_index, edge_type = (
            self.get_buffer(f"{name}_{number}") for name in ("node", "edge_index", "edge_type")
        )
        return self.relational(features[node], edge_index, edge_type)


def collate(parts: Any, nodes: int, empty: bool = False) -> dict[str, Any]:
    """The films' parts of a batch as one graph: node, edge_index, edge_type, graph (which row a node belongs to); and
    most, the nodes of the largest, or 1.

    Args:
        parts: packed subgraphs, one a row, b"" for a study without.
        nodes: of the whole graph, which ids must stay below.
        empty: without edges (`Graph.control`).
    """
    graphs = [unpack(bytes(part), nodes) for part in parts]
    if empty:
        graphs = [g._replace(edge_index=g.edge_index[:, :0], edge_type=g.edge_type[:0]) for g in graphs]
    most = max(1, *(len(graph.node) for graph in graphs))  # attention needs a key, if only one that is not there
    return {name: torch.tensor(array) for name, array in collate_disjoint(graphs).items()} | {"most": most}


class GraphBranch(nn.Module):
    """The graph, and the attention between it and the film both ways (R2GenKG §1.3, §1.4)."""

    def __init__(self, config: Graph, width: int) -> None:
        super().__init__()
        narrow, inner = config.attention_width, config.attention_width or width
        self.tokens = GraphTokens(config, inner)
        self.i2g = CrossBlock(inner, config.heads, config.dropout) if config.i2g else None
        self.g2i = CrossBlock(inner, config.heads, config.dropout) if config.g2i else None
        self.down = nn.Linear(width, narrow) if narrow else None
        self.up = nn.Linear(narrow, width) if narrow else None

    def forward(
        self, film: Tensor, present: Tensor | None, films: dict[str, Any] | None, weigh: bool = False
    ) -> tuple[list[tuple[Tensor, Tensor | None]], Tensor | None]:
        """[G' [B, K, D_v], V' [B, P, D_v]], those that are on, each with what is there of it, from V [B, P, D_v].

        With `weigh` also how much the film asked each node, fp32 [B, K], 0 where no token is; None where it asks none.
        """
        graph, there = self.tokens(len(film), films)
        film = self.down(film) if self.down else film
        parts, weights = list[tuple[Tensor, Tensor | None]](), None
        if self.g2i:
            parts.append((self.g2i(graph, film, present)[0], there))
        if self.i2g:
            answer, attended = self.i2g(film, graph, there, weigh)
            parts.append((answer, present))
            weights = None if attended is None else attended.float().mean(1)
        return [(self.up(x) if self.up else x, mask) for x, mask in parts], weights


def triples_told(parts: Any, names: Sequence[str], most: int) -> list[str]:
    """The first triples of every film's part in words, "" for a film without; the best stand first in a part."""
    told = list[str]()
    for graph in (unpack(bytes(part), len(names)) for part in parts):
        edges = zip(*graph.node[graph.edge_index[:, :most]].tolist(), graph.edge_type[:most].tolist(), strict=True)
        said = [f"{names[head]} {RELATIONS[kind].replace('_', ' ')} {names[tail]}" for head, tail, kind in edges]
        told.append(f" Similar films: {'; '.join(said)}." if said else "")
    return told
