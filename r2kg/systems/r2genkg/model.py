"""R2GenKG (arXiv 2508.03426). Without graph and bank it is R2GenGPT (Wang et al. 2023): film tokens in an LLM's prompt.

Shapes: B batch, V views, S side in pixels, P patches, T report tokens, D_v vision width, D_l language model's width.
"""

import json
from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor, nn

from r2kg.config.parts import Decoding
from r2kg.modules.beams import Generated
from r2kg.modules.llm import IGNORED, ReportWriter
from r2kg.modules.vision import VisionEncoder
from r2kg.systems.contract import Term
from r2kg.systems.r2genkg.config import R2GenKGConfig
from shards.errors import ConfigError


class Batch(TypedDict):
    """What the model receives."""

    images: NotRequired[Tensor]
    """uint8 [B, V, S, S], grey."""
    features: NotRequired[Tensor]
    """bf16 [B, V, P, D_v], what the frozen encoder made of the films, in place of images."""
    view_mask: Tensor
    """bool [B, V], True where there is a film."""
    input_ids: Tensor
    """int64 [B, T], report and EOS, right-padded."""
    labels: Tensor
    """int64 [B, T], input_ids with -100 on padding and on every token of an invalid row."""
    index: NotRequired[Tensor]
    """int64 [B], the study's place in its split, -1 on an invalid row that only fills the batch."""


class R2GenKG(nn.Module):
    """Vision encoder → linear projection → LayerNorm → soft tokens in the prompt of a causal LM (R2GenKG §1.1, §1.5).

    R2GenGPT's modes are choices of model.vision.tuning: shallow = frozen, delta = lora, deep = full.

    Raises:
        ConfigError: a part cannot be built from its configuration.
    """

    mutable = ()

    def __init__(self, config: R2GenKGConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionEncoder(config.vision)
        self.writer = ReportWriter(config.llm, config.prompt)
        self.projection = nn.Linear(self.vision.width, self.writer.width)
        self.norm = nn.LayerNorm(self.writer.width)

    def forward(self, batch: Batch) -> dict[str, Term]:
        """`loss`, under the name that DeepSpeed calls."""
        return self.loss(batch)

    def cut(self, records: Sequence[str]) -> list[bool]:
        """Whether each report, JSON of a Study, is longer than model.report_tokens, its EOS included."""
        lengths = self.writer.lengths([json.loads(record)["target"] for record in records])
        return [length > self.config.report_tokens for length in lengths]

    def counts(self, batch: Batch) -> dict[str, float]:
        """Target tokens."""
        return {"report": float((batch["labels"] != IGNORED).sum())}

    def loss(self, batch: Batch) -> dict[str, Term]:
        """ "report": negative log-likelihood of the target tokens, in nats."""
        soft, present = self.soft_tokens(batch)
        nll = self.writer.loss(soft, batch["input_ids"], batch["labels"], present)
        return {"report": Term(nll, self.counts(batch)["report"])}

    @torch.no_grad()
    def generate(self, batch: Batch, decoding: Decoding) -> list[Generated]:
        """Write a report for every row, also for invalid ones; dropout is off meanwhile."""
        was_training = self.training
        self.eval()
        try:
            soft, present = self.soft_tokens(batch)
            return self.writer.write(soft, decoding, present, batch.get("index"))
        finally:
            self.train(was_training)

    def soft_tokens(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """What the language model sees of the films, given as images or as their features.

        Returns:
            [B, P, D_l] and None, or with model.vision.merge=concatenate [B, V·P, D_l] and bool [B, V·P], False at the
            tokens of films that are not there.
        """
        dtype = self.projection.weight.dtype
        if "images" in batch:
            tokens, present = self.vision(batch["images"], batch["view_mask"])  # [B, P, D_v]
        else:
            tokens, present = self.vision.merge(batch["features"].to(dtype), batch["view_mask"])
        return self.norm(self.projection(tokens.to(dtype))), present

    def collate(self, rows: dict[str, Any]) -> Batch:
        """Turn rows of the stream into a batch; an invalid row keeps its place and has no target.

        Args:
            rows: images uint8 [n, V, S, S] or features uint16 [n, V, P, D_v] (bits of bf16), view_mask bool [n, V],
                valid bool [n], record: n JSON texts of a Study, index int64 [n] where texts are to be sampled.

        Raises:
            ConfigError: films or features are of another size than the encoder's.
        """
        targets = [
            json.loads(record).get("target") if valid else None
            for record, valid in zip(rows["record"], rows["valid"], strict=True)
        ]
        input_ids, labels = self.writer.tokenize(targets, self.config.report_tokens)
        batch = Batch(view_mask=torch.tensor(rows["view_mask"]), input_ids=input_ids, labels=labels)
        if "index" in rows:
            batch["index"] = torch.tensor(rows["index"])
        if "features" in rows:
            shape, own_shape = rows["features"].shape[2:], (self.vision.patches, self.vision.width)
            if shape != own_shape:
                raise ConfigError(f"features are {shape} a film, this encoder makes {own_shape}: write them again")
            batch["features"] = torch.tensor(rows["features"]).view(torch.bfloat16)
        else:
            side, own = rows["images"].shape[-1], self.config.vision.image_px
            if side != own:
                raise ConfigError(f"films are {side} px, model.vision.image_px={own}: make them equal")
            batch["images"] = torch.tensor(rows["images"])  # a copy: the stream's arrays are read-only
        return batch

    def trainable(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Groups of the optimiser (vision, projection, llm; empty ones left out) → named trained parameters.

        Names are those of named_parameters(). "projection" is the projection and its LayerNorm.
        """
        group_of = {"vision": "vision", "projection": "projection", "norm": "projection", "writer": "llm"}
        groups: dict[str, list[tuple[str, nn.Parameter]]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups.setdefault(group_of[name.partition(".")[0]], []).append((name, parameter))
        return groups

    def gradient_checkpointing(self, on: bool = True) -> None:
        """Recompute activations in backward: less memory, about a third more time."""
        self.vision.gradient_checkpointing(on)
        self.writer.gradient_checkpointing(on)

    def fingerprint(self) -> dict[str, Any]:
        """Name what a checkpoint leaves out: the language model's files, the encoder's weights that are not trained."""
        vision = {"name": self.config.vision.name, "sha256": self.vision.fingerprint()}
        return {"llm": self.writer.fingerprint(), "vision": vision}
