"""The learning rate equals PyTorch's schedulers; groups are the model's."""

import pytest
import torch
from torch import nn

from r2kg.config.parts import Optim
from r2kg.training.optim import build_optimizer, learning_rate, parameter_groups
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


@pytest.mark.parametrize("schedule", ["step", "linear"])
def test_step_and_linear_are_pytorchs(schedule):
    """StepLR is stepped per epoch (R2Gen), LinearLR per step."""
    epochs, per_epoch = 12, 7
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=2e-3)
    optim = Optim(schedule=schedule, step_epochs=5, gamma=0.3, min_lr=1e-4)
    if schedule == "step":
        theirs = torch.optim.lr_scheduler.StepLR(optimizer, step_size=5, gamma=0.3)
    else:
        theirs = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=epochs * per_epoch)
    for step in range(epochs * per_epoch):
        ours = learning_rate(2e-3, optim, step, epochs * per_epoch, float(per_epoch))
        assert ours == pytest.approx(theirs.get_last_lr()[0], rel=1e-6), step
        optimizer.step()
        if schedule == "linear" or step % per_epoch == per_epoch - 1:
            theirs.step()


def test_linear_ends_at_its_floor_after_a_warm_up():
    optim = Optim(schedule="linear", warmup_steps=4, min_lr=0.2)
    rates = [learning_rate(1.0, optim, step, 12, 3.0) for step in range(13)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, *(1 - 0.1 * i for i in range(9))])


def test_norms_and_biases_can_be_spared_and_groups_decay_on_their_own():
    model = Model()
    model.trainable = lambda: {"vision": list(model.vision.named_parameters()), "projection": []}
    plain = parameter_groups(model, Optim(weight_decay_of={"vision": 0.2}))
    assert [(len(group["params"]), group["weight_decay"]) for group in plain] == [(2, 0.2)]
    spared = parameter_groups(model, Optim(weight_decay_of={"vision": 0.2}, no_decay=True, lr_of={"vision": 1e-5}))
    assert [(group["params"], group["weight_decay"], group["peak"]) for group in spared] == [
        ([model.vision.weight], 0.2, 1e-5),
        ([model.vision.bias], 0.0, 1e-5),
    ]
    with pytest.raises(ConfigError, match=r"weight_decay_of names \['lm'\]"):
        parameter_groups(model, Optim(weight_decay_of={"lm": 0.0}))


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_the_optimiser_is_pytorchs_with_its_gradients_clipped_elementwise(kind):
    torch.manual_seed(0)
    ours, theirs = Model(), Model()
    theirs.load_state_dict(ours.state_dict())
    mine = build_optimizer(ours, Optim(kind=kind, amsgrad=True, lr=0.1, weight_decay=0.5, clip_value=0.05))
    weights = [theirs.vision.weight, theirs.projection.weight]
    torchs = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind]
    other = torchs(weights, lr=0.1, weight_decay=0.5, amsgrad=True)
    for scale in (1.0, 5.0, 0.1):
        for model, optimizer in ((ours, mine), (theirs, other)):
            optimizer.zero_grad()
            (model.projection(model.vision(torch.ones(3, 2) * scale)) ** 2).sum().backward()
            if model is theirs:
                assert max(weight.grad.abs().max() for weight in weights) > 0.05
                torch.nn.utils.clip_grad_value_(weights, 0.05)
            optimizer.step()
    assert all(
        torch.equal(getattr(ours, name).weight, getattr(theirs, name).weight) for name in ("vision", "projection")
    )


def test_what_bounds_a_gradient_is_said_once():
    with pytest.raises(ValueError, match=r"optim.clip=1.0 and optim.clip_value=0.1 .* set one to 0"):
        Optim(clip=1.0, clip_value=0.1)
