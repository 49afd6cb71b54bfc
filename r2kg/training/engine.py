"""DeepSpeed behind `step`, `validation_loss` and `state`: the only file that knows ZeRO.

The state is portable: full tensors of what is trained, so a run continues on another number of workers or at another
ZeRO stage, which DeepSpeed's own checkpoints do not allow.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import logger as deepspeed_logger
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor

from r2kg.config.run import Run
from r2kg.systems.contract import Batch, Model, load_stored, stored, to_device
from r2kg.training.checkpoint import MOMENT
from r2kg.training.optim import build_optimizer, learning_rate
from shards.errors import CheckpointError

STOP = "stop"
"""Beside the counts that workers add up in every step."""


def put_ninja_on_path() -> None:
    """DeepSpeed builds an extension at first use with the `ninja` beside this Python, which PATH need not name."""
    folder = str(Path(sys.executable).parent)
    if folder not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([folder, os.environ.get("PATH", "")])


def build_extension() -> None:
    """Build what DeepSpeed needs on this machine's CPUs, about a minute once, so that no run waits for it."""
    put_ninja_on_path()
    deepspeed.get_accelerator().create_op_builder("ShareMemCommBuilder").load(verbose=False)


def deepspeed_config(run: Run) -> dict:
    """DeepSpeed's JSON for this run. The optimiser is ours; the learning rate is set before every step.

    What `run.engine.deepspeed` adds goes in last, key by key, so that a part of it keeps the rest of ours.
    bf16 at stage 0 is autocast over fp32 weights: DeepSpeed's own wrapper there gives no access to Adam's moments.
    """
    engine, train = run.engine, run.train
    zero: dict[str, Any] = {"stage": engine.zero, "overlap_comm": train.gpus}
    if engine.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": train.gpus}
    if engine.offload_parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": train.gpus}
    precision: dict[str, Any] = {"bf16": {"enabled": engine.precision == "bf16"}}
    if engine.precision == "bf16" and engine.zero == 0:
        precision = {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}
    elif engine.precision == "bf16":
        precision["data_types"] = {"grad_accum_dtype": "fp32"}
    config: dict[str, Any] = {
        **precision,
        "train_batch_size": train.global_batch,
        "train_micro_batch_size_per_gpu": train.micro_batch,
        "gradient_accumulation_steps": train.accumulation,
        "gradient_clipping": run.optim.clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }
    merging = [(config, engine.deepspeed)]
    while merging:
        into, extra = merging.pop()
        for key, value in extra.items():
            if isinstance(value, dict) and isinstance(into.get(key), dict):
                merging.append((into[key], value))
            else:
                into[key] = value
    return config


class Engine:
    """One worker's view of the sharded model. All methods are collective: every worker calls them in the same order."""

    def __init__(self, model: Model, run: Run, steps: int, steps_per_epoch: float, state: dict | None = None):
        """Shard `model`, one of `r2kg.systems`, as `run.engine` says.

        `state` is {"tensors": as `state` gives them, of all workers, "step", "skipped"}: weights are restored now,
        moments at the first step, and then it is let go.
        """
        deepspeed_logger.setLevel(logging.WARNING)
        put_ninja_on_path()
        self.run, self.steps, self.steps_per_epoch, self.step_number = run, steps, steps_per_epoch, 0
        self._names = [(name, p) for pairs in model.trainable().values() for name, p in pairs]
        if odd := sorted({name for name, _ in self._names} ^ (stored(model).keys() - set(model.mutable))):
            raise TypeError(f"trainable() and requires_grad must name the same parameters; they differ in {odd[:3]}")
        self.model, self.weights, self._restore = model, dict[str, float](), state
        if run.engine.precision == "fp32" or run.engine.zero == 0:
            # DeepSpeed keeps no fp32 copy then: what is trained is fp32 itself, whatever its file was. Stage 0 in bf16
            # is autocast over it (the papers' bf16-mixed); what is frozen needs no fp32 there.
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
                elif run.engine.precision == "bf16" and parameter.is_floating_point():  # quantised weights are not
                    parameter.data = parameter.data.to(torch.bfloat16)
        if state:
            self.step_number = state["step"]
            load_stored(model, state["tensors"], [name for name in state["tensors"] if MOMENT not in name])
        buffers = {name: model.get_buffer(name).clone() for name in model.mutable}
        optimizer = build_optimizer(model, run.optim, run.engine.offload_optimizer)
        self.deepspeed, self.optimizer, _, _ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=deepspeed_config(run), dist_init_required=not dist.is_initialized()
        )
        self.device, self.world = self.deepspeed.device, self.deepspeed.world_size
        for name, value in buffers.items():  # with the precision they had, whatever DeepSpeed casts
            model.get_buffer(name).data = value.to(self.device)
        self._base = getattr(self.optimizer, "optimizer", self.optimizer)
        self._plain = self._base is self.optimizer  # stage 0 has no DeepSpeed wrapper around the optimiser
        self._update, self._overflow = self.optimizer.step, False
        if self._plain:
            self.optimizer.step = self._update_if_finite
        if run.engine.compile:
            self.deepspeed.compile()

    def step(self, batches: list[Batch], stop: bool = False) -> dict[str, float]:
        """One optimiser step over this worker's micro-batches of a global step.

        The loss is Σ weight · Σ sum / Σ count over its terms, sums and counts being those of the *global* batch,
        whatever the split over workers and micro-batches.

        A gradient that is not finite changes neither weights nor moments; the cursor, and with it the order of studies
        and the learning rate, goes on.

        Returns:
            loss, loss.TERM and count.TERM of every term, lr, grad_norm, skipped (1 without an update, else 0) and stop
            (how many workers said so); equal on all workers.
        """
        counts = self._sum(_added([self.model.counts(batch) for batch in batches]) | {STOP: float(stop)})
        stopping = counts.pop(STOP)
        batches = [to_device(batch, self.device) for batch in batches]
        if self._restore:
            self._restore = self._load_moments(self._restore, batches)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(
                group["peak"], self.run.optim, self.step_number, self.steps, self.steps_per_epoch
            )
        # Dropout depends on (seed, step, worker) alone, so a continued run repeats an undisturbed one.
        torch.manual_seed((self.run.train.seed * 1_000_003 + self.step_number) * 4096 + self.deepspeed.global_rank)
        means = self._sum(self._pass(batches, {name: 1 / max(1.0, count) for name, count in counts.items()}))
        self._agree_on_buffers()
        self.step_number += 1
        skipped = self._overflow if self._plain else bool(self.optimizer.overflow)
        return _terms(means, self.weights) | {
            **{f"count.{name}": count for name, count in counts.items()},
            "lr": max(group["lr"] for group in self.optimizer.param_groups),
            "grad_norm": float("inf") if skipped else float(self.deepspeed.get_global_grad_norm() or 0.0),
            "skipped": float(skipped),
            "stop": stopping,
        }

    @torch.no_grad()
    def validation_loss(self, batches: Iterable[Batch], stop: Callable[[], bool] = lambda: False) -> dict[str, float]:
        """loss and loss.TERM over `batches` of all workers, as in `step`; every worker gives as many batches.

        "first" is the loss over the first batch of every worker. Empty where a worker's `stop`, asked before every
        batch, said that there is no time for this.
        """
        self.deepspeed.eval()
        sums, counts = list[dict[str, float]](), list[dict[str, float]]()
        for batch in batches:
            if self._sum({STOP: float(stop())})[STOP]:
                self.deepspeed.train()
                return {}
            counts.append(self.model.counts(batch))
            terms = self.deepspeed(to_device(batch, self.device))
            self.weights = {name: term.weight for name, term in terms.items()}
            sums.append({name: float(term.sum) for name, term in terms.items()})
        self.deepspeed.train()
        return self._means(sums, counts) | {"first": self._means(sums[:1], counts[:1])["loss"]}

    def _means(self, sums: list[dict[str, float]], counts: list[dict[str, float]]) -> dict[str, float]:
        """loss and loss.TERM over these batches of all workers."""
        total, count = self._sum(_added(sums)), self._sum(_added(counts))
        return _terms({name: value / max(1.0, count[name]) for name, value in total.items()}, self.weights)

    def state(self) -> dict[str, Tensor]:
        """This worker's part of what `stored` names and of what the optimiser keeps of it, on host.

        Of its share of the trained tensors (`dealt`): the fp32 weight NAME and the moments NAME@exp_avg,
        NAME@exp_avg_sq, ...; on the first worker the mutable buffers too, in their own dtype. The parts of all workers
        are the whole state.
        """
        moments, part = self._moments(), dict[str, Tensor]()
        owners = dealt({name: getattr(p, "ds_numel", p.numel()) for name, p in self._names}, self.world)
        for name, parameter in self._names:
            if self._plain:
                full = [parameter.data, *(self.optimizer.state[parameter][moment] for moment in moments)]
            else:  # collective: every worker takes part in every tensor, whoever keeps it
                full = [safe_get_full_fp32_param(parameter)]
                full += [safe_get_full_optimizer_state(parameter, moment) for moment in moments]
            if owners[name] == self.deepspeed.global_rank:
                keys = name, *(f"{name}{MOMENT}{moment}" for moment in moments)
                part |= {key: value.detach().float().cpu().clone() for key, value in zip(keys, full, strict=True)}
        if self.deepspeed.global_rank == 0:
            part |= {name: self.model.get_buffer(name).detach().cpu().clone() for name in self.model.mutable}
        return part

    def _pass(self, batches: list[Batch], shares: dict[str, float]) -> dict[str, float]:
        """Forward and backward of each micro-batch, then the update.

        `shares` is 1 / count of every term over the global batch; the factor undoes DeepSpeed's averaging over workers
        and micro-batches. Returns this worker's part of every term's mean.
        """
        scale, total = self.world * len(batches), dict.fromkeys(shares, torch.zeros((), device=self.device))
        for batch in batches:
            terms = self.deepspeed(batch)
            if terms.keys() != shares.keys():
                raise TypeError(f"loss gave the terms {sorted(terms)}, counts {sorted(shares)}: they must be the same")
            self.weights = {name: term.weight for name, term in terms.items()}
            total = {name: total[name] + terms[name].sum.detach().float() * share for name, share in shares.items()}
            parts = [terms[name].sum.float() * (terms[name].weight * share) for name, share in shares.items()]
            loss = torch.stack(parts).sum()
            self.deepspeed.backward(loss * scale)
            self.deepspeed.step()
        return {name: float(value) for name, value in total.items()}

    def _update_if_finite(self, *arguments: Any, **named: Any) -> None:
        """The optimiser's step at stage 0, where DeepSpeed does not look: every worker has the same gradients then."""
        gradients = [parameter.grad for _, parameter in self._names if parameter.grad is not None]
        self._overflow = not bool(torch.nn.utils.get_total_norm(gradients).isfinite())
        if not self._overflow:
            self._update(*arguments, **named)

    def _load_moments(self, restore: dict[str, Any], batches: list[dict]) -> dict[str, Any] | None:
        """Moments exist only after a step: make one that changes nothing, then fill them, the counter, the buffers.

        Returns what is left to restore: all of it where the gradients of that step are not finite. The step itself has
        no update then, as it had none in a run that was not disturbed, and the next one restores.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        self._pass(batches, dict.fromkeys(self.model.counts(batches[0]), 0.0))
        tensors, names = restore["tensors"], self._moments()
        for name in self.model.mutable:  # that step's forward passes changed them
            self.model.get_buffer(name).copy_(tensors[name])
        if not names:
            return restore
        if not any(MOMENT in name for name in tensors):  # no step had an update until then
            names = []
        if lacking := [moment for moment in names if f"{self._names[0][0]}{MOMENT}{moment}" not in tensors]:
            raise CheckpointError(
                f"the checkpoint lacks the optimiser's {lacking}: it was written with another optim.kind"
            )
        for name, parameter in self._names:
            weight = tensors[name].to(self.device)
            moments = {moment: tensors[f"{name}{MOMENT}{moment}"].to(self.device) for moment in names}
            if self._plain:
                parameter.data.copy_(weight)
                for moment, value in moments.items():
                    self.optimizer.state[parameter][moment].copy_(value)
            else:
                safe_set_full_fp32_param(parameter, weight)
                for moment, value in moments.items():
                    safe_set_full_optimizer_state(parameter, value, moment)
        updates = restore["step"] - restore.get("skipped", 0)
        for state in self._base.state.values():
            if isinstance(state.get("step"), Tensor):
                state["step"].fill_(updates)
            elif "step" in state:
                state["step"] = updates
        return None

    def _moments(self) -> list[str]:
        """Names of what the optimiser keeps of every parameter: its state's tensors that are as large as their key."""
        if hasattr(self.optimizer, "_hp_optimizer_states_linked"):
            # DeepSpeed 0.19.8 links moments after the first group's first step, when later groups have none yet.
            self.optimizer._hp_optimizer_states_linked = False
            self.optimizer._lazy_init_hp_params_optimizer_state()
        return sorted(
            {
                key
                for parameter, state in self._base.state.items()
                for key, value in state.items()
                if key != "step" and isinstance(value, Tensor) and value.shape == parameter.shape
            }
        )

    @torch.no_grad()
    def _agree_on_buffers(self) -> None:
        """One value of every mutable buffer on all workers: the mean, or the first worker's of what is no float."""
        for name in self.model.mutable if self.world > 1 else ():
            buffer = self.model.get_buffer(name)
            if buffer.is_floating_point():
                wide = buffer.to(torch.promote_types(buffer.dtype, torch.float32), copy=True).contiguous()
                dist.all_reduce(wide)
                wide /= self.world
            else:  # as int64, which every backend sends
                wide = buffer.to(torch.int64, copy=True).contiguous()
                dist.broadcast(wide, src=0)
            buffer.copy_(wide)

    def _sum(self, values: dict[str, float]) -> dict[str, float]:
        """The sums over all workers; every worker names the same."""
        if self.world == 1:
            return values
        total = torch.tensor([values[name] for name in sorted(values)], dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return dict(zip(sorted(values), total.tolist(), strict=True))


def dealt(sizes: Mapping[str, int], world: int) -> dict[str, int]:
    """Who of `world` workers has each of these tensors, so that all have about as much; the same on every worker."""
    loads = [(0, rank) for rank in range(world)]
    owners = dict[str, int]()
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        load, owners[name] = heappop(loads)
        heappush(loads, (load + sizes[name], owners[name]))
    return owners


class SharedTensors(Mapping[str, Tensor]):
    """Stored tensors that every worker gets and only one reads, on the device over which workers talk.

    Collective: all ask for the same names in the same order. However many workers there are, storage gives every byte
    of a checkpoint once.
    """

    def __init__(self, stored: Mapping[str, Tensor]):
        """`stored` reads a tensor's bytes when they are touched, not when it is asked for."""
        self._stored = stored
        self._readers = dealt({name: value.nbytes for name, value in stored.items()}, dist.get_world_size())
        self._device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else "cpu"

    def __getitem__(self, name: str) -> Tensor:
        """A tensor in the file's own dtype."""
        reader, value = self._readers[name], self._stored[name]
        if reader == dist.get_rank():
            value = value.to(self._device).contiguous()
        else:
            value = torch.empty_like(value, device=self._device, memory_format=torch.contiguous_format)
        dist.broadcast(value.reshape(-1).view(torch.uint8), src=reader)
        return value

    def __iter__(self) -> Iterator[str]:
        """Names, in the order of the files."""
        return iter(self._stored)

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self._stored)


def _added(parts: list[dict[str, float]]) -> dict[str, float]:
    """Sums by name."""
    return {name: sum(part[name] for part in parts) for name in (parts[0] if parts else ())}


def _terms(means: dict[str, float], weights: dict[str, float]) -> dict[str, float]:
    """The whole loss, and each of its terms before its weight."""
    whole = sum(weights[name] * mean for name, mean in means.items())
    return {"loss": whole} | {f"loss.{name}": mean for name, mean in means.items()}
