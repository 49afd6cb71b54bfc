"""Low-rank adapters (LoRA, Hu et al. 2021) on a model, and the modules that are trained in full beside them."""

import difflib
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from r2kg.modules.config import Lora
from shards.errors import ConfigError

MATRICES = (nn.Linear, Conv1D)
"""Layers that bitsandbytes quantises; "all-linear" takes them."""


def add_adapters(
    model: Any, lora: Lora, field: str, default: list[str] | str | None, quantised: bool = False, **options: Any
) -> None:
    """Freeze a model, put trainable low-rank updates on `lora.targets` and make `lora.save` trainable.

    Adapters are fp32 whatever the layer beneath them is stored in; peft casts between the two. A module of `lora.save`
    is trained where it stands, not as a copy: a tensor that several modules share stays one tensor, so naming the LM
    head of a model with tied weights trains its embeddings too.

    Args:
        field: dotted field of `lora`, for errors.
        default: target_modules of peft when `lora.targets` is empty.
        quantised: the model's matrices are; or will be, for one on the meta device.
        options: further arguments of peft's LoraConfig.

    Raises:
        ConfigError: a name that fits no module, or one to be trained in full that is quantised.
    """
    targets = _paths(model, lora.targets, f"{field}.targets", (*MATRICES, nn.Embedding))
    saved = [model.get_submodule(path) for path in _paths(model, lora.save, f"{field}.save", (nn.Module,))]
    head = model.get_output_embeddings() if quantised else None
    for inner in (inner for module in saved for inner in module.modules() if quantised):
        if isinstance(inner, MATRICES) and inner is not head:
            raise ConfigError(
                f"{field}.save={','.join(lora.save)} would train quantised matrices: name embeddings, norms or the LM "
                "head, or set quantization=none"
            )
    adapter = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets or default,
        **options,
    )
    inject_adapter_in_model(adapter, model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for module in saved:
        module.requires_grad_(True)


def _paths(model: Any, names: tuple[str, ...], field: str, kinds: Any) -> list[str]:
    """Paths of the modules whose path ends in one of the names; "all-linear" is every matrix but the LM head."""
    modules: dict[str, Any] = {
        path: module
        for path, module in model.named_modules()
        if path and isinstance(module, kinds) and any(True for _ in module.parameters())
    }
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    found: list[str] = []
    for name in names:
        if name == "all-linear":
            hits = [path for path, module in modules.items() if isinstance(module, MATRICES) and module is not head]
        else:
            hits = [path for path in modules if f".{path}".endswith(f".{name}")]
        if not hits:
            ends = sorted({path.rpartition(".")[2] for path in modules} - {str(number) for number in range(1000)})
            near = difflib.get_close_matches(name, ends) or ends[:12]
            raise ConfigError(f"{field} names {name!r}, and no module that it can take is called so; {', '.join(near)}")
        found += hits
    return list(dict.fromkeys(found))
