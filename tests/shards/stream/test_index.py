"""Archives that others wrote: whole samples are read wherever their members lie, the rest is refused by name."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from shards.errors import DataError
from shards.films.stored import encode
from shards.stream.blocks import read_block
from shards.stream.index import Index
from shards.stream.order import sequential_blocks
from shards.study import Study
from shards.tars.archive import walk_tar

FILM = encode(np.add.outer(np.arange(48), np.arange(48)).astype(np.uint8), 95)
OTHER = encode(np.full((48, 48), 40, np.uint8), 95)


def record(key: str) -> bytes:
    return json.dumps({"id": key, "report": f"Drawn film of {key}."}).encode()


def sample(key: str) -> list[tuple[str, bytes]]:
    return [(f"{key}.0.jpg", FILM), (f"{key}.1.jpg", OTHER), (f"{key}.json", record(key))]


def write(root: Path, members: list, name: str = "train-0.tar", format_: int = tarfile.GNU_FORMAT) -> Path:
    """A tar of (name, bytes) members; a TarInfo is added as it is."""
    with tarfile.open(root / name, "w", format=format_) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return root / name


def link(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/hostname"
    return info


def studies_of(index: Index) -> list[Study]:
    return [Study.model_validate_json(index.record_of(i, index.read_record(i))) for i in range(len(index))]


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_walk_finds_what_the_standard_reader_finds(tmp_path: Path, format_: int) -> None:
    long = f"{'d' * 60}/{'k' * 70}"
    path = write(tmp_path, [*sample("a"), *sample(long), ("ü.txt", b"")], format_=format_)
    walk = walk_tar(path)
    with tarfile.open(path) as tar:
        wanted = [(member.name, member.offset_data, member.size) for member in tar]
    assert [(member.name, member.offset, member.size) for member in walk.members] == wanted
    assert (walk.cut_at, walk.refused) == (-1, [])


def test_members_come_in_any_order(tmp_path: Path) -> None:
    write(tmp_path, [*reversed(sample("a")), *sample("b"), ("b.cls", b"1")])
    index = Index.open(tmp_path, "train")
    assert index.keys.tolist() == [b"a", b"b"]
    for row in range(2):
        films, _ = index.read(row)
        assert [bytes(film) for film in films] == [FILM, OTHER]
    assert [study.report for study in studies_of(index)] == ["Drawn film of a.", "Drawn film of b."]


def test_samples_scattered_over_a_tar_are_read(tmp_path: Path) -> None:
    filler = ("z.bin", b"\0" * 200_000)
    write(tmp_path, [sample("a")[0], filler, *sample("b"), *sample("a")[1:]])
    rows = read_block(Index.open(tmp_path, "train"), sequential_blocks(2, 1, 2)[0], 32, 2)
    assert rows["valid"].all() and rows["view_mask"].all()
    assert (rows["images"][0] == rows["images"][1]).all()


def test_hostile_members_are_refused_and_named(tmp_path: Path) -> None:
    bad = [("/tmp/absolute.json", b"{}"), ("../../parent.json", b"{}"), ("back\\slash.json", b"{}")]
    links = [link("x.0.jpg", tarfile.SYMTYPE), link("y.0.jpg", tarfile.LNKTYPE), link("z", tarfile.CHRTYPE)]
    half = [*sample("c")[::2], link("c.1.jpg", tarfile.SYMTYPE)]
    write(tmp_path, [*bad, *links, *half, *sample("good")])
    index = Index.open(tmp_path, "train")
    assert index.keys.tolist() == [b"good"]
    assert {drop.id for drop in index.drops} == {name for name, _ in bad} | {"x.0.jpg", "y.0.jpg", "z", "c.1.jpg"}
    assert {drop.reason for drop in index.drops} == {"tar member refused"}
    assert "symbolic link" in next(drop.detail for drop in index.drops if drop.id == "x.0.jpg")


@pytest.mark.parametrize("cut", [-20_000, 700])
def test_a_truncated_tar_gives_its_whole_samples_and_names_the_rest(tmp_path: Path, cut: int) -> None:
    path = write(tmp_path, [*sample("a"), *sample("b")])
    second = next(member for member in walk_tar(path).members if member.name == "b.1.jpg")
    end = second.offset + second.size // 2 if cut < 0 else second.offset + cut
    path.write_bytes(path.read_bytes()[:end])
    index = Index.open(tmp_path, "train")
    assert index.keys.tolist() == [b"a"]
    [drop] = index.drops
    assert (drop.id, drop.reason, index.given) == ("b", "truncated tar", 2)
    assert f"train-0.tar: breaks off at byte {end}" in drop.detail


def test_incomplete_and_doubled_samples_are_named(tmp_path: Path) -> None:
    gap = [("gap.0.jpg", FILM), ("gap.2.jpg", FILM), ("gap.json", record("gap"))]
    write(tmp_path, [*sample("no-json")[:2], sample("no-film")[2], *gap, *sample("twice"), *sample("twice")])
    index = Index.open(tmp_path, "train")
    assert len(index) == 0
    assert {drop.id: drop.reason for drop in index.drops} == {
        "no-json": "incomplete sample",
        "no-film": "incomplete sample",
        "gap": "incomplete sample",
        "twice": "duplicate tar member",
    }


@pytest.mark.parametrize(
    "data", [b"\xff\xfe", b"[1]", b"{", b'{"id": "a"}', b'{"report": 5}', b'{"key": 1, "target": 2}']
)
def test_records_that_are_no_report_become_invalid_rows(tmp_path: Path, data: bytes) -> None:
    write(tmp_path, [("a.jpg", FILM), ("a.json", data)])
    rows = read_block(Index.open(tmp_path, "train"), sequential_blocks(1, 1, 1)[0], 32, 1)
    assert rows["valid"].tolist() == [False]
    assert rows["bad"][0].startswith("a: train-0.tar: record of a is not readable")


def test_what_is_no_tar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train-0.tar").write_bytes(b"<html>" * 300)
    with pytest.raises(DataError, match=r"train-0.tar is not a tar archive"):
        Index.open(tmp_path, "train")
