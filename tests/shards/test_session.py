"""Where a session of our own spills what does not fit its memory."""

import os
import socket
import subprocess
import sys

from shards.session import SPILL, _spill_directory


def test_every_process_has_its_own_and_those_of_dead_ones_go(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host, alive = socket.gethostname(), os.getppid()
    names = [f"{SPILL}-{host}-{ended.pid}", f"{SPILL}-{host}-{alive}", f"{SPILL}-{host}-2-{ended.pid}"]
    for name in names:
        (tmp_path / name).mkdir()
    mine = _spill_directory(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names[1:], mine.name])
    assert mine.name == f"{SPILL}-{host}-{os.getpid()}"
