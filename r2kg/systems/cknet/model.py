"""CKNet (Kang et al. 2023): image encoder, knowledge matrix, R2Gen's Transformer. Without knowledge it is Base.

Shapes: B batch, V views, P patches, S = V·P film tokens, T words, D width, D_v vision width, N vectors of the matrix.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NotRequired, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from r2kg.config.parts import Decoding
from r2kg.modules.beams import Generated, decode
from r2kg.modules.llm.packing import IGNORED
from r2kg.modules.vision import VisionEncoder
from r2kg.systems.cknet.config import CKNetConfig
from r2kg.systems.cknet.knowledge import KnowledgeMemory, Taken, named_shares, sha256_of
from r2kg.systems.cknet.released import ReleasedGraph
from r2kg.systems.cknet.transformer import Cache, EncoderDecoder, Pair, places, reorder
from r2kg.systems.cknet.vocabulary import WORDS, encode, read_vectors, read_vocabulary
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
    words: Tensor
    """int64 [B, T], what is read: 0, then the report."""
    wanted: Tensor
    """int64 [B, T], what follows each; -100 where nothing is to be written."""
    index: NotRequired[Tensor]
    """int64 [B], the study's place in its split, -1 on an invalid row that only fills the batch."""


class Seen(NamedTuple):
    """What the encoder makes of the films of a batch."""

    states: Tensor
    """[B, S, D]."""
    mask: Tensor | None
    """bool [B, 1, 1, S], which of them are there."""
    taken: Tensor | None
    """[B, S, N], what the film took of the matrix."""
    read: Pair | None
    """Keys and values that words ask in training too, where each study has its own (matrix=released)."""


class CKNet(nn.Module):
    """Film tokens and words ask one knowledge matrix; what they have taken goes into encoder and decoder (Eq. 10, 11).

    A word's vector and its question depend on that word and its place alone, so that what is learned from whole reports
    and what is written word by word are the same (BERT's last states of a whole report would tell the words to come).

    Raises:
        ConfigError: a part cannot be built from its configuration.
    """

    mutable = ()

    def __init__(self, config: CKNetConfig) -> None:
        super().__init__()
        self.config, width = config, config.transformer.width
        self.vision = VisionEncoder(config.vision)
        self.tokenizer = read_vocabulary(config.words_at)
        count = len(self.tokenizer) if self.tokenizer else WORDS
        self.film = nn.Sequential(
            nn.Linear(self.vision.width, width), nn.ReLU(), nn.Dropout(config.transformer.film_dropout)
        )
        self.knowledge = KnowledgeMemory(config.knowledge, width) if config.knowledge else None
        self.released: ReleasedGraph | None = None
        if config.knowledge and config.knowledge.matrix == "released":
            self.released = ReleasedGraph(self.vision.width, config.knowledge.seed)
        self.words = WordVectors(config, count)
        self.transformer = EncoderDecoder(config.transformer, count)

    def forward(self, batch: Batch) -> dict[str, Term]:
        """`loss`, under the name that DeepSpeed calls."""
        return self.loss(batch)

    def collate(self, rows: dict[str, Any]) -> Batch:
        """Rows of the stream as a batch (`r2kg.systems.contract.Model.collate`)."""
        assert self.tokenizer is not None
        words, wanted = encode(self.tokenizer, targets_of(rows), self.config.report_tokens)
        batch = Batch(**self.vision.collate(rows), words=words, wanted=wanted)  # type: ignore[typeddict-item]
        if "index" in rows:
            batch["index"] = torch.tensor(rows["index"])
        return batch

    def cut(self, records: Sequence[str]) -> list[bool]:
        """Whether each report, JSON of a Study, has more ids than model.report_tokens, both 0 included."""
        most = self.config.report_tokens
        return [len(json.loads(record)["target"].split()) + 2 > most for record in records]

    def counts(self, batch: Batch) -> dict[str, float]:
        """Words that are to be written."""
        return {"report": float((batch["wanted"] != IGNORED).sum())}

    def loss(self, batch: Batch) -> dict[str, Term]:
        """ "report": negative log-likelihood of the words, in nats."""
        states, mask, _, read = self.see(batch)
        words, _ = self.words_of(batch["words"], read=read)
        logits, _ = self.transformer.decode(words, self.transformer.read(states), mask)
        wanted = batch["wanted"]
        nll = F.cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="sum")
        return {"report": Term(nll, self.counts(batch)["report"])}

    def see(self, batch: Batch) -> Seen:
        """What the encoder makes of the films of a batch."""
        tokens, present = self.vision.see(batch, self.transformer.logits.weight.dtype)  # [B, S, D_v]
        film, taken, read = self.film(tokens), None, None
        if self.knowledge:
            if self.released:
                grids = tokens.unflatten(1, (-1, self.vision.patches))
                there = batch["view_mask"] if present is not None else batch["view_mask"].any(1, keepdim=True)
                read = self.knowledge.read(self.film(self.released(grids, there)))
            film, taken = self.knowledge(film, "film", read)
        if self.config.transformer.film_places:
            film = self.words.dropout(film + places(film.shape[1], film.shape[2]).to(film))
        states, mask = self.transformer.encode(film, present)
        if taken is not None and present is not None:
            taken = taken * present[..., None]
        return Seen(states, mask, taken, read)

    def words_of(self, ids: Tensor, start: int = 0, read: Pair | None = None) -> tuple[Tensor, Tensor | None]:
        """Vectors [B, T, D] of words int64 [B, T] that have asked the matrix, and what they took of it [B, T, N].

        Args:
            start: the first one's place in the report.
            read: keys and values of the matrix, where it is asked many times.
        """
        words = self.words(ids, start)
        return self.knowledge(words, "words", read) if self.knowledge else (words, None)

    @torch.no_grad()
    def generate(self, batch: Batch, decoding: Decoding) -> list[Generated]:
        """Write a report for every row, also for invalid ones; dropout is off meanwhile."""
        was_training = self.training
        self.eval()
        try:
            states, mask, taken, _ = self.see(batch)
            decoder: Any = WordDecoder(self)
            written = decode(decoder, (states, mask), decoding, self.tokenizer, batch.get("index"))  # type: ignore[arg-type]
            return [one._replace(extra=self._evidence(one, taken, row)) for row, one in enumerate(written)]
        finally:
            self.train(was_training)

    @torch.no_grad()
    def look(self, batch: Batch, text: str) -> Taken:
        """What the films of a batch of one study, and the words of a report of it, take of the matrix.

        Raises:
            ConfigError: there is no matrix.
        """
        if self.knowledge is None:
            raise ConfigError("the run has no knowledge matrix (model.knowledge=null): nothing is taken of it")
        return self._taken(self.see(batch).taken[0], text)  # type: ignore[index]

    def _taken(self, film: Tensor, text: str) -> Taken:
        """What a study's film took of the matrix, [S, N], and what the words of its report take."""
        assert self.tokenizer is not None and self.knowledge is not None
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        of_words = film.new_zeros(0, len(self.knowledge.names))
        if ids:
            of_words = self.words_of(torch.tensor([ids], device=film.device), start=1)[1][0]  # type: ignore[index]
        return Taken(self.knowledge.names, film, tuple(self.tokenizer.convert_ids_to_tokens(ids)), of_words)

    def _evidence(self, written: Generated, taken: Tensor | None, row: int) -> dict[str, Any]:
        """The nodes that film and words of a report took most; {} where there is no matrix of named nodes."""
        most = self.config.evidence
        if taken is None or not most or self.knowledge is None:
            return {}
        study = self._taken(taken[row], written.text)
        return named_shares({"film": study.film, "words": study.of_words}, study.names, most)

    def trainable(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Groups of the optimiser (vision, film, knowledge, transformer; empty ones left out) → named parameters."""
        return trained_groups(self, {"words": "transformer"})

    def gradient_checkpointing(self, on: bool = True) -> None:
        """Recompute the image encoder's activations in backward: less memory, about a third more time."""
        self.vision.gradient_checkpointing(on)

    def fingerprint(self) -> dict[str, Any]:
        """What is not trained: the encoder's weights, the matrix, the words and their vectors."""
        told: dict[str, Any] = {"vision": {"name": self.config.vision.name, "sha256": self.vision.fingerprint()}}
        told["words"] = {"sha256": self.words.fingerprint(self.tokenizer)}
        if self.knowledge and not self.knowledge.config.trained:
            told["knowledge"] = {"sha256": sha256_of(self.knowledge.matrix)}
        if self.released:
            told["released"] = {"sha256": sha256_of(torch.cat([p.flatten() for p in self.released.parameters()]))}
        return told


class WordVectors(nn.Module):
    """Ids of words → vectors with their places: learned, or a fixed table under a learned map. × √D, then dropout."""

    table: Tensor

    def __init__(self, config: CKNetConfig, count: int) -> None:
        super().__init__()
        width = config.transformer.width
        self.scale, self.dropout = width**0.5, nn.Dropout(config.transformer.dropout)
        self.learned = nn.Embedding(count, width) if config.transformer.text is None else None
        if config.transformer.text is not None:
            self.register_buffer("table", read_vectors(config.words_at), persistent=False)  # [V + 1, D_t]
            self.map = nn.Linear(self.table.shape[1], width)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, ids: Tensor, start: int = 0) -> Tensor:
        """[B, T, D] from int64 [B, T], the first of which stands at place `start`."""
        x = self.learned(ids) if self.learned is not None else self.map(self.table[ids].to(self.map.weight.dtype))
        return self.dropout(x * self.scale + places(ids.shape[1], x.shape[-1], start).to(x))

    def fingerprint(self, tokenizer: Any) -> str:
        """SHA-256 of the words in their order and of their vectors where these are fixed."""
        digest = hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
        if self.learned is None:
            digest.update(self.table.contiguous().numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class WordDecoder:
    """The model as what `r2kg.modules.beams` writes with; a batch is (states [B, S, D], mask)."""

    model: CKNet

    def first(self, batch: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Cache]:
        """Read the film: logits [B, V + 1] of the first word."""
        states, mask = batch
        film = self.model.transformer.read(states)
        begin = torch.zeros(len(states), 1, dtype=torch.long, device=states.device)
        read = self.model.knowledge.read() if self.model.knowledge else None
        logits, held = self.model.transformer.decode(self.model.words_of(begin, 0, read)[0], film, mask)
        return logits[:, -1], Cache(held, film, mask, torch.arange(len(states), device=states.device), read)

    def step(self, tokens: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """Read one more word per row, int64 [n]."""
        so_far = cache.words[0][0].shape[2]
        word, _ = self.model.words_of(tokens[:, None], so_far, cache.knowledge)
        return self.model.transformer.step(word, cache)

    def reorder(self, cache: Cache, parents: Tensor) -> Cache:
        """Row i goes on from row parents[i]."""
        return reorder(cache, parents)
