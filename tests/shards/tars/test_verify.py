"""Damage to shards is named, file by file, and everything that adds up is checked."""

import json
import shutil
from pathlib import Path

import pytest

from shards.errors import DataError
from shards.tars.format import index_path, read_manifest, write_manifest
from shards.tars.place import sha256_of
from shards.tars.verify import contents_faults, faults_of, verify


@pytest.fixture
def copy(phantom_shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(phantom_shards, tmp_path / "copy"))


def test_whole_shards_have_no_faults(phantom_shards: Path) -> None:
    manifest = read_manifest(phantom_shards)
    assert faults_of(phantom_shards, manifest.shards) == [] == contents_faults(phantom_shards, manifest)
    verify(phantom_shards, manifest)


def test_every_fault_is_named_with_values(copy: Path) -> None:
    manifest = read_manifest(copy)
    first, second, third = manifest.shards[:3]
    (copy / first.name).unlink()
    (copy / second.name).write_bytes(b"short")
    data = bytearray((copy / third.name).read_bytes())
    data[2000] ^= 1
    (copy / third.name).write_bytes(data)
    with pytest.raises(DataError) as caught:
        verify(copy, manifest)
    message = str(caught.value)
    assert "in 3 places" in message and f"{first.name} is missing" in message
    assert f"{second.name} has 5 bytes, the manifest says {second.bytes}" in message
    assert f"the manifest says {third.sha256[:12]}" in message
    with pytest.raises(DataError, match="in 2 places"):
        verify(copy, manifest, how="size")


@pytest.mark.parametrize("damage", ["cut", "absent", "other"])
def test_a_torn_index_is_a_fault(copy: Path, damage: str) -> None:
    manifest = read_manifest(copy)
    path, other = (index_path(copy / shard.name) for shard in manifest.shards[:2])
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:100] if damage == "cut" else other.read_bytes())
    [fault] = faults_of(copy, manifest.shards, "size")
    assert path.name in fault and ("No such file" in fault or "torn or was changed" in fault)
    assert contents_faults(copy, manifest)


def test_an_index_that_points_elsewhere_is_found(copy: Path) -> None:
    manifest = read_manifest(copy)
    path = index_path(copy / manifest.shards[0].name)
    index = json.loads(path.read_text())
    index["studies"][1]["members"]["json"][0] += 512
    path.write_text(json.dumps(index))
    [fault] = faults_of(copy, manifest.shards, "size")
    assert "torn or was changed" in fault and contents_faults(copy, manifest) == [fault]
    shard = manifest.shards[0].model_copy(update={"index": sha256_of(path)})
    manifest = write_manifest(copy, manifest.model_copy(update={"shards": (shard, *manifest.shards[1:])}))
    assert faults_of(copy, manifest.shards) == []
    [fault] = contents_faults(copy, manifest)
    assert "and its index differ in 1 members" in fault and index["studies"][1]["key"] in fault


def test_counts_that_do_not_add_up_are_found(copy: Path) -> None:
    manifest = read_manifest(copy)
    wrong = manifest.splits | {"val": manifest.splits["val"].model_copy(update={"images": 1})}
    manifest = write_manifest(copy, manifest.model_copy(update={"splits": wrong}))
    [fault] = contents_faults(copy, manifest)
    assert "manifest.json counts" in fault and "val" in fault


@pytest.mark.parametrize("name", ["drops.jsonl", "warnings.jsonl"])
def test_what_a_manifest_counts_is_named_beside_it(copy: Path, name: str) -> None:
    manifest = read_manifest(copy)
    counts = {"drops" if name == "drops.jsonl" else "warnings": {"image does not decode": 2}}
    manifest = write_manifest(copy, manifest.model_copy(update=counts))
    for content, named in ((None, 0), (b"", 0)):
        (copy / name).unlink(missing_ok=True) if content is None else (copy / name).write_bytes(content)
        [fault] = contents_faults(copy, manifest)
        assert fault == f"{name} names {named} of 2 that manifest.json counts"
    (copy / name).write_bytes(b"{")
    with pytest.raises(DataError, match=f"{name}, line 1 is torn"):
        contents_faults(copy, manifest)
