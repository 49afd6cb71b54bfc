"""What R2GenKG is shown of a knowledge graph: made before the run, and encoded in the model.

Shapes: B batch, K graph tokens, D_k width of the graph, D_v width of the image encoder.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.utils import to_dense_batch

from r2kg.config.needs import Artefact
from r2kg.config.run import Run
from r2kg.graph.build import load_training_graph
from r2kg.graph.embed import embed
from r2kg.graph.levels import read_levels, sample_levels, write_levels
from r2kg.modules.gnn import RelationalEncoder, ScaleFusion
from r2kg.systems.r2genkg.parts import FILMS, Graph
from shards.errors import ConfigError, DataError
from shards.graphs.subgraph import collate_disjoint, unpack
from shards.tars.format import Manifest
from shards.tars.kinds import read_side


def artefact(config: Graph, source: str, run: Run, manifest: Manifest, into: str) -> Artefact:
    """Levels of the run's graph and the features of its nodes, as what a run needs made.

    Args:
        source: of the text encoder.

    Raises:
        DataError: no graph, one of other shards, one that other splits' reports speak in; films' parts of another.
    """
    graph = load_training_graph(config.place or f"{run.data.shards}/graph", run.data.shards, manifest)
    if config.source != "levels":
        films = run.sides[FILMS]
        if (theirs := read_side(films).description.get("graph")) != graph.manifest.fingerprint:
            raise DataError(
                f"the films' parts at {films} are of graph {str(theirs)[:12]}, the run's is "
                f"{graph.manifest.fingerprint[:12]}: write them again with `r2kg graph films SHARDS`"
            )
    text = config.text.model_copy(update={"source": source})

    def make(folder: Path) -> None:
        levels = sample_levels(graph, () if config.thresholds else config.sizes, config.thresholds)
        write_levels(graph, levels, embed(graph.names, text).numpy(), folder)

    return Artefact(
        name="graph",
        settings={
            "graph": graph.manifest.fingerprint,
            "sizes": [] if config.thresholds else list(config.sizes),
            "thresholds": list(config.thresholds),
            "text": text.model_dump(mode="json"),
        },
        make=make,
        into=into,
        sentence=f"Sampling levels of a graph of {graph.nodes.num_rows:,} nodes, and encoding their names",
    )


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
        self.nodes = len(held.names)
        for number, level in enumerate(held.graphs if self.fusion else ()):
            if len(level.node) > config.places:
                raise ConfigError(f"a level has {len(level.node)} nodes, model.graph.places={config.places}: raise it")
            for name in ("node", "edge_index", "edge_type"):
                self.register_buffer(f"{name}_{number}", torch.from_numpy(np.array(getattr(level, name))), False)
            self.levels = number + 1

    def forward(self, rows: int, films: dict[str, Any] | None) -> tuple[Tensor, Tensor | None]:
        """Graph tokens [B, K, D_v] and bool [B, K] where they are there; None: all are.

        Args:
            rows: B.
            films: with source film or both, `collate` of the films' parts.
        """
        features = self.features.to(self.project.weight.dtype)
        parts, masks = list[Tensor](), list[Tensor]()
        if self.fusion:
            fused = self.fusion([self._states(features, number) for number in range(self.levels)])
            shown = fused[self.config.shown] if self.config.fusion == "released" else torch.cat(fused)
            parts.append(self.project(shown).expand(rows, -1, -1))  # the same for all films: made once
            masks.append(torch.ones(parts[0].shape[:2], dtype=torch.bool, device=features.device))
        if films is not None:
            states = self.relational(features[films["node"]], films["edge_index"], films["edge_type"])
            dense, there = to_dense_batch(self.project(states), films["graph"], 0, films["most"], rows)
            parts.append(dense)
            masks.append(there)
        return torch.cat(parts, 1), None if films is None else torch.cat(masks, 1)

    def _states(self, features: Tensor, number: int) -> Tensor:
        """Node states of a level, [N_g, D_k]."""
        node, edge_index, edge_type = (
            self.get_buffer(f"{name}_{number}") for name in ("node", "edge_index", "edge_type")
        )
        return self.relational(features[node], edge_index, edge_type)


def collate(parts: Any, nodes: int) -> dict[str, Any]:
    """The films' parts of a batch as one graph: node, edge_index, edge_type, graph (which row a node belongs to); and
    most, the nodes of the largest, or 1.

    Args:
        parts: packed subgraphs, one a row, b"" for a study without.
        nodes: of the whole graph, which ids must stay below.
    """
    graphs = [unpack(bytes(part), nodes) for part in parts]
    most = max(1, *(len(graph.node) for graph in graphs))  # attention needs a key, if only one that is not there
    return {name: torch.tensor(array) for name, array in collate_disjoint(graphs).items()} | {"most": most}
