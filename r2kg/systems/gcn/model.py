"""Findings from films over a graph of findings: an attention map for every node, graph convolutions, one head.

Shapes: B batch, V views, S side in pixels, P patches, D vision width, N nodes without the root, W width of their
states, L findings that are learned, F films.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from r2kg.config.parts import Decoding
from r2kg.graph.schema import unpack
from r2kg.modules.beams import Generated
from r2kg.modules.gnn import FindingConvolution, edge_weights
from r2kg.modules.vision import VisionEncoder
from r2kg.systems.contract import Term, trained_groups
from r2kg.systems.gcn.config import GcnConfig
from r2kg.systems.gcn.graph import Findings, read_findings
from r2kg.systems.gcn.targets import chexpert_nodes, targets
from shards.errors import ConfigError
from shards.tars.kinds import KINDS

COLUMN = KINDS["annotations"].column
NODES, LEARNED = 40, 20
"""Of kg40, which a model on the meta device is counted with that has no graph yet."""


class Batch(TypedDict):
    """What the model receives."""

    images: NotRequired[Tensor]
    """uint8 [B, V, S, S], grey."""
    features: NotRequired[Tensor]
    """bf16 [B, V, P, D], what the frozen encoder made of the films, in place of images."""
    view_mask: Tensor
    """bool [B, V], True where there is a film."""
    valid: Tensor
    """bool [B], False for a row that only fills the batch."""
    target: Tensor
    """fp32 [B, L], 1 said, 0 not, NaN where a finding of a study is not learned from."""


class Gcn(nn.Module):
    """Films of a study → the probability of each finding (SentKG; lineage of CKNet).

    Of the findings of a study's films the mean is taken, where the released code adds them up: of two films that is the
    same up to a factor that the head learns, and a study with one film is not judged by half as much.

    Raises:
        ConfigError: no graph was made yet; a label that none of its nodes stands for; an encoder of another width, or
            that cannot be built.
        DataError: what was made of the graph is damaged.
    """

    mutable = ()
    edge_index: Tensor
    findings: Findings

    def __init__(self, config: GcnConfig) -> None:
        super().__init__()
        if not config.graph.at and torch.get_default_device().type != "meta":  # there it is only counted
            raise ConfigError("model.graph.at is empty: names and edges are made before the run (prepare)")
        self.config, self.vision = config, VisionEncoder(config.vision)
        width, nodes, learned = self.vision.width, NODES, LEARNED
        if width % 4:
            raise ConfigError(f"{config.vision.name} has {width} channels, and each of three branches takes a quarter")
        if config.graph.at:
            self._hold(read_findings(Path(config.graph.at)))
            nodes, learned = len(self.findings.names), self.findings.supervised
        self.attention = nn.Linear(width, nodes, bias=False)
        self.layers = nn.ModuleList(FindingConvolution(width, config.dropout) for _ in range(config.layers))
        self.states, self.head = nn.Linear(width, config.width), nn.Linear(config.width, learned)

    def _hold(self, findings: Findings) -> None:
        """Keep the graph: edges as a buffer, which no checkpoint and no optimiser holds."""
        self.findings = findings
        self.register_buffer("edge_index", torch.from_numpy(findings.edges()), persistent=False)
        self.nodes_of = chexpert_nodes(self.config.labels, findings.names, findings.stands_for, findings.supervised)
        if lacking := [name for name, nodes in zip(self.config.labels, self.nodes_of, strict=True) if not nodes]:
            raise ConfigError(
                f"no finding of the graph stands for {', '.join(lacking)}: leave them out of model.labels"
            )

    def forward(self, batch: Batch) -> dict[str, Term]:
        """`loss`, under the name that DeepSpeed calls."""
        return self.loss(batch)

    def collate(self, rows: dict[str, Any]) -> Batch:
        """Rows of the stream as a batch (`r2kg.systems.contract.Model.collate`); in generation nothing is said."""
        names, stands_for, learned = self.findings.names, self.findings.stands_for, self.findings.supervised
        target = torch.full((len(rows["valid"]), learned), float("nan"))
        for row, data in enumerate(rows.get(COLUMN, ())):
            if data:
                said = targets(unpack(bytes(data)), names, stands_for, learned, self.config.uncertain)
                target[row] = torch.tensor(said)
        beside = {"valid": torch.tensor(rows["valid"]), "target": target}
        return Batch(**self.vision.collate(rows), **beside)  # type: ignore[typeddict-item]

    def counts(self, batch: Batch) -> dict[str, float]:
        """Studies of which something is learned."""
        return {"labels": float((batch["target"].isfinite().any(1) & batch["valid"]).sum())}

    def cut(self, records: Sequence[str]) -> list[bool]:
        """None: labels have no length."""
        return [False] * len(records)

    def states_of(self, tokens: Tensor) -> Tensor:
        """Node states [F, N + 1, W] of films, the root first, from their tokens [F, P, D].

        The root begins as the mean of the tokens, a finding as their sum weighed by its attention map.
        """
        maps = self.attention(tokens).float().softmax(1).to(tokens.dtype)  # [F, P, N]
        x = torch.cat((tokens.mean(1, keepdim=True), maps.transpose(1, 2) @ tokens), 1)  # [F, N + 1, D]
        edge_index, weight = edge_weights(self.edge_index, x.shape[1], self.config.graph.self_loops)
        for layer in self.layers:
            x = layer(x, edge_index, weight)
        return self.states(x)

    def logits(self, batch: Batch) -> Tensor:
        """fp32 [B, L] from films or their features: of the mean over nodes and over the films that are there."""
        tokens, _ = self.vision.see(batch, self._dtype)  # [B, V, P, D]
        mean = self.states_of(tokens.flatten(0, 1)).mean(1).unflatten(0, tokens.shape[:2])  # [B, V, W]
        weight = batch["view_mask"] / batch["view_mask"].sum(1, keepdim=True).clamp(min=1)
        return self.head((mean * weight.to(mean.dtype)[..., None]).sum(1)).float()

    def loss(self, batch: Batch) -> dict[str, Term]:
        """ "labels": binary cross-entropy in nats, summed over the findings of a study."""
        logits, target = self.logits(batch), batch["target"]
        known = target.isfinite() & batch["valid"][:, None]
        wrong = F.binary_cross_entropy_with_logits(logits, target.nan_to_num(), reduction="none")
        return {"labels": Term((wrong * known).sum(), self.counts(batch)["labels"])}

    @torch.no_grad()
    def generate(self, batch: Batch, decoding: Decoding) -> list[Generated]:
        """CheXpert's findings that are probable enough, joined by ", ", and every probability; "findings" are those of
        the graph. Where several nodes stand for one of CheXpert's, it is as probable as the likeliest."""
        written, names = [], self.findings.names
        for row in self.logits(batch).sigmoid().tolist():
            probability = {
                label: round(max(row[node] for node in nodes), 6)
                for label, nodes in zip(self.config.labels, self.nodes_of, strict=True)
            }
            named = [name for name, value in probability.items() if value >= self.config.threshold]
            findings = {name: round(value, 6) for name, value in zip(names, row, strict=False)}
            extra = {"probabilities": probability, "findings": findings}
            written.append(Generated(", ".join(named), len(named), False, extra))
        return written

    @torch.no_grad()
    def node_states(self, films: Tensor) -> Tensor:
        """What a knowledge matrix is the mean of: fp32 [F, N, W], without the root, of films uint8 [F, S, S]."""
        return self.states_of(self.vision.encode(films).to(self._dtype))[:, 1:].float()

    def trainable(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Groups of the optimiser (vision, attention, layers, states, head; empty ones left out) → parameters."""
        return trained_groups(self)

    def gradient_checkpointing(self, on: bool = True) -> None:
        """Recompute activations in backward: less memory, about a third more time."""
        self.vision.gradient_checkpointing(on)

    def fingerprint(self) -> dict[str, Any]:
        """The encoder's weights that are not trained."""
        return {"vision": {"name": self.config.vision.name, "sha256": self.vision.fingerprint()}}

    @property
    def _dtype(self) -> torch.dtype:
        return self.head.weight.dtype
