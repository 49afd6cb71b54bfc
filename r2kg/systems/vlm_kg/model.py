"""VLM-KG (Abdullah & Kim 2025): image and report → triples.

One vector of the films (MedCLIP), a transformer mapper that makes soft tokens of it, and a causal LM that reads these,
an instruction and the report, and writes `head , relation , tail ; ...`. Shapes: B batch, V views, S side, n soft
tokens, A report tokens, T answer tokens, D width of the language model.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NotRequired

import torch
from torch import Tensor, nn
from typing_extensions import TypedDict

from r2kg.config.parts import Decoding
from r2kg.modules.beams import Generated
from r2kg.modules.llm.packing import IGNORED
from r2kg.modules.llm.writer import Asked, ReportWriter
from r2kg.modules.vision import VisionEncoder
from r2kg.systems.contract import Term, trained_groups
from r2kg.systems.vlm_kg.config import VlmKgConfig
from r2kg.systems.vlm_kg.mapper import Mapper
from r2kg.systems.vlm_kg.vector import FilmVector
from shards.errors import ConfigError
from shards.graphs.text import triples_text


class Batch(TypedDict):
    """What the model receives."""

    images: NotRequired[Tensor]
    """uint8 [B, V, S, S], grey."""
    features: NotRequired[Tensor]
    """bf16 [B, V, P, D_v], what the frozen encoder made of the films, in place of images."""
    view_mask: NotRequired[Tensor]
    """bool [B, V], True where there is a film; there is none of these for LLM-KG."""
    asked: Asked | None
    """The report; None for triples from the film alone."""
    input_ids: Tensor
    """int64 [B, T], triples and EOS, right-padded."""
    labels: Tensor
    """int64 [B, T], input_ids with -100 on padding and on every token of a row without known triples."""
    index: NotRequired[Tensor]
    """int64 [B], the study's place in its split, -1 on an invalid row that only fills the batch."""


class VlmKg(nn.Module):
    """Film vector → mapper → soft tokens, instruction, report → triples.

    Raises:
        ConfigError: a part cannot be built from its configuration.
    """

    mutable = ()

    def __init__(self, config: VlmKgConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionEncoder(config.vision) if config.vision else None  # built first: features begin with it
        self.vector = None
        if config.vision and self.vision:
            self.vector = FilmVector(config.vector, config.vision, self.vision.width)
        self.writer = ReportWriter(config.llm, config.frame)
        if self.writer.width % config.mapper.heads:
            raise ConfigError(
                f"model.mapper.heads={config.mapper.heads} do not divide the {self.writer.width} channels of "
                f"model.llm.source={config.llm.source}"
            )
        self.mapper = Mapper(config.mapper, self.vector.width, self.writer.width) if self.vector else None

    def forward(self, batch: Batch) -> dict[str, Term]:
        """`loss`, under the name that DeepSpeed calls."""
        return self.loss(batch)

    def collate(self, rows: Mapping[str, Any]) -> Batch:
        """Rows of the stream as a batch (`r2kg.systems.contract.Model.collate`)."""
        studies = [json.loads(record) if record else {} for record in rows["record"]]
        told = [study.get("triples") for study in studies]
        if "triples" in rows:  # a side's, in place of the record's
            told = [json.loads(bytes(member) or b"null") for member in rows["triples"]]
        answers = [
            triples_text(triples) if ok and triples is not None else None
            for triples, ok in zip(told, rows["valid"], strict=True)
        ]
        input_ids, labels = self.writer.tokenize(answers, self.config.answer_tokens)
        asked = None
        if self.config.report:
            asked = self.writer.ask([study.get("target", "") for study in studies], self.config.report_tokens)
        batch = Batch(asked=asked, input_ids=input_ids, labels=labels)
        if self.vision:
            batch.update(self.vision.collate(rows))  # type: ignore[typeddict-item]
        if "index" in rows:
            batch["index"] = torch.tensor(rows["index"])
        return batch

    def cut(self, records: Sequence[str]) -> list[bool]:
        """Of each study, JSON, whether its triples are longer than model.answer_tokens, their end included, or the
        report that they are read from than model.report_tokens."""
        studies = [json.loads(record) for record in records]
        lengths = self.writer.lengths([triples_text(study["triples"]) for study in studies])
        read = self.writer.lengths([study["target"] if self.config.report else "" for study in studies])
        most, most_read = self.config.answer_tokens, self.config.report_tokens
        return [length > most or asked - 1 > most_read for length, asked in zip(lengths, read, strict=True)]

    def counts(self, batch: Batch) -> dict[str, float]:
        """Target tokens."""
        return {"triples": float((batch["labels"] != IGNORED).sum())}

    def soft_tokens(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Soft tokens [B, n, D], which of them are there (of a study without films none); of LLM-KG [B, 0, D]."""
        if self.vision is None or self.vector is None or self.mapper is None:
            return torch.zeros(len(batch["labels"]), 0, self.writer.width, device=batch["labels"].device), None
        tokens, there = self.vision.see(batch, self.mapper.linear.weight.dtype)
        soft = self.mapper(self.vector(tokens, there))
        return soft, batch["view_mask"].any(1, keepdim=True).expand(soft.shape[:2])

    def loss(self, batch: Batch) -> dict[str, Term]:
        """ "triples": negative log-likelihood of the tokens that list them, in nats."""
        soft, present = self.soft_tokens(batch)
        nll = self.writer.loss(soft, batch["input_ids"], batch["labels"], present, batch["asked"])
        return {"triples": Term(nll, self.counts(batch)["triples"])}

    @torch.no_grad()
    def generate(self, batch: Batch, decoding: Decoding) -> list[Generated]:
        """Write triples for every row, also for invalid ones; dropout is off meanwhile."""
        was_training = self.training
        self.eval()
        try:
            soft, present = self.soft_tokens(batch)
            return self.writer.write(soft, decoding, present, batch.get("index"), batch["asked"])
        finally:
            self.train(was_training)

    def trainable(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Groups of the optimiser (vision, vector, mapper, llm; empty ones left out) → parameters."""
        return trained_groups(self, {"writer": "llm"})

    def padding(self) -> float | None:
        """As `ReportWriter.padding`."""
        return self.writer.padding()

    def gradient_checkpointing(self, on: bool = True) -> None:
        """Recompute activations in backward: less memory, about a third more time."""
        if self.vision:
            self.vision.gradient_checkpointing(on)
        self.writer.gradient_checkpointing(on)

    def fingerprint(self) -> dict[str, Any]:
        """The language model's files, and what of the encoder and the vector's projection is not trained."""
        told: dict[str, Any] = {"llm": self.writer.fingerprint()}
        if self.config.vision and self.vision and self.vector:
            told["vision"] = {"name": self.config.vision.name, "sha256": self.vision.fingerprint()}
            told["vector"] = {"sha256": self.vector.fingerprint()}
        return told
