"""The four kinds of failure, and what to do about a bad study. Only `RetryableError` is worth restarting a run for."""

import errno
import random
import time
from collections.abc import Callable
from typing import Literal, TypeVar

OnBad = Literal["skip", "fail"]
"""A study that cannot be used: count and name it, or stop."""


class ConfigError(ValueError):
    """The request cannot work as written. The message names the values and the way out."""


class DataError(ValueError):
    """Raw data, shards or predictions are missing, changed or unreadable. The message names file and study."""


class CheckpointError(RuntimeError):
    """A checkpoint does not match its own manifest, its run, its shards or its frozen weights."""


class RetryableError(RuntimeError):
    """Something outside the run failed (a node, storage for a moment). Restarting from the last checkpoint may help."""


class WaitedError(RetryableError):
    """What was waited for did not come in the time that was set: when to try again is for a person to say."""


def unusable(place: object, error: OSError) -> ConfigError | RetryableError:
    """The error to raise for a directory that cannot be made or written."""
    kind = RetryableError if may_pass(error) else ConfigError
    return kind(f"{place} cannot be made or written ({error.strerror or type(error).__name__}): choose another place")


LASTING_ERRNO = {
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.ENXIO,
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ESPIPE,
}  # fmt: skip


PASSING_STATUS = {408, 425, 429}
"""What an HTTP server says, beside 500 and above, to be asked again later."""
PASSING = {"HTTPClientError", "ConnectionError", "ResponseParserError", "ClientConnectionError", "ClientPayloadError"}
"""Errors of connections, by the names that botocore and aiohttp have for them: neither is needed here."""


def may_pass(error: BaseException) -> bool:
    """Whether the same request may be answered in a while: an error of a file system or a server, not of the file.

    EIO, ESTALE, a timeout, a lost connection, a server's 503; not a missing file or right. Libraries raise OSError
    without a number for contents they cannot read: those stay.
    """
    if isinstance(error, FileNotFoundError):  # fsspec says so of any answer over HTTP, with the true cause behind it
        return error.__cause__ is not None and may_pass(error.__cause__)
    status = getattr(error, "status", None)
    if isinstance(error, TimeoutError | ConnectionError) or {kind.__name__ for kind in type(error).__mro__} & PASSING:
        return True
    if isinstance(status, int) and not isinstance(error, OSError):
        return status >= 500 or status in PASSING_STATUS
    return isinstance(error, OSError) and error.errno is not None and error.errno not in LASTING_ERRNO


T = TypeVar("T")
WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds after which storage that did not answer is asked again, give or take a third."""


def patiently(what: str, ask: Callable[[], T]) -> T:
    """What `ask` gives, asked again where storage did not answer (`may_pass`); other errors are raised as they are.

    Raises:
        RetryableError: it did not answer after `WAITS`, in about fifteen seconds. Nobody takes that for a bad study.
    """
    began = time.monotonic()
    for wait in (*WAITS, None):
        try:
            return ask()
        except Exception as error:
            if not may_pass(error):
                raise
            if wait is None:
                cause = getattr(error, "strerror", None) or f"{type(error).__name__} {getattr(error, 'status', '')}"
                seconds = time.monotonic() - began
                raise RetryableError(
                    f"storage did not answer for {what}, asked {len(WAITS) + 1} times in {seconds:.1f} s "
                    f"({cause.strip()}): run the same command again when it does"
                ) from error
        time.sleep(wait * random.uniform(0.7, 1.3))
    raise AssertionError
