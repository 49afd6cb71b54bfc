"""The manifest notices every change to what it describes."""

import pickle
from pathlib import Path

import pytest

from shards.errors import DataError
from shards.sources import SplitCount
from shards.study import BadStudy
from shards.tars.format import SHARDS_FILE, Manifest, Shard, fingerprint_of, read_manifest, write_manifest
from shards.tars.place import sha256_of


@pytest.fixture
def written(tmp_path: Path) -> Manifest:
    shards = []
    for number in range(3):
        path = tmp_path / f"train-{number:05d}.tar"
        path.write_bytes(bytes([number]) * 1000)
        shards.append(
            Shard(
                name=path.name, split="train", studies=2, images=4, bytes=1000, sha256=sha256_of(path), index="0" * 64
            )
        )
    manifest = Manifest(
        source="phantom", licence="synthetic", cleaning="raw", size_px=64, quality=95,
        splits={"train": SplitCount(studies=6, images=12), "val": SplitCount(), "test": SplitCount()},
        shards=tuple(shards), drops={"b": 2, "a": 1}, content="0" * 64,
    )  # fmt: skip
    return write_manifest(tmp_path, manifest)


def test_what_is_written_is_read(written: Manifest, tmp_path: Path) -> None:
    assert read_manifest(tmp_path) == written
    assert written.given == 9
    assert (written.dropped, written.drops) == (3, {"b": 2, "a": 1})
    assert not list(tmp_path.glob(".*"))


def test_fingerprint_follows_any_content(written: Manifest) -> None:
    shard = written.shards[1].model_copy(update={"sha256": "0" * 64})
    assert fingerprint_of(written) == written.fingerprint
    for change in ({"shards": (written.shards[0], shard)}, {"cleaning": "r2gen-2020-iu"}, {"drops": {}}):
        assert fingerprint_of(written.model_copy(update=change)) != written.fingerprint


def test_missing_manifest_says_how_to_make_shards(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"manifest.json is missing there.*r2kg shard"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is no manifest of format 3"),
        ('{"format": 3}', "is no manifest of format 3 .at fault: .*licence"),
        ('{"version": 1, "source": "phantom"}', "is of format 1, and format 3 is read.*r2kg shard"),
        ('{"format": 99}', "is of format 99, and format 3 is read"),
    ],
)
def test_malformed_and_old_manifests_are_refused(tmp_path: Path, text: str, cause: str) -> None:
    (tmp_path / SHARDS_FILE).write_text(text)
    with pytest.raises(DataError, match=cause):
        read_manifest(tmp_path)


def test_a_tar_outside_the_directory_is_refused(written: Manifest, tmp_path: Path) -> None:
    hostile = written.shards[0].model_copy(update={"name": "../../x.tar"})
    write_manifest(tmp_path, written.model_copy(update={"shards": (hostile,)}))
    with pytest.raises(DataError, match="is no manifest of format 3 .at fault: shards.0.name"):
        read_manifest(tmp_path)


def test_manifest_edited_by_hand_is_refused(written: Manifest, tmp_path: Path) -> None:
    path = tmp_path / SHARDS_FILE
    path.write_text(path.read_text().replace('"licence": "synthetic"', '"licence": "mine"'))
    with pytest.raises(DataError, match="was changed after it was written"):
        read_manifest(tmp_path)


def test_bad_study_survives_the_way_from_a_worker() -> None:
    error = pickle.loads(pickle.dumps(BadStudy("empty report", "nothing", "a.jpg")))
    assert (error.reason, error.detail, error.file, str(error)) == (
        "empty report",
        "nothing",
        "a.jpg",
        "empty report: nothing",
    )
