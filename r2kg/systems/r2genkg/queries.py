"""R2GenKG's disease queries: they read the film, and ask the vision-token bank, which is taken before the run.

Shapes: B batch, P film tokens, Q queries, M tokens of the bank, W width of queries and bank, D_v vision width.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from r2kg.config.needs import Artefact
from r2kg.config.run import Run
from r2kg.graph.bank.artefact import load_training_bank
from r2kg.systems.r2genkg.parts import Bank, Queries
from shards.errors import ConfigError, DataError
from shards.tars.format import Manifest

FILE, CELLS = "tokens.safetensors", "cells.json"
RELEASED = 6943
"""M of R2GenKG's bank, for counting where there is none."""


def artefact(config: Bank, width: int, run: Run, manifest: Manifest, into: str) -> Artefact:
    """The tokens of the run's bank, as what a run needs made.

    Raises:
        ConfigError: they are of another width than the queries'.
        DataError: no bank, or one of other shards.
    """
    bank = load_training_bank(where := config.place or f"{run.data.shards}/bank", manifest)
    if (held := bank.tokens.shape[1]) != width:
        raise ConfigError(
            f"the tokens of the bank at {where} have {held} channels, model.queries.width={width}: make them equal, or "
            f"the bank anew with `r2kg graph bank SHARDS --classifier RUN --width {width} --replace`"
        )

    def make(folder: Path) -> None:
        kept = bank.first(config.per_label)
        save_file({"tokens": torch.from_numpy(bank.tokens[kept])}, folder / FILE)
        told = [[bank.manifest.labels[bank.label[at]], bank.cells["study"][at].as_py()] for at in kept.tolist()]
        (folder / CELLS).write_text(json.dumps(told))

    lacking = [label for label, count in bank.manifest.counts.items() if not count]
    none_of = f"; it has none of {', '.join(lacking)}" if lacking else ""
    return Artefact(
        name="bank",
        settings={"bank": bank.manifest.fingerprint, "per_label": config.per_label},
        make=make,
        into=into,
        sentence=f"Taking {len(bank.first(config.per_label)):,} of {len(bank.tokens):,} tokens of the bank{none_of}",
    )


class BankAttention(nn.Module):
    """Queries ask the bank by one head of soft attention: no residual, no norm, no map behind it (R2GenKG §1.2).

    Raises:
        ConfigError: no tokens were taken yet, they cannot be read, or they are of another width.
    """

    tokens: Tensor

    def __init__(self, config: Bank, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.cells: list[list[str]] = []
        """[finding, study] of every token."""
        if not config.tokens_at:
            if torch.get_default_device().type != "meta":  # there it is only counted
                raise ConfigError("model.queries.bank.tokens_at is empty: tokens are taken before the run (prepare)")
            held = torch.empty(RELEASED, width)
        else:
            held, self.cells = _read(Path(config.tokens_at))
        if held.shape[1] != width:
            raise ConfigError(
                f"the bank's tokens have {held.shape[1]} channels, model.queries.width={width}: make them equal"
            )
        self.register_buffer("tokens", held, persistent=False)

    def forward(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """softmax(Q W_q (M W_k)ᵀ / √W) M W_v, [B, Q, W], and its weights [B, Q, M], from queries [B, Q, W]."""
        tokens = self.tokens.to(queries.dtype)
        scores = self.query(queries) @ self.key(tokens).T / tokens.shape[1] ** 0.5
        weights = scores.float().softmax(-1)
        return weights.to(queries.dtype) @ self.value(tokens), weights


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
        self.bank = BankAttention(config.bank, config.width) if config.bank else None
        self.shown = config.shown
        self.out = nn.Linear(config.width, width)
        nn.init.normal_(self.out.weight, std=0.02)
        nn.init.zeros_(self.out.bias)

    def forward(self, film: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Queries and what the bank answered them, [B, Q, D_v] or [B, 2Q, D_v], from film tokens [B, P, D_v].

        And how much each token of the bank was asked, [B, M]; None without a bank.

        Args:
            present: bool [B, P], False at film tokens that are not there.
        """
        tokens = self.tokens.expand(len(film), -1, -1)
        mask = None if present is None else present.long()
        read = self.qformer(tokens, encoder_hidden_states=self.film(film), encoder_attention_mask=mask)
        states = read.last_hidden_state.to(film.dtype)
        parts, weights = [states] if self.shown else [], None
        if self.bank:
            answer, weights = self.bank(states)
            parts.append(answer)
        return self.out(torch.cat(parts, 1)), None if weights is None else weights.mean(1)


def _read(folder: Path) -> tuple[Tensor, list[list[str]]]:
    """Tokens, and of what they are; DataError where `artefact` has not left them."""
    try:
        tokens, cells = load_file(folder / FILE)["tokens"], json.loads((folder / CELLS).read_bytes())
        if len(cells) != len(tokens):
            raise ValueError("another number of cells")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        cause = type(error).__name__
        raise DataError(f"{folder} cannot be read ({cause}): delete it, and submit the run again") from None
    return tokens, cells
