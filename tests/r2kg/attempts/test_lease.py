"""A directory has one holder, on whatever machine."""

import errno
import json
import os
import threading
import time
from pathlib import Path

import pytest

from r2kg.attempts import lease as module
from r2kg.attempts.lease import LEASE, lease
from shards import errors
from shards.errors import ConfigError, RetryableError


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(module, "STALE_SECONDS", 2.0)


def held(folder, **other) -> dict:
    """A lease as another process left it."""
    content = {
        "token": "another",
        "host": "node-7",
        "processes": "there",
        "pid": 77,
        "born": 1.0,
        "since": 1e9,
        "beats": 3,
    }
    folder.mkdir(exist_ok=True)
    (folder / LEASE).write_text(json.dumps(content | other))
    return content | other


def test_it_is_held_while_the_block_runs_and_leaves_nothing(tmp_path):
    folder, lost = tmp_path / "run", []
    with lease(folder, "run is being trained", lost.append):
        before = json.loads((folder / LEASE).read_text())
        time.sleep(0.7)
        assert json.loads((folder / LEASE).read_text())["beats"] > before["beats"]
        with pytest.raises(ConfigError, match=rf"run is being trained already: process {os.getpid()} on "):  # noqa: SIM117
            with lease(folder, "run is being trained", lost.append):
                raise AssertionError("two hold it")
        assert (folder / LEASE).exists()
    assert not folder.exists() and not lost


def test_a_torn_one_or_one_of_a_process_that_is_gone_is_taken(tmp_path):
    held(tmp_path, processes=module._processes(), pid=2**22 + 1)
    with lease(tmp_path, "x", print):
        pass
    held(tmp_path, processes=module._processes(), pid=os.getpid(), born=1.0)  # its number was given again
    with lease(tmp_path, "x", print):
        pass
    (tmp_path / LEASE).write_text('{"token": ')
    with lease(tmp_path, "x", print):
        pass


def test_one_that_cannot_be_read_at_the_moment_is_nobodys_to_take(tmp_path, monkeypatch):
    """A file that is replaced every 5 s is stale for a reader on NFS now and then; its holder is alive."""
    whole, answers = Path.read_text, [OSError(errno.ESTALE, "stale")] * 2

    def read(path, *arguments):
        if path.name == LEASE and answers:
            raise answers.pop()
        return whole(path, *arguments)

    monkeypatch.setattr(errors, "WAITS", (0.01,) * 2)
    with lease(tmp_path, "x", print):
        monkeypatch.setattr(Path, "read_text", read)
        with pytest.raises(ConfigError, match="x already"), lease(tmp_path, "x", print):
            raise AssertionError("two hold it")
        answers += [OSError(errno.EIO, "away")] * 9
        with pytest.raises(RetryableError, match="did not answer"), lease(tmp_path, "x", print):
            raise AssertionError("two hold it")
        answers.clear()


def test_one_of_another_machine_is_taken_when_its_beats_stand_still(tmp_path, capsys):
    held(tmp_path)
    with lease(tmp_path, "x", print):
        assert json.loads((tmp_path / LEASE).read_text())["token"] != "another"
    assert "Process 77 on node-7 held" in capsys.readouterr().out


def test_one_of_another_machine_that_beats_is_respected(tmp_path):
    content, done = held(tmp_path), threading.Event()

    def beat():
        beats = 3
        while not done.wait(0.1):
            beats += 1
            held(tmp_path, beats=beats)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(ConfigError, match="process 77 on node-7 has held"), lease(tmp_path, "x", print):
            raise AssertionError("two hold it")
    finally:
        done.set()
        thread.join()
    assert json.loads((tmp_path / LEASE).read_text())["token"] == content["token"]


def test_who_has_lost_it_is_told_and_leaves_the_others_there(tmp_path):
    lost = []
    with lease(tmp_path, "x", lost.append):
        held(tmp_path)
        for _ in range(50):
            if lost:
                break
            time.sleep(0.1)
    assert lost and "process 77 on node-7 has taken" in lost[0]
    assert json.loads((tmp_path / LEASE).read_text())["token"] == "another"
