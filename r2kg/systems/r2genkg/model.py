"""R2GenKG (arXiv 2508.03426). Without graph and queries it is R2GenGPT (Wang et al. 2023): film tokens in a prompt.

Shapes: B batch, V views, S side in pixels, P patches, K graph tokens, Q queries, T report tokens, D_v vision width, D_l
language model's width.
"""

import json
from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from r2kg.config.parts import Decoding
from r2kg.modules.beams import Generated
from r2kg.modules.gnn import CrossBlock
from r2kg.modules.llm import IGNORED, ReportWriter
from r2kg.modules.vision import VisionEncoder
from r2kg.systems.contract import Term
from r2kg.systems.r2genkg.config import R2GenKGConfig
from r2kg.systems.r2genkg.graph import GraphTokens, collate
from r2kg.systems.r2genkg.parts import FILMS, Graph, Queries
from shards.errors import ConfigError
from shards.tars.kinds import KINDS

FILM_COLUMN = KINDS[FILMS].column


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
    films: NotRequired[dict[str, Any]]
    """The films' parts of the graph as one graph (`r2kg.systems.r2genkg.graph.collate`)."""


class R2GenKG(nn.Module):
    """Vision encoder, graph and disease queries → linear projection → LayerNorm → soft tokens in the prompt of a causal
    LM (R2GenKG §1): film V, graph that asked the film G', film that asked the graph V', queries Q, in this order.

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
        self.graph = GraphBranch(config.graph, self.vision.width) if config.graph else None
        self.queries = QueryBranch(config.queries, self.vision.width) if config.queries else None

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
        """What the language model sees of the films, given as images or as their features, and of the graph.

        Returns:
            [B, P + K + P + Q, D_l], without graph and queries [B, P, D_l]; with model.vision.merge=concatenate V·P for
            P. And bool of the first two sizes, False at what is not there; None: all is.
        """
        dtype = self.projection.weight.dtype
        if "images" in batch:
            tokens, present = self.vision(batch["images"], batch["view_mask"])  # [B, P, D_v]
        else:
            tokens, present = self.vision.merge(batch["features"].to(dtype), batch["view_mask"])
        film = tokens.to(dtype)
        parts: list[tuple[Tensor, Tensor | None]] = [(film, present)]
        if self.graph:
            parts += self.graph(film, present, batch.get("films"))
        if self.queries:
            parts.append((self.queries(film, present), None))
        masks = [torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if m is None else m for x, m in parts]
        mask = None if all(m is None for _, m in parts) else torch.cat(masks, 1)
        return self.norm(self.projection(torch.cat([x for x, _ in parts], 1))), mask

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
        if self.graph and FILM_COLUMN in rows:
            batch["films"] = collate(rows[FILM_COLUMN], self.graph.tokens.nodes)
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
        """Groups of the optimiser (vision, projection, graph, queries, llm; empty ones left out) → named parameters.

        Names are those of named_parameters(). "projection" is the projection and its LayerNorm.
        """
        group_of = {"norm": "projection", "writer": "llm"}
        groups: dict[str, list[tuple[str, nn.Parameter]]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                part = name.partition(".")[0]
                groups.setdefault(group_of.get(part, part), []).append((name, parameter))
        return groups

    def gradient_checkpointing(self, on: bool = True) -> None:
        """Recompute activations in backward: less memory, about a third more time."""
        self.vision.gradient_checkpointing(on)
        self.writer.gradient_checkpointing(on)

    def fingerprint(self) -> dict[str, Any]:
        """Name what a checkpoint leaves out: the language model's files, the encoder's weights that are not trained."""
        vision = {"name": self.config.vision.name, "sha256": self.vision.fingerprint()}
        return {"llm": self.writer.fingerprint(), "vision": vision}


class GraphBranch(nn.Module):
    """The graph, and the attention between it and the film both ways (R2GenKG §1.3, §1.4)."""

    def __init__(self, config: Graph, width: int) -> None:
        super().__init__()
        self.tokens = GraphTokens(config, width)
        self.i2g = CrossBlock(width, config.heads, config.dropout) if config.i2g else None
        self.g2i = CrossBlock(width, config.heads, config.dropout) if config.g2i else None

    def forward(
        self, film: Tensor, present: Tensor | None, films: dict[str, Any] | None
    ) -> list[tuple[Tensor, Tensor | None]]:
        """[G' [B, K, D_v], V' [B, P, D_v]], those that are on, each with what is there of it, from V [B, P, D_v]."""
        graph, there = self.tokens(len(film), films)
        asked = [(self.g2i(graph, film, present), there)] if self.g2i else []
        return asked + ([(self.i2g(film, graph, there), present)] if self.i2g else [])


class QueryBranch(nn.Module):
    """Learned disease queries that read the film through BLIP-2's Q-Former (Li et al. 2023; R2GenKG §1.2)."""

    def __init__(self, config: Queries, width: int) -> None:
        super().__init__()
        sizes = Blip2QFormerConfig(
            vocab_size=1, hidden_size=config.width, num_hidden_layers=config.layers, num_attention_heads=config.heads,
            intermediate_size=4 * config.width, encoder_hidden_size=config.film_width,
        )  # fmt: skip
        self.film = nn.Linear(width, config.film_width)
        self.tokens = nn.Parameter(torch.empty(1, config.count, config.width))
        nn.init.normal_(self.tokens, std=0.02)
        self.qformer = Blip2QFormerModel(sizes)
        self.out = nn.Linear(config.width, width)
        nn.init.normal_(self.out.weight, std=0.02)
        nn.init.zeros_(self.out.bias)

    def forward(self, film: Tensor, present: Tensor | None) -> Tensor:
        """[B, Q, D_v] from film tokens [B, P, D_v] and bool [B, P], False at what is not there."""
        tokens = self.tokens.expand(len(film), -1, -1)
        mask = None if present is None else present.long()
        states = self.qformer(tokens, encoder_hidden_states=self.film(film), encoder_attention_mask=mask)
        return self.out(states.last_hidden_state.to(film.dtype))
