"""R2Gen's Transformer (Chen et al. 2020): an encoder of film tokens, a decoder of words that keeps what it has read.

Shapes: B studies, S film tokens, T words, n rows of a cache, D width, H heads, d = D / H.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from r2kg.systems.cknet.parts import Transformer

Pair = tuple[Tensor, Tensor]
"""Keys and values of one layer, [rows, H, tokens, d] both."""


class Norm(nn.Module):
    """LayerNorm of this lineage: γ (x - mean) / (σ + 1e-6) + β with the unbiased deviation σ, in fp32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] from [..., D]; of equal channels β, with gradients of 0."""
        wide = x.float()
        apart = wide - wide.mean(-1, keepdim=True)
        deviation = torch.linalg.vector_norm(apart, dim=-1, keepdim=True) / (x.shape[-1] - 1) ** 0.5
        return (self.weight.float() * (apart / (deviation + 1e-6)) + self.bias.float()).to(x.dtype)


class Attention(nn.Module):
    """Multi-head attention (CKNet Eq. 2, 3) whose keys and values are made apart, so that they can be kept."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def read(self, x: Tensor) -> Pair:
        """Keys and values [B, H, S, d] of tokens [B, S, D]."""
        return self._split(self.key(x)), self._split(self.value(x))

    def forward(self, x: Tensor, held: Pair, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """[B, T, D]: what tokens [B, T, D] take of keys and values [B, H, S, d].

        Args:
            mask: bool, broadcast to [B, H, T, S], False where nothing is to be taken.
            causal: token t takes of the first t + 1 alone; T = S.
        """
        dropout = self.dropout if self.training else 0.0
        taken = F.scaled_dot_product_attention(self._split(self.query(x)), *held, mask, dropout, causal)
        return self.out(taken.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        """[B, T, D] → [B, H, T, d]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Layer(nn.Module):
    """One layer, pre-norm: attention among its own tokens, in a decoder to the film, then a feed-forward network."""

    def __init__(self, config: Transformer, decodes: bool) -> None:
        super().__init__()
        width, drop = config.width, config.dropout
        self.own = Attention(width, config.heads, drop)
        self.film = Attention(width, config.heads, drop) if decodes else None
        self.forwards = nn.Sequential(
            nn.Linear(width, config.hidden), nn.ReLU(), nn.Dropout(drop), nn.Linear(config.hidden, width)
        )
        self.norms = nn.ModuleList(Norm(width) for _ in range(3 if decodes else 2))
        self.dropout = nn.Dropout(drop)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        film: Pair | None = None,
        before: Pair | None = None,
        causal: bool = False,
        parents: Tensor | None = None,
    ) -> tuple[Tensor, Pair]:
        """Tokens [B, T, D] → [B, T, D], and the keys and values of all tokens so far.

        Args:
            mask: bool [m, 1, 1, S] of film tokens that are there.
            film: keys and values of the film, [m, H, S, d]; B is a multiple of m, and every B / m rows share a film.
            before: keys and values of the tokens before these, [n, H, t, d].
            parents: int64 [B], the row of `before` that each row goes on from; None: its own.
        """
        asked = self.norms[0](x)
        held = self.own.read(asked)
        if before is not None:
            held = longer(before[0], held[0], parents), longer(before[1], held[1], parents)
        x = x + self.dropout(self.own(asked, held, mask if film is None else None, causal))
        if self.film is not None and film is not None:
            rows, tokens, width = x.shape
            shared = self.norms[1](x).reshape(len(film[0]), -1, width)  # rows of a film are as so many more tokens
            x = x + self.dropout(self.film(shared, film, mask).reshape(rows, tokens, width))
        return x + self.dropout(self.forwards(self.norms[-1](x))), held


def longer(before: Tensor, more: Tensor, parents: Tensor | None) -> Tensor:
    """Rows `parents` of [n, H, t, d], with [B, H, T, d] behind them: [B, H, t + T, d], copied once."""
    if parents is None:
        return torch.cat((before, more), 2)
    rows, heads, new, width = more.shape
    held = more.new_empty(rows, heads, before.shape[2] + new, width)
    torch.index_select(before, 0, parents, out=held[:, :, :-new])
    held[:, :, -new:] = more
    return held


class Cache(NamedTuple):
    """What a decoder has read."""

    words: tuple[Pair, ...]
    """Of every layer, of n rows and the t words so far."""
    film: tuple[Pair, ...]
    """Of every layer, of m films."""
    mask: Tensor | None
    """bool [m, 1, 1, S]; None: all tokens of all films are there."""
    whose: Tensor
    """int64 [n], each row's film."""
    knowledge: Pair | None = None
    """Of the matrix."""
    parents: Tensor | None = None
    """int64 [n], the row of `words` that each row goes on from: they are moved when the next word is read."""


class EncoderDecoder(nn.Module):
    """Film tokens → states; words and states → logits of the words that follow.

    Places are added before it: to words always, to film tokens as `Transformer.film_places` says.
    """

    def __init__(self, config: Transformer, words: int) -> None:
        """`words` is the number of ids, V + 1."""
        super().__init__()
        self.encoder = nn.ModuleList(Layer(config, decodes=False) for _ in range(config.layers))
        self.decoder = nn.ModuleList(Layer(config, decodes=True) for _ in range(config.layers))
        self.encoded, self.decoded = Norm(config.width), Norm(config.width)
        self.logits = nn.Linear(config.width, words)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def encode(self, film: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """States [B, S, D] of film tokens [B, S, D], and the mask [B, 1, 1, S] of those that are there.

        Args:
            present: bool [B, S]; None: all are. Of a study without any film all zeros are read.
        """
        mask = None if present is None else (present | ~present.any(1, keepdim=True))[:, None, None]
        for layer in self.encoder:
            film, _ = layer(film, mask)
        return self.encoded(film), mask

    def read(self, states: Tensor) -> tuple[Pair, ...]:
        """Keys and values of the film for every layer of the decoder."""
        return tuple(layer.film.read(states) for layer in self.decoder)  # type: ignore[union-attr,operator]

    def decode(self, words: Tensor, film: tuple[Pair, ...], mask: Tensor | None) -> tuple[Tensor, tuple[Pair, ...]]:
        """Logits [B, T, V + 1] of the words that follow each of [B, T, D], and what a cache holds of these."""
        held = []
        for layer, shown in zip(self.decoder, film, strict=True):
            words, pair = layer(words, mask, shown, causal=True)
            held.append(pair)
        return self.logits(self.decoded(words)), tuple(held)

    def step(self, word: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """Logits [n, V + 1] of the word after one more, [n, 1, D], and the longer cache."""
        film, mask, held = cache.film, cache.mask, []
        films, rows = len(film[0][0]), len(word)
        each = rows // films if rows % films == 0 else 0
        order = torch.arange(films, device=word.device)
        if not each or not torch.equal(cache.whose, order.repeat_interleave(each)):
            film = tuple((keys[cache.whose], values[cache.whose]) for keys, values in film)
            mask = None if mask is None else mask[cache.whose]
        for layer, shown, before in zip(self.decoder, film, cache.words, strict=True):
            word, pair = layer(word, mask, shown, before, parents=cache.parents)
            held.append(pair)
        return self.logits(self.decoded(word))[:, 0], cache._replace(words=tuple(held), parents=None)


def reorder(cache: Cache, parents: Tensor) -> Cache:
    """A cache whose row i goes on from row parents[i]; films stay where they are."""
    whose = parents if cache.parents is None else cache.parents[parents]
    return cache._replace(parents=whose, whose=cache.whose[parents])


def places(length: int, width: int, start: int = 0) -> Tensor:
    """Sinusoidal places [length, D], from place `start` on: sine in even channels, cosine in odd ones (fp32)."""
    at = torch.arange(start, start + length, dtype=torch.float32)[:, None]
    slow = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * -(math.log(10000.0) / width))
    both = torch.stack((torch.sin(at * slow), torch.cos(at * slow)), -1).flatten(1)
    return both[:, :width]
