"""CKNet's knowledge module before a language model: film tokens ask the matrix, and so does every word that is read.

Shapes: B batch, S film tokens, T words, D width of the questions, D_l language model's width, N vectors of the matrix.
"""

import json
from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor, nn

from r2kg.config.parts import Decoding
from r2kg.modules.beams import Generated
from r2kg.modules.llm.packing import IGNORED
from r2kg.modules.llm.writer import ReportWriter, frame
from r2kg.modules.vision import VisionEncoder
from r2kg.systems.cknet.config import CKNetLlmConfig
from r2kg.systems.cknet.knowledge import KnowledgeMemory, Taken, named_shares, sha256_of
from r2kg.systems.contract import Term, targets_of, trained_groups
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


class KnowingEmbedding(nn.Module):
    """A language model's table of words, each of which has asked the matrix: e + U k(W e), with U = 0 to begin with.

    A word asks alone, so that nothing is told of those behind it, whether a report is read at once or word by word.
    """

    def __init__(self, table: nn.Embedding, knowledge: KnowledgeMemory, width: int) -> None:
        super().__init__()
        self.table, self.knowledge, self.embedding_dim = table, knowledge, table.embedding_dim
        self.down, self.up = nn.Linear(table.embedding_dim, width), nn.Linear(width, table.embedding_dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, ids: Tensor) -> Tensor:
        """[..., D_l] from int64 [...]."""
        words = self.table(ids)
        asked = words.to(self.down.weight.dtype)
        taken, _ = self.knowledge(self.down(asked), "words")
        return words + self.up(taken).to(words.dtype)


class CKNetLlm(nn.Module):
    """Films → tokens that have asked the matrix → soft tokens in the prompt of a causal LM whose words ask it too.

    Raises:
        ConfigError: a part cannot be built from its configuration.
    """

    mutable = ()

    def __init__(self, config: CKNetLlmConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.vision = VisionEncoder(config.vision)
        self.film = nn.Sequential(nn.Linear(self.vision.width, width), nn.ReLU())
        self.knowledge = KnowledgeMemory(config.knowledge, width) if config.knowledge else None
        self.writer = ReportWriter(config.llm, frame(config.prompt))
        self.projection, self.norm = nn.Linear(width, self.writer.width), nn.LayerNorm(self.writer.width)
        if self.knowledge and config.knowledge and config.knowledge.fuse_words != "none":
            table = self.writer.llm.get_input_embeddings()
            self.writer.llm.set_input_embeddings(KnowingEmbedding(table, self.knowledge, width))

    def forward(self, batch: Batch) -> dict[str, Term]:
        """`loss`, under the name that DeepSpeed calls."""
        return self.loss(batch)

    def collate(self, rows: dict[str, Any]) -> Batch:
        """Rows of the stream as a batch (`r2kg.systems.contract.Model.collate`)."""
        input_ids, labels = self.writer.tokenize(targets_of(rows), self.config.report_tokens)
        batch = Batch(**self.vision.collate(rows), input_ids=input_ids, labels=labels)  # type: ignore[typeddict-item]
        if "index" in rows:
            batch["index"] = torch.tensor(rows["index"])
        return batch

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

    def soft_tokens(self, batch: Batch) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Soft tokens [B, S, D_l], which of them are there, and what the film took of the matrix [B, S, N]."""
        tokens, present = self.vision.see(batch, self.projection.weight.dtype)
        film, taken = self.film(tokens), None
        if self.knowledge:
            film, taken = self.knowledge(film, "film")
            taken = taken if present is None else taken * present[..., None]
        return self.norm(self.projection(film)), present, taken

    def loss(self, batch: Batch) -> dict[str, Term]:
        """ "report": negative log-likelihood of the target tokens, in nats."""
        soft, present, _ = self.soft_tokens(batch)
        nll = self.writer.loss(soft, batch["input_ids"], batch["labels"], present)
        return {"report": Term(nll, self.counts(batch)["report"])}

    @torch.no_grad()
    def generate(self, batch: Batch, decoding: Decoding) -> list[Generated]:
        """Write a report for every row, also for invalid ones; dropout is off meanwhile."""
        was_training = self.training
        self.eval()
        try:
            soft, present, taken = self.soft_tokens(batch)
            written = self.writer.write(soft, decoding, present, batch.get("index"))
            if taken is None or self.knowledge is None:
                return written
            told = [named_shares({"film": of}, self.knowledge.names, self.config.evidence) for of in taken]
            return [one._replace(extra=extra) for one, extra in zip(written, told, strict=True)]
        finally:
            self.train(was_training)

    @torch.no_grad()
    def look(self, batch: Batch, text: str) -> Taken:
        """What the films of a batch of one study, and the tokens of a report of it, take of the matrix.

        Raises:
            ConfigError: there is no matrix.
        """
        if self.knowledge is None:
            raise ConfigError("the run has no knowledge matrix (model.knowledge=null): nothing is taken of it")
        _, _, taken = self.soft_tokens(batch)
        table = self.writer.llm.get_input_embeddings()
        ids = self.writer.tokenizer(text, add_special_tokens=False).input_ids
        words, of_words = tuple[str, ...](), torch.zeros(0, len(self.knowledge.names))
        if ids and isinstance(table, KnowingEmbedding):
            words = tuple(str(self.writer.tokenizer.decode([one])) for one in ids)
            asked = table.table(torch.tensor(ids, device=taken.device))  # type: ignore[union-attr]
            _, of_words = self.knowledge.ask(table.down(asked.to(table.down.weight.dtype)))
        return Taken(self.knowledge.names, taken[0], words, of_words)  # type: ignore[index]

    def trainable(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Groups of the optimiser (vision, film, knowledge, projection, llm; empty ones left out) → parameters."""
        return trained_groups(self, {"norm": "projection", "writer": "llm"})

    def padding(self) -> float | None:
        """As `ReportWriter.padding`."""
        return self.writer.padding()

    def gradient_checkpointing(self, on: bool = True) -> None:
        """Recompute activations in backward: less memory, about a third more time."""
        self.vision.gradient_checkpointing(on)
        self.writer.gradient_checkpointing(on)

    def fingerprint(self) -> dict[str, Any]:
        """The language model's files, the encoder's weights that are not trained, a matrix that stays as it is."""
        told: dict[str, Any] = {"vision": {"name": self.config.vision.name, "sha256": self.vision.fingerprint()}}
        told["llm"] = self.writer.fingerprint()
        if self.knowledge and not self.knowledge.config.trained:
            told["knowledge"] = {"sha256": sha256_of(self.knowledge.matrix)}
        return told
