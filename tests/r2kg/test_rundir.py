"""What a run leaves in its directory comes back as it was, and a torn file is named."""

import json
import os
from pathlib import Path

import pytest

from r2kg.config.run import Run, load_run
from r2kg.rundir import RunFiles, UnreadStudies, directory_of, saved_run
from shards.errors import ConfigError, DataError


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(name="a-run", root=str(tmp_path))


def test_the_saved_run_and_the_one_before_it_are_kept(run):
    files = RunFiles(run.directory)
    files.begin(run)
    assert load_run(files.run) == run and not files.before.exists()
    longer = run.change({"train.epochs": 99})
    files.begin(longer)
    assert load_run(files.run) == longer and load_run(files.before) == run
    assert sorted(path.name for path in run.directory.iterdir()) == ["run.json", "run.json.before"]


def test_a_run_that_was_moved_knows_its_new_place(run, tmp_path):
    RunFiles(run.directory).begin(run)
    moved = run.directory.rename(tmp_path / "elsewhere")
    assert saved_run(moved).directory == moved
    with pytest.raises(ConfigError, match=r"is not a run.*run.json is missing"):
        saved_run(run.directory)


@pytest.mark.parametrize("content", [b"", b'{"name": "a-r', b"\xff\xfe", b"[]", b"[" * 100_000, None], ids=str)
def test_a_torn_run_is_one_sentence(run, content):
    run.directory.mkdir()
    saved = run.directory / "run.json"
    os.mkfifo(saved) if content is None else saved.write_bytes(content)
    for read in (lambda: saved_run(run.directory), lambda: load_run(saved)):
        with pytest.raises(ConfigError) as caught:
            read()
        assert "\n" not in str(caught.value) and "run" in str(caught.value)
    saved.unlink()
    with pytest.raises(ConfigError, match="no regular file"):
        load_run(saved)


def test_a_failure_is_raised_as_it_was_in_its_own_attempt_until_the_run_begins_again(run):
    files = RunFiles(run.directory)
    files.raise_failure("one")
    files.begin(run)
    files.note_failure("one", "DataError", "train-00000.tar is short", "at a place")
    files.raise_failure("two")
    with pytest.raises(DataError, match="train-00000.tar is short"):
        files.raise_failure("one")
    files.note_failure("one", "KeyError", "'x'", "at a place")
    with pytest.raises(RuntimeError, match="at a place"):
        files.raise_failure("one")
    files.begin(run)
    files.raise_failure("one")


@pytest.mark.parametrize("note", ["", "[]", '{"attempt": ["one"]}', "[" * 100_000, '{"attempt": "one", "kind": 1}'])
def test_a_damaged_note_of_a_failure_is_an_error_of_ours(run, note):
    files = RunFiles(run.directory)
    files.begin(run)
    files.failure.write_text(note)
    with pytest.raises(DataError, match=r"failure.json is damaged.*submit the run again"):
        files.raise_failure("one")
    files.failure.write_text('{"attempt": "one", "kind": "OnBad", "message": "m", "traceback": "at a place"}')
    with pytest.raises(RuntimeError, match="at a place"):
        files.raise_failure("one")


def test_groups_of_workers_are_counted_by_attempt(run):
    files = RunFiles(run.directory)
    assert files.groups_of("one") == 0
    for attempt in ("one", "two", "one"):
        files.note_group(attempt)
    assert (files.groups_of("one"), files.groups_of("two"), files.groups_of("on")) == (2, 1, 0)


@pytest.mark.parametrize(
    ("noted", "losses"),
    [
        ("", 1),
        ("started", 1),
        ("started lost", 1),
        ("started lost started", 2),
        ("started lost started lost", 2),
        ("started started started", 1),  # preempted twice
        ("started lost lost started", 2),  # told twice of one
    ],
)
def test_an_attempt_that_was_lost_counts_its_lost_groups_and_no_preempted_ones(run, noted, losses):
    files = RunFiles(run.directory)
    files.note_group("another", lost=True)
    for word in noted.split():
        files.note_group("one", lost=word == "lost")
    assert files.losses_of("one") == losses


def test_unread_studies_of_all_workers_are_named_once_each(run, capsys):
    RunFiles(run.directory).begin(run)
    for rank, complaints in enumerate((["a: torn", "", "a: torn"], ["b: gone: 3 of 5 bytes"])):
        UnreadStudies(run.directory, rank).add(complaints)
    again = UnreadStudies(run.directory, 0)
    again.add(["a: torn", "c: torn"])
    assert again.named == {"a": "torn", "c": "torn"}
    assert RunFiles(run.directory).unread() == {"a": "torn", "c": "torn", "b": "gone: 3 of 5 bytes"}
    assert capsys.readouterr().out.count("was skipped") == 3
    assert json.loads((run.directory / "unread-00001.jsonl").read_text()) == ["b", "gone: 3 of 5 bytes"]


@pytest.mark.parametrize("torn", ['["b", "to', "[1]", '["b", "c", "d"]', "\udcff", '[["b"], "c"]', "[" * 100_000])
def test_a_line_that_a_killed_worker_left_torn_names_no_study(run, torn):
    RunFiles(run.directory).begin(run)
    UnreadStudies(run.directory, 0).add(["a: torn"])
    with (run.directory / "unread-00000.jsonl").open("a", errors="surrogateescape") as file:
        file.write(f"\n{torn}")
    again = UnreadStudies(run.directory, 0)
    again.add(["b: gone"])
    assert RunFiles(run.directory).unread() == again.named == {"a": "torn", "b": "gone"}


def test_predictions_belong_to_the_run_above_them(run, tmp_path):
    files = RunFiles(run.directory)
    files.begin(run)
    assert directory_of(files.predictions / "test" / "how" / "predictions.jsonl") == run.directory
    assert directory_of(tmp_path / "predictions.jsonl") is None and directory_of(Path("/p.jsonl")) is None
