"""One holder of a directory at a time, on whatever machine: a file in it that its holder keeps writing.

Locks of the operating system are not the means: on many shared file systems they do not reach another machine.
"""

import json
import os
import secrets
import socket
import sys
import threading
import time
from _thread import interrupt_main
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from shards.errors import ConfigError, RetryableError, patiently, unusable
from shards.tars.place import write_atomic

LEASE = "lease.json"
BEAT_SECONDS = 5.0
STALE_SECONDS = 30.0
"""A lease of another machine whose beats stand still for so long belongs to nobody."""


class HeldError(ConfigError):
    """Another process holds the directory."""


@contextmanager
def lease(directory: Path, what: str, lost: Callable[[str], None]) -> Iterator[None]:
    """Hold `directory`, which is made, while the block runs.

    The holder writes a beat every 5 s. One that was killed on this machine is seen to be gone at once; of one on
    another machine the beats are watched for 30 s, without comparing clocks.

    Args:
        what: what is done there, for the answer to a second one, e.g. "demo is being trained".
        lost: called from a thread with a sentence when another has taken the directory, which happens to a holder that
            stood still for more than 30 s.

    Raises:
        HeldError: another holds it; who, where and since when.
        RetryableError: the file system does not answer.
    """
    new = not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unusable(directory, error) from None
    path, token = directory / LEASE, secrets.token_hex(8)
    if (held := _read(path)) and not _gone(path, held):
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(held["since"]))
        raise HeldError(
            f"{what} already: process {held['pid']} on {held['host']} has held {directory} since {since}. Wait for it, "
            f"or stop it (kill {held['pid']} there)"
        )
    mine = {"token": token, "host": socket.gethostname(), "processes": _processes(), "pid": os.getpid()}
    mine |= {"born": _born(os.getpid()), "since": time.time(), "beats": 0}
    write_atomic(path, json.dumps(mine).encode())
    time.sleep(0.2)  # of two that write at once the later one has it
    if (held := _read(path)).get("token") != token:
        raise HeldError(f"{what} already: process {held.get('pid')} on {held.get('host')} has just begun with it")
    done = threading.Event()
    thread = threading.Thread(target=_beat, args=(path, mine, done, lost), name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        with suppress(OSError, RetryableError):  # else it is seen to be gone, as that of a killed one
            if _read(path).get("token") == token:
                path.unlink(missing_ok=True)
        if new:  # what was refused leaves no empty directory
            with suppress(OSError):
                directory.rmdir()


def stop_main(sentence: str) -> None:
    """Say why, then end this process's main thread as Ctrl-C does: for `lost`, where nothing else can be done."""
    print(f"Stopping: {sentence}.", file=sys.stderr, flush=True)
    interrupt_main()


def _beat(path: Path, mine: dict[str, Any], done: threading.Event, lost: Callable[[str], None]) -> None:
    """Write `mine` with one beat more every 5 s, until it is `done` or another's stands there."""
    while not done.wait(BEAT_SECONDS):
        try:
            held = _read(path)
        except RetryableError:  # nobody can tell: the next beat may
            continue
        if held and held["token"] != mine["token"]:
            lost(f"process {held['pid']} on {held['host']} has taken {path.parent}, which this one held")
            return
        mine["beats"] += 1
        try:
            write_atomic(path, json.dumps(mine).encode())
        except OSError:  # a full or stalled disk: the next beat may go through
            continue


def _read(path: Path) -> dict[str, Any]:
    """What stands in a lease; {} where there is none, or a torn one, which no holder of ours leaves.

    Raises:
        RetryableError: the file system does not answer, so that nobody can tell.
    """
    try:
        held = json.loads(patiently(str(path), path.read_text))
        return held if {"token", "host", "processes", "pid", "born", "since", "beats"} <= held.keys() else {}
    except (OSError, ValueError, AttributeError):
        return {}


def _gone(path: Path, held: dict[str, Any]) -> bool:
    """Whether the holder has ended, or stands still for 30 s."""
    if held["processes"] == _processes():
        return _born(held["pid"]) != held["born"]
    print(f"Process {held['pid']} on {held['host']} held {path.parent}: watching {STALE_SECONDS:.0f} s if it lives.")
    deadline = time.monotonic() + STALE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(1.0)
        now = _read(path)
        if (now.get("token"), now.get("beats")) != (held["token"], held["beats"]):
            return not now
    return True


def _processes() -> str:
    """Tells this machine's processes, and this container's, from all others."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return f"{socket.gethostname()} {psutil.boot_time():.0f}"


def _born(pid: int) -> float | None:
    """When a process of this machine started: tells it from a later one of the same number."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None
