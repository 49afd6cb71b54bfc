"""The four kinds of failure, and what to do about a bad study. Only `RetryableError` is worth restarting a run for."""

import errno
from typing import Literal

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


LASTING_ERRNO = {
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.ENXIO,
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ESPIPE,
}  # fmt: skip


PASSING_STATUS = {408, 425, 429}
"""What an HTTP server says, beside 500 and above, to be asked again later."""
PASSING = {"HTTPClientError", "ClientConnectionError", "ClientPayloadError"}
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
