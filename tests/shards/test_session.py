"""Where a session of our own spills what does not fit its memory."""

import os
import socket
import subprocess
import sys

import pytest
from ray.exceptions import OwnerDiedError, RayTaskError

from shards.errors import RetryableError
from shards.session import SPILL, _spill_directory, in_our_words, pool_for, watched


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


def test_errors_of_workers_are_said_without_what_ray_appends_and_lost_owners_are_losses():
    said = RetryableError("storage is away\nFailed to apply UDF transform after 1/1 attempts (total backoff 0.0s).\nTo")
    with pytest.raises(RetryableError) as caught, in_our_words():
        raise RayTaskError("write", "traceback", said)
    assert str(caught.value) == "storage is away"
    lost = RayTaskError("write", "traceback", OwnerDiedError("ab", None, "there"))
    with pytest.raises(RetryableError, match=r"a worker was lost .OwnerDiedError.: run the same"), in_our_words():
        raise lost
    with pytest.raises(RayTaskError), in_our_words():
        raise RayTaskError("write", "traceback", KeyError("a mistake"))


def test_how_many_rows_came_is_said_now_and_then_where_no_bar_is_drawn(monkeypatch, capsys):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("shards.session.time.monotonic", lambda: next(clock))
    assert list(watched(iter("abcdef"), "writing tars", 6)) == list("abcdef")
    assert capsys.readouterr().out == "writing tars: 2 of 6.\nwriting tars: 4 of 6.\n"


def test_without_gpus_as_many_hold_a_classifier_as_there_are_cores(ray_session, capsys):
    assert [pool_for(0, 9), pool_for(0, 1), pool_for(5, 9), pool_for(5, 3, minutes=5.0)] == [
        (2, 0),
        (1, 0),
        (5, 0),
        (3, 0),
    ]
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "The classifier is held by 2 processes on CPUs: the Ray cluster has no GPU."
    assert told[1] == "The classifier is held by 1 process on CPUs: the Ray cluster has no GPU."
