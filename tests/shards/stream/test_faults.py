"""Storage that fails for a moment costs time; only what is missing or changed is a study's own fault."""

import errno
import os
import shutil
from pathlib import Path

import flaky
import numpy as np
import pytest
from botocore.exceptions import (
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
    SSLError,
)
from PIL import Image

from shards import errors
from shards.errors import DataError, RetryableError
from shards.films.raw import open_film
from shards.stream.blocks import read_block
from shards.stream.index import Index
from shards.stream.order import sequential_blocks
from shards.tars import place
from shards.tars.format import read_manifest
from shards.tars.place import names_in, sha256_of, size_of
from shards.tars.place import place as place_of


@pytest.fixture
def server(phantom_shards, tmp_path, monkeypatch):
    """A copy of the drawn shards behind a server, of which nobody waits for long."""
    monkeypatch.setattr(errors, "WAITS", (0.01,) * 12)
    with flaky.serving(shutil.copytree(phantom_shards, tmp_path / "films")) as serving:
        yield serving


def rows_of(root, on_bad="skip"):
    """All studies of the training split, as a task of the stream reads them."""
    index = Index.open(root, "train", on_bad)
    (block,) = sequential_blocks(len(index), 1, len(index), len(index))
    return read_block(index, block, 64, 2, on_bad)


def test_a_server_that_fails_at_random_gives_every_study(server, phantom_shards):
    there = rows_of(phantom_shards)
    server.rate = 0.3
    for _ in range(3):
        rows = rows_of(server.url)
        assert all(np.array_equal(rows[name], there[name]) for name in there)
    assert min(server.did[fault] for fault in ("503", "500", "reset", "cut")) > 0, server.did
    tar = place_of(f"{server.url}/train-00000.tar")
    assert (size_of(tar), sha256_of(tar)) == (size_of(phantom_shards / tar.name), sha256_of(phantom_shards / tar.name))


@pytest.mark.parametrize("on_bad", ["skip", "fail"])
def test_a_server_that_is_away_is_no_studys_fault(server, on_bad):
    index, manifest = Index.open(server.url, "train", on_bad), read_manifest(server.url)
    (block,) = sequential_blocks(len(index), 1, len(index), len(index))
    server.rate = 1.0
    for ask in (
        lambda: read_block(index, block, 64, 2, on_bad),
        lambda: read_manifest(server.url),
        lambda: Index.open(server.url, "train", on_bad, manifest),
        lambda: sha256_of(place_of(f"{server.url}/train-00000.tar")),
    ):
        with pytest.raises(RetryableError, match=r"storage did not answer for .*asked 13 times in .*run the"):
            ask()


def test_what_is_missing_behind_a_server_is_said_at_once(server):
    (server.folder / "train-00001.tar").unlink()
    asked = sum(server.did.values())
    rows = rows_of(server.url)
    bad = [text for text in rows["bad"] if text]
    assert len(bad) == 16 and all("train-00001.tar cannot be read" in text for text in bad)
    assert sum(server.did.values()) - asked < 40
    with pytest.raises(DataError, match=r"train-00001.tar cannot be read"):
        rows_of(server.url, "fail")


def test_a_local_file_system_is_asked_again_and_its_stale_files_are_opened_anew(phantom_shards, monkeypatch):
    monkeypatch.setattr(errors, "WAITS", (0.01,) * 3)
    there, whole, left = rows_of(phantom_shards), os.pread, [errno.EIO, errno.ESTALE]

    def pread(file, size, at):
        if left:
            stale.append(file)
            raise OSError(left.pop(), "passing")
        return whole(file, size, at)

    stale = list[int]()
    monkeypatch.setattr(place.os, "pread", pread)
    rows = rows_of(phantom_shards)
    assert all(np.array_equal(rows[name], there[name]) for name in there) and len(stale) == 2
    left += [errno.ESTALE] * 99
    with pytest.raises(RetryableError, match="asked 4 times"):
        rows_of(phantom_shards)


def test_a_directory_that_cannot_be_listed_is_not_empty(tmp_path, monkeypatch):
    monkeypatch.setattr(errors, "WAITS", (0.01,))

    def scandir(path):
        raise OSError(errno.EIO, "passing")

    monkeypatch.setattr(place.os, "scandir", scandir)
    with pytest.raises(RetryableError):
        names_in(tmp_path)


def test_connections_of_every_library_may_pass_and_a_refusal_is_no_studys_fault():
    url = {"endpoint_url": "https://films", "error": "refused"}
    for kind in (EndpointConnectionError, ConnectTimeoutError, ReadTimeoutError, ConnectionClosedError, SSLError):
        assert errors.may_pass(kind(**url)), kind
    assert not errors.may_pass(NoCredentialsError()) and not errors.may_pass(PermissionError("ExpiredToken"))
    for refused in (NoCredentialsError(), PermissionError("ExpiredToken")):
        fault = place._fault_of("train-00000.tar", refused, remote=True)
        assert type(fault) is RetryableError and "renew the credentials" in str(fault)
    for missing in (FileNotFoundError(errno.ENOENT, "No such file"), OSError(errno.EINVAL, "range")):
        assert type(place._fault_of("train-00000.tar", missing, remote=True)) is DataError
    assert type(place._fault_of("train-00000.tar", PermissionError(errno.EACCES, "denied"), remote=False)) is DataError


def test_a_raw_film_that_cannot_be_read_at_the_moment_is_no_bad_film(tmp_path, monkeypatch):
    monkeypatch.setattr(errors, "WAITS", (0.01,) * 2)
    path, whole = tmp_path / "p10000032.png", Path.read_bytes
    Image.fromarray(np.full((48, 48), 9, np.uint8)).save(path)
    left = [errno.ESTALE]

    def read(file):
        if left:
            raise OSError(left.pop(), "passing")
        return whole(file)

    monkeypatch.setattr(Path, "read_bytes", read)
    assert (open_film(path) == 9).all()
    left += [errno.EIO] * 9
    with pytest.raises(RetryableError, match="did not answer for a raw film") as caught:
        open_film(path)
    assert "p10000032" not in str(caught.value)
