"""Parts of a system's configuration that name the modules it is composed of; nothing heavy is imported here."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from r2kg.config.parts import Local, Part
from shards.films.augment import Augment

PROMPT = "Generate a comprehensive and detailed diagnosis report for this chest xray image."
"""The instruction of R2GenGPT, and of its kin."""


class Lora(Part):
    """Low-rank adaptation (Hu et al. 2021) by peft."""

    rank: int = Field(default=16, ge=1)
    """Rank r of the update."""
    alpha: int = Field(default=16, ge=1)
    """Scale: the update is multiplied by alpha / rank."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout on the adapter's input."""


class Vision(Part):
    """Image encoder, a timm model."""

    name: str = "swin_base_patch4_window7_224"
    """timm model name."""
    weights: Local = "timm"
    """"timm": the pretrained weights timm names (needs the hub); "random"; or a local safetensors file."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Arguments for timm.create_model that change the architecture (embed_dim, depths, ...)."""
    image_px: int = Field(default=224, ge=16)
    """Side of the square film the encoder sees, in pixels."""
    augment: Augment = Augment()
    """Seeded changes of the films in training, all off by default."""
    views: Literal["average", "concatenate", "separate"] = "average"
    """How the films of a study become tokens. average: the mean of their token grids; concatenate: their grids one
    after the other, as R2Gen reads IU X-Ray; separate: a grid per film, for systems that treat films alone."""
    tuning: Literal["frozen", "lora", "full"] = "full"
    """frozen: R2GenGPT shallow; lora on attention query and value: delta; full: deep."""
    lora: Lora = Lora()
    """Adapter settings for tuning="lora"."""

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if (side := self.augment.resize_px) is not None and side < self.image_px:
            raise ValueError(
                f"augment.resize_px={side} is below image_px={self.image_px}: a film of the encoder's side cannot be "
                f"cut from it. Use {self.image_px} or more, such as {round(self.image_px * 8 / 7)}, or null for no crop"
            )
        return self


class TinyLm(Part):
    """The small causal LM that stands in for a hub model when there is none: trained on the training reports."""

    width: int = Field(default=128, ge=16)
    """Hidden size."""
    layers: int = Field(default=2, ge=1)
    """Transformer layers."""
    heads: int = Field(default=4, ge=1)
    """Attention heads."""
    vocabulary: int = Field(default=1000, ge=300)
    """Size of the byte-level BPE tokenizer, at most."""
    epochs: int = Field(default=5, ge=1)
    """Passes over the training reports."""
    lr: float = Field(default=2e-3, gt=0)
    """Peak learning rate of AdamW."""


class Llm(Part):
    """Language model that writes the report, any Hugging Face causal LM."""

    source: Local = "meta-llama/Llama-2-7b-chat-hf"
    """Hub id or local directory; "tiny": a small LM trained on the training reports of the shards before the run."""
    revision: str | None = None
    """Hub revision; None is the default branch."""
    tuning: Literal["frozen", "lora", "full"] = "frozen"
    """What of the language model is trained."""
    lora: Lora = Lora()
    """Adapter settings for tuning="lora"."""
    tiny: TinyLm = TinyLm()
    """Settings of the LM that is made when `source` is "tiny"."""
