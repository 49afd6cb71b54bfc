"""Language model that writes the report: any Hugging Face causal LM, with a study's tokens spliced into its prompt.

Shapes: B batch, P soft tokens, T report tokens, L prompt tokens (soft ones included), D the model's width.
"""

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from r2kg.config.parts import Decoding
from r2kg.modules.adapters import add_adapters
from r2kg.modules.beams import CausalLmDecoder, Generated, Prompt, decode
from r2kg.modules.config import Llm
from r2kg.modules.hub import may_come, weight_hashes
from shards.errors import ConfigError, RetryableError

IGNORED = -100
"""Label of a position that is no target."""


def frame(instruction: str) -> tuple[str, str]:
    """Prompt text before and after the soft tokens, as R2GenGPT frames them."""
    return "Human: <Img>", f"</Img> {instruction} \nAssistant:"


class ReportWriter(nn.Module):
    """Prompt `[BOS] Human: <Img> soft tokens </Img> instruction \\nAssistant:` → report, trained or frozen.

    Frozen, the model stays in eval mode and passes gradients to the soft tokens only. With tuning="lora" the adapters
    go where peft puts them for the architecture (query and value for Llama), and on every linear layer except the LM
    head for an architecture peft has no entry for. On the meta device only the architecture is built, from config.json.

    Attributes:
        tokenizer: the source's own.
        width: D, channels a soft token must have.

    Raises:
        ConfigError: source not found, no safetensors weights, or no EOS token.
    """

    llm: Any
    before: Tensor
    after: Tensor
    width: int

    def __init__(self, config: Llm, instruction: str) -> None:
        super().__init__()
        self.config = config
        self.tokenizer, self.llm = _load(config)
        self.width = self.llm.get_input_embeddings().embedding_dim
        self._sha256: dict[str, str] | None = None
        if config.tuning == "frozen":
            self.llm.requires_grad_(False)
        if config.tuning == "lora":
            known = self.llm.config.model_type in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
            default = None if known else "all-linear"
            quantised = config.quantization != "none"
            add_adapters(self.llm, config.lora, "model.llm.lora", default, quantised, task_type="CAUSAL_LM")
        before, after = (self.tokenizer(text, add_special_tokens=False).input_ids for text in frame(instruction))
        if self.tokenizer.bos_token_id is not None:
            before = [self.tokenizer.bos_token_id, *before]
        self.register_buffer("before", torch.tensor(before), persistent=False)
        self.register_buffer("after", torch.tensor(after), persistent=False)
        self.train()

    def tokenize(self, reports: list[str | None], max_tokens: int) -> tuple[Tensor, Tensor]:
        """Turn reports into right-padded targets; None is a row without a target.

        EOS is part of the report before it is cut to `max_tokens`, as R2GenGPT does: a report that is cut has no EOS,
        so the model is not taught that reports end there.

        Returns:
            input_ids int64 [B, T] and labels int64 [B, T], equal except for -100 where there is no report.
        """
        eos, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        pad = eos if pad is None else pad  # Llama and GPT-2 have none; any id does, as padding is masked
        written = [
            [] if text is None else [*self.tokenizer(text, add_special_tokens=False).input_ids, eos][:max_tokens]
            for text in reports
        ]
        longest = max(1, *map(len, written))
        input_ids = torch.tensor([ids + [pad] * (longest - len(ids)) for ids in written])
        labels = torch.tensor([ids + [IGNORED] * (longest - len(ids)) for ids in written])
        return input_ids, labels

    def lengths(self, reports: list[str]) -> list[int]:
        """Tokens of each report, EOS included, as `tokenize` counts them."""
        return [len(ids) + 1 for ids in self.tokenizer(reports, add_special_tokens=False).input_ids] if reports else []

    def fitting(self, texts: Sequence[str], tokens: int) -> list[int]:
        """Of each text the characters that its first `tokens` tokens spell, all where there are no more.

        Raises:
            ConfigError: a tokenizer that does not tell where in a text its tokens stand.
        """
        if not self.tokenizer.is_fast:
            raise ConfigError(
                f"the tokenizer of model.llm.source={self.config.source} does not tell where its tokens stand in a "
                "text (it is no fast one): leave protocols out that cut references by tokens"
            )
        read = self.tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True) if texts else {}
        placed = zip(texts, read.get("offset_mapping", ()), strict=True)
        return [len(text) if len(places) <= tokens else places[tokens - 1][1] for text, places in placed]

    def prompt(self, soft: Tensor) -> Tensor:
        """Splice soft tokens [B, P, D] into the prompt frame: embeddings [B, L, D] in the model's own dtype."""
        embed = self.llm.get_input_embeddings()
        before, after = (embed(ids).expand(len(soft), -1, -1) for ids in (self.before, self.after))
        return torch.cat((before, soft.to(before.dtype), after), dim=1)

    def prompt_mask(self, soft: Tensor, present: Tensor | None = None) -> Tensor:
        """Attention over `prompt(soft)`: int64 [B, L], 0 at soft tokens that are absent by `present`, bool [B, P]."""
        if present is None:
            present = torch.ones(soft.shape[:2], dtype=torch.bool, device=soft.device)
        before, after = (present.new_ones(len(soft), len(ids)) for ids in (self.before, self.after))
        return torch.cat((before, present, after), dim=1).long()

    def loss(self, soft: Tensor, input_ids: Tensor, labels: Tensor, present: Tensor | None = None) -> Tensor:
        """Negative log-likelihood of the target tokens, summed: -Σ_t log p(y_t | prompt, y_<t).

        Args:
            soft: [B, P, D], a study's tokens.
            input_ids: int64 [B, T], reports with EOS, right-padded.
            labels: int64 [B, T], -100 where input_ids is no target.
            present: bool [B, P], False at soft tokens that are not there; None: all are. The report is read as if the
                absent ones had never been in the prompt.

        Returns:
            fp32 scalar; 0, with gradients of 0, when no row has a target.
        """
        logits = self._report_logits(soft, input_ids, labels != IGNORED, present).float()
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")

    @torch.no_grad()
    def write(
        self, soft: Tensor, decoding: Decoding, present: Tensor | None = None, rows: Tensor | None = None
    ) -> list[Generated]:
        """Write one report per row of soft tokens [B, P, D]; dropout is the caller's to switch off.

        Args:
            present: as in `loss`.
            rows: int64 [B], the studies' places in their split; asked for by sampling only.
        """
        prompt = Prompt(self.prompt(soft), self.prompt_mask(soft, present))
        return decode(CausalLmDecoder(self.llm), prompt, decoding, self.tokenizer, rows)

    def train(self, mode: bool = True) -> "ReportWriter":
        """As nn.Module.train, but a frozen model stays in eval mode (still checkpointing its activations if asked)."""
        super().train(mode)
        if self.config.tuning == "frozen":
            self.llm.eval()
            for layer in self.llm.modules():
                if isinstance(layer, GradientCheckpointingLayer):
                    layer.training = mode  # the flag it looks at; its children, hence dropout, stay in eval mode
        return self

    def gradient_checkpointing(self, on: bool = True) -> None:
        """Recompute activations in backward. Worth it when frozen too: gradients still pass through every layer."""
        if on:
            self.llm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            self.llm.gradient_checkpointing_disable()

    def fingerprint(self) -> dict[str, str | dict[str, str] | None]:
        """Name the pretrained weights: {source, revision, sha256 of each weight file}. They are never checkpointed."""
        if self._sha256 is None:
            self._sha256 = weight_hashes(self.config.source, self.config.revision)
        return {"source": self.config.source, "revision": self.config.revision, "sha256": self._sha256}

    def _report_logits(
        self, soft: Tensor, input_ids: Tensor, is_report: Tensor, present: Tensor | None = None
    ) -> Tensor:
        """Logits [B, T, words] of every report token. The LM head never sees the prompt, its last position excepted."""
        prompt = self.prompt(soft)
        report = self.llm.get_input_embeddings()(input_ids)
        embeds = torch.cat((prompt, report), dim=1)  # [B, L+T, D]
        prompted = self.prompt_mask(soft, present)
        mask = torch.cat((prompted, is_report.long()), dim=1)
        # Absent tokens take no position; padding after a report does, as it always did.
        positions = torch.cat((prompted, torch.ones_like(input_ids)), dim=1).cumsum(1) - 1
        out = self.llm(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions,
            use_cache=False,
            logits_to_keep=input_ids.shape[1] + 1,
        )
        return out.logits[:, :-1]


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


def _load(config: Llm) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
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
