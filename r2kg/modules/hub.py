"""Files of the Hugging Face hub: whether it can be reached at all, and what weights a model there has."""

import os
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from shards.session import joining
from shards.tars.place import sha256_of

SECONDS = 3.0
"""For a connection; without a network the answer comes at once."""


def go_offline_without_hub() -> None:
    """Have the hub's clients look into their cache alone where the hub cannot be reached from the driver.

    For this process, and for the workers of a session of its own, which are on the same machine: workers on a cluster
    keep the clients' patience, since a network may fail one of them for a moment. Behind a proxy that is the proxy's to
    say; HF_HUB_OFFLINE=1 says it without asking.
    """
    if constants.HF_HUB_OFFLINE or getproxies().keys() - {"no"}:
        return
    hub = urlsplit(constants.ENDPOINT)
    for pause in (1.0, 0.0):
        try:
            socket.create_connection((hub.hostname or "", hub.port or 443), timeout=SECONDS).close()
            return
        except OSError:
            time.sleep(pause)
    constants.HF_HUB_OFFLINE = True
    if not joining():
        os.environ["HF_HUB_OFFLINE"] = "1"


def may_come(error: BaseException | None) -> bool:
    """Whether a file could not be had because the hub did not answer, for once: not where nobody expects it to."""
    while error is not None and not constants.HF_HUB_OFFLINE:
        if isinstance(error, LocalEntryNotFoundError | ConnectionError | TimeoutError):
            return True
        error = error.__cause__ or error.__context__
    return False


def weight_hashes(source: str | Path, revision: str | None = None) -> dict[str, str]:
    """sha256 of every safetensors file of a model that was loaded, from its directory or from the hub's cache.

    The cache names its files by their hashes.
    """
    folder, hashes = Path(source).expanduser(), {}
    if not folder.is_dir():
        patterns = ["*.safetensors"]
        folder = Path(snapshot_download(str(source), revision=revision, allow_patterns=patterns, local_files_only=True))
    for path in sorted(folder.glob("*.safetensors")):
        blob = path.resolve()
        named = blob.parent.name == "blobs" and len(blob.name) == 64
        hashes[path.name] = blob.name if named else sha256_of(path)
    return hashes
