"""Parts of VLM-KG's configuration: the tower that makes one vector of a film."""

from typing import Self

from pydantic import Field, model_validator

from r2kg.config.parts import Part
from r2kg.modules.config import Vision

MEDCLIP = Vision(
    name="swin_tiny_patch4_window7_224", tuning="frozen", merge="separate", fit="pad", grey=(0.5862785803, 0.2795008897)
)
"""MedCLIP's encoder, and how it is shown films; `weights` names its file."""


class Tower(Part):
    """MedCLIP's image tower (Wang et al. 2022): an encoder, the mean of its tokens, a projection, length 1."""

    vision: Vision = MEDCLIP
    """Image encoder. weights=FILE, MedCLIP's, brings the projection along."""
    projection: int = Field(default=512, ge=0)
    """Channels of the vector. Weights are MedCLIP's where the encoder's are, and then frozen with it; else they are
    drawn, and trained. 0: no projection, the mean of the encoder's tokens as it is."""
    normalise: bool = True
    """Bring a film's vector to length 1, as MedCLIP does."""

    @model_validator(mode="after")
    def _films_are_apart(self) -> Self:
        if self.vision.merge != "separate":
            raise ValueError(
                f"vision.merge={self.vision.merge}: a vector is made of every film alone, and then their mean: set "
                "vision.merge=separate"
            )
        return self
