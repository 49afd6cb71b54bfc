"""Adam's parameter groups and the learning rate as a pure function of the step."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch

from r2kg.config.parts import Optim
from shards.errors import ConfigError


def parameter_groups(model: Any, optim: Optim) -> list[dict]:
    """One group per name of `model.trainable()`, with its peak learning rate under "peak" and its weight decay.

    `model` is one of `r2kg.systems`. Under `optim.no_decay` a group's norms and biases follow it as a group of their
    own, of the same learning rate.

    Raises:
        ConfigError: `optim.lr_of` or `weight_decay_of` names a group the model does not train, or nothing is trained.
    """
    trainable = {name: pairs for name, pairs in model.trainable().items() if pairs}
    for field, named in {"lr_of": optim.lr_of, "weight_decay_of": optim.weight_decay_of}.items():
        if unknown := set(named) - set(trainable):
            raise ConfigError(f"optim.{field} names {sorted(unknown)}, but this model trains {sorted(trainable)}")
    if not trainable:
        raise ConfigError(
            "nothing is trained: set the `tuning` of a part of the model to lora or full, e.g. model.vision.tuning=full"
        )
    groups = []
    for name, pairs in trainable.items():
        bare = [parameter for key, parameter in pairs if optim.no_decay and (parameter.ndim < 2 or "bias" in key)]
        members = {id(parameter) for parameter in bare}
        decayed = [parameter for _, parameter in pairs if id(parameter) not in members]
        decay, peak = optim.weight_decay_of.get(name, optim.weight_decay), optim.lr_of.get(name, optim.lr)
        for parameters, weight_decay in ((decayed, decay), (bare, 0.0)):
            if parameters:  # DeepSpeed takes no empty group
                groups.append({"params": parameters, "name": name, "peak": peak, "weight_decay": weight_decay})
    return groups


def build_optimizer(model: Any, optim: Optim, on_host: bool = False) -> torch.optim.Optimizer:
    """`optim.kind` over the model's groups.

    `on_host` takes DeepSpeed's CPU kernel for offloaded states beside a GPU; it has no AMSGrad, which stays PyTorch's.
    """
    kind: Any = torch.optim.AdamW if optim.kind == "adamw" else torch.optim.Adam
    if on_host and torch.cuda.is_available() and not optim.amsgrad:
        from deepspeed.ops.adam import DeepSpeedCPUAdam  # heavy, and wanted here alone

        kind = partial(DeepSpeedCPUAdam, adamw_mode=optim.kind == "adamw")
    optimizer: torch.optim.Optimizer = kind(
        parameter_groups(model, optim), lr=optim.lr, betas=optim.betas, eps=optim.eps,
        weight_decay=optim.weight_decay, amsgrad=optim.amsgrad,
    )  # fmt: skip
    if optim.clip_value:
        # At every ZeRO stage DeepSpeed calls this optimiser's own `step` on the gradients (or partitions of them) that
        # it has averaged over workers and micro-batches; elementwise, a partition is clipped as the whole would be.
        optimizer.register_step_pre_hook(
            lambda stepping, *_: torch.nn.utils.clip_grad_value_(
                [parameter for group in stepping.param_groups for parameter in group["params"]], optim.clip_value
            )
        )
    return optimizer


def learning_rate(peak: float, optim: Optim, step: int, steps: int, steps_per_epoch: float) -> float:
    """Learning rate of optimiser step `step` (0-based) of `steps`.

    cosine_epoch and step hold it through an epoch, as CosineAnnealingLR (R2GenGPT's release) and StepLR (R2Gen's) do
    when they are stepped once per epoch.
    """
    if step < optim.warmup_steps:
        return peak * (step + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return peak
    if optim.schedule == "step":
        return peak * optim.gamma ** (int(step / steps_per_epoch) // optim.step_epochs)
    position, length = step - optim.warmup_steps, max(1, steps - optim.warmup_steps)
    if optim.schedule == "cosine_epoch":
        position, length = int(step / steps_per_epoch), max(1, math.ceil(steps / steps_per_epoch))
    floor, done = min(optim.min_lr, peak), min(1.0, position / length)
    left = 1 - done if optim.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return floor + (peak - floor) * left


def gentler(run_directory: Path) -> str:
    """What to do about a run whose numbers ran away: its own settings cannot change any more."""
    return (
        "Begin another run with a lower optim.lr, or with optim.clip=1.0, under another name=; "
        f"train.init_from={run_directory}@STEP gives it the weights of an earlier checkpoint"
    )
