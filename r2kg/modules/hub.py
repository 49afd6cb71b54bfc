"""Whether the Hugging Face hub can be reached, asked before its clients retry for half a minute a file."""

import os
import socket
import time
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

from shards.session import joining

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
