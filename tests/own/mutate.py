"""Hostile inputs for the readers' fuzz tests, and a child process that judges what a reader does with them."""

import ctypes
import io
import logging
import os
import random
import resource
import select
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

from shards.errors import CheckpointError, ConfigError, DataError, RetryableError

OWN_ERRORS = (ConfigError, DataError, CheckpointError, RetryableError)
SECRET = "Zqx7Wrtl"
"""Stands in the seeds wherever a file may hold text; no message, warning, log record or traceback may."""
CPU_SECONDS = 10
WALL_SECONDS = 60
"""After so long without a word the child is taken to hang: the machine may be busy, so CPU seconds are judged first."""
MEMORY_BYTES = 900_000_000
"""Of 1 GB that a process may take, what is left to a reader."""
NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**32 - 8, 1_000_000)

Reader = Callable[[bytes], object]


def mutant(seeds: list[bytes], rng: random.Random) -> bytes:
    """One of the seeds after one to four changes: bits, bytes, numbers, cuts, blocks moved, and splices of two."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(len(data) + 1), int(2 ** rng.uniform(0, 10))
        if rng.random() < 0.5:  # where headers are
            at = min(at, int(2 ** rng.uniform(0, 11)))
        kind = rng.randrange(8)
        if kind == 0:
            data[at : at + 1] = bytes(byte ^ 1 << rng.randrange(8) for byte in data[at : at + 1])
        elif kind == 1:
            data[at : at + 1] = rng.randbytes(1)
        elif kind == 2:
            number = rng.choice(NUMBERS)
            sizes = [size for size in (1, 2, 4, 8) if number < 256**size]
            size = rng.choice(sizes)
            data[at : at + size] = number.to_bytes(size, rng.choice(("little", "big")))
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            del data[at : at + length]
        elif kind == 5:
            data[at:at] = data[at : at + length] * rng.randint(1, 9)
        elif kind == 6:
            other = rng.choice(seeds)
            data[at:] = other[rng.randrange(len(other)) :]
        else:
            data[at : at + length] = rng.choice((b"\0", b"\xff", rng.randbytes(1))) * length
    return bytes(data)


def fault_of(read: Reader, data: bytes, right: Callable[[object], bool] = lambda found: True) -> str:
    """What is wrong with the answer of a reader, "" for nothing: judged in this process."""
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before, start, told = _memory("VmRSS"), time.process_time(), io.StringIO()
    handler, root = logging.StreamHandler(told), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    fault = ""
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as spoken, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        os.dup2(spoken.fileno(), 2)  # C libraries write there
        try:
            if not right(read(data)):
                fault = "a wrong answer"
        except OWN_ERRORS as error:
            told.write("".join(traceback.format_exception(error)))
        except BaseException as error:
            fault = f"{type(error).__name__} is none of our errors"
            told.write(str(error))
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            root.removeHandler(handler)
            root.setLevel(level)
        spoken.seek(0)
        told.write(spoken.read().decode("latin-1") + "".join(str(warning.message) for warning in warned))
    if (took := time.process_time() - start) > CPU_SECONDS:
        fault = fault or f"{took:.0f} CPU seconds"
    if (grown := _memory("VmHWM") - before + len(data)) > MEMORY_BYTES:
        fault = fault or f"{grown / 1e6:,.0f} MB"
    if SECRET in told.getvalue():
        fault = fault or "text of the file is told"
    return fault


def hunt(read: Reader, inputs: Iterable[bytes], folder: Path, seconds: float = 0, **judged: Callable) -> str:
    """The first fault of a reader over `inputs`, found in a forked child; "" for none.

    The input is in `folder`/fault, made smaller while the fault stays. A child that dies or hangs is a fault too.
    """
    now, smallest = folder / "now", folder / "fault"
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(receiver)
            ctypes.CDLL(None).malloc_trim(0)  # what is free but kept would be used again, uncounted
            size = _memory("VmSize") + 4 * 1024**3
            resource.setrlimit(resource.RLIMIT_AS, (size, size))  # the machine is not the victim of a bomb
            end = time.monotonic() + seconds
            for data in inputs:
                now.write_bytes(data)
                os.write(sender, b"\n")
                if fault := fault_of(read, data, **judged):
                    smallest.write_bytes(data)
                    os.write(sender, fault.encode())
                    smallest.write_bytes(_shrunk(data, lambda part: fault_of(read, part, **judged) == fault))
                    break
                if seconds and time.monotonic() > end:
                    break
            os.write(sender, b"\0")
        finally:
            os._exit(0)
    os.close(sender)
    told = b""
    with os.fdopen(receiver, "rb", buffering=0) as pipe:
        while not told.endswith(b"\0"):
            if not select.select([pipe], [], [], WALL_SECONDS)[0]:
                os.kill(child, signal.SIGKILL)
                told += f"nothing for {WALL_SECONDS} s".encode()
                break
            part = pipe.read(65536)
            if not part:
                told += b"the process died"
                break
            told += part
    os.waitpid(child, 0)
    fault = told.strip(b"\n\0").decode()
    if fault and not smallest.exists():
        now.rename(smallest)
    return fault


def _shrunk(data: bytes, faulty: Callable[[bytes], bool], seconds: float = 20) -> bytes:
    """The input with pieces left out as long as it stays faulty."""
    end, size = time.monotonic() + seconds, len(data) // 2
    while size and time.monotonic() < end:
        for at in range(0, len(data), size):
            part = data[:at] + data[at + size :]
            if time.monotonic() < end and faulty(part):
                data = part
        size //= 2
    return data


def _memory(field: str) -> int:
    """A line of /proc/self/status, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
