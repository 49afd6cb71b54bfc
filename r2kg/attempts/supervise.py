"""`r2kg train` as a process that outlives what it starts: attempts at the run, one after another.

A lost worker is replaced inside an attempt. With Ray's controller, its head or the driver itself the whole attempt is
lost, and often nothing in that process can notice. This one holds the run's lease, knows nothing of torch and Ray, and
starts the next attempt, which goes on from the newest checkpoint.
"""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context, parent_process

from r2kg.attempts.lease import lease
from r2kg.config.run import Run
from r2kg.rundir import RunFiles, new_attempt
from r2kg.tracking import close_run
from shards.errors import RetryableError, may_pass
from shards.session import joining

Target = Callable[[str, str, int], None]
RETRY = 75
"""Exit code (EX_TEMPFAIL) of what may succeed when it is submitted again: also of one attempt to this process."""
FAULT = 70
"""Exit code (EX_SOFTWARE) of an attempt that a mistake in a program ended: 1 is what Ray ends its processes with."""
WAITED = 69
"""Exit code (EX_UNAVAILABLE) of an attempt that waited in vain for nodes: the next one would only wait once more."""
TWICE_SECONDS = 0.5
"""A signal so soon after another is the same one: sent to a process, and to the group it belongs to."""
LEAVE = signal.SIGUSR1
"""What ends an attempt, with whatever it has registered for its end; nothing else sends it."""
GRACE_SECONDS = 30.0
LONGEST_PAUSE = 60.0


def supervise(run: Run, target: Target) -> int:
    """Make attempts at `run` until one ends it, or more than `train.max_restarts` were lost.

    Args:
        target: makes an attempt in a process of its own, from (the run as JSON, the attempt's name, restarts that are
            left, -1 for no limit). It ends the process with 0, with `RETRY` after a loss, or with another code.

    Returns:
        the exit code: the last attempt's; 75 when the limit is reached or another process has taken the run; 128 and
        the signal's number when this process was told to stop.

    Raises:
        ConfigError: the run is being trained already.
    """
    run = run.absolute()
    if not joining():  # a session of our own is over with its head: no use in waiting a minute for that
        os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "5")
    attempts = Attempts(run, target)
    before = {number: signal.signal(number, attempts.stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with lease(run.directory, f"{run.name} is being trained", attempts.taken):
            code = _attempts(run, attempts)
            if code and attempts.told != RETRY and (note := close_run(run, "FAILED" if code < RETRY else "KILLED")):
                print(note, flush=True)
            return code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _attempts(run: Run, attempts: "Attempts") -> int:
    """One after another, until one ends the run or too many were lost; the exit code."""
    limit, lost = run.train.max_restarts, 0
    while True:
        began, code = time.monotonic(), attempts.make(limit if limit < 0 else limit - lost)
        if attempts.told is not None:
            return attempts.told
        if code == WAITED:
            return RETRY
        if code not in (RETRY, 1) and code >= 0:
            return 1 if code == FAULT else code
        lost += attempts.losses()
        what = "Ray's head was lost. " if code == 1 else ""
        if code < 0:
            what = f"The driver died of {signal.Signals(-code).name}. "
        if 0 <= limit < lost:
            print(
                f"{what}{run.name} was lost {lost} time{'s' * (lost != 1)}, train.max_restarts={limit}. Submit it "
                "again to go on from its newest checkpoint.",
                file=sys.stderr,
            )
            return RETRY
        print(f"{what}Starting {run.name} again, restart {lost}{f' of {limit}' * (limit >= 0)}.", flush=True)
        attempts.pause(2.0 ** min(lost, 10) - (time.monotonic() - began))


class Attempts:
    """The attempts at one run, of which at most one is under way."""

    def __init__(self, run: Run, target: Target):
        """Nothing starts before `make`."""
        self.run, self.target, self.name = run, target, ""
        self.child = get_context("spawn").Process()
        self.told: int | None = None
        """The exit code to end with, once this process was told to stop."""
        self._stopped, self._signals, self._newest = threading.Event(), 0, -TWICE_SECONDS

    def make(self, restarts: int) -> int:
        """The exit code of one attempt, negative for the signal that ended it."""
        self.name = new_attempt()
        arguments = (self.target, self.run.model_dump_json(), self.name, restarts)
        self.child = get_context("spawn").Process(target=_attempt, args=arguments, name=f"{self.run.name}")
        self.child.start()
        if self.told is not None:  # in the moment before there was anything to stop
            self.child.kill()
        while (code := self.child.exitcode) is None:
            self.child.join()  # it returns early where a signal's handler raises an OSError inside
        return code

    def losses(self) -> int:
        """What the last attempt, which was lost, counts for: see `RunFiles.losses_of`."""
        try:
            return RunFiles(self.run.directory).losses_of(self.name)
        except (OSError, RetryableError):  # of the run's directory, which may be why it was lost
            return 1

    def pause(self, seconds: float) -> None:
        """Wait, longer after every loss, so that what is gone may come back; a signal ends it."""
        self._stopped.wait(min(LONGEST_PAUSE, max(0.0, seconds)))

    def stop(self, number: int, *_: object) -> None:
        """Handle a signal: ask for a checkpoint, then end the attempt, which lets Ray end what it started, then insist.

        Where no worker has started there is nothing to save, and nobody to hear.
        """
        now = time.monotonic()
        (before, self._newest), self.told = (self._newest, now), 128 + number
        if now - before < TWICE_SECONDS:
            return
        self._signals += 1
        files = RunFiles(self.run.directory)
        if self._signals == 1:
            groups = 0
            with suppress(OSError, RetryableError):  # of the run's directory: then without
                files.ask_to_stop(self.name)
                groups = files.groups_of(self.name)
            how = "with a checkpoint; once more, and it stops without" if groups else "before its first step"
            with suppress(OSError):  # of a pipe whose reader the same Ctrl-C has ended
                print(f"{self.run.name} is stopping {how}.", flush=True)
            self._later(self.run.train.stop_seconds if groups else 0.0, self._leave)
        elif self._signals == 2:
            self._leave()
        else:
            self._kill()
        self._end(128 + number)

    def _leave(self) -> None:
        if self.child.pid and self.child.is_alive():
            os.kill(self.child.pid, LEAVE)
        self._later(GRACE_SECONDS, self._kill)

    def _later(self, seconds: float, what: Callable, *arguments: object) -> None:
        timer = threading.Timer(seconds, what, arguments)
        timer.daemon = True
        timer.start()

    def taken(self, sentence: str) -> None:
        """Another process has the run's directory: nothing more may be written there."""
        print(f"{self.run.name} stops: {sentence}.", file=sys.stderr, flush=True)
        self._end(RETRY)
        self._kill()

    def _end(self, code: int) -> None:
        self.told = code
        self._stopped.set()

    def _kill(self) -> None:
        if self.child.pid and self.child.is_alive():
            self.child.kill()


def _attempt(target: Target, run: str, name: str, restarts: int) -> None:
    """`target` in its process, which dies with the one that started it, and its Ray session with it."""
    os.setpgrp()  # a terminal's Ctrl-C is for the process that this one belongs to
    threading.Thread(target=_die_with_parent, daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM):  # `ray job stop` and others send them to every process there is
        signal.signal(number, _leave_to_parent)
    signal.signal(LEAVE, lambda *_: sys.exit(128 + LEAVE))
    try:
        target(run, name, restarts)
    except Exception as error:
        traceback.print_exc()
        sys.exit(RETRY if may_pass(error) else FAULT)


def _leave_to_parent(*_: object) -> None:
    """No SIG_IGN, which processes that are started here would keep."""


def _die_with_parent() -> None:
    """Wait for the end of the process that started this one."""
    if parent := parent_process():
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)
