"""Parts of VLM-KG's configuration: the encoder of MedCLIP, and the one vector that is made of a study's films."""

from pydantic import Field

from r2kg.config.parts import Part
from r2kg.modules.config import Vision

MEDCLIP = Vision(
    name="swin_tiny_patch4_window7_224",
    weights="medclip/pytorch_model.bin",
    tuning="frozen",
    merge="separate",
    fit="pad",
    grey=(0.5862785803, 0.2795008897),
)
"""MedCLIP's encoder, and how it is shown films. `weights` names its file, which is not to be had from a hub: the zip
medclip-vit-pretrained that MedCLIP's repository links to. Without it a run is refused; weights=timm is ImageNet's."""


class Vector(Part):
    """One vector of a study's films, as MedCLIP makes it (Wang et al. 2022): tokens' mean, a projection, length 1."""

    projection: int = Field(default=512, ge=0)
    """Channels of the vector. Weights are MedCLIP's where the encoder's are, and then frozen with it; else they are
    drawn, and trained. 0: no projection, the mean of the encoder's tokens as it is."""
    normalise: bool = True
    """Bring a film's vector to length 1, as MedCLIP does."""
