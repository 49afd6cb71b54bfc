"""Run by test_engine under torchrun: the same ten steps at several settings. Writes {setting: losses} as JSON.

Arguments: LM directory, output file, settings as zero:precision:micro_batch:option, ...
"""

import json
import os
import sys

import numpy as np
import torch
import torch.distributed as dist

from r2kg.config.run import Run
from r2kg.systems.contract import build_model
from r2kg.training.engine import Engine

STEPS, GLOBAL_BATCH, RESUME_AT = 10, 8, 5
WORDS = "the heart is large . there a small effusion on left right lungs are clear no nodule".split()  # noqa: SIM905


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
    """Ten losses; "resume" stops after five, takes the state through host memory and goes on with a new engine."""
    zero, precision, micro, option = setting.split(":")
    run = Run(
        name="zero",
        model={
            "vision": {"name": "test_vit", "weights": "random", "image_px": 64, "tuning": "full"},
            "llm": {"source": lm, "tuning": "lora", "lora": {"rank": 4, "dropout": 0.0}},
            "report_tokens": 40,
        },
        engine={"zero": int(zero), "precision": precision, **({option: True} if option.startswith("offload") else {})},
        optim={"lr": 3e-3, "clip": 1.0, "schedule": "cosine", "lr_of": {"vision": 1e-3}},
        train={"global_batch": GLOBAL_BATCH, "micro_batch": int(micro), "workers": world, "gpus": False},
    )
    engine, model = new_engine(run, None)
    found = []
    for step in range(STEPS):
        if option == "resume" and step == RESUME_AT:
            engine, model = new_engine(run, {"tensors": whole(engine.state(), world), "step": step})
        found.append(engine.step([model.collate(micro) for micro in rows(step, rank, world, int(micro))])["loss"])
    return found


def new_engine(run: Run, state: dict | None):
    """A fresh model with the run's seed; restored weights must therefore come from `state`, not from luck."""
    torch.manual_seed(run.train.seed if state is None else 7)
    model = build_model(run.model)
    return Engine(model, run, STEPS, STEPS / 2, state), model


def whole(part: dict, world: int) -> dict:
    """The parts of all workers together."""
    parts = [part]
    if world > 1:
        parts = [None] * world
        dist.all_gather_object(parts, part)
    return {key: value for each in parts for key, value in each.items()}


def main() -> None:
    """Run every setting in turn in this process group."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    found = {setting: losses(sys.argv[1], setting, rank, world) for setting in sys.argv[3:]}
    if rank == 0:
        with open(sys.argv[2], "w") as file:
            json.dump(found, file)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
