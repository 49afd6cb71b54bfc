"""IU X-Ray as Open-i's XML: drawn reports, broken ones, hostile archives, and where the films lie."""

import gzip
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import pytest
from PIL import Image

from shards.errors import DataError
from shards.sources.iu_xray import xml
from shards.sources.iu_xray.exam import exam_id, film_name
from shards.sources.iu_xray.source import IuXray

ARCHIVE = "NLMCXR_reports.tgz"
SERIES = ("IM-0009-1001", "IM-0009-2001")


def report(number: int, images: list[str] | None = None, **sections: str) -> bytes:
    """An Open-i report with the elements that are read, and two films unless others are named."""
    texts = {"COMPARISON": "None.", "FINDINGS": f"Drawn film {number} is <clear>.", "IMPRESSION": "Normal."} | sections
    abstract = "".join(f'<AbstractText Label="{label}">{escape(text)}</AbstractText>' for label, text in texts.items())
    named = [f"CXR{number}_{series}" for series in SERIES] if images is None else images
    films = "".join(f'<parentImage id="{name}"><caption>PA and lateral</caption></parentImage>' for name in named)
    mesh = "<MeSH><major>Lung/clear</major><major>Heart</major><automatic>thing</automatic></MeSH>"
    head = '<?xml version="1.0" encoding="utf-8"?>'
    return f'{head}<eCitation><uId id="CXR{number}"/><A>{abstract}</A>{mesh}{films}</eCitation>'.encode()


def film(path: Path, seed: int = 0) -> None:
    """A drawn film, each seed another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    slope = np.add.outer(np.arange(64), (seed + 1) * np.arange(64)) % 256
    Image.fromarray(slope.astype(np.uint8)).save(path)


def pack(path: Path, members: list[tuple[str, bytes] | tarfile.TarInfo], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return path


@pytest.fixture
def drawn(tmp_path: Path) -> Callable[..., Path]:
    """Function ({file name: XML}) → a directory with an archive of these after reports 1 to 3, and all their films."""

    def draw(extra: dict[str, bytes] | None = None, links: list[tarfile.TarInfo] = []) -> Path:  # noqa: B006
        reports = {f"{number}.xml": report(number) for number in (1, 2, 3)} | (extra or {})
        members = [(f"ecgen-radiology/{name}", data) for name, data in reports.items()]
        pack(tmp_path / ARCHIVE, [*links, *members])
        for number in range(1, 6):
            for at, series in enumerate(SERIES):
                film(tmp_path / "NLMCXR_png" / f"CXR{number}_{series}.png", 2 * number + at)
        return tmp_path

    return draw


def test_archive_and_directory_give_the_same_studies(drawn: Callable[..., Path]) -> None:
    root = drawn()
    packed = IuXray(raw=root).listing().items
    with tarfile.open(root / ARCHIVE) as tar:
        tar.extractall(root, filter="data")
    (root / ARCHIVE).unlink()
    for raw in (root, root / "ecgen-radiology"):
        unpacked = IuXray(raw=raw).listing().items
        assert [(item.id, item.payload | {"file": ""}) for item in unpacked] == [
            (item.id, item.payload | {"file": ""}) for item in packed
        ]
    assert [item.id for item in packed] == ["CXR1_1_IM-0009", "CXR2_IM-0009", "CXR3_IM-0009"]


def test_a_report_becomes_a_study(drawn: Callable[..., Path]) -> None:
    root = drawn({"4.xml": report(4, INDICATION="Cough & \n fever", FINDINGS="First.")})
    source = IuXray(raw=root / ARCHIVE)
    study, films = source.read(source.listing().items[3])
    assert (study.id, study.key, study.patient, study.report) == ("CXR4_IM-0009", "cxr4_im-0009", "CXR4", "First.")
    assert study.sections["indication"] == "Cough & \n fever"
    assert set(study.sections) == {"comparison", "indication", "findings", "impression"}
    assert [(view.position, view.file) for view in study.views] == [
        ("unknown", f"CXR4_{series}.png") for series in SERIES
    ]
    assert study.provenance | {"file": ARCHIVE, "row": "ecgen-radiology/4.xml", "mesh": "Lung/clear;Heart"} == (
        study.provenance
    )
    assert (study.provenance["mesh_automatic"], study.provenance["caption"]) == ("thing", "PA and lateral")
    assert (films[0] != films[1]).any()


BOMB = b'<!DOCTYPE a [<!ENTITY b "lol"><!ENTITY c "&b;&b;&b;">]><eCitation><uId id="CXR4"/>&c;</eCitation>'
OUTSIDE = b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]><eCitation><uId id="CXR4"/>&b;</eCitation>'


@pytest.mark.parametrize(
    ("data", "identifier", "reason"),
    [
        (report(4)[:200], "ecgen-radiology/4.xml", "XML is broken"),
        (b"", "ecgen-radiology/4.xml", "XML is broken"),
        (b"\xff" + report(4), "ecgen-radiology/4.xml", "XML is broken"),
        (report(4).replace(b"utf-8", b"no-such"), "ecgen-radiology/4.xml", "XML is "),
        (BOMB, "ecgen-radiology/4.xml", "XML is refused"),
        (OUTSIDE, "ecgen-radiology/4.xml", "XML is refused"),
        (b"<a>" * 300_000, "ecgen-radiology/4.xml", "XML is broken"),
        (b"<eCitation/>", "ecgen-radiology/4.xml", "id is not a name"),
        (report(4).replace(b'"CXR4"', b'"../4"'), "ecgen-radiology/4.xml", "id is not a name"),
        (report(2, FINDINGS="Another text."), "CXR2_IM-0009", "duplicate id"),
        (report(4, []), "CXR4", "no film is listed"),
        (report(4, ["CXR2_IM-0009-1001"]), "CXR4", "film of another examination"),
        (report(4, [""]), "CXR4", "film of another examination"),
        (report(4, ["CXR4_IM-0009-1001"] * 2), "CXR4", "film is listed twice"),
        (report(4, ["CXR4_IM-0009-1001", "CXR4_IM-0009-3001"]), "CXR4_IM-0009", "film is missing"),
        (report(4).replace(b"FINDINGS", b"OTHER"), "CXR4_IM-0009", "section is missing"),
        (report(4, FINDINGS="nan"), "CXR4_IM-0009", "report is a placeholder"),
        (b" " * xml.MAX_XML_BYTES + report(4), "ecgen-radiology/4.xml", "archive member refused"),
    ],
)
def test_reports_that_cannot_be_used_are_dropped_by_name(
    drawn: Callable[..., Path], data: bytes, identifier: str, reason: str
) -> None:
    listing = IuXray(raw=drawn({"4.xml": data})).listing()
    assert len(listing.items) == 3
    [drop] = listing.drops
    assert drop.id == identifier and drop.reason.startswith(reason)
    assert "4.xml" in drop.detail and "Drawn film" not in drop.detail


def test_a_missing_film_is_named(drawn: Callable[..., Path]) -> None:
    root = drawn()
    (root / "NLMCXR_png" / "CXR2_IM-0009-2001.png").unlink()
    listing = IuXray(raw=root).listing()
    assert [item.id for item in listing.items] == ["CXR1_1_IM-0009", "CXR3_IM-0009"]
    [drop] = listing.drops
    assert (drop.reason, drop.file) == ("film is missing", "2_IM-0009-2001")
    assert "1 of 2 films are there" in drop.detail
    assert len(IuXray(raw=root, min_views=3).listing().items) == 0


def link(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/hostname"
    return info


def test_hostile_members_are_refused_and_named(drawn: Callable[..., Path]) -> None:
    links = [link("a.xml", tarfile.SYMTYPE), link("b.xml", tarfile.LNKTYPE), link("c.xml", tarfile.FIFOTYPE)]
    root = drawn(links=[*links, tarfile.TarInfo("/etc/d.xml"), tarfile.TarInfo("../e.xml")])
    listing = IuXray(raw=root).listing()
    assert len(listing.items) == 3
    assert {drop.id for drop in listing.drops} == {"a.xml", "b.xml", "c.xml", "/etc/d.xml", "../e.xml"}
    assert {drop.reason for drop in listing.drops} == {"archive member refused"}


def test_links_in_a_directory_do_not_lead_out(drawn: Callable[..., Path], tmp_path: Path) -> None:
    folder = drawn() / "ecgen-radiology"
    folder.mkdir()
    (tmp_path / ARCHIVE).unlink()
    (folder / "1.xml").write_bytes(report(1))
    (folder / "2.xml").symlink_to("/etc/hostname")
    (folder / "readme.txt").write_text("not a report")
    listing = IuXray(raw=tmp_path).listing()
    assert len(listing.items) == 1
    assert [(drop.id, drop.reason) for drop in listing.drops] == [("ecgen-radiology/2.xml", "archive member refused")]


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
def test_a_cut_archive_is_refused_whole(drawn: Callable[..., Path], keep: float) -> None:
    path = drawn() / ARCHIVE
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(DataError, match=rf"{ARCHIVE} is cut or damaged: .*fetch it again"):
        IuXray(raw=path.parent).listing()


@pytest.mark.parametrize("at", [512, 1024, 1500, 1536, 2048, 3072])
def test_a_tar_cut_or_damaged_anywhere_is_refused_whole(drawn: Callable[..., Path], at: int) -> None:
    """The standard reader takes a damaged header for the end of the archive."""
    path = drawn().with_name("reports.tar")
    pack(path, [(f"{number}.xml", report(number)) for number in (1, 2, 3)], "w")
    data = path.read_bytes()
    whole = [name for name, _, _ in xml.read_reports(path)]
    assert whole == ["1.xml", "2.xml", "3.xml"]
    for damaged in (data[:at], data[: at // 1536 * 1536] + b"\x07" * 512 + data[at // 1536 * 1536 + 512 :]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"reports.tar (is not a tar archive|breaks off or is damaged at byte)"):
            list(xml.read_reports(path))


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "breaks off or is damaged at byte 0"),
        (b"<html>", "breaks off or is damaged at byte 6"),
        (bytes(10240), "holds no .xml"),
        (b"\x1f\x8b", "is cut"),
    ],
)
def test_files_that_are_no_archive_are_refused(drawn: Callable[..., Path], data: bytes, cause: str) -> None:
    path = drawn() / ARCHIVE
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"{ARCHIVE} {cause}"):
        IuXray(raw=path.parent).listing()


def header(kind: bytes, size: bytes) -> bytes:
    """A member's header with a checksum that holds."""
    info = bytearray(tarfile.TarInfo("a").tobuf(tarfile.USTAR_FORMAT))
    info[124:136], info[156:157], info[148:156] = size.ljust(12, b"\0"), kind, b" " * 8
    info[148:156] = b"%06o\0 " % sum(info)
    return bytes(info)


EMPTY = header(b"x", b"%011o" % 0), header(b"L", b"%011o" % 0)
DIGITS = b"9" * 2_000_000


@pytest.mark.parametrize(
    "begin",
    [
        header(b"0", b"\x80" + b"\xff" * 11),
        header(b"0", b"-0000001000"),
        EMPTY[0] * 20_000,
        EMPTY[1] * 20_000,
        header(b"x", b"%011o" % len(DIGITS)) + DIGITS + bytes(-len(DIGITS) % 512),
        header(b"x", b"%011o" % 28) + b"28 GNU.sparse.map=1,2,secret" + bytes(484),
    ],
    ids=["size beyond counting", "size below 0", "chain of names", "chain of pax", "digits", "sparse"],
)
def test_what_the_standard_reader_of_tars_cannot_bear_is_read_or_refused(
    drawn: Callable[..., Path], begin: bytes
) -> None:
    path = drawn() / ARCHIVE
    path.write_bytes(begin + gzip.decompress(path.read_bytes()))
    try:
        assert len(IuXray(raw=path.parent).listing().items) in (2, 3)
    except DataError as error:
        assert "breaks off or is damaged at byte" in str(error)


def test_a_pipe_is_no_archive(drawn: Callable[..., Path]) -> None:
    path = drawn() / ARCHIVE
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="neither a directory nor a file"):
        IuXray(raw=path.parent).listing()


@pytest.mark.parametrize("files", ["archive", "directory"])
def test_a_name_that_is_no_unicode_is_told_in_one_that_is(drawn: Callable[..., Path], files: str) -> None:
    root = drawn(links=[link("a\udcff.xml", tarfile.SYMTYPE)])
    if files == "directory":
        (root / ARCHIVE).unlink()
        (root / "ecgen-radiology").mkdir()
        (root / "ecgen-radiology" / "1.xml").write_bytes(report(1))
        (root / "ecgen-radiology" / "a\udcff.xml").write_bytes(b"<a/>")
        film(root / "NLMCXR_png" / "\udcff" / "CXR9.png")
    listing = IuXray(raw=root).listing()
    [drop] = listing.drops
    assert drop.id.rpartition("/")[2] in ("a?.xml", "a\ufffd.xml") and drop.model_dump_json()


def test_reports_of_endless_elements_are_refused(drawn: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    nested = b'<e><uId id="CXR4"/>' + b"<AbstractText>" * 30_000 + b"</AbstractText>" * 30_000 + b"</e>"
    listing = IuXray(raw=drawn({"4.xml": nested})).listing()
    assert [(drop.id, drop.reason) for drop in listing.drops] == [("CXR4", "XML is refused")]
    films = [f"CXR4_IM-{at:04d}-1001" for at in range(200)]
    [drop] = IuXray(raw=drawn({"4.xml": report(4, films)})).listing().drops
    assert (drop.id, drop.reason) == ("CXR4", "too many films")
    monkeypatch.setattr(xml, "MAX_TAGS", 1_000)
    with pytest.raises(DataError, match="more than 1,000 tags"):
        IuXray(raw=drawn({f"{at}.xml": b"<e>" + b"<a/>" * 300 + b"</e>" for at in range(4, 8)})).listing()


def test_archives_that_unpack_to_too_much_are_refused(
    drawn: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = drawn({"4.xml": report(4, FINDINGS="a" * 900_000)})
    with monkeypatch.context() as patch:
        patch.setattr(xml, "MAX_UNPACKED_BYTES", 500_000)
        with pytest.raises(DataError, match="unpacks to more than 500,000 bytes"):
            IuXray(raw=root).listing()
    monkeypatch.setattr(xml, "MAX_MEMBERS", 3)
    with pytest.raises(DataError, match="holds more than 3 files"):
        IuXray(raw=root).listing()


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("CXR12_IM-0137-2001", "12_IM-0137-2001"),
        ("12_IM-0137-2001.dcm.png", "12_IM-0137-2001"),
        ("images/CXR12_IM-0137-2001.PNG", "12_IM-0137-2001"),
        ("CXR1_1_IM-0001-3001.jpg", "1_IM-0001-3001"),
        ("other.png", "other"),
        (".png" * 100_000 + "x", ".png" * 63 + ".pn"),
    ],
)
def test_a_film_has_one_name_in_every_form(written: str, name: str) -> None:
    assert film_name(written) == name


def test_the_id_is_the_first_image_id_without_its_last_part() -> None:
    assert exam_id("CXR63", ["63_IM-2210-0001-0002", "63_IM-2210-0001-0001"]) == "CXR63_IM-2210-0001"
    assert exam_id("CXR9", ["9_IM-0007-2001-0001", "9_IM-0007-1001"]) == "CXR9_IM-0007"
    assert exam_id("CXR1", ["1_IM-0001-4001"]) == "CXR1_1_IM-0001"
    assert exam_id("CXR5", ["scan"]) == "CXR5"
