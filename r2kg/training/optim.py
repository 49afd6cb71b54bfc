"""AdamW's parameter groups and the learning rate as a pure function of the step."""

import math
from functools import partial
from typing import Any

import torch

from r2kg.config.parts import Optim
from shards.errors import ConfigError


def parameter_groups(model: Any, optim: Optim) -> list[dict]:
    """One AdamW group per name of `model.trainable()`, with its peak learning rate under "peak".

    `model` is one of `r2kg.systems`.

    Raises:
        ConfigError: `optim.lr_of` names a group the model does not train, or nothing is trained.
    """
    trainable = {name: pairs for name, pairs in model.trainable().items() if pairs}
    unknown = set(optim.lr_of) - set(trainable)
    if unknown:
        raise ConfigError(f"optim.lr_of names {sorted(unknown)}, but this model trains {sorted(trainable)}")
    if not trainable:
        raise ConfigError("nothing is trained: set model.vision.tuning or model.llm.tuning to lora or full")
    return [
        {"params": [parameter for _, parameter in pairs], "name": name, "peak": optim.lr_of.get(name, optim.lr)}
        for name, pairs in trainable.items()
    ]


def build_optimizer(model: Any, optim: Optim, on_host: bool = False) -> torch.optim.Optimizer:
    """AdamW over the model's groups; `on_host` takes DeepSpeed's CPU kernel for offloaded states beside a GPU."""
    kind: Any = torch.optim.AdamW
    if on_host and torch.cuda.is_available():
        from deepspeed.ops.adam import DeepSpeedCPUAdam  # heavy, and wanted here alone

        kind = partial(DeepSpeedCPUAdam, adamw_mode=True)
    groups = parameter_groups(model, optim)
    return kind(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay)


def learning_rate(peak: float, optim: Optim, step: int, steps: int, steps_per_epoch: float) -> float:
    """Learning rate of optimiser step `step` (0-based) of `steps`.

    cosine_epoch holds it through an epoch, as CosineAnnealingLR stepped once per epoch does (R2GenGPT's release).
    """
    if step < optim.warmup_steps:
        return peak * (step + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return peak
    position, length = step - optim.warmup_steps, max(1, steps - optim.warmup_steps)
    if optim.schedule == "cosine_epoch":
        position, length = int(step / steps_per_epoch), max(1, math.ceil(steps / steps_per_epoch))
    floor = min(optim.min_lr, peak)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, position / length)))
