"""The learning rate equals PyTorch's schedulers; groups are the model's."""

import pytest
import torch
from torch import nn

from r2kg.config.parts import Optim
from r2kg.training.optim import learning_rate, parameter_groups
from shards.errors import ConfigError


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.vision, self.projection = nn.Linear(2, 2), nn.Linear(2, 2)

    def trainable(self):
        return {name: [(name, getattr(self, name).weight)] for name in ("vision", "projection")}


def test_cosine_per_epoch_is_pytorchs_annealing():
    epochs, steps_per_epoch = 15, 129
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1e-4)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs, eta_min=1e-6)
    for epoch in range(epochs):
        ours = {
            learning_rate(1e-4, Optim(), epoch * steps_per_epoch + step, epochs * steps_per_epoch, steps_per_epoch)
            for step in (0, 60, 128)
        }
        assert len(ours) == 1 and ours.pop() == pytest.approx(theirs.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        theirs.step()


def test_warm_up_rises_and_the_cosine_ends_at_its_floor():
    optim = Optim(lr=1.0, min_lr=0.1, schedule="cosine", warmup_steps=4)
    rates = [learning_rate(1.0, optim, step, 20, 5.0) for step in range(21)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0] and rates[4] == 1.0
    assert rates[4:] == sorted(rates[4:], reverse=True) and rates[20] == pytest.approx(0.1)


def test_groups_have_their_own_peak():
    groups = parameter_groups(Model(), Optim(lr=1e-4, lr_of={"vision": 1e-5}))
    assert [(group["name"], group["peak"]) for group in groups] == [("vision", 1e-5), ("projection", 1e-4)]


def test_an_unknown_group_is_named():
    with pytest.raises(ConfigError, match="'lm'.*projection"):
        parameter_groups(Model(), Optim(lr_of={"lm": 1e-3}))
