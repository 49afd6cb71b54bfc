"""What a process that makes an attempt may do, for tests of the one that starts it. The run's recipe field says which.

Each attempt appends a line to attempts.txt in the run's directory: its process, the restarts that are left.
"""

import errno
import os
import signal
import sys
import time

from r2kg.config.run import Run
from r2kg.rundir import RunFiles


def attempt(saved: str, name: str, restarts: int) -> None:
    run = Run.model_validate_json(saved)
    files, log = RunFiles(run.directory), run.directory / "attempts.txt"
    with log.open("a") as file:
        file.write(f"{os.getpid()} {restarts}\n")
    number = len(log.read_text().splitlines())
    match run.recipe, number:
        case "starts nothing", _:
            time.sleep(120)
        case "waits", _:
            files.note_group(name)
            time.sleep(120)
        case "waits to be stopped", _:
            files.note_group(name)
            while not files.is_to_stop(name):
                time.sleep(0.1)
            (run.directory / "ended.txt").write_text("in order")
        case "is wrong", _:
            raise KeyError("a mistake")
        case "is refused", _:
            sys.exit(2)
        case "is killed", 1:
            os.kill(os.getpid(), signal.SIGKILL)
        case "loses its head", 1:
            os._exit(1)
        case "loses workers", 1:
            for _ in range(2):
                files.note_group(name)
                files.note_group(name, lost=True)
            sys.exit(75)
        case "waits in vain", _:
            sys.exit(69)
        case "fails to read", 1:
            raise OSError(errno.EIO, "Input/output error")
        case "loses all", _:
            sys.exit(75)
