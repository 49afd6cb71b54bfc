"""R2GenKG (arXiv 2508.03426). Without graph and queries it is R2GenGPT (Wang et al. 2023): film tokens in a prompt.

Shapes: B batch, V views, S side in pixels, P patches, K graph tokens, Q queries, T report tokens, D_v vision width, D_l
language model's width.
"""

import json
from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor, nn

from r2kg.config.parts import Decoding
from r2kg.graph.film import FILMS
from r2kg.modules.beams import Generated
from r2kg.modules.llm.packing import IGNORED
from r2kg.modules.llm.writer import ReportWriter, frame
from r2kg.modules.vision import VisionEncoder
from r2kg.systems.contract import Term, targets_of, trained_groups
from r2kg.systems.r2genkg.config import R2GenKGConfig
from r2kg.systems.r2genkg.graph import GraphBranch, collate, triples_told
from r2kg.systems.r2genkg.queries import QueryBranch
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
    words: NotRequired[Tensor]
    """int64 [B, W], triples of the films' parts as words of the language model."""
    said: NotRequired[Tensor]
    """bool [B, W], False at padding of `words`."""


class Asked(TypedDict, total=False):
    """What was attended to while a batch was read."""

    nodes: tuple[Tensor, Tensor]
    """Ids of nodes and their weights, [B, K] both."""
    bank: Tensor
    """Weights of the bank's tokens, [B, M]."""


class R2GenKG(nn.Module):
    """Vision encoder, graph and disease queries → linear projection → LayerNorm → soft tokens in the prompt of a causal
    LM (R2GenKG §1): film V, graph that asked the film G', film that asked the graph V', queries Q, and C, what the bank
    answered them, in this order.

    R2GenGPT's modes are choices of model.vision.tuning: shallow = frozen, delta = lora, deep = full.

    Raises:
        ConfigError: a part cannot be built from its configuration.
    """

    mutable = ()

    def __init__(self, config: R2GenKGConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionEncoder(config.vision)
        self.writer = ReportWriter(config.llm, frame(config.prompt))
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

    def fitting(self, texts: Sequence[str], tokens: int) -> list[int]:
        """Of each text the characters that its first `tokens` tokens of the language model spell, EOS not counted."""
        return self.writer.fitting(texts, tokens)

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
            asked: Asked = {}
            soft, present = self.soft_tokens(batch, asked if self.config.evidence else None)
            written = self.writer.write(soft, decoding, present, batch.get("index"))
            return [one._replace(extra=self._evidence(asked, row)) for row, one in enumerate(written)]
        finally:
            self.train(was_training)

    def soft_tokens(self, batch: Batch, asked: Asked | None = None) -> tuple[Tensor, Tensor | None]:
        """What the language model sees of the films, given as images or as their features, and of the graph.

        Args:
            asked: is filled with what the film and the queries attended to.

        Returns:
            [B, P + K + P + Q + Q, D_l], without graph and queries [B, P, D_l]; with model.vision.merge=concatenate V·P
            for P; behind them words of triples where model.graph.text_triples asks for them. And bool of the first two
            sizes, False at what is not there; None: all is.
        """
        film, present = self.vision.see(batch, self.projection.weight.dtype)  # [B, P, D_v]
        parts: list[tuple[Tensor, Tensor | None]] = [(film, present)]
        if self.graph:
            films = batch.get("films")
            shown, weights = self.graph(film, present, films, asked is not None)
            parts += shown
            if asked is not None and weights is not None:
                asked["nodes"] = self.graph.tokens.node_ids(len(film), films), weights
        if self.queries:
            states, weights = self.queries(film, present)
            parts.append((states, None))
            if asked is not None and weights is not None:
                asked["bank"] = weights
        masks = [torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if m is None else m for x, m in parts]
        mask = None if all(m is None for _, m in parts) else torch.cat(masks, 1)
        soft = self.norm(self.projection(torch.cat([x for x, _ in parts], 1)))
        if "words" in batch:
            words, said = self.writer.llm.get_input_embeddings()(batch["words"]).to(soft.dtype), batch["said"]
            mask = torch.ones_like(soft[..., 0], dtype=torch.bool) if mask is None else mask
            soft, mask = torch.cat((soft, words), 1), torch.cat((mask, said), 1)
        return soft, mask

    def _evidence(self, asked: Asked, row: int) -> dict[str, Any]:
        """What the report of a row of the batch stands on, for predictions.jsonl; {} where nothing was asked."""
        found, most = dict[str, list[Any]](), self.config.evidence
        if self.graph and "nodes" in asked:
            ids, weights = (tensor[row] for tensor in asked["nodes"])
            total = torch.zeros(self.graph.tokens.nodes, device=weights.device).index_add(0, ids, weights.float())
            names, studies = self.graph.tokens.names, self.graph.tokens.studies
            found["nodes"] = [[names[at], value, list(studies[at])] for at, value in _most(total, most)]
        if self.queries and self.queries.bank and "bank" in asked:
            cells = self.queries.bank.cells
            found["bank"] = [[*cells[at], value] for at, value in _most(asked["bank"][row], most)]
        return {"evidence": found} if found else {}

    def token_counts(self) -> dict[str, int]:
        """How many soft tokens are of what; those of films' own parts of the graph, which differ, are left out."""
        patches, counts = self.vision.patches, {"of the film": self.vision.patches}
        if self.graph:
            counts |= {"of the graph": self.graph.tokens.of_levels} if self.graph.g2i else {}
            counts |= {"of the film that asked the graph": patches} if self.graph.i2g else {}
        if self.queries:
            number = self.queries.tokens.shape[1]
            counts |= {"queries": number} if self.queries.shown else {}
            counts |= {"of the bank": number} if self.queries.bank else {}
        return counts

    def collate(self, rows: dict[str, Any]) -> Batch:
        """Turn rows of the stream into a batch; an invalid row keeps its place and has no target.

        Args:
            rows: images uint8 [n, V, S, S] or features uint16 [n, V, P, D_v] (bits of bf16), view_mask bool [n, V],
                valid bool [n], record: n JSON texts of a Study, index int64 [n] where texts are to be sampled.

        Raises:
            ConfigError: films or features are of another size than the encoder's.
        """
        input_ids, labels = self.writer.tokenize(targets_of(rows), self.config.report_tokens)
        batch = Batch(**self.vision.collate(rows), input_ids=input_ids, labels=labels)  # type: ignore[typeddict-item]
        if "index" in rows:
            batch["index"] = torch.tensor(rows["index"])
        if self.graph and FILM_COLUMN in rows:
            config = self.graph.tokens.config
            batch["films"] = collate(rows[FILM_COLUMN], self.graph.tokens.nodes, config.control == "empty")
            if config.text_triples:
                told = triples_told(rows[FILM_COLUMN], self.graph.tokens.names, config.text_triples)
                words = self.writer.tokenizer(told, add_special_tokens=False).input_ids
                longest = max(1, *map(len, words))
                batch["words"] = torch.tensor([ids + [0] * (longest - len(ids)) for ids in words])
                batch["said"] = torch.tensor([[at < len(ids) for at in range(longest)] for ids in words])
        return batch

    def trainable(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Groups of the optimiser (vision, projection, graph, queries, llm; empty ones left out) → named parameters.

        Names are those of named_parameters(). "projection" is the projection and its LayerNorm.
        """
        return trained_groups(self, {"norm": "projection", "writer": "llm"})

    def padding(self) -> float | None:
        """As `ReportWriter.padding`."""
        return self.writer.padding()

    def gradient_checkpointing(self, on: bool = True) -> None:
        """Recompute activations in backward: less memory, about a third more time."""
        self.vision.gradient_checkpointing(on)
        self.writer.gradient_checkpointing(on)

    def fingerprint(self) -> dict[str, Any]:
        """Name what a checkpoint leaves out: the language model's files, the encoder's weights that are not trained."""
        vision = {"name": self.config.vision.name, "sha256": self.vision.fingerprint()}
        return {"llm": self.writer.fingerprint(), "vision": vision}


def _most(weights: Tensor, count: int) -> list[tuple[int, float]]:
    """The places with the highest weights and these, to four digits; those without a weight are left out."""
    values, places = weights.float().topk(min(count, len(weights)))
    return [(at, round(value, 4)) for at, value in zip(places.tolist(), values.tolist(), strict=True) if value > 0]
