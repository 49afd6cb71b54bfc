"""One vector of a study's films, as MedCLIP's image tower makes it.

Shapes: B batch, V views, P patches, D the encoder's width, W the vector's.
"""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from r2kg.modules.config import Vision
from r2kg.modules.medclip import is_medclip, projection_of
from r2kg.modules.vision import read_weights
from r2kg.systems.vlm_kg.parts import Vector


class FilmVector(nn.Module):
    """Tokens of films → a vector: the mean of a film's, projected, of length 1; of a study the mean over its films.

    Attributes:
        projection: Linear without bias; None where the mean of tokens is the vector.
        width: W.

    Args:
        vision: the encoder whose tokens these are; MedCLIP's file holds the projection beside it.
        channels: D.

    Raises:
        ConfigError: MedCLIP's file without a projection, or with one of other channels.
    """

    def __init__(self, config: Vector, vision: Vision, channels: int) -> None:
        super().__init__()
        self.config, self.width = config, config.projection or channels
        self.projection = nn.Linear(channels, self.width, bias=False) if config.projection else None
        if self.projection is None or vision.weights in {"timm", "random", "package"}:
            return
        state = read_weights(Path(vision.weights).expanduser(), "model.vision.weights")
        if is_medclip(state):
            known = projection_of(state, channels, self.width, f"model.vision.weights={vision.weights}")
            with torch.no_grad():
                self.projection.weight.copy_(known)
            self.projection.requires_grad_(vision.tuning != "frozen")

    def forward(self, tokens: Tensor, there: Tensor) -> Tensor:
        """The vectors of studies [B, W], in the tokens' dtype; zeros where there was no film.

        Args:
            tokens: [B, V, P, D], `there`: bool [B, V], True where there is a film.
        """
        films = tokens.mean(2)  # [B, V, D]
        if self.projection is not None:
            films = self.projection(films.to(self.projection.weight.dtype))  # [B, V, W]
        films = F.normalize(films.float(), dim=-1) if self.config.normalise else films.float()
        share = there / there.sum(1, keepdim=True).clamp(min=1)  # [B, V], 0 where there is no film
        return (films * share[..., None]).sum(1).to(tokens.dtype)

    def fingerprint(self) -> str:
        """SHA-256 of a projection that is not trained; "" where there is none."""
        if self.projection is None or self.projection.weight.requires_grad:
            return ""
        weight = self.projection.weight.detach().cpu().contiguous()
        bits = weight.reshape(-1).view(torch.uint8).numpy().tobytes()
        return hashlib.sha256(f"{weight.dtype} {tuple(weight.shape)}".encode() + bits).hexdigest()
