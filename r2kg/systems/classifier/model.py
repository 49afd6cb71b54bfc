"""Findings from films: encoder, mean of its tokens, a small network for every finding.

Shapes: B batch, V views, S side in pixels, P patches, D vision width, L findings, N films.
"""

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from r2kg.config.parts import Decoding
from r2kg.modules.beams import Generated
from r2kg.modules.vision import VisionEncoder
from r2kg.systems.classifier.config import ClassifierConfig
from r2kg.systems.contract import Term, trained_groups
from shards.errors import ConfigError


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
    """fp32 [B, L], 1 present, 0 absent, NaN where a finding of a study is not learned from."""


class Classifier(nn.Module):
    """Films of a study → the probability of each finding (AM-MRG's SwinCheX).

    Raises:
        ConfigError: the encoder cannot be built from its configuration.
    """

    mutable = ()

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionEncoder(config.vision)
        widths = (self.vision.width, *config.hidden)
        self.head = nn.ModuleList()
        for _ in config.labels:
            layers = [(nn.Linear(*pair), nn.ReLU()) for pair in pairwise(widths)]
            self.head.append(nn.Sequential(*(layer for pair in layers for layer in pair), nn.Linear(widths[-1], 1)))

    def forward(self, batch: Batch) -> dict[str, Term]:
        """`loss`, under the name that DeepSpeed calls."""
        return self.loss(batch)

    def collate(self, rows: dict[str, Any]) -> Batch:
        """Rows of the stream as a batch (`r2kg.systems.contract.Model.collate`); no label is there in generation."""
        values = {"uncertain": -1.0, "absent": 0.0, "present": 1.0, "left_out": float("nan")}
        meaning = {1: 1.0, 0: 0.0, -1: values[self.config.uncertain], None: values[self.config.unmentioned]}
        told = [
            json.loads(r).get("labels", {}) if ok else {} for r, ok in zip(rows["record"], rows["valid"], strict=True)
        ]
        target = torch.tensor([[meaning[labels.get(name)] for name in self.config.labels] for labels in told])
        unlabelled = [all(value is None for value in labels.values()) for labels in told]
        target[torch.tensor(unlabelled)] = float("nan")  # nobody has looked, so that nothing is absent
        beside = {"valid": torch.tensor(rows["valid"]), "target": target}
        return Batch(**self.vision.collate(rows), **beside)  # type: ignore[typeddict-item]

    def counts(self, batch: Batch) -> dict[str, float]:
        """Studies of which something is learned."""
        return {"labels": float((batch["target"].isfinite().any(1) & batch["valid"]).sum())}

    def cut(self, records: Sequence[str]) -> list[bool]:
        """None: labels have no length."""
        return [False] * len(records)

    def logits(self, batch: Batch) -> Tensor:
        """fp32 [B, L] from films or their features; a study's films count alike."""
        tokens, _ = self.vision.see(batch, self._dtype)  # [B, P, D]
        return self._judged(tokens.mean(1)).float()

    def loss(self, batch: Batch) -> dict[str, Term]:
        """ "labels": binary cross-entropy with smoothing, in nats, summed over the findings of a study."""
        logits, target = self.logits(batch), batch["target"]
        known = target.isfinite() & batch["valid"][:, None]
        smooth = target.nan_to_num() * (1 - self.config.smoothing) + self.config.smoothing / 2
        wrong = F.binary_cross_entropy_with_logits(logits, smooth, reduction="none")
        return {"labels": Term((wrong * known).sum(), self.counts(batch)["labels"])}

    @torch.no_grad()
    def generate(self, batch: Batch, decoding: Decoding) -> list[Generated]:
        """The findings of every row that are probable enough, joined by ", ", and every probability."""
        written = []
        for row in self.logits(batch).sigmoid().tolist():
            probability = dict(zip(self.config.labels, row, strict=True))
            named = [name for name, value in probability.items() if value >= self.config.threshold]
            extra = {"probabilities": {name: round(value, 6) for name, value in probability.items()}}
            written.append(Generated(", ".join(named), len(named), False, extra))
        return written

    def explain(self, films: Tensor) -> tuple[Tensor, Tensor]:
        """Where in a film a finding is seen: Grad-CAM (Selvaraju et al. 2017) at the encoder's last layer.

        The weight of a channel is the mean over places of the gradient of the finding's probability. Behind the
        encoder there is a mean and the head alone, so nothing is sent back through the encoder.

        Args:
            films: uint8 [N, S, S].

        Returns:
            maps fp32 [N, L, G, G], 0 or more, of the encoder's G·G = P places; and pooled features fp32 [N, D].

        Raises:
            ConfigError: the encoder's tokens are no square grid.
        """
        with torch.no_grad():
            tokens = self.vision.encode(films).to(self._dtype)  # [N, P, D]
        side = int(tokens.shape[1] ** 0.5)
        if side * side != tokens.shape[1]:
            raise ConfigError(f"{self.config.vision.name} makes {tokens.shape[1]} tokens of a film: no square grid")
        with torch.inference_mode(False), torch.enable_grad():
            pooled = tokens.mean(1).clone().requires_grad_()
            probability = self._judged(pooled).sigmoid()
            slopes = [torch.autograd.grad(p.sum(), pooled, retain_graph=True)[0] for p in probability.unbind(1)]
        weights = torch.stack(slopes, 1) / tokens.shape[1]  # [N, L, D]
        maps = torch.einsum("npd,nld->nlp", tokens.float(), weights.float()).relu()
        return maps.unflatten(2, (side, side)), pooled.detach().float()

    def trainable(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Groups of the optimiser (vision, head; empty ones left out) → named parameters."""
        return trained_groups(self)

    def gradient_checkpointing(self, on: bool = True) -> None:
        """Recompute activations in backward: less memory, about a third more time."""
        self.vision.gradient_checkpointing(on)

    def fingerprint(self) -> dict[str, Any]:
        """The encoder's weights that are not trained."""
        return {"vision": {"name": self.config.vision.name, "sha256": self.vision.fingerprint()}}

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.head.parameters()).dtype

    def _judged(self, pooled: Tensor) -> Tensor:
        """Logits [N, L] from means of tokens [N, D]."""
        return torch.cat([part(pooled) for part in self.head], 1)
