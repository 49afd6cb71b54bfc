"""kill -9 in the middle of a run."""

import os
import signal
import threading
import time

import psutil

from r2kg.config.run import Run
from r2kg.training.checkpoint import checkpoints
from r2kg.training.launch import train


def train_killed(run: Run, checkpoint_step: int) -> dict:
    """The summary of a run of two workers that loses one once the checkpoint of a step is there."""
    result: dict = {}
    thread = threading.Thread(target=lambda: result.update(train(run)))
    thread.start()
    for _ in range(1200):
        if any(int(path.name.split("-")[1]) >= checkpoint_step for path in checkpoints(run.directory)):
            break
        time.sleep(0.1)
    mine = psutil.Process().children(recursive=True)
    alive = [process for process in mine if process.status() != psutil.STATUS_ZOMBIE]
    workers = [process for process in alive if "RayTrainWorker" in " ".join(process.cmdline())]
    assert len(workers) == 2, [process.cmdline()[:1] for process in alive]
    os.kill(workers[0].pid, signal.SIGKILL)
    thread.join(timeout=240)
    assert (run.directory / "log.txt").read_text().count("workers take steps") == 2
    noted = [line.split()[-1] for line in (run.directory / "groups.txt").read_text().splitlines()]
    assert noted == ["started", "lost", "started"]
    return result
