"""What Ray Train starts in a worker: what must be settled before DeepSpeed is imported, then the loop."""

import json
import os


def enter(config: dict) -> dict:
    """`r2kg.training.loop.train_worker`, on the hardware that the run asks for.

    Ray hides no GPU from a worker that asked for none, and DeepSpeed takes what it sees at its import.
    """
    if not json.loads(config["run"])["train"]["gpus"]:
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    from r2kg.training.loop import train_worker

    return train_worker(config)
