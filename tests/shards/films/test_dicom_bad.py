"""DICOM files that are no films are refused by name, in bounds, and without a word about the patient."""

import io
import logging
import os
import struct
import traceback
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

from shards.errors import DataError
from shards.films.raw import open_film
from shards.films.stored import encode
from shards.films.tones import Header, film_of

GREY = (np.add.outer(np.arange(80), np.arange(64)) * 255 // 142).astype(np.uint8)
REAL = os.environ.get("R2KG_REAL_DATA")
JPEG = encode(GREY, 95)

Edit = Callable[[Dataset], object]


def dataset(syntax: str = uid.ExplicitVRLittleEndian) -> Dataset:
    """An 8-bit film of a patient whose name, id and report must not be told."""
    film = Dataset()
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = syntax
    film.SOPClassUID, film.SOPInstanceUID = uid.DigitalXRayImageStorageForPresentation, "1.2.3.4"
    film.PatientName, film.PatientID, film.ImageComments = "Doe^Jane", "SECRET77", "SECRET effusion"
    film.Rows, film.Columns, film.SamplesPerPixel = *GREY.shape, 1
    film.BitsAllocated, film.BitsStored, film.HighBit, film.PixelRepresentation = 8, 8, 7, 0
    film.PhotometricInterpretation = "MONOCHROME2"
    film.PixelData = GREY.tobytes()
    film["PixelData"].VR = "OB"
    return film


def packed(*frames: bytes, **tags: object) -> Edit:
    def edit(film: Dataset) -> None:
        film.PixelData = encapsulate(list(frames))
        for keyword, value in tags.items():
            setattr(film, keyword, value)

    return edit


def write(folder: Path, film: Dataset) -> Path:
    film.save_as(folder / "film.dcm", enforce_file_format=True)
    return folder / "film.dcm"


def change(**tags: object) -> Edit:
    def edit(film: Dataset) -> None:
        for keyword, value in tags.items():
            if value is None:
                del film[keyword]
            else:
                setattr(film, keyword, value)

    return edit


def j2k(**options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(GREY).save(out, "JPEG2000", **options)
    return out.getvalue()


def rle(*segments: bytes) -> bytes:
    starts = np.cumsum([64, *map(len, segments)])[:-1]
    return struct.pack("<16L", len(segments), *starts, *[0] * (15 - len(segments))) + b"".join(segments)


def item(**tags: object) -> Edit:
    def edit(film: Dataset) -> None:
        film.VOILUTSequence = [Dataset()]
        for keyword, value in tags.items():
            setattr(film.VOILUTSequence[0], keyword, value)

    return edit


PLAIN: dict[str, tuple[Edit, str]] = {
    "frames": (change(NumberOfFrames=7), "several frames"),
    "no pixels": (change(PixelData=None), "no Pixel Data"),
    "no rows": (change(Rows=None), "header lacks Rows"),
    "no photometric": (change(PhotometricInterpretation=None), "per pixel with another"),
    "bomb header": (change(Rows=60000, Columns=60000), "claims 60000x60000 px; at most"),
    "large colours": (
        change(Rows=9000, Columns=9000, SamplesPerPixel=3, PhotometricInterpretation="RGB"),
        "9000x9000 px of 3 samples",
    ),
    "tiny": (change(Rows=31), "64x31 px; every side must be at least 32"),
    "strip": (change(Rows=32, Columns=321), "no side may be more than 10 times"),
    "too few bytes": (change(Rows=81), "5,120 bytes of pixels .* means 5,184"),
    "too many bytes": (change(PixelData=bytes(10_000)), "10,000 bytes .* means 5,120"),
    "bits": (change(BitsStored=12, HighBit=11), "BitsAllocated 8, BitsStored 12"),
    "no bits": (change(BitsStored=0), "BitsStored 0"),
    "32 bits": (change(BitsAllocated=32, BitsStored=32, HighBit=31), "at most 16"),
    "colour space": (change(PhotometricInterpretation="HSV"), "another PhotometricInterpretation; read are MONO"),
    "samples": (change(SamplesPerPixel=3), "3 samples per pixel with another"),
    "width 0": (change(WindowCenter=9, WindowWidth=0), "the width is below"),
    "half a window": (change(WindowCenter=9), "WindowWidth is missing"),
    "function": (change(WindowCenter=9, WindowWidth=9, VOILUTFunction="CUBIC"), "VOILUTFunction is none of"),
    "slope 0": (change(RescaleSlope=0, RescaleIntercept=5), "one grey of all"),
    "slope nan": (change(RescaleSlope="NaN", RescaleIntercept=5), "RescaleSlope is no number"),
    "empty table": (item(), "table of LUTData is missing"),
    "short table": (item(LUTDescriptor=[256, 0, 8], LUTData=b"\1\2\3\4"), "8 bits has 4 of 256 entries"),
    "palette": (change(PhotometricInterpretation="PALETTE COLOR"), "RedPaletteColorLookupTableData is missing"),
    "enhanced": (change(SharedFunctionalGroupsSequence=[Dataset()]), "Enhanced DICOM"),
    "name for a photometric": (change(PhotometricInterpretation="DOE JANE"), "another PhotometricInterpretation"),
    "name for a function": (change(WindowCenter=9, WindowWidth=9, VOILUTFunction="DOE JANE"), "VOILUTFunction is none"),
    "many windows": (
        change(WindowCenter=["1"] * 600, WindowWidth=["9"] * 600),
        "WindowCenter has more than 1,024 bytes",
    ),
    "many items": (change(VOILUTSequence=[Dataset()] * 1001), "VOILUTSequence has more than .* 1,000 items"),
    "long table": (
        item(LUTDescriptor=[256, 0, 8], LUTData=bytes(2 << 20)),
        "other than Pixel Data has more than 1,048,576 bytes",
    ),
    "float pixels": (change(PixelData=None, FloatPixelData=bytes(4 * GREY.size)), "no Pixel Data"),
}
PACKED: dict[str, tuple[str, Edit, str]] = {
    "jpeg cut off": (uid.JPEGBaseline8Bit, packed(JPEG[:-300]), "truncated"),
    "jpeg 2000 cut off": (uid.JPEG2000, packed(j2k()[:-300]), "broken data stream"),
    "jpeg of another size": (uid.JPEGBaseline8Bit, packed(encode(GREY[:1, :1], 95)), "is 1x1 px of 1, the .* 64x80"),
    "colour jpeg": (
        uid.JPEGBaseline8Bit,
        packed(JPEG, SamplesPerPixel=3, PhotometricInterpretation="YBR_FULL_422", PlanarConfiguration=0),
        "64x80 px of 1, the header says 64x80 px of 3",
    ),
    "two frames": (uid.JPEGBaseline8Bit, packed(JPEG, JPEG), "several frames"),
    "no jpeg": (uid.JPEGBaseline8Bit, packed(b"<html>not found</html>"), "UnidentifiedImageError"),
    "rle bomb": (uid.RLELossless, packed(rle(b"\x81\x07" * 500)), "RLE pixels inflate to more than the 5,120"),
    "rle too short": (uid.RLELossless, packed(rle(b"\x81\x07" * 30)), "damaged"),
    "rle beyond the end": (uid.RLELossless, packed(struct.pack("<16L", 2, 64, 2**32 - 1, *[0] * 13)), "RLE"),
    "rle of nothing": (uid.RLELossless, packed(rle(b"\x80" * 5000)), "more than 1,000 runs"),
    "many offsets": (
        uid.JPEGBaseline8Bit,
        change(PixelData=b"\xfe\xff\0\xe0" + struct.pack("<I", 8) + bytes(8) + encapsulate([JPEG])[8:]),
        "several frames",
    ),
    "jpeg cut and closed": (uid.JPEGBaseline8Bit, packed(JPEG[:-200] + b"\xff\xd9"), "truncated"),
    "jpeg 2000 of small blocks": (uid.JPEG2000, packed(j2k(no_jp2=True, codeblock_size=(4, 4))), "smaller blocks"),
    "jpeg 2000 of many tiles": (uid.JPEG2000, packed(j2k(no_jp2=True, tile_size=(2, 2))), "1024 tiles"),
    "jpeg 2000 of many pixels": (
        uid.JPEG2000,
        packed(j2k(no_jp2=True)[:8] + struct.pack(">2I", 6000, 5000) + j2k(no_jp2=True)[16:], Rows=6000, Columns=5000),
        "at most 25,000,000 pixels",
    ),
    "lossless jpeg": (
        uid.JPEGLosslessSV1,
        packed(JPEG),
        r"JPEG Lossless.*\(1.2.840.10008.1.2.4.70\).*pip install pylibjpeg pylibjpeg-libjpeg",
    ),
    "jpeg of 12 bits": (
        uid.JPEGExtended12Bit,
        packed(JPEG, BitsAllocated=16, BitsStored=12, HighBit=11),
        "JPEG Extended.*with 12 bits.*pylibjpeg-libjpeg",
    ),
    "htj2k": (uid.HTJ2KLossless, packed(JPEG), "High-Throughput JPEG 2000.*pylibjpeg-openjpeg"),
    "video": (uid.MPEG4HP41, packed(JPEG), "MPEG-4.*holds no film"),
}
BAD = {name: (uid.ExplicitVRLittleEndian, *case) for name, case in PLAIN.items()} | PACKED


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_by_name_and_in_silence(
    tmp_path: Path,
    name: str,
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    syntax, edit, cause = BAD[name]
    monkeypatch.setattr("shards.films.dicom.MAX_RLE_RUNS", 1000)
    film = dataset(syntax)
    edit(film)
    path = write(tmp_path, film)
    recwarn.clear()
    caplog.clear()
    told = rf"film.dcm: image does not decode: .*{cause}"
    with caplog.at_level(logging.DEBUG), pytest.raises(DataError, match=told) as caught:
        open_film(path)
    everything = "".join(traceback.format_exception(caught.value)).upper()
    assert not [word for word in ("JANE", "SECRET") if word in everything]
    assert not recwarn.list
    assert not [record for record in caplog.records if record.name.startswith("pydicom")]


def test_transfer_syntaxes_outside_the_standard_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, dataset())
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10999.1.2.1\0"))
    with pytest.raises(DataError, match="no transfer syntax of the DICOM standard"):
        open_film(path)


def test_content_must_be_dicom_and_dicom_must_be_named_so(tmp_path: Path) -> None:
    path = write(tmp_path, dataset())
    (tmp_path / "film.png").write_bytes(path.read_bytes())
    with pytest.raises(DataError, match=r"film.png: .*the content is DICOM, the suffix .png says PNG"):
        open_film(tmp_path / "film.png")
    (tmp_path / "photo.DICOM").write_bytes(JPEG)
    with pytest.raises(DataError, match=r"photo.DICOM: .*the content is JPEG, the suffix .DICOM says DICOM"):
        open_film(tmp_path / "photo.DICOM")
    (tmp_path / "headless.dcm").write_bytes(path.read_bytes()[132:])
    with pytest.raises(DataError, match=r"headless.dcm: .*no DICM at byte 128"):
        open_film(tmp_path / "headless.dcm")


def test_garbage_behind_the_preamble_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.dcm").write_bytes(bytes(128) + b"DICM" + JPEG[100:] + JPEG[::-1])
    with pytest.raises(DataError, match=r"bad.dcm: image does not decode: the file names no transfer syntax"):
        open_film(tmp_path / "bad.dcm")


@pytest.mark.skipif(not REAL, reason="R2KG_REAL_DATA is not set: no real film cut up behind a preamble")
def test_real_jpeg_bytes_behind_a_preamble_are_refused() -> None:
    for path in sorted((Path(str(REAL)) / "bad/11_dicom_garbage/images").glob("*/*.dcm")):
        with pytest.raises(DataError, match=rf"{path.name}: image does not decode: "):
            open_film(path)


def test_deflated_data_is_inflated_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, dataset(uid.DeflatedExplicitVRLittleEndian))
    whole = path.read_bytes()
    assert (open_film(path) == GREY).all()
    path.write_bytes(whole[:-40])
    with pytest.raises(DataError, match="deflated data is cut off"):
        open_film(path)
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bomb = packer.compress(bytes(3_000_000)) + packer.flush()
    path.write_bytes(whole[: whole.index(b"1.2.840.10008.1.2.1.99")] + b"1.2.840.10008.1.2.1.99" + bomb)
    monkeypatch.setattr("shards.films.dicom.MAX_FILE_BYTES", 1_000_000)
    with pytest.raises(DataError, match="more than 1,000,000 bytes"):
        open_film(path)


def test_a_jp2_box_of_no_size_is_no_endless_loop(tmp_path: Path) -> None:
    boxes = j2k()
    film = dataset(uid.JPEG2000Lossless)
    film.PixelData = encapsulate([boxes[:12] + bytes(4) + b"free" + boxes[12:]])
    assert (open_film(write(tmp_path, film)) == GREY).all()


def test_truncated_files_are_refused_wherever_they_end(tmp_path: Path) -> None:
    whole = write(tmp_path, dataset()).read_bytes()
    for end in range(0, len(whole) - 1, 97):
        (tmp_path / "cut.dcm").write_bytes(whole[:end])
        with pytest.raises(DataError, match="cut.dcm") as caught:
            open_film(tmp_path / "cut.dcm")
        assert not {"Doe", "Jane", "SECRET"} & set(str(caught.value).replace("^", " ").split())


def test_patient_tags_are_not_even_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("shards.films.dicom.film_of", lambda dataset, header, stored: seen.append(dataset))
    open_film(write(tmp_path, dataset()))
    assert "Rows" in seen[0]
    assert not {"PatientName", "PatientID", "ImageComments"} & set(seen[0].dir())
    assert "SECRET" not in str(seen[0])


def with_elements(folder: Path, inner: bytes, syntax: str = uid.ExplicitVRLittleEndian) -> Path:
    """A film with a private sequence of no length, in whose one item of no length the elements lie."""
    path = write(folder, dataset(syntax))
    start, end = struct.pack("<HHI", 0xFFFE, 0xE000, 2**32 - 1), bytes.fromhex("feff0de000000000feffdde000000000")
    head = struct.pack("<HH2sHI", 0x0009, 0x1001, b"SQ", 0, 2**32 - 1)
    whole = path.read_bytes()
    at = whole.index(struct.pack("<HH2s", 0x0010, 0x0010, b"PN"))
    path.write_bytes(whole[:at] + head + start + inner + end + whole[at:])
    return path


def test_a_header_that_would_keep_pydicom_busy_is_refused(tmp_path: Path) -> None:
    assert (open_film(with_elements(tmp_path, struct.pack("<HH2sH", 9, 0x1002, b"LO", 2) + b"ab")) == GREY).all()
    many = struct.pack("<HH2sH", 9, 0x1002, b"LO", 0) * 100_000
    charset = struct.pack("<HH2sH", 8, 5, b"CS", 20_000) + b"\\" * 20_000
    for inner in (many, charset):
        with pytest.raises(DataError, match="more elements and items than any film's"):
            open_film(with_elements(tmp_path, inner))
    long = struct.pack("<HH2sHI", 9, 0x1002, b"OB", 0, 2 << 20) + bytes(2 << 20)
    with pytest.raises(DataError, match="other than Pixel Data has more than 1,048,576 bytes"):
        open_film(with_elements(tmp_path, long))


def test_films_are_made_in_strips() -> None:
    side, padded = 3000, Dataset()
    padded.PixelPaddingValue = 9
    header = Header(side, side, 1, 16, 16, 15, False, "MONOCHROME2")
    stored = np.zeros((side, side), np.uint16)
    tracemalloc.start()
    try:
        assert film_of(padded, header, stored).shape == (side, side)
        assert tracemalloc.get_traced_memory()[1] < side * side + 30_000_000
    finally:
        tracemalloc.stop()
