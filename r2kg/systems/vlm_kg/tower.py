"""MedCLIP's image tower: one vector of a study's films.

Shapes: B batch, V views, P patches, D the encoder's width, W the vector's.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from r2kg.modules.medclip import is_medclip, projection_of
from r2kg.modules.vision import VisionEncoder, read_weights
from r2kg.systems.vlm_kg.parts import Tower


class FilmTower(nn.Module):
    """Films → a vector: the mean of a film's tokens, projected, of length 1; of a study the mean over its films.

    Attributes:
        vision: the encoder, built first, so that features of a frozen one can be streamed in place of films.
        projection: Linear without bias; None where the mean of tokens is the vector.
        width: W.

    Raises:
        ConfigError: as VisionEncoder; MedCLIP's file without a projection, or with one of other channels.
    """

    def __init__(self, config: Tower) -> None:
        super().__init__()
        self.config, self.vision = config, VisionEncoder(config.vision)
        self.width = config.projection or self.vision.width
        self.projection = nn.Linear(self.vision.width, self.width, bias=False) if config.projection else None
        file = Path(config.vision.weights).expanduser()
        if self.projection is None or config.vision.weights in {"timm", "random", "package"}:
            return
        state = read_weights(file, "model.vision.weights")
        if is_medclip(state):
            known = projection_of(state, self.vision.width, self.width, f"model.vision.weights={file}")
            with torch.no_grad():
                self.projection.weight.copy_(known)
            self.projection.requires_grad_(config.vision.tuning != "frozen")

    def collate(self, rows: Mapping[str, Any]) -> dict[str, Tensor]:
        """What `vectors` wants of the stream's rows, as `VisionEncoder.collate`."""
        return self.vision.collate(rows)

    def vectors(self, batch: Mapping[str, Any], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The vectors of studies [B, W] in `dtype`, and whether there was a film, bool [B]; zeros where there was none.

        Args:
            batch: images uint8 [B, V, S, S] or features bf16 [B, V, P, D], and view_mask bool [B, V].
        """
        own = dtype if self.projection is None else self.projection.weight.dtype
        tokens, _ = self.vision.see(batch, own)  # [B, V, P, D]
        films = tokens.mean(2)  # [B, V, D]
        if self.projection is not None:
            films = self.projection(films)  # [B, V, W]
        films = F.normalize(films.float(), dim=-1) if self.config.normalise else films.float()
        there = batch["view_mask"]
        share = there / there.sum(1, keepdim=True).clamp(min=1)  # [B, V], 0 where there is no film
        return (films * share[..., None]).sum(1).to(dtype), there.any(1)

    def fingerprint(self) -> str:
        """SHA-256 of what is not trained, the projection too, as `VisionEncoder.fingerprint`; "" for nothing."""
        known = self.vision.fingerprint()
        if self.projection is None or self.projection.weight.requires_grad:
            return known
        weight = self.projection.weight.detach().cpu().contiguous()
        bits = weight.reshape(-1).view(torch.uint8).numpy().tobytes()
        return hashlib.sha256(f"{known} {weight.dtype} {tuple(weight.shape)}".encode() + bits).hexdigest()

    def gradient_checkpointing(self, on: bool = True) -> None:
        """As `VisionEncoder.gradient_checkpointing`; the projection has nothing to recompute."""
        self.vision.gradient_checkpointing(on)
