"""Whether the Hugging Face hub can be reached, asked before its clients retry for half a minute a file."""

import socket
import time
from functools import cache
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants

SECONDS = 3.0
"""For a connection; without a network the answer comes at once."""


@cache
def go_offline_without_hub() -> None:
    """Have the hub's clients look into their cache alone, for this process, where the hub cannot be reached.

    Behind a proxy that is the proxy's to say. HF_HUB_OFFLINE=1 says it without asking.
    """
    if constants.HF_HUB_OFFLINE or getproxies():
        return
    hub = urlsplit(constants.ENDPOINT)
    for pause in (1.0, 0.0):
        try:
            socket.create_connection((hub.hostname or "", hub.port or 443), timeout=SECONDS).close()
            return
        except OSError:
            time.sleep(pause)
    constants.HF_HUB_OFFLINE = True
