"""VLM-KG's projector: the transformer mapper of ClipCap (Mokady et al. 2021), from one vector to soft tokens.

Shapes: B batch, S channels of the vector, D width of the language model, k = clip_length, n = prefix_length.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from r2kg.systems.vlm_kg.config import Projector


class Layer(nn.Module):
    """Pre-norm attention and MLP: x += attention(norm(x)); x += mlp(norm(x)). No mask, no positions."""

    def __init__(self, width: int, heads: int, ratio: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key_value = nn.Linear(width, width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, int(width * ratio)), nn.ReLU(), nn.Linear(int(width * ratio), width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, k + n, D] → [B, k + n, D]."""
        normed = self.norm1(x)
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(normed), *self.key_value(normed).chunk(2, dim=-1))
        )
        x = x + self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class Mapper(nn.Module):
    """A film's vector as k tokens, and n learned ones beside them; the latter, having asked the former, leave it.

    At 512 channels, k = n = 64 and a language model of 1,024 it has 100,859,904 parameters: no small part beside a
    language model of 464 million.
    """

    def __init__(self, config: Projector, source: int, width: int) -> None:
        super().__init__()
        self.config, self.width = config, width
        self.linear = nn.Linear(source, config.clip_length * width)
        self.prefix = nn.Parameter(torch.randn(config.prefix_length, width))
        self.layers = nn.ModuleList(Layer(width, config.heads, config.mlp_ratio) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width) if config.output_norm else nn.Identity()

    def forward(self, vectors: Tensor) -> Tensor:
        """[B, S] → soft tokens [B, n, D]."""
        told = self.linear(vectors).unflatten(-1, (self.config.clip_length, self.width))
        x = torch.cat((told, self.prefix.expand(len(vectors), -1, -1)), dim=1)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x[:, self.config.clip_length :])
