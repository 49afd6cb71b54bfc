"""The four kinds of failure, and what to do about a bad study. Only `RetryableError` is worth restarting a run for."""

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
