"""Archives that others wrote: whole samples are read wherever their members lie, the rest is refused by name."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.errors import DataError
from shards.films.stored import encode
from shards.sources import Listing, open_source
from shards.sources.archive import BLOCK, walk_tar
from shards.sources.forms.webdataset import WebDataset
from shards.study import BadStudy, Study
from shards.tars.format import dropped_in, read_manifest
from shards.tars.shards import write_shards

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


def listed(root: Path) -> Listing:
    return WebDataset(raw=root).listing()


def studies_of(root: Path) -> list[Study]:
    source = WebDataset(raw=root)
    return [source.read(item)[0] for item in source.listing().items]


def ids(listing: Listing) -> list[str]:
    return [item.id for item in listing.items]


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
    source = WebDataset(raw=tmp_path)
    assert ids(source.listing()) == ["a", "b"]
    for item in source.listing().items:
        slope, flat = source.read(item)[1]
        assert slope.std() > 10 > 1 > flat.std()
    assert [study.report for study in studies_of(tmp_path)] == ["Drawn film of a.", "Drawn film of b."]
    assert [item.split for item in source.listing().items] == ["train", "train"]


def test_samples_scattered_over_a_tar_are_read(tmp_path: Path) -> None:
    filler = ("z.bin", b"\0" * 200_000)
    write(tmp_path, [sample("a")[0], filler, *sample("b"), *sample("a")[1:]])
    source = WebDataset(raw=tmp_path)
    items = {item.id: item for item in source.listing().items}
    (one, two), (same, other) = (source.read(items[name])[1] for name in ("a", "b"))
    assert (one == same).all() and (two == other).all()


def test_films_under_other_suffixes_are_read_by_the_rules_of_raw_films(tmp_path: Path) -> None:
    png = io.BytesIO()
    Image.fromarray(np.full((48, 40), 1000, np.uint16)).save(png, "PNG")
    write(tmp_path, [("a.JPEG", FILM), ("a.json", record("a")), ("b.0.png", png.getvalue()), ("b.json", record("b"))])
    source = WebDataset(raw=tmp_path)
    (jpeg,), (deep,) = (source.read(item)[1] for item in source.listing().items)
    assert jpeg.shape == (48, 48) and deep.shape == (48, 40)
    assert (deep == round(1000 * 255 / 1023)).all()


@pytest.mark.parametrize(
    ("film", "cause"),
    [
        (FILM[:-200], "a.0.jpg: image does not decode"),
        (b"", "the file has 0 bytes"),
        (b"\x89PNG" + FILM, "the content is PNG, the suffix .jpg says JPEG"),
        (encode(np.zeros((8, 8), np.uint8), 95), "it is 8x8 px"),
    ],
)
def test_films_that_do_not_decode_are_named(tmp_path: Path, film: bytes, cause: str) -> None:
    write(tmp_path, [("a.0.jpg", film), ("a.json", record("a"))])
    source = WebDataset(raw=tmp_path)
    with pytest.raises(BadStudy, match=f"image does not decode: train-0.tar: .*{cause}"):
        source.read(source.listing().items[0])


def test_hostile_members_are_refused_and_named(tmp_path: Path) -> None:
    bad = [("/tmp/absolute.json", b"{}"), ("../../parent.json", b"{}"), ("back\\slash.json", b"{}")]
    links = [link("x.0.jpg", tarfile.SYMTYPE), link("y.0.jpg", tarfile.LNKTYPE), link("z", tarfile.CHRTYPE)]
    half = [*sample("c")[::2], link("c.1.jpg", tarfile.SYMTYPE)]
    write(tmp_path, [*bad, *links, *half, *sample("good")])
    listing = listed(tmp_path)
    assert ids(listing) == ["good"]
    assert {drop.id for drop in listing.drops} == {name for name, _ in bad} | {"x.0.jpg", "y.0.jpg", "z", "c.1.jpg"}
    assert {drop.reason for drop in listing.drops} == {"tar member refused"}
    assert "symbolic link" in next(drop.detail for drop in listing.drops if drop.id == "x.0.jpg")


@pytest.mark.parametrize("cut", [-20_000, 700])
def test_a_truncated_tar_gives_its_whole_samples_and_names_the_rest(tmp_path: Path, cut: int) -> None:
    path = write(tmp_path, [*sample("a"), *sample("b")])
    second = next(member for member in walk_tar(path).members if member.name == "b.1.jpg")
    end = second.offset + second.size // 2 if cut < 0 else second.offset + cut
    path.write_bytes(path.read_bytes()[:end])
    listing = listed(tmp_path)
    assert ids(listing) == ["a"]
    [drop] = listing.drops
    assert (drop.id, drop.reason, drop.split) == ("b", "truncated tar", "train")
    assert f"train-0.tar: breaks off at byte {end}" in drop.detail


def resize(path: Path, name: str, size: bytes, kind: bytes = b"") -> None:
    """Write another size (12 bytes), and another type, into a member's header, with the checksum that fits."""
    data = bytearray(path.read_bytes())
    at = next(member.offset for member in walk_tar(path).members if member.name == name) - BLOCK
    data[at + 124 : at + 136] = size
    data[at + 156 : at + 157] = kind or data[at + 156 : at + 157]
    total = sum(data[at : at + 148]) + 8 * 32 + sum(data[at + 156 : at + BLOCK])
    data[at + 148 : at + 156] = b"%06o\0 " % total
    path.write_bytes(data)


@pytest.mark.parametrize("kind", [b"", b"L", b"x", b"K", b"g", b"5"])
@pytest.mark.parametrize(
    ("size", "cause"),
    [
        (b"-0000001000\0", " (a header whose size is no number of 0 or more)"),
        (b"\xff" * 11 + b"\0", " (a header whose size is no number of 0 or more)"),
        (b"+0000001000\0", " (a header whose size is no number of 0 or more)"),
        (b"00_00001000\0", " (a header whose size is no number of 0 or more)"),
        (b"77777777777\0", ""),
        (b"\x80" + b"\xff" * 11, ""),
        (b"\xbf" + b"\xff" * 11, ""),
    ],
)
def test_the_walk_ends_at_a_size_that_cannot_be(tmp_path: Path, size: bytes, cause: str, kind: bytes) -> None:
    path = write(tmp_path, [*sample("a"), *sample("b")])
    resize(path, "b.1.jpg", size, kind)
    listing = listed(tmp_path)
    assert ids(listing) == ["a"]
    [drop] = [drop for drop in listing.drops if drop.reason == "truncated tar"]
    assert drop.id == "b"
    assert f"{cause} in or after 'b." in drop.detail


def test_a_header_of_zeros_does_not_end_an_archive_unseen(tmp_path: Path) -> None:
    path = write(tmp_path, [*sample("a"), *sample("b"), *sample("c")])
    at = next(member.offset for member in walk_tar(path).members if member.name == "b.1.jpg") - BLOCK
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes(BLOCK))
    [drop] = listed(tmp_path).drops
    assert (drop.id, drop.reason) == ("b", "truncated tar")
    assert f"byte {at} (a header of zeros, and no end mark)" in drop.detail


def test_two_headers_of_zeros_are_no_end_where_more_follows(tmp_path: Path) -> None:
    path = write(tmp_path, [*sample("a"), ("empty", b""), *sample("b")])
    at = next(member.offset for member in walk_tar(path).members if member.name == "empty") - BLOCK
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes(2 * BLOCK))
    walk = walk_tar(path)
    assert (walk.cut_at, len(walk.members)) == (at, 3) and walk.cut_cause == "a header of zeros, and no end mark"
    with path.open("r+b") as file:
        file.truncate(at)
        file.truncate(1 << 40)
    assert walk_tar(path).cut_at == at, "a terabyte of zeros is not looked through"


def pax(**fields: bytes) -> bytes:
    """The data of a pax header."""
    data = b""
    for key, value in fields.items():
        size = len(key) + len(value) + 3
        size += len(str(size + len(str(size))))
        data += b"%d %s=%s\n" % (size, key.encode(), value)
    return data


@pytest.mark.parametrize(
    ("kind", "extended", "first"),
    [
        (b"x", [pax(path=b"longer.json", comment=b"1\n17 path=evil.json")], ("longer.json", 3)),
        (b"x", [pax(comment=b"1\n17 path=evil.json")], ("a.json", 3)),
        (b"x", [pax(size=b"2", path=b"longer.json")], ("longer.json", 2)),
        (b"L", [b"longer.json\0"], ("longer.json", 3)),
        (b"x", [pax(size=b"-3")], None),
        (b"x", [pax(size=b"9" * 4000)], None),
        (b"x", [pax(path=b"")], None),
        (b"x", [b"99 path=a\n"], None),
        (b"x", [b"x" * 100], None),
        (b"x", [b"5 a=\n" * 100_000], None),
        (b"x", [pax(comment=b"a" * (2 << 20))], None),
        (b"x", [pax(path=b"one"), pax(path=b"two")], None),
        (b"g", [pax(path=b"a")], None),
        (b"L", [b"one\0", b"two\0"], None),
        (b"L", [b"\0"], None),
    ],
)
def test_extended_headers_are_read_exactly_or_not(
    tmp_path: Path, kind: bytes, extended: list[bytes], first: tuple[str, int] | None
) -> None:
    more = {f"more{number}": data for number, data in enumerate(extended)}
    path = write(tmp_path, [*more.items(), ("a.json", b"{ }"), ("b.json", b"{}")])
    for name, data in reversed(more.items()):
        resize(path, name, b"%011o\0" % len(data), kind)
    walk = walk_tar(path)
    assert [(member.name, member.size) for member in walk.members] == ([first, ("b.json", 2)] if first else [])
    assert walk.cut_cause.startswith("" if first else ("an extended header", "a header whose size"))


def test_a_sample_of_more_pixels_than_a_machine_holds_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.sources.forms.webdataset.MAX_STUDY_PIXELS", 48 * 48)
    write(tmp_path, [*sample("a"), ("b.jpg", FILM), ("b.json", record("b"))])
    source = WebDataset(raw=tmp_path)
    two, one = source.listing().items
    with pytest.raises(BadStudy, match="study is too large: .*films of a have 4,608 pixels"):
        source.read(two)
    assert len(source.read(one)[1]) == 1


def test_incomplete_and_doubled_samples_are_named(tmp_path: Path) -> None:
    gap = [("gap.0.jpg", FILM), ("gap.2.jpg", FILM), ("gap.json", record("gap"))]
    write(tmp_path, [*sample("no-json")[:2], sample("no-film")[2], *gap, *sample("twice"), *sample("twice")])
    listing = listed(tmp_path)
    assert len(listing.items) == 0
    assert {drop.id: drop.reason for drop in listing.drops} == {
        "no-json": "incomplete sample",
        "no-film": "incomplete sample",
        "gap": "incomplete sample",
        "twice": "duplicate tar member",
    }


def test_a_key_in_two_tars_of_a_split_is_kept_once_and_named(tmp_path: Path) -> None:
    write(tmp_path, [*sample("a"), *sample("b")])
    write(tmp_path, [*sample("b"), *sample("c"), ("d.jpg", FILM), ("d.json", record("a"))], "train-1.tar")
    listing = listed(tmp_path)
    assert ids(listing) == ["a", "b", "c"]
    assert [(drop.id, drop.reason) for drop in listing.drops] == [("b", "duplicate key"), ("d", "duplicate key")]
    assert "'b' of train-1.tar has the id of sample 'b' of train-0.tar" in listing.drops[0].detail


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xff\xfe", "record is not readable"),
        (b"[1]", "record is not readable"),
        (b"{", "record is not readable"),
        (b'{"id": "a"}', "record is not readable"),
        (b'{"report": 5}', "record is not readable"),
        (b'{"key": 1, "target": 2}', "record is not readable"),
        (b"[" * 100_000, "record is not readable"),
        (b'{"report": "The heart is \\ud83d normal."}', "record is not readable"),
        (b'{"report": "Clear.", "id": "../../etc/x"}', "id is not a name"),
        (b'{"report": "Clear.", "split": "test"}', "two splits"),
        (b" " * 4_000_001, "incomplete sample"),
    ],
)
def test_records_that_are_no_report_are_dropped_by_name(tmp_path: Path, data: bytes, reason: str) -> None:
    write(tmp_path, [("a.jpg", FILM), ("a.json", data), *sample("b")])
    listing = listed(tmp_path)
    assert ids(listing) == ["b"]
    assert [(drop.id, drop.reason) for drop in listing.drops] == [("a", reason)]
    assert listing.drops[0].detail.startswith("train-0.tar: ") and "heart" not in listing.drops[0].detail


def test_what_a_record_of_others_tells_is_kept(tmp_path: Path) -> None:
    fields = {"id": "Case 7", "patient": 12, "findings": "Clear.", "impression": "Normal.", "split": "train", "age": 70}
    write(tmp_path, [("x/7.jpg", FILM), ("x/7.json", json.dumps(fields).encode())])
    [study] = studies_of(tmp_path)
    assert (study.id, study.key, study.patient, study.report) == ("Case 7", "case-7", "12", "Clear.")
    assert study.sections == {"findings": "Clear.", "impression": "Normal."}
    assert study.provenance == {"source": "webdataset", "file": "train-0.tar"}


def test_what_is_no_tar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train-0.tar").write_bytes(b"<html>" * 300)
    with pytest.raises(DataError, match=r"train-0.tar is not a tar archive"):
        listed(tmp_path)


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("train-0.tar.gz", "packed archives.*train-0.tar.gz. Unpack them"),
        ("val.tgz", "packed archives.*val.tgz. Unpack them"),
        (".writing", "never finished: run the command that wrote them again"),
    ],
)
def test_directories_that_are_not_ready_are_refused(tmp_path: Path, name: str, cause: str) -> None:
    write(tmp_path, sample("a"))
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=cause):
        listed(tmp_path)


def test_archives_of_no_split_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing: raw must be the directory"):
        listed(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="it holds no .tar at all"):
        listed(tmp_path)
    write(tmp_path, sample("b"), "shard.tar")
    with pytest.raises(DataError, match=r"its archives are shard.tar, and only train\*.tar"):
        listed(tmp_path)
    write(tmp_path, sample("a"))
    assert listed(tmp_path).notes == ["1 archives whose names begin with no split are not read"]


def test_an_archive_that_changed_after_listing_is_noticed(tmp_path: Path) -> None:
    path, source = write(tmp_path, [*sample("a"), *sample("b")]), WebDataset(raw=tmp_path)
    first, second = source.listing().items
    data = path.read_bytes()
    path.write_bytes(data.replace(b"film of a", b"film of A"))
    with pytest.raises(BadStudy, match="archive changed: train-0.tar: the record of a"):
        source.read(first)
    write(tmp_path, [*sample("b"), *sample("a")])
    with pytest.raises(BadStudy, match="archive changed: train-0.tar: 'b"):
        source.read(second)
    path.write_bytes(data[:1000])
    with pytest.raises(BadStudy, match="archive changed"):
        source.read(second)
    os.remove(path)
    with pytest.raises(DataError, match="train-0.tar cannot be read"):
        source.read(second)


def test_shards_are_written_from_archives_of_others(ray_session: None, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    write(raw, [*sample("a"), *sample("b"), ("c.json", b"{}")])
    write(raw, sample("d"), "test.tar")
    source = open_source("webdataset", raw=str(raw), licence="synthetic")
    manifest = write_shards(source, tmp_path / "open", size=48)
    assert {split: count.studies for split, count in manifest.splits.items() if count.studies} == {
        "train": 2,
        "test": 1,
    }
    assert (manifest.licence, manifest.cleaning, manifest.given) == ("synthetic", "raw", 4)
    assert manifest.drops == {"incomplete sample": 1}
    closed = write_shards(open_source("webdataset", raw=raw), tmp_path / "closed", size=48)
    assert closed.licence == "unknown" and "c" not in {drop.id for drop in dropped_in(tmp_path / "closed")}
    with pytest.raises(DataError, match="incomplete sample"):
        write_shards(source, tmp_path / "strict", size=48, on_bad="fail")


def test_our_own_shards_come_back_as_they_were(phantom_shards: Path) -> None:
    source = WebDataset(raw=phantom_shards, licence="synthetic")
    listing = source.listing()
    manifest = read_manifest(phantom_shards)
    assert len(listing.items) == manifest.given and not listing.drops
    study, films = source.read(listing.items[0])
    assert study.labels and study.triples and study.target == "" and study.key == study.id
    assert [view.position for view in study.views] == ["frontal", "lateral"] and len(films) == 2


def test_a_text_is_the_report_where_there_is_no_record(tmp_path: Path) -> None:
    text = "Größe des Herzens: normal.\n".encode()
    both = [*sample("b"), ("b.txt", b"not this")]
    write(tmp_path, [("a.txt", text), ("a.jpg", FILM), *both, ("c.txt", b"\xff"), ("c.jpg", FILM), ("d.txt", text)])
    assert [(study.id, study.report) for study in studies_of(tmp_path)] == [
        ("a", "Größe des Herzens: normal.\n"),
        ("b", "Drawn film of b."),
    ]
    drops = {drop.id: drop.reason for drop in listed(tmp_path).drops}
    assert drops == {"c": "record is not readable", "d": "incomplete sample"}


def test_captions_beside_their_metadata_are_the_reports(tmp_path: Path) -> None:
    """What img2dataset writes: KEY.jpg, KEY.txt, and a KEY.json that has no report."""
    told = json.dumps({"caption": "x", "width": 48}).encode()
    twice = [*sample("b"), ("b.txt", b"one"), ("b.txt", b"two")]
    write(
        tmp_path, [("a.jpg", FILM), ("a.txt", b"Clear."), ("a.json", told), *twice, ("c.jpg", FILM), ("c.json", told)]
    )
    assert [(study.id, study.report) for study in studies_of(tmp_path)] == [("a", "Clear."), ("b", "Drawn film of b.")]
    assert {drop.id: drop.reason for drop in listed(tmp_path).drops} == {"c": "record is not readable"}
