"""Manifests, indices and tars that hostile hands sealed anew, and files that are none: refused in our words."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from plain import plain_shards

from shards.errors import DataError
from shards.sources import Item, Listing, Source
from shards.sources.archive import walk_tar
from shards.stream.index import Index, read_targets
from shards.stream.show import study_lines
from shards.study import Drop, Study, View
from shards.tars.format import SHARDS_FILE, SIDE_FILE, Manifest, fingerprint_of, index_path, read_manifest, write_sealed
from shards.tars.kinds import SideManifest, read_side
from shards.tars.place import sha256_of, size_of
from shards.tars.shards import NOT_UNICODE, Settings, plan_shards, recipe_of, writable, write_shard
from shards.tars.verify import contents_faults

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
TAR = "train-00000.tar"
HALF = "\udc00"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    plain_shards(root)
    return root


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def seal(root: Path, change: Callable[[dict], None]) -> None:
    """Change manifest.json and give it the fingerprint of what it then says, whatever that is."""
    content = json.loads((root / SHARDS_FILE).read_text())
    change(content)
    content["fingerprint"] = fingerprint_of(Manifest.model_construct(**content))
    (root / SHARDS_FILE).write_text(json.dumps(content))


def put_index(root: Path, change: Callable[[dict], None], **tar: object) -> None:
    """Change the first tar's index, and seal the manifest to it and to the fields `tar`."""
    path = index_path(root / TAR)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    seal(root, lambda manifest: manifest["shards"][0].update(index=sha256_of(path), **tar))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda m: m["splits"].pop("val"), "splits"),
        (lambda m: m["splits"].update(more={"studies": 1}), "splits"),
        (lambda m: m["splits"]["val"].update(studies=-1), "splits"),
        (lambda m: m["splits"]["val"].update(patients=-1), "splits"),
        (lambda m: m["shards"][0].update(studies=10**12), "shards.0.studies"),
        (lambda m: [shard.update(studies=600_000) for shard in m["shards"]], "shards"),
        (lambda m: m["shards"][0].update(split="dev"), "shards.0.split"),
        (lambda m: m["shards"].append(m["shards"][0]), "shards"),
        (lambda m: m.update(format="99"), "format"),
        (lambda m: m["shards"][0].update(sha256="no hash but a name"), "shards.0.sha256"),
    ],
)
def test_sealed_manifests_are_checked_all_the_same(copy: Path, change: Callable, fault: str) -> None:
    seal(copy, change)
    with pytest.raises(DataError, match=rf"no manifest of format 3 .at fault: {fault}"):
        read_manifest(copy)


def members(content: dict) -> dict[str, Any]:
    return content["studies"][1]["members"]


def rename(content: dict) -> None:
    first, *rest = members(content).items()
    content["studies"][1]["members"] = {"p.jpg": first[1], **dict(rest)}


def swap(content: dict) -> None:
    own = members(content)
    own["0.jpg"], own["json"] = own["json"], own["0.jpg"]


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (rename, "lists other members of phantom-"),
        (swap, "not one behind the other"),
        (lambda c: members(c)["json"].__setitem__(1, 10**12), "not one behind the other"),
        (lambda c: members(c)["json"].__setitem__(0, 1 << 70), "not one behind the other"),
        (lambda c: members(c)["0.jpg"].__setitem__(1, -5), "not one behind the other"),
        (lambda c: members(c)["json"].__setitem__(2, -1), "not one behind the other"),
        (lambda c: c["studies"][1].update(films=["no digest", "0" * 16]), "it is malformed"),
        (lambda c: c["studies"][1].update(key="../../x"), "it is malformed"),
        (lambda c: c["studies"].pop(), "it describes another tar"),
        (lambda c: c.update(split="val"), "it describes another tar"),
        (lambda c: c.update(sha256="0" * 64), "it describes another tar"),
    ],
)
def test_a_sealed_index_that_cannot_be_costs_its_tar_at_most(
    whole: Path, copy: Path, change: Callable, cause: str
) -> None:
    put_index(copy, change)
    with pytest.raises(DataError, match=cause):
        Index.open(copy, "train")
    assert read_targets(copy, "train", {}) == read_targets(whole, "train"), "made again from the tar"
    assert any(cause in fault or "differ in" in fault for fault in contents_faults(copy, read_manifest(copy)))


def test_an_index_that_claims_what_no_memory_holds_is_refused_before_it_is_asked_for(copy: Path) -> None:
    def claim(content: dict) -> None:
        content["bytes"] = 1 << 61
        content["studies"][-1]["members"]["json"][1] = 1 << 60

    put_index(copy, claim, bytes=1 << 61)
    with pytest.raises(DataError, match="a study of more than 536,870,912 bytes"):
        Index.open(copy, "train")

    def claim_less(content: dict) -> None:
        content["studies"][-1]["members"]["json"][1] = 1 << 28

    put_index(copy, claim_less)
    index = Index.open(copy, "train")
    with pytest.raises(DataError, match=rf"{TAR} breaks off: .* of 268435456 bytes"):
        index.read_record(3)


def test_a_whole_tar_of_other_members_is_no_way_out_of_a_torn_index(copy: Path) -> None:
    path = copy / TAR
    path.write_bytes(path.read_bytes().replace(b".1.jpg\0", b".p.jpg\0"))
    data = bytearray(path.read_bytes())
    at = 0
    while any(header := data[at : at + 512]):
        data[at + 148 : at + 156] = b"%06o\0 " % (sum(header[:148]) + 256 + sum(header[156:]))
        at += 512 + -(-int(header[124:135], 8) // 512) * 512
    path.write_bytes(data)
    index_path(path).write_text("{")
    seal(copy, lambda manifest: manifest["shards"][0].update(sha256=sha256_of(path)))
    index = Index.open(copy, "train", "skip")
    with pytest.raises(DataError, match="lists other members of .* so nothing tells where the study lies"):
        index.read(0)
    assert len(index) == len(Index.open(copy, "train", "skip", read_manifest(copy))) and index.torn[0]


def test_what_is_no_file_is_missing_and_nobody_waits_for_it(copy: Path) -> None:
    manifest, index = read_manifest(copy), Index.open(copy, "train")
    for path in (copy / TAR, index_path(copy / "train-00001.tar")):
        path.unlink()
        os.mkfifo(path)
    assert size_of(copy / TAR) == -1 and size_of(copy) == -1
    with pytest.raises(DataError, match="No such file"):
        Index.open(copy, "train")
    with pytest.raises(DataError, match=f"{TAR} cannot be read"):
        index.read(0)
    with pytest.raises(DataError, match="no file"):
        walk_tar(copy / TAR)
    first, second, *_ = contents_faults(copy, manifest)
    assert first == f"{TAR} is missing" and "train-00001.index.json cannot be used" in second


@pytest.mark.parametrize("part", [b"{}", b"[]", b'{"a":1}'])
def test_json_that_would_take_gigabytes_is_refused_by_its_count_of_parts(copy: Path, part: bytes) -> None:
    bomb = b'{"format":2,"drops":[' + b",".join([part] * 2_000_000) + b"]}"
    index_path(copy / TAR).write_bytes(bomb)
    seal(copy, lambda manifest: manifest["shards"][0].update(index=sha256_of(index_path(copy / TAR))))
    with pytest.raises(DataError, match="names, objects and lists in JSON; at most"):
        Index.open(copy, "train")
    (copy / SHARDS_FILE).write_bytes(bomb)
    with pytest.raises(DataError, match="names, objects and lists in JSON; at most"):
        read_manifest(copy)


def test_a_record_of_another_number_of_films_or_a_film_that_is_none_cannot_be_shown(copy: Path) -> None:
    index = Index.open(copy, "train")
    study = Study.model_validate_json(index.record_of(0, index.read_record(0)))
    fewer = memoryview(study.model_copy(update={"views": study.views[:1]}).model_dump_json().encode())
    films, record = index.read(0)

    class Other(Index):
        def read(self, row: int, fetched: object = None) -> tuple:
            return told

    other = Other(**{name: getattr(index, name) for name in index.__dataclass_fields__})
    told = (films, fewer)
    with pytest.raises(DataError, match="has 2 films, and its record names 1"):
        list(study_lines(other, 0))
    told = ([memoryview(b"GIF89a no film"), films[1]], record)
    with pytest.raises(DataError, match="film 0 of .*image does not decode"):
        list(study_lines(other, 0))


class Told(Source):
    """A source that tells what no UTF-8 file can hold."""

    name: ClassVar[str] = "told"
    licence: ClassVar[str] = "synthetic"
    cleaning: ClassVar[str] = "raw"

    def read(self, item: Item) -> tuple[Study, list[np.ndarray]]:
        report = f"Clear{HALF}." if item.id == "b" else "Clear."
        study = Study(key="-", id=item.id, split=item.split, views=(View(),), report=report, target="")
        return study.model_copy(update={"key": item.id}), [np.full((48, 48), 90, np.uint8)]


def test_half_a_surrogate_pair_costs_its_study_and_not_the_run(tmp_path: Path) -> None:
    items = [Item(id=name, split="train") for name in ("a", "b", "c", f"d{HALF}")]
    drops = [Drop(id=f"e{HALF}", reason="listed badly", detail=HALF)]
    listing = writable(Listing(items, drops))
    assert [item.id for item in listing.items] == ["a", "b", "c"]
    assert [(drop.id, drop.reason) for drop in listing.drops] == [
        ("e\\udc00", "listed badly"),
        ("d\\udc00", NOT_UNICODE),
    ]
    source, settings = Told(), Settings(out=str(tmp_path), cleaning="raw", size=48)
    [job] = plan_shards(listing.items, 8, recipe_of(source, settings))
    index = write_shard(source, settings, job)
    assert sorted(entry.key for entry in index.studies) == ["a", "c"]
    assert [(drop.id, drop.reason) for drop in index.drops] == [("b", NOT_UNICODE)]
    (tmp_path / "x").mkdir()
    with pytest.raises(DataError, match=f"study 'b' of split train: {NOT_UNICODE}"):
        write_shard(source, settings.model_copy(update={"out": str(tmp_path / "x"), "on_bad": "fail"}), job)


def test_a_side_of_no_parent_or_size_is_refused_and_not_quoted(tmp_path: Path) -> None:
    side = SideManifest(kind="features", parent="0" * 64, licence="x", description={"views": "a name"}, shards=())
    write_sealed(tmp_path / SIDE_FILE, side)
    with pytest.raises(DataError, match="tells no usable views, patches, width") as caught:
        read_side(tmp_path).extent  # noqa: B018
    write_sealed(tmp_path / SIDE_FILE, side.model_copy(update={"parent": "a name"}))
    with pytest.raises(DataError, match="at fault: parent") as other:
        read_side(tmp_path)
    assert "a name" not in f"{caught.value} {other.value}"
