"""The same operations on local directories and on object storage (a real S3 server on this machine)."""

import hashlib
import os
from pathlib import Path

import pytest

from shards.errors import ConfigError, DataError
from shards.sources.phantom.source import Phantom
from shards.stream.blocks import read_batches, read_block, stream_blocks
from shards.stream.index import Index, read_targets
from shards.stream.order import sequential_blocks
from shards.tars.format import read_manifest
from shards.tars.place import create, is_local, names_in, place, read_at, read_ranges, sha256_of, size_of, write_atomic
from shards.tars.shards import write_shards
from shards.tars.verify import contents_faults


@pytest.fixture(params=["local", "remote"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("s3") + "/deep"


def test_places_are_paths_or_urls(tmp_path: Path) -> None:
    assert place(f"file://{tmp_path}") == tmp_path == place(tmp_path / "a" / "..")
    assert is_local(place("here")) and not is_local(place("s3://films/a"))
    assert str(place("s3://films/a") / "b.tar") == "s3://films/a/b.tar"
    for url, told in (("nowhere://a", "cannot be opened.*Protocol not known"), ("s4://a", "s4")):
        with pytest.raises(ConfigError, match=told):
            place(url)


def test_what_is_written_is_read_and_listed(root: str) -> None:
    path = place(root) / "a.bin"
    assert names_in(place(root)) == [] and size_of(path) == -1
    write_atomic(path, b"0123456789")
    assert names_in(place(root)) == ["a.bin"] and size_of(path) == 10
    assert bytes(read_at(root, "a.bin", 2, 3)) == b"234"
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert sha256_of(path).startswith("11507a0e2f5e69d5")
    with pytest.raises(DataError, match="a.bin breaks off: 1 of 5 bytes at 2"):
        read_at(root, "a.bin", 2, 5, "new")
    with pytest.raises(DataError, match="b.bin cannot be read"):
        read_at(root, "b.bin", 0, 1)


@pytest.mark.parametrize("size", [1000, 60_000_000])  # within one request, and in several parts
def test_a_write_that_breaks_off_leaves_nothing(root: str, size: int) -> None:
    with pytest.raises(ZeroDivisionError), create(place(root) / "half.tar") as file:
        file.write(bytes(size))
        raise ZeroDivisionError
    assert names_in(place(root)) == [] and size_of(place(root) / "half.tar") == -1


def test_near_ranges_are_fetched_as_one_and_cut_again(s3: str) -> None:
    data = bytes(range(256)) * 2000
    write_atomic(place(s3) / "a", data)
    ranges = [("a", 300_000, 1000), ("a", 10, 5), ("a", 20, 100), ("b", 0, 9), ("a", 511_000, 2000), ("a", 15, 5)]
    found = read_ranges(s3, ranges)
    for (name, at, size), piece in zip(ranges, found, strict=True):
        if name == "b" or at + size > len(data):
            assert isinstance(piece, DataError) and name in str(piece)
        else:
            assert bytes(piece) == data[at : at + size]


@pytest.mark.usefixtures("ray_session")
def test_shards_are_the_same_on_object_storage(s3: str, phantom_shards: Path) -> None:
    manifest = write_shards(Phantom(studies=60, size=64), s3, size=64, studies_per_shard=16)
    assert manifest.fingerprint == read_manifest(phantom_shards).fingerprint
    assert {name for name in names_in(place(s3)) if name.endswith(".tar")} == {s.name for s in manifest.shards}
    assert contents_faults(s3, manifest) == []
    assert read_targets(s3, "val") == read_targets(phantom_shards, "val")
    before = {name: (place(s3) / name).stat().st_mtime for name in names_in(place(s3)) if name.endswith(".tar")}
    (place(s3) / "train-00001.index.json").unlink()  # as if the writer had been killed before it wrote that
    assert write_shards(Phantom(studies=60, size=64), s3, size=64, studies_per_shard=16) == manifest
    changed = {name for name, then in before.items() if (place(s3) / name).stat().st_mtime != then}
    assert changed <= {"train-00001.tar"}


@pytest.mark.usefixtures("ray_session")
def test_object_storage_is_streamed_as_a_directory_is(s3: str, phantom_shards: Path) -> None:
    for name in names_in(phantom_shards):
        write_atomic(place(s3) / name, (phantom_shards / name).read_bytes())
    blocks = sequential_blocks(45, 1, 4, rows_per_block=16)
    batches = read_batches(stream_blocks(s3, "train", blocks, 32, 2), 4)
    local = [read_block(Index.open(phantom_shards, "train"), block, 32, 2) for block in blocks]
    for at, rows in enumerate(batches):
        there = local[at * 4 // 16]
        start = at * 4 % 16
        for name in ("images", "view_mask", "valid", "index", "record", "bad"):
            assert (rows[name] == there[name][start : start + 4]).all(), name
    assert at == 11


@pytest.mark.usefixtures("ray_session")
def test_a_tar_missing_from_object_storage_is_named_study_by_study(s3: str, phantom_shards: Path) -> None:
    for name in names_in(phantom_shards):
        if name != "train-00001.tar":
            write_atomic(place(s3) / name, (phantom_shards / name).read_bytes())
    index = Index.open(s3, "train")
    rows = read_block(index, sequential_blocks(45, 1, 45)[0], 32, 2)
    lost = [
        key.decode() for key, tar in zip(index.keys, index.tar, strict=True) if index.tars[tar] == "train-00001.tar"
    ]
    assert [bad.partition(": ")[0] for bad in rows["bad"] if bad] == lost and len(lost) == 16
    assert all("train-00001.tar cannot be read" in bad for bad in rows["bad"] if bad)


def test_a_large_file_is_hashed_once_until_it_changes(tmp_path, monkeypatch):
    path = tmp_path / "weights"
    path.write_bytes(bytes(2 << 20))
    first = sha256_of(path)
    assert first == hashlib.sha256(bytes(2 << 20)).hexdigest()
    monkeypatch.setattr("shards.tars.place.RACY_NS", 0)
    assert sha256_of(path) == first
    monkeypatch.setattr("shards.tars.place.hashlib.file_digest", lambda *_: pytest.fail("it was read again"))
    assert sha256_of(path) == first
    with pytest.raises(pytest.fail.Exception):
        sha256_of(path, fresh=True)
    monkeypatch.undo()
    stat = path.stat()
    with path.open("r+b") as file:
        file.write(b"x")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as bad tools do; the inode's own time tells
    assert sha256_of(path) == hashlib.sha256(b"x" + bytes((2 << 20) - 1)).hexdigest()


def test_a_file_that_has_just_changed_is_not_remembered_and_a_cache_that_cannot_be_written_is_none(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "weights"
    path.write_bytes(bytes(2 << 20))
    sha256_of(path)
    assert not (tmp_path / "cache").exists()
    (tmp_path / "cache").write_bytes(b"a file stands there")
    monkeypatch.setattr("shards.tars.place.RACY_NS", 0)
    assert sha256_of(path) == sha256_of(path, fresh=True)
