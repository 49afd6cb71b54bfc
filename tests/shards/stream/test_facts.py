"""What is counted over shards is counted once, and never what is no longer so is told."""

import json
import os
import stat
from pathlib import Path

import fsspec
import pytest

from shards.stream.facts import FACTS, fact
from shards.stream.index import Index, numbered_studies, read_targets
from shards.tars.format import read_manifest
from shards.tars.place import names_in, place, write_atomic


@pytest.fixture
def counted(phantom_shards: Path, tmp_path: Path):
    manifest = read_manifest(phantom_shards)
    calls: list[str] = []

    def ask(name: str = "words", settings: dict | None = None, root: str = str(tmp_path), **changes):
        def count() -> list[str]:
            calls.append(name)
            return [name, len(calls)]

        unread = changes.pop("unread", None)
        return fact(root, manifest.model_copy(update=changes), name, settings or {"threshold": 3}, count, unread)

    return ask, calls


def test_a_fact_is_counted_once_for_shards_and_settings(counted, tmp_path: Path) -> None:
    ask, calls = counted
    assert ask() == ask() == ["words", 1] and len(calls) == 1
    others = ask(settings={"threshold": 4}), ask(fingerprint="0" * 64), ask("floor"), ask(unread={"s1": "gone"})
    assert [value[1] for value in others] == [2, 3, 4, 1]
    assert ask("lost", unread={"s1": "gone"}) != ask("lost", unread={"s1": "gone"}), "not of the whole shards"
    assert len(names_in(tmp_path / FACTS)) == 4


@pytest.mark.parametrize("damage", [b"", b"{", b"[" * 100_000, b'{"key": 1}', b"null", b'{"key": {}, "value": 3}'])
def test_a_torn_file_is_as_good_as_none(counted, tmp_path: Path, damage: bytes) -> None:
    ask, calls = counted
    ask()
    path = tmp_path / FACTS / names_in(tmp_path / FACTS)[0]
    path.write_bytes(damage)
    assert ask() == ["words", 2] == ask() and len(calls) == 2


def test_another_value_under_the_same_key_is_noticed(counted, tmp_path: Path) -> None:
    ask, _ = counted
    ask()
    path = tmp_path / FACTS / names_in(tmp_path / FACTS)[0]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"value": ["other", 9]}))
    assert ask() == ["words", 2]


def test_facts_of_credentialed_shards_are_their_owners(counted, tmp_path: Path) -> None:
    ask, _ = counted
    before = os.umask(0o022)
    try:
        ask(licence="physionet-credentialed-1.5.0")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / FACTS).stat().st_mode) == 0o700


def test_shards_that_cannot_be_written_are_counted_every_time(counted, tmp_path: Path) -> None:
    ask, _ = counted
    (tmp_path / FACTS).write_text("a file in the directory's place")
    assert ask() == ["words", 1] and ask() == ["words", 2]
    assert (tmp_path / FACTS).read_text() == "a file in the directory's place"


def test_records_of_object_storage_are_read_side_by_side_and_near_ones_at_once(
    s3: str, phantom_shards: Path, counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in names_in(phantom_shards):
        write_atomic(place(s3) / name, (phantom_shards / name).read_bytes())
    index = Index.open(s3, "train")
    requests: list[str] = []
    files = fsspec.get_filesystem_class("s3")
    ask_s3 = files._call_s3

    async def counting(self, method, *args, **words):
        requests.append(method)
        return await ask_s3(self, method, *args, **words)

    monkeypatch.setattr(files, "_call_s3", counting)
    assert [study.target for _, study in numbered_studies(index)] == read_targets(phantom_shards, "train")
    assert 0 < requests.count("get_object") <= len(index.tars) < len(index)
    ask, calls = counted
    assert ask(root=s3) == ask(root=s3) and len(calls) == 1, "kept there too"
