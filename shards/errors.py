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


LASTING_ERRNO = {
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.ENXIO,
    errno.EACCES, errno.EPERM, errno.EROFS,
}  # fmt: skip


def may_pass(error: BaseException) -> bool:
    """Whether the same request may be answered in a while: an error of a file system or a server, not of the file.

    EIO, ESTALE, a timeout, a lost connection; not a missing file or right. Libraries raise OSError without a number for
    contents they cannot read: those stay.
    """
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    return isinstance(error, OSError) and error.errno is not None and error.errno not in LASTING_ERRNO
