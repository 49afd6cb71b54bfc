"""The systems: SYSTEMS names them, `build_model` imports the one a Run asks for."""

from importlib import import_module

import torch
from torch import Tensor, nn

from r2kg.config import Model
from shards.errors import CheckpointError, ConfigError

SYSTEMS = {"r2genkg": "r2kg.systems.r2genkg.model:R2GenKG"}
"""Model.system → "module:Class", imported on use."""


def build_model(config: Model) -> nn.Module:
    """Build the system a Run names: an nn.Module with collate, loss, generate and trainable.

    Raises:
        ConfigError: no such system, or its parts cannot be built.
    """
    if config.system not in SYSTEMS:
        raise ConfigError(f"model.system={config.system!r}: one of {', '.join(SYSTEMS)}")
    module, _, name = SYSTEMS[config.system].partition(":")
    return getattr(import_module(module), name)(config)


@torch.no_grad()
def load_trainable_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy stored tensors into the trained parameters, keeping the model's own dtype and device.

    Raises:
        CheckpointError: names or shapes differ from the model's trained parameters.
    """
    own = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or extra:
        raise CheckpointError(
            f"stored weights are of another model: {len(missing)} missing (first {missing[:3]}), {len(extra)} unknown "
            f"(first {extra[:3]}); build the model from the run.json they were saved with"
        )
    for name, parameter in own.items():
        if parameter.shape != state[name].shape:
            raise CheckpointError(
                f"{name} is stored as {list(state[name].shape)}, the model has {list(parameter.shape)}"
            )
        parameter.copy_(state[name])
