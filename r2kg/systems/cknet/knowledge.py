"""Knowledge distillation and preservation (CKNet §III-C): tokens ask a matrix and take its answer.

Shapes: B batch, T tokens (patches or words), N vectors of the matrix, D_g their width, H heads, D width, γ vectors that
are taken.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from r2kg.config.needs import Artefact
from r2kg.config.run import Run
from r2kg.graph.matrix.artefact import load_training_matrix
from r2kg.systems.cknet.parts import Fuse, Knowledge
from shards.errors import ConfigError, DataError
from shards.tars.format import Manifest

FILE, NAMES = "matrix.safetensors", "names.json"
Pair = tuple[Tensor, Tensor]
PAPER = (40, 512)
"""N and D_g of CKNet's matrix, for counting where there is none."""


def artefact(config: Knowledge, run: Run, manifest: Manifest, into: str) -> Artefact:
    """The run's knowledge matrix, as what a run needs made.

    Raises:
        ConfigError: γ is more than it has vectors.
        DataError: no matrix, or one of other shards.
    """
    own, other = (f"{run.data.shards}/{name}" for name in ("knowledge", "knowledge-other"))
    matrix = load_training_matrix(where := config.place or (other if config.control == "other" else own), manifest)
    by_default = config.control == "other" and not config.place
    if by_default and load_training_matrix(own, manifest).manifest.graph == matrix.manifest.graph:
        raise DataError(
            f"{other} and {own} are of the same graph, and model.knowledge.control=other asks for another's: make one "
            "with `r2kg graph findings SHARDS --kind kg30-code --out G`, a run of gcn with model.graph.place=G, and "
            f"`r2kg graph matrix SHARDS --graph G --classifier RUN --out {other}`"
        )
    _refuse_gamma(config, len(matrix.vectors), f"the matrix at {where}")

    def make(folder: Path) -> None:
        vectors, names, rng = matrix.vectors, matrix.manifest.nodes, np.random.default_rng(config.seed)
        if config.control == "values":
            vectors = rng.permuted(vectors, axis=0)
        if config.control == "random":
            drawn = rng.normal(size=vectors.shape)
            vectors = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
            names = ("",) * len(names)
        save_file({"vectors": torch.from_numpy(np.ascontiguousarray(vectors))}, folder / FILE)
        (folder / NAMES).write_text(json.dumps(names))

    made_of = (matrix.manifest.description.get("findings") or {}).get("made_of", "")
    settings: dict[str, Any] = {"matrix": matrix.manifest.fingerprint, "findings_of": made_of}
    return Artefact(
        name="knowledge",
        settings=settings | ({} if config.control == "none" else {"control": config.control, "seed": config.seed}),
        make=make,
        into=into,
        sentence=f"Taking a knowledge matrix of {len(matrix.vectors)} nodes, their graph made of {made_of or '?'}",
    )


class KnowledgeMemory(nn.Module):
    """A matrix that film tokens and words ask with the same W_q, W_k and W_g, each through heads of their own.

    Attributes:
        matrix: [N, D_g], a buffer that no engine casts, shards or trains; a parameter where `config.trained`.
        names: of the vectors; "" where they were drawn.

    Raises:
        ConfigError: no matrix was taken yet; γ is more than it has vectors.
    """

    matrix: Tensor

    def __init__(self, config: Knowledge, width: int) -> None:
        """`width` is D, that of the tokens."""
        super().__init__()
        self.config, self.heads = config, config.heads
        vectors, self.names = _held(config)
        _refuse_gamma(config, len(vectors), "the matrix")
        if config.trained:
            self.matrix = nn.Parameter(vectors)
        else:
            self.register_buffer("matrix", vectors, persistent=False)
        self.query = nn.Linear(width, width, bias=False)
        self.key, self.value = (nn.Linear(vectors.shape[1], width, bias=False) for _ in range(2))
        self.out = nn.Linear(width, width) if config.out else nn.Identity()
        self.film, self.words = (
            nn.Linear(2 * width, width) if how in ("concat", "released") else nn.Identity()
            for how in (config.fuse_film, config.fuse_words)
        )

    def forward(self, tokens: Tensor, of: str, read: Pair | None = None) -> tuple[Tensor, Tensor]:
        """Tokens that have taken the matrix's answer, [B, T, D], and what they took of it, [B, T, N].

        Args:
            tokens: [B, T, D]; every token asks alone.
            of: "film" or "words", whose FC is used.
            read: what `read` gave, where the matrix is asked many times.
        """
        answer, taken = self.ask(tokens, read)
        how: Fuse = self.config.fuse_film if of == "film" else self.config.fuse_words
        if how == "none":
            return tokens, torch.zeros_like(taken)
        if how == "add":
            return tokens + answer, taken
        if how == "released":
            tokens = tokens + answer
        return self.get_submodule(of)(torch.cat((tokens, answer), -1)), taken

    def read(self, matrix: Tensor | None = None) -> Pair:
        """Keys and values of the matrix, [H, N, d] both; of `matrix` [B, N, D_g], one for every study, [B, H, N, d]."""
        matrix = (self.matrix if matrix is None else matrix).to(self.key.weight.dtype)
        return self._split(self.key(matrix)), self._split(self.value(matrix))

    def ask(self, tokens: Tensor, read: Pair | None = None) -> tuple[Tensor, Tensor]:
        """The answer r [B, T, D] and the heads' mean weights [B, T, N] (Eq. 4-8), from tokens [B, T, D].

        D_i = q · k_i / √d in every head; the γ highest are kept, weighed, and Σ w_j g_j W_g is what is answered.
        """
        q, (k, v) = self._split(self.query(tokens)), read or self.read()
        scores = (q @ k.transpose(-1, -2)).float() / q.shape[-1] ** 0.5  # [B, H, T, N]
        best, place = scores.topk(self.config.top_gamma, dim=-1)  # [B, H, T, γ]
        weights = torch.zeros_like(scores).scatter(-1, place, self._weigh(best))
        answer = weights.to(v.dtype) @ v  # [B, H, T, d]
        return self.out(answer.transpose(-2, -3).flatten(-2)), weights.mean(-3)

    def _weigh(self, scores: Tensor) -> Tensor:
        """Weights of the γ that are taken, which add up to 1."""
        if self.config.weights == "softmax":
            return scores.softmax(-1)
        positive = scores.relu()
        total = positive.sum(-1, keepdim=True)
        none = total <= torch.finfo(total.dtype).tiny
        return torch.where(none, 1 / scores.shape[-1], positive / total.masked_fill(none, 1.0))

    def _split(self, x: Tensor) -> Tensor:
        """[..., T, D] → [..., H, T, d]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(-2, -3)


class Taken(NamedTuple):
    """What the films of a study and the words of its report took of the matrix, for a picture."""

    names: tuple[str, ...]
    """Of the N vectors."""
    film: Tensor
    """[V·P, N], or [P, N] of averaged films: a row a place, whose weights add up to 1; 0 where there is no film."""
    words: tuple[str, ...]
    """Of the report; none where words do not ask."""
    of_words: Tensor
    """[T, N], the same for words."""


def named_shares(taken: Mapping[str, Tensor], names: Sequence[str], most: int) -> dict[str, Any]:
    """What predictions.jsonl says of a report: the nodes that were taken most, with their shares; {} without names.

    Args:
        taken: of what ("film", "words") → weights [T, N].
        most: nodes that are told; 0: none.
    """
    if not most or not any(names):
        return {}
    told = dict[str, list[tuple[str, float]]]()
    for what, weights in taken.items():
        share = weights.float().sum(0) / weights.float().sum().clamp(min=1e-9)
        if not share.any():
            continue  # words that do not ask
        values, places = share.topk(min(most, len(share)))
        named = (names[at] for at in places.tolist())
        told[what] = [(name, round(value, 4)) for name, value in zip(named, values.tolist(), strict=True)]
    return {"knowledge": told}


def sha256_of(values: Tensor) -> str:
    """Of an fp32 tensor's bytes, on the CPU."""
    return hashlib.sha256(values.detach().contiguous().numpy().tobytes()).hexdigest()


def _refuse_gamma(config: Knowledge, rows: int, what: str) -> None:
    if config.top_gamma > rows:
        raise ConfigError(f"model.knowledge.top_gamma={config.top_gamma}, and {what} has {rows} vectors: take fewer")


def _held(config: Knowledge) -> tuple[Tensor, tuple[str, ...]]:
    """Vectors [N, D_g] and their names."""
    if config.matrix != "graph":
        shape = (config.rows, config.width)
        if torch.get_default_device().type == "meta":
            return torch.empty(shape), ("",) * config.rows
        drawn = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(config.seed), device="cpu")
        return nn.functional.normalize(drawn, dim=-1), ("",) * config.rows
    if not config.matrix_at:
        if torch.get_default_device().type != "meta":  # there it is only counted
            raise ConfigError("model.knowledge.matrix_at is empty: the matrix is taken before the run (prepare)")
        return torch.empty(PAPER), ("",) * PAPER[0]
    folder = Path(config.matrix_at)
    try:
        vectors, names = load_file(folder / FILE)["vectors"], json.loads((folder / NAMES).read_bytes())
        if vectors.ndim != 2 or len(names) != len(vectors):
            raise ValueError("another number of names")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        cause = type(error).__name__
        raise DataError(f"{folder} cannot be read ({cause}): delete it, and submit the run again") from None
    return vectors, tuple(map(str, names))
