"""What Ray Train's own processes run: the streams in its controller, the loop in its workers.

Those processes import this file before anything of the run happens, and it imports no library of models: five seconds
of every start. In a worker `enter` settles what must be settled before DeepSpeed is imported.
"""

import json
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ray.train import DataConfig, UserCallback

from r2kg.config.run import Run
from r2kg.rundir import RunFiles
from r2kg.training.checkpoint import newest_checkpoint, read_state
from shards.errors import CheckpointError, RetryableError
from shards.stream.blocks import Stream, rows_per_block, stream_blocks
from shards.stream.order import plan as plan_blocks
from shards.stream.order import sequential_blocks
from shards.tars.kinds import KINDS, read_side


def enter(config: dict) -> dict:
    """`r2kg.training.loop.train_worker`, on the hardware that the run asks for.

    Ray hides no GPU from a worker that asked for none, and DeepSpeed takes what it sees at its import.
    """
    if not json.loads(config["run"])["train"]["gpus"]:
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    from r2kg.training.loop import train_worker

    return train_worker(config)


class Losses(UserCallback):
    """Notes the groups of workers that count against `train.max_restarts`: not those that a node was taken from."""

    def __init__(self, directory: Path, attempt: str):
        """Of a run's directory and the attempt that starts the groups."""
        self.directory, self.attempt = directory, attempt

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called by Ray's controller when a group has failed."""
        causes = [getattr(error, "health_check_failure", error) for error in worker_exceptions.values()]
        if not any(getattr(cause, "preempted", False) for cause in causes):
            RunFiles(self.directory).note_group(self.attempt, lost=True)


class Ranks(DataConfig):
    """What a rank is given by `ray.train.get_dataset_shard`: the stream of its own blocks, which it reads itself.

    Ray's default would deal one dataset's blocks by an actor for each dataset, through which every block's notice goes:
    `bench.ranks` has the two beside each other. Of a node's free CPUs Ray gives each dataset in the cluster the same
    whole number, which is 0 where ranks are more than they: a rank then reads one block after another, ahead of the
    training by `PREFETCH_BLOCKS`. That is hundreds of studies a second, if storage answers, for every GPU.
    """

    def configure(self, datasets: dict[str, Any], world_size: int, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        """For each rank its part of every stream."""
        return [{name: stream.of(rank) for name, stream in datasets.items()} for rank in range(world_size)]


def film_streams(
    run: Run, studies: int, validation_studies: int, steps: int, name: str = ""
) -> dict[str, Callable[[], Stream]]:
    """Makers of the streams, by split. Ray Train calls them whenever a worker group starts; nothing is read before.

    `studies`, `validation_studies` and `steps` are the plan's, `name` is the attempt's.
    """
    train, data, inputs = run.train, run.data, run.inputs
    films = partial(
        stream_blocks, data.shards, image_size=inputs.image_px, views=inputs.views, on_bad=data.on_bad, sides=run.sides,
        fit=inputs.fit,
    )  # fmt: skip

    def training() -> Stream:
        """From the newest good checkpoint on. What is raised here ends the attempt; the driver raises it as it was."""
        files = RunFiles(run.directory)
        files.raise_failure(name)
        try:
            start = newest_checkpoint(run.directory, warn=files.say)
        except (CheckpointError, RetryableError) as error:
            files.note_failure(name, type(error).__name__, str(error), "")
            raise
        files.note_group(name)
        step = read_state(start)["step"] if start else 0
        left = max(0, steps - step)
        share = left * train.global_batch // train.workers
        blocks = plan_blocks(
            n=studies,
            seed=train.seed,
            samples_seen=step * train.global_batch,
            steps=left,
            global_batch=train.global_batch,
            world=train.workers,
            rows_per_block=rows_per_block(inputs.image_px, inputs.views, share, film_bytes(run)),
            chunk=data.chunk,
            window=data.window,
        )
        return films("train", blocks, augment=inputs.augment, seed=train.seed)

    def validation() -> Stream:
        """The first studies of the split, in order, filled with rows that count for nothing; always the same."""
        return films("val", sequential_blocks(validation_studies, train.workers, train.micro_batch))

    return {"train": training, "val": validation} if validation_studies else {"train": training}


def film_bytes(run: Run) -> int:
    """Size of what a row of the stream holds of one film in place of it; 0 when films are streamed, or none is."""
    stored = [read_side(where).extent for kind, where in run.sides.items() if kind in KINDS and KINDS[kind].per_film]
    return 2 * math.prod(stored[0][1:]) if stored else 0
