"""The process that starts attempts: real processes, of which only what they do inside is put up."""

import os
import signal
import subprocess
import sys
import time

import attempt
import psutil
import pytest

from r2kg.attempts.lease import LEASE
from r2kg.attempts.supervise import supervise
from r2kg.config.run import Run

WHOLE = """
import sys
import attempt
from pathlib import Path
from r2kg.config.run import load_run
from r2kg.attempts.supervise import supervise
if __name__ == "__main__":
    sys.exit(supervise(load_run(Path(sys.argv[1])), attempt.attempt))
"""


@pytest.fixture
def run(tmp_path, monkeypatch) -> Run:
    monkeypatch.setattr("r2kg.attempts.supervise.LONGEST_PAUSE", 0.0)
    return Run(name="a-run", root=str(tmp_path))


def made(run: Run) -> list[list[int]]:
    """Process and restarts that were left, of every attempt."""
    log = run.directory / "attempts.txt"
    return [[int(word) for word in line.split()] for line in log.read_text().splitlines()] if log.exists() else []


@pytest.mark.parametrize(
    ("what", "left", "sentence"),
    [
        ("ends", [3], ""),
        ("is killed", [3, 2], "The driver died of SIGKILL. Starting a-run again, restart 1 of 3."),
        ("loses its head", [3, 2], "Ray's head was lost. Starting a-run again, restart 1 of 3."),
        ("fails to read", [3, 2], "Starting a-run again, restart 1 of 3."),
        ("loses workers", [3, 1], "Starting a-run again, restart 2 of 3."),
    ],
)
def test_a_lost_attempt_is_made_again(run, capfd, what, left, sentence):
    assert supervise(run.change({"recipe": what}), attempt.attempt) == 0
    assert [restarts for _, restarts in made(run)] == left
    assert sentence in capfd.readouterr().out
    assert not (run.directory / LEASE).exists()


@pytest.mark.parametrize(("what", "code"), [("is refused", 2), ("is wrong", 1), ("waits in vain", 75)])
def test_what_a_restart_cannot_mend_is_not_tried_again(run, capfd, what, code):
    assert supervise(run.change({"recipe": what}), attempt.attempt) == code
    assert len(made(run)) == 1
    assert ("KeyError: 'a mistake'" in capfd.readouterr().err) == (what == "is wrong")


def test_the_last_loss_says_how_many_there_were(run, capfd):
    assert supervise(run.change({"recipe": "loses all", "train.max_restarts": 2}), attempt.attempt) == 75
    assert [restarts for _, restarts in made(run)] == [2, 1, 0]
    assert "a-run was lost 3 times, train.max_restarts=2. Submit it again" in capfd.readouterr().err


@pytest.fixture
def waiting(run, request):
    """(a process that supervises an attempt which waits, the attempt's process)."""
    run.change({"recipe": getattr(request, "param", "waits")}).save(run.directory.parent / "saved.json")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    script = run.directory.parent / "whole.py"
    script.write_text(WHOLE)
    process = subprocess.Popen(
        [sys.executable, script, run.directory.parent / "saved.json"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for _ in range(300):
        if made(run):
            break
        time.sleep(0.1)
    yield process, psutil.Process(made(run)[0][0])
    process.kill()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_two_signals_to_it_end_the_attempt_at_once(waiting, run, number, code):
    process, child = waiting
    process.send_signal(number)
    if number != signal.SIGKILL:
        time.sleep(1)
        assert process.poll() is None and child.is_running(), "a checkpoint is waited for"
        process.send_signal(number)
    assert process.wait(timeout=20) == code
    psutil.wait_procs([child], timeout=20)
    assert not child.is_running()
    if number != signal.SIGKILL:
        assert "a-run is stopping with a checkpoint; once more" in process.stdout.read()
        assert not (run.directory / LEASE).exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("waiting", ["waits to be stopped"], indirect=True)
def test_one_signal_lets_the_attempt_end_by_itself(waiting, run, number, code):
    """Also Ctrl-C of a terminal, which goes to all processes of the command."""
    process, child = waiting
    os.killpg(process.pid, number)
    assert process.wait(timeout=15) == code
    assert not child.is_running() and (run.directory / "ended.txt").read_text() == "in order"


@pytest.mark.parametrize("waiting", ["waits to be stopped"], indirect=True)
@pytest.mark.parametrize("twice", [False, True], ids=["a tree", "a tree twice"])
def test_a_signal_to_every_process_is_one_signal(waiting, run, twice):
    """`ray job stop` sends it to a job and all below it; `timeout` to its child and then to the group."""
    process, child = waiting
    for _ in range(1 + twice):
        for one in (process, child):
            one.send_signal(signal.SIGTERM)
    assert process.wait(timeout=15) == 143
    assert not child.is_running() and (run.directory / "ended.txt").read_text() == "in order"


@pytest.mark.parametrize("waiting", ["waits to be stopped"], indirect=True)
def test_a_reader_of_its_output_that_is_gone_costs_no_checkpoint(waiting, run):
    """`r2kg train | tee log`: Ctrl-C ends both."""
    process, child = waiting
    process.stdout.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=15) == 130
    assert not child.is_running() and (run.directory / "ended.txt").read_text() == "in order"


@pytest.mark.parametrize("waiting", ["starts nothing"], indirect=True)
def test_where_no_worker_has_started_nothing_is_waited_for(waiting, run):
    process, child = waiting
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == 143
    assert not child.is_running() and "a-run is stopping before its first step." in process.stdout.read()


def test_a_second_one_is_refused_and_the_first_goes_on(waiting, run):
    process, child = waiting
    with pytest.raises(Exception, match=rf"a-run is being trained already: process {process.pid} on .* has held"):
        supervise(run.change({"recipe": "ends"}), attempt.attempt)
    assert process.poll() is None and child.is_running() and len(made(run)) == 1


def test_one_that_was_killed_holds_nothing(waiting, run):
    process, _ = waiting
    process.kill()
    process.wait()
    assert (run.directory / LEASE).exists()
    assert supervise(run.change({"recipe": "ends"}), attempt.attempt) == 0
