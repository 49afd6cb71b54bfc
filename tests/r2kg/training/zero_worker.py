"""Run by test_engine under torchrun: the same ten steps at several settings. Writes {setting: losses} as JSON.

Arguments: LM directory, output file, settings as zero:precision:micro_batch:word+word+...; words are none, resume,
compile and offload_* (of the engine), amsgrad and clip_value (of the optimiser), memory and terms (the system `Memory`
in place of R2GenGPT, with and without its memory), half (the LM directory whose name ends so), overflow (gradients of
the last worker are no numbers at two steps).
"""

import json
import os
import sys

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from r2kg.config.run import Run
from r2kg.systems.contract import Term, build_model
from r2kg.training.engine import Engine, SharedTensors, dealt

STEPS, GLOBAL_BATCH, RESUME_AT = 10, 8, 5
OVERFLOWS = (0, 3, RESUME_AT)
WORDS = "the heart is large . there a small effusion on left right lungs are clear no nodule".split()  # noqa: SIM905


class Memory(nn.Module):
    """Two terms of different counts and dtypes, and two mutable buffers, one of which the next step's loss depends on.

    `memory` moves towards the mean of what a worker saw; `passes` grows by its own number, so that ranks disagree.
    """

    mutable = ("memory", "passes")

    def __init__(self, rate: float):
        super().__init__()
        self.rate, self.poisoned = rate, False
        self.encoder, self.norm, self.head = nn.Linear(64, 24), nn.LayerNorm(24), nn.Linear(24, 2)
        self.register_buffer("memory", torch.zeros(24))
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def collate(self, rows):
        """Every film's first line; the length of the report; a label where the length divides by three."""
        words = torch.tensor([len(json.loads(record)["target"].split()) for record in rows["record"]])
        line = torch.from_numpy(rows["images"][:, 0, 0].astype(np.float32) / 255 - 0.5)
        return {"line": line, "words": words, "valid": torch.from_numpy(rows["valid"])}

    def counts(self, batch):
        valid, words = batch["valid"], batch["words"]
        return {"text": float((words * valid).sum()), "label": float((valid & (words % 3 == 0)).sum())}

    def forward(self, batch):
        encoder = self.encoder.weight.dtype
        state = self.norm(self.encoder(batch["line"].to(encoder)))
        written = self.head(state + self.memory.to(encoder)).float()
        if self.training:
            self.memory.lerp_(state.detach().mean(0).float(), self.rate)
            self.passes += 1 + int(os.environ["RANK"])
        words, valid = batch["words"], batch["valid"]
        if self.poisoned:  # adds nothing, and its gradient is 0 times infinity
            written = written + (written * 0).sqrt()
        text = (written[:, 0] - batch["line"].sum(1)) ** 2 * words * valid
        label = ((written[:, 1] - words % 2) ** 2 * (valid & (words % 3 == 0))).double()
        return {"text": Term(text.sum(), 0, 0.2), "label": Term(label.sum(), 0, 3.0)}

    def trainable(self):
        groups = {"vision": [], "head": []}
        for name, parameter in self.named_parameters():
            groups["head" if name.startswith("head") else "vision"].append((name, parameter))
        return groups


def rows(step: int, rank: int, world: int, micro: int) -> list[dict]:
    """This rank's micro-batches: films of noise, reports of different lengths, every seventh study unreadable."""
    random = np.random.default_rng(step)
    images = random.integers(0, 256, (GLOBAL_BATCH, 2, 64, 64), dtype=np.uint8)
    records = [json.dumps({"target": " ".join(random.choice(WORDS, 3 + 4 * i))}) for i in range(GLOBAL_BATCH)]
    valid = np.array([(step * GLOBAL_BATCH + i) % 7 != 6 for i in range(GLOBAL_BATCH)])
    mask = np.ones((GLOBAL_BATCH, 2), bool) & valid[:, None]
    mask[1, 1] = False
    share = GLOBAL_BATCH // world
    slices = [slice(at, at + micro) for at in range(rank * share, (rank + 1) * share, micro)]
    return [{"images": images[s], "view_mask": mask[s], "valid": valid[s], "record": records[s]} for s in slices]


def losses(lm: str, setting: str, rank: int, world: int) -> list[float]:
    """Ten losses; "resume" stops after five, takes the state through host memory and goes on with a new engine.

    Of `Memory` also the whole of its memory and its count of passes, which all ranks must share, and the steps that
    changed nothing.
    """
    zero, precision, micro, option = setting.split(":")
    words = option.split("+")
    small = bool({"memory", "terms"} & set(words))
    optim = {"lr": 3e-3, "clip": 1.0, "schedule": "cosine", "lr_of": {"vision": 1e-3}}
    if "amsgrad" in words:  # a short memory, so that the largest second moment is not the newest
        optim |= {"kind": "adam", "amsgrad": True, "weight_decay": 0.1, "betas": (0.9, 0.6), "no_decay": True}
    if "clip_value" in words:
        optim |= {"clip": 0.0, "clip_value": 0.1}
    engine_words = {word: True for word in words if word.startswith("offload") or word == "compile"}
    run = Run(
        name="zero",
        model={
            "system": "r2genkg",
            "vision": {"name": "test_vit", "weights": "random", "image_px": 64, "tuning": "full"},
            "llm": {
                "source": f"{lm}-half" if "half" in words else lm,
                "tuning": "lora",
                "lora": {"rank": 4, "dropout": 0.0},
            },
            "report_tokens": 40,
        },
        engine={"zero": int(zero), "precision": precision, **engine_words},
        optim=optim,
        train={"global_batch": GLOBAL_BATCH, "micro_batch": int(micro), "workers": world, "gpus": False},
    )

    def build():
        return Memory(0.3 if "memory" in words else 0.0) if small else build_model(run.model)

    engine, model = new_engine(run, build, None)
    found, skipped = [], []
    for step in range(STEPS):
        if "resume" in words and step == RESUME_AT:
            state = whole(engine.state(), world)
            assert ("head.weight@max_exp_avg_sq" in state) == (small and "amsgrad" in words)
            engine, model = new_engine(
                run,
                build,
                {"tensors": SharedTensors(own_only(state, rank, world)), "step": step, "skipped": len(skipped)},
            )
        overflow = "overflow" in words and step in OVERFLOWS
        before = whole(engine.state(), world) if overflow else {}
        if small:
            model.poisoned = overflow and rank == world - 1
        metrics = engine.step([model.collate(micro) for micro in rows(step, rank, world, int(micro))])
        found.append(metrics["loss"])
        if metrics["skipped"]:
            skipped.append(step)
            after = whole(engine.state(), world)
            fixed = [name for name in before if name not in model.mutable]
            assert metrics["grad_norm"] == float("inf") and all(torch.equal(before[n], after[n]) for n in fixed)
    if small:
        assert model.memory.dtype == torch.float32
        mine = [float(model.memory.double().norm()), float(model.passes)]
        everywhere = whole({rank: mine}, world)
        assert all(theirs == mine for theirs in everywhere.values()), everywhere
        found += [*mine, skipped]
    return found


def own_only(state: dict, rank: int, world: int) -> dict:
    """The state as one worker may read it: what another reads and sends is of no use here."""
    readers = dealt({name: value.nbytes for name, value in state.items()}, world)
    assert len(set(readers.values())) == world
    return {name: value if readers[name] == rank else torch.full_like(value, -7) for name, value in state.items()}


def new_engine(run: Run, build, state: dict | None):
    """A fresh model with the run's seed; restored weights must therefore come from `state`, not from luck."""
    torch.manual_seed(run.train.seed if state is None else 7)
    model = build()
    return Engine(model, run, STEPS, STEPS / 2, state), model


def whole(part: dict, world: int) -> dict:
    """The parts of all workers together."""
    parts = [part]
    if world > 1:
        parts = [None] * world
        dist.all_gather_object(parts, part)
    return {key: value for each in parts for key, value in each.items()}


def main(measure) -> None:
    """Measure every setting in turn in this process group; the first worker writes what came out."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    found = {setting: measure(sys.argv[1], setting, rank, world) for setting in sys.argv[3:]}
    if rank == 0:
        with open(sys.argv[2], "w") as file:
            json.dump(found, file)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(losses)
