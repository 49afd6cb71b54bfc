"""What is counted over all reports of shards, a vocabulary or a floor, kept beside them so that it is counted once."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from shards.privacy import terms_of
from shards.tars.format import Manifest
from shards.tars.place import Place, is_local, make_directory, place, read_whole, write_atomic

T = TypeVar("T")
FACTS = "facts"
"""The directory below the shards. Whatever is in it can be deleted."""
RULES = 1
"""Rises when what is counted changes its meaning."""
MAX_BYTES = 1 << 26


def fact(
    root: str | Place,
    manifest: Manifest,
    name: str,
    settings: Mapping[str, Any],
    count: Callable[[], T],
    unread: Mapping[str, str] | None = None,
) -> T:
    """What `count` returned for shards of this content and these settings, now or before: something that JSON holds.

    It is kept as SHARDS/facts/NAME-HASH.json, of credentialed data readable by the owner alone, unless `unread` says by
    then that studies were left out. Where the directory cannot be written it is counted every time; a file that is torn
    or of something else is as good as none. Never give a report's text to keep: give the row of its study.
    """
    key = {"shards": manifest.fingerprint, "name": name, "settings": dict(settings), "rules": RULES}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    folder = place(root) / FACTS
    path = folder / f"{name}-{digest[:12]}.json"
    with suppress(OSError, ValueError, RecursionError, LookupError, TypeError):
        kept = json.loads(read_whole(path, MAX_BYTES))
        if kept["key"] == key and kept["sha256"] == _hash(kept["value"]):
            return kept["value"]
    value = count()
    if unread:
        return value
    content = json.dumps({"key": key, "sha256": _hash(value), "value": value}).encode()
    with suppress(OSError):
        make_directory(folder)
        if is_local(folder) and terms_of(manifest.licence).credentialed:
            os.chmod(folder, 0o700)
        write_atomic(path, content)
    return value


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
