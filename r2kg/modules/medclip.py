"""MedCLIP's image tower (Wang et al. 2022) in timm's models: the names of its file, and the projection behind it.

Its pytorch_model.bin holds `vision_model.*` beside `text_model.*` and `logit_scale`, which are not read. The encoder is
`vision_model.model.*`: a Swin as Hugging Face names it, with a projection apart, or torchvision's ResNet-50, whose `fc`
is the projection. Which of the two a file is, its names say.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from r2kg.modules.config import Vision
from shards.errors import ConfigError

TOWER, ENCODER = "vision_model.", "vision_model.model."
OUTSIDE = {
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "patch_embed.norm": "embeddings.norm",
    "norm": "layernorm",
}
"""Parts of timm's Swin outside its blocks → those of Hugging Face's."""
INSIDE = {
    "norm1": ("layernorm_before",),
    "attn": ("attention.self",),
    "attn.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attn.proj": ("attention.output.dense",),
    "norm2": ("layernorm_after",),
    "mlp.fc1": ("intermediate.dense",),
    "mlp.fc2": ("output.dense",),
}
"""Parts of a block of timm's Swin → those of Hugging Face's, whose rows are one above the other in timm's."""
NOT_WEIGHTS = ".relative_position_index"
"""End of the names of buffers that follow from the architecture; files of older versions of transformers hold them."""
SHOWN = 3
"""Names that an error quotes of each kind."""


class Variant(NamedTuple):
    """One of MedCLIP's two image towers."""

    name: str
    """timm's name of the encoder."""
    projection: str
    """The tensor that takes pooled tokens to the vector."""


SWIN = Variant("swin_tiny_patch4_window7_224", f"{TOWER}projection_head.weight")
RESNET = Variant("resnet50", f"{ENCODER}fc.weight")


def is_medclip(state: Mapping[str, Tensor]) -> bool:
    """Whether the tensors of a file are MedCLIP's, or mean to be."""
    return any(name.startswith(TOWER) for name in state)


def variant_of(state: Mapping[str, Tensor]) -> Variant:
    """Which of MedCLIP's image towers a file of it holds."""
    return RESNET if any(name.startswith(f"{ENCODER}conv1.") for name in state) else SWIN


def swin_names(name: str) -> tuple[str, ...]:
    """Hugging Face's names of what a tensor of timm's Swin is made of: query, key and value of the fused input.

    timm shrinks the grid before a stage, Hugging Face behind the one before it. A name that no Swin of MedCLIP's has
    stays as it is.
    """
    path, _, leaf = name.rpartition(".")
    match path.split("."):
        case ["layers", stage, "downsample", part] if stage.isdecimal():
            return (f"encoder.layers.{int(stage) - 1}.downsample.{part}.{leaf}",)
        case ["layers", stage, "blocks", block, *inner]:
            parts = INSIDE.get(".".join(inner), (".".join(inner),))
            return tuple(f"encoder.layers.{stage}.blocks.{block}.{part}.{leaf}" for part in parts)
    return (f"{OUTSIDE.get(path, path)}.{leaf}",)


def into_timm(state: Mapping[str, Tensor], own: Mapping[str, Tensor], config: Vision) -> dict[str, Tensor]:
    """MedCLIP's tensors under the names of a timm encoder, all of which they fill.

    Args:
        state: the file's tensors.
        own: the encoder's.

    Raises:
        ConfigError: a tensor of the encoder that the file has not, or in another shape; one of the file's image tower
            that the encoder has not.
    """
    variant, filled, missing, misfits = variant_of(state), dict[str, Tensor](), list[str](), list[str]()
    known = {variant.projection}
    for name, tensor in own.items():
        sources = [f"{ENCODER}{part}" for part in (swin_names(name) if variant is SWIN else (name,))]
        shape = (tensor.shape[0] // len(sources), *tensor.shape[1:]) if tensor.ndim else ()
        given = {source: state[source] for source in sources if source in state}
        known |= {*sources}
        missing += [source for source in sources if source not in given]
        misfits += [
            f"{source} is {part.dtype} {list(part.shape)}, not {list(shape)}"
            for source, part in given.items()
            if part.shape != shape or not alike(part, tensor)
        ]
        if len(given) == len(sources) and not misfits:
            filled[name] = torch.cat([*given.values()]) if len(given) > 1 else state[sources[0]]
    foreign = [n for n in state if n.startswith(TOWER) and n not in known and not n.endswith(NOT_WEIGHTS)]
    faults = {"it lacks": missing, "it has besides": foreign, "shapes differ": misfits}
    if missing or foreign or misfits:
        raise ConfigError(
            f"model.vision.weights={config.weights} is MedCLIP's and does not fill {config.name}: "
            f"{'; '.join(f'{what} {_first(names)}' for what, names in faults.items() if names)}. Its names are those "
            f"of {variant.name}: set model.vision.name to that, model.vision.options={{}} and image_px=224, or give "
            "the whole file"
        )
    return filled


def projection_of(state: Mapping[str, Tensor], width: int, channels: int, field: str) -> Tensor:
    """MedCLIP's projection, [channels, width].

    Raises:
        ConfigError: the file has none, or one of another shape; `field` is what names the file.
    """
    name = variant_of(state).projection
    if name not in state:
        raise ConfigError(f"{field} is MedCLIP's and has no {name}: give the whole file, or set projection=0")
    found = state[name]
    if found.shape != (channels, width) or not alike(found, torch.empty(0)):
        raise ConfigError(
            f"{field} projects by {name}, which is {found.dtype} {list(found.shape)}, and [{channels}, {width}] is "
            f"wanted: set projection to {found.shape[0] if found.ndim == 2 else 512}, or to 0 for none"
        )
    return found


def alike(given: Tensor, own: Tensor) -> bool:
    """Whether a file's tensor is of the kind that `own` can be filled with: dense, and real where that is."""
    return given.layout == torch.strided and given.is_floating_point() == own.is_floating_point()


def _first(names: Sequence[str]) -> str:
    """The first few of many, shortened."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(name[:120] for name in names[:SHOWN]) + more
