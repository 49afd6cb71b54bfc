"""A causal language model and its tokenizer, from the hub or a directory, as training needs them."""

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from r2kg.modules.config import Llm
from r2kg.modules.hub import may_come
from shards.errors import ConfigError, RetryableError

PACKAGES = {
    "quantization": ("bitsandbytes", "r2kg[quantization]"),
    "attention": ("flash_attn", "flash-attn"),
    "liger": ("liger_kernel", "liger-kernel"),
}
"""Field of Llm → the package it needs when it is not at its default, and what pip calls it."""
DTYPES = {"auto": "auto", "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
QUANTISED: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True},
}
"""Llm.quantization → arguments of BitsAndBytesConfig."""


def load_llm(config: Llm) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer and model of config.source; on the meta device the architecture without weights, never quantised."""
    if config.source == "tiny":
        raise ConfigError('model.llm.source="tiny" must be made first: put the directory of write_tiny_lm in its place')
    on_meta = torch.get_default_device().type == "meta"
    for field, (module, package) in PACKAGES.items():
        value = getattr(config, field)
        if value in ("none", "sdpa", "eager", False):
            continue
        if find_spec(module) is None:
            raise ConfigError(f"model.llm.{field}={value} needs a package: pip install {package}")
        if field != "quantization" and not on_meta and not torch.cuda.is_available():
            raise ConfigError(f"model.llm.{field}={value} needs a GPU, and this machine has none")
    folder = Path(config.source).expanduser()
    source = str(folder) if folder.is_dir() else config.source
    if not folder.is_dir() and config.source.startswith(("/", "~", ".")):
        raise ConfigError(f"model.llm.source={config.source} is no directory; it may also be the name of a hub's model")
    options: dict[str, Any] = {"revision": config.revision, "trust_remote_code": False}
    part = "tokenizer"
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        if tokenizer.eos_token_id is None:
            raise ConfigError(
                f"the tokenizer of model.llm.source={config.source} has no EOS token: a report could not end"
            )
        part = "language model"
        known = AutoConfig.from_pretrained(source, **options)
        if getattr(known, "quantization_config", None):
            raise ConfigError(
                f"the weights of model.llm.source={config.source} are stored quantised: name their original, and set "
                "model.llm.quantization"
            )
        if on_meta:
            return tokenizer, AutoModelForCausalLM.from_config(known)
        options |= {"use_safetensors": True, "dtype": DTYPES[config.dtype]}
        if config.attention != "sdpa":
            options["attn_implementation"] = config.attention
        if config.quantization != "none":
            options["quantization_config"] = BitsAndBytesConfig(**QUANTISED[config.quantization])
        llm = AutoModelForCausalLM.from_pretrained(source, **options)
    except ConfigError:
        raise
    except (OSError, ValueError, HFValidationError) as error:
        kind = RetryableError if may_come(error) and not on_meta else ConfigError
        raise kind(
            f"the {part} of model.llm.source={config.source!r} (revision {config.revision or 'main'}) cannot be had: "
            f"{' '.join(str(error).split())} — set model.llm.source to a local directory that holds config.json, "
            "tokenizer files and *.safetensors, or connect (and accept the licence) once"
        ) from error
    return tokenizer, _fit(llm, config)


def _fit(llm: Any, config: Llm) -> Any:
    """The loaded model as training needs it: quantised layers that can be trained through, kernels in place."""
    if config.quantization != "none":
        from bitsandbytes.nn import Linear4bit  # an extra

        # One line for every int8 layer and step, of a cast that is meant.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        for layer in llm.modules():
            if isinstance(layer, Linear4bit):
                layer.compute_type_is_set = False  # arithmetic in the dtype of the first input: the engine's
                # On CPUs with AVX512-BF16 a pass without gradients packs the weights anew, for good, and the packed
                # product has no backward: after a validation, training would go on without gradients.
                layer.support_avx512bf16_for_cpu = False
    if config.liger:
        from liger_kernel.transformers.monkey_patch import (
            MODEL_TYPE_TO_APPLY_LIGER_FN,
            _apply_liger_kernel_to_instance,
        )

        if llm.config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
            raise ConfigError(
                f"liger-kernel has no kernels for a {llm.config.model_type} (model.llm.source={config.source}): "
                "set model.llm.liger=false"
            )
        # Its loss is left out: ours is a sum over target tokens of logits that the report positions alone get.
        _apply_liger_kernel_to_instance(llm, fused_linear_cross_entropy=False)
    return llm
