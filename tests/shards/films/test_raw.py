"""One stated rule for every kind of raster film; whatever the bytes, a film or a DataError comes out."""

import io
import logging
import os
import re
import struct
import traceback
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, PngImagePlugin
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset

from shards.errors import DataError
from shards.films.raster import grey_of
from shards.films.raw import enough, open_film
from shards.films.stored import shrink

SLOPE = np.add.outer(np.arange(120), np.arange(96)).astype(np.uint8)
ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def stored(format_: str, pixels: np.ndarray | Image.Image = SLOPE, **options: Any) -> bytes:
    out = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(out, format_, **options)
    return out.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(rows: np.ndarray, width: int, bits: int, colour: int, *more: bytes, interlaced: bool = False) -> bytes:
    """A PNG of rows of packed bytes; `more` chunks go before the pixels."""
    passes = [rows[y::dy, x::dx] for x, y, dx, dy in ADAM7] if interlaced else [rows]
    body = b"".join(b"\0" + row.tobytes() for part in passes for row in part)
    header = struct.pack(">IIBBBBB", width, len(rows), bits, colour, 0, 0, int(interlaced))
    chunks = chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(body)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def claiming(side: int, colour: int = 0) -> bytes:
    """A small PNG whose header claims side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", bytes(8)) + chunk(b"IEND", b"")


def planes16(width: int = 40, height: int = 40) -> bytes:
    """A TIFF of three planes with 16 bits each."""
    shorts = {256: [width], 257: [height], 258: [16] * 3, 259: [1], 262: [2], 277: [3], 278: [height], 284: [2]}
    size, table = width * height * 2, 8 + 2 + 12 * 10 + 4
    longs = {273: [table + 30 + plane * size for plane in range(3)], 279: [size] * 3}
    tags, tail = b"", b""
    for tag, values in sorted((shorts | longs).items()):
        packed = struct.pack(f"<{len(values)}{'HI'[tag in longs]}", *values)
        field = packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack("<I", table + len(tail))
        tail += packed if len(packed) > 4 else b""
        tags += struct.pack("<HHI", tag, 4 if tag in longs else 3, len(values)) + field
    return struct.pack("<2sHIH", b"II", 42, 8, 10) + tags + bytes(4) + tail + bytes(3 * size)


def film(folder: Path, name: str, data: bytes) -> np.ndarray:
    (folder / name).write_bytes(data)
    found = open_film(folder / name)
    assert found.dtype == np.uint8
    assert found.ndim == 2
    return found


def alike(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(float) - b.astype(float)).max())


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_shallow_grey_is_stretched_to_black_and_white(tmp_path: Path, bits: int) -> None:
    levels = np.tile(np.arange(2**bits), 64 // 2**bits).astype(np.uint8)
    packed = np.packbits(np.unpackbits(levels[:, None], axis=1)[:, -bits:].ravel())
    found = film(tmp_path, "film.png", png(np.tile(packed, (40, 1)), 64, bits, 0))
    assert (found == levels * (255 // (2**bits - 1))).all()


def test_interlaced_png(tmp_path: Path) -> None:
    assert (film(tmp_path, "film.png", png(SLOPE, 96, 8, 0, interlaced=True)) == SLOPE).all()


def test_transparent_colours_are_kept(tmp_path: Path) -> None:
    grey = png(SLOPE, 96, 8, 0, chunk(b"tRNS", struct.pack(">H", 100)))
    palette = np.repeat(np.arange(256, dtype=np.uint8), 3).tobytes()
    indexed = png(SLOPE, 96, 8, 3, chunk(b"PLTE", palette), chunk(b"tRNS", bytes(256)))
    colours = png(np.repeat(SLOPE, 3, axis=1), 96, 8, 2, chunk(b"tRNS", struct.pack(">3H", 100, 100, 100)))
    deep = png(SLOPE.astype(">u2") * 257, 96, 16, 0, chunk(b"tRNS", struct.pack(">H", 25700)))
    for data in (grey, indexed, colours, deep):
        assert (film(tmp_path, "film.png", data) == SLOPE).all()


def test_alpha_is_dropped_and_the_colours_below_it_kept(tmp_path: Path) -> None:
    alpha = np.full_like(SLOPE, 255)
    alpha[:, :24] = 0
    assert alike(film(tmp_path, "rgba.png", stored("PNG", np.dstack([SLOPE, SLOPE, SLOPE, alpha]))), SLOPE) == 0
    assert alike(film(tmp_path, "la.png", stored("PNG", np.dstack([SLOPE, alpha]))), SLOPE) == 0


def test_colours_become_luminance(tmp_path: Path) -> None:
    colours = np.dstack([SLOPE, SLOPE[::-1], np.full_like(SLOPE, 40)])
    wanted = np.round(colours @ [0.299, 0.587, 0.114])
    quantised = Image.fromarray(colours).quantize(256)
    for name, data in {"a.png": stored("PNG", colours), "b.bmp": stored("BMP", colours)}.items():
        assert alike(film(tmp_path, name, data), wanted) <= 1
    assert alike(film(tmp_path, "p.png", stored("PNG", quantised)), np.asarray(quantised.convert("L"))) == 0
    grey = Image.fromarray(SLOPE)
    assert alike(film(tmp_path, "p.png", stored("PNG", grey.convert("P"))), SLOPE) == 0
    ink = stored("JPEG", grey.convert("RGB").convert("CMYK"), quality=95)
    assert alike(film(tmp_path, "ink.jpg", ink), SLOPE) < 8


@pytest.mark.parametrize(("high", "white"), [(255, 255), (256, 1023), (4095, 4095), (4096, 16383), (65535, 65535)])
def test_sixteen_bit_grey_is_scaled_by_the_smallest_usual_depth(tmp_path: Path, high: int, white: int) -> None:
    deep = np.linspace(0, high, 64 * 64).reshape(64, 64).astype(np.uint16)
    for name, data in {"film.png": stored("PNG", deep), "film.tif": stored("TIFF", deep)}.items():
        assert (film(tmp_path, name, data) == np.round(deep * (255 / white))).all()


def test_12_bit_values_in_a_16_bit_film_are_scaled_not_clipped(tmp_path: Path) -> None:
    assert alike(film(tmp_path, "film.png", stored("PNG", SLOPE.astype(np.uint16) * 16 + 7)), SLOPE) <= 1


def test_float_films_and_films_of_fractions(tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    assert (film(tmp_path, "film.tif", stored("TIFF", ramp)) == np.round(ramp.astype(float) * 255)).all()
    assert film(tmp_path, "film.tif", stored("TIFF", ramp * np.float32(255.75))).max() == 64  # of 10 bits
    assert alike(film(tmp_path, "film.tif", stored("TIFF", ramp * 4095)), np.round(ramp * 255)) <= 1
    whole = (ramp > 0.5).astype(np.uint16)
    assert (film(tmp_path, "film.tif", stored("TIFF", whole)) == whole).all()


@pytest.mark.parametrize("pixels", [SLOPE, SLOPE.astype(np.uint16) * 16], ids=["8 bits", "16 bits"])
def test_tiff_whose_zero_is_white_is_inverted(tmp_path: Path, pixels: np.ndarray) -> None:
    data = stored("TIFF", pixels)
    entry = struct.pack("<HHII", 262, 3, 1, 1)
    assert data.count(entry) == 1
    upright = film(tmp_path, "film.tif", data)
    assert (film(tmp_path, "film.tif", data.replace(entry, struct.pack("<HHII", 262, 3, 1, 0))) == 255 - upright).all()


TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda film: film,
    2: np.fliplr,
    3: lambda film: np.rot90(film, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda film: np.rot90(film, -1),
    7: lambda film: np.rot90(film, 2).T,
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", TURNS)
def test_orientation_is_applied_once(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = TURNS[orientation](SLOPE)
    assert alike(film(tmp_path, "film.jpg", stored("JPEG", quality=95, exif=exif)), upright) < 8
    assert alike(film(tmp_path, "film.png", stored("PNG", exif=exif)), upright) == 0
    assert alike(film(tmp_path, "film.tif", stored("TIFF", tiffinfo={0x0112: orientation})), upright) == 0


def test_jpeg_kinds(tmp_path: Path) -> None:
    progressive = stored("JPEG", quality=95, progressive=True)
    assert b"\xff\xc2" in progressive
    assert alike(film(tmp_path, "film.JPG", progressive), SLOPE) < 8
    assert alike(film(tmp_path, "tail.jpeg", stored("JPEG", quality=95) + b"scanner's notes"), SLOPE) < 8
    pictures = stored("MPO", quality=95, save_all=True, append_images=[Image.fromarray(SLOPE[::-1])])
    assert alike(film(tmp_path, "many.jpg", pictures), SLOPE) < 8
    ink = stored("JPEG", Image.fromarray(SLOPE).convert("RGB").convert("CMYK"), quality=95)
    start = ink.index(b"\xff\xee")
    length = struct.unpack(">H", ink[start + 2 : start + 4])[0]
    for data in (ink, ink[:start] + ink[start + 2 + length :]):
        assert alike(film(tmp_path, "ink.jpg", data), SLOPE) < 8


def test_gamma_profiles_and_text_are_ignored(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "drawn", zip=True)
    text.add(b"gAMA", struct.pack(">I", 220000))
    assert (film(tmp_path, "film.png", stored("PNG", pnginfo=text, icc_profile=bytes(200))) == SLOPE).all()


LONG = SLOPE[:32].repeat(4, axis=1)
BAD: dict[str, tuple[bytes, str]] = {
    "rgb16.png": (png(np.zeros((40, 240), np.uint8), 40, 16, 2), "16 bits per colour"),
    "rgba16.png": (png(np.zeros((40, 320), np.uint8), 40, 16, 6), "16 bits per colour"),
    "la16.png": (png(np.zeros((40, 160), np.uint8), 40, 16, 4), "16 bits per colour"),
    "rgb16.tif": (planes16(), "16 bits per colour"),
    "nan.tif": (stored("TIFF", np.where(SLOPE == 9, np.nan, SLOPE).astype(np.float32)), "outside 0..65535"),
    "minus.tif": (stored("TIFF", SLOPE.astype(np.float32) - 9), "-9.0 to .* outside 0..65535"),
    "large.tif": (stored("TIFF", SLOPE.astype(np.int32) * 1000), "outside 0..65535"),
    "signed.tif": (stored("TIFF", np.full((40, 40), -5, np.int32)), "outside 0..65535"),
    "zero.png": (b"", "the file has 0 bytes"),
    "cut.jpg": (stored("JPEG", quality=95)[:-300], "truncated"),
    "page.jpg": (b"<html>not found</html>", "the content is no image but markup"),
    "film.png": (stored("GIF"), "the content is GIF, the suffix .png says PNG"),
    "film.gif": (stored("GIF"), ".gif is not a film format read here"),
    "moving.png": (
        stored("PNG", save_all=True, append_images=[Image.fromarray(SLOPE + i) for i in (1, 2)]),
        "several frames",
    ),
    "tiny.jpg": (stored("JPEG", SLOPE[:1, :1]), "1x1 px; every side must be at least 32"),
    "claims.png": (claiming(60000), "claims far more than the 100,000,000 pixels"),
    "large.png": (claiming(10001), "claims 10001x10001 px; at most 100,000,000"),
    "pages.tif": (stored("TIFF", save_all=True, append_images=[Image.fromarray(SLOPE)]), "several frames"),
    "photo.jpg": (stored("WEBP"), "the content is WEBP, the suffix .jpg says JPEG"),
    "photo.png": (stored("JPEG"), "the content is JPEG, the suffix .png says PNG"),
    "photo.tif": (stored("BMP"), "the content is BMP, the suffix .tif says TIFF"),
    "slides.bmp": (b"%PDF-1.7 ...", "the content is PDF, the suffix .bmp says BMP"),
    "photo.jp2": (stored("JPEG2000"), ".jp2 is not a film format read here"),
    "film": (stored("PNG"), "no suffix is not a film format read here"),
    "tall.png": (stored("PNG", LONG.T), "32x384 px; no side may be more than 10 times"),
    "wide.png": (stored("PNG", LONG), "384x32 px; no side may be more than 10 times"),
    "header.png": (stored("PNG")[:10], "the data is truncated"),
    "start.jpg": (stored("JPEG")[:20], "the data is truncated"),
    "report.png": (b"FINDINGS: a large effusion. " * 9, "the content is no image$"),
}


@pytest.mark.parametrize("name", BAD)
def test_films_that_are_refused(tmp_path: Path, name: str) -> None:
    data, cause = BAD[name]
    with pytest.raises(DataError, match=rf"{name}: .*{cause}") as caught:
        film(tmp_path, name, data)
    assert "effusion" not in str(caught.value)
    assert "0x" not in str(caught.value)


def test_ten_times_as_long_as_wide_is_still_a_film(tmp_path: Path) -> None:
    assert film(tmp_path, "film.png", stored("PNG", LONG[:, :320])).shape == (32, 320)


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "broken.png").symlink_to("gone.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    for name, cause in {
        "gone.png": "FileNotFoundError",
        "folder.png": "not a regular file",
        "pipe.png": "not a regular file",
        "device.png": "not a regular file",
        "loop.png": "OSError: Too many levels of symbolic links",
        "broken.png": "FileNotFoundError: No such file",
        "folder.png/film.png": "FileNotFoundError",
        "device.png/film.dcm": "NotADirectoryError",
        "x" * 300 + ".png": "OSError: File name too long",
        "a\0b.png": "ValueError: embedded null byte",
    }.items():
        with pytest.raises(DataError, match=rf"\.(png|dcm): image does not decode: .*{cause}"):
            open_film(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_film_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "film.png").write_bytes(stored("PNG"))
    (tmp_path / "film.png").chmod(0)
    with pytest.raises(DataError, match=r"film.png: .*PermissionError"):
        open_film(tmp_path / "film.png")


def test_any_file_name_makes_a_message_that_can_be_written(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\nb.png"))
    path.write_bytes(b"no film")
    with pytest.raises(DataError) as caught:
        open_film(path)
    assert str(caught.value).encode().endswith(b"/\\udcff\\nb.png: image does not decode: the content is no image")
    path.write_bytes(stored("PNG"))
    assert (open_film(path) == SLOPE).all()


def dicom() -> bytes:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = uid.DigitalXRayImageStorageForPresentation, "1.2.3.4"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel, dataset.PixelRepresentation = *SLOPE.shape, 1, 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PhotometricInterpretation, dataset.PixelData = "MONOCHROME1", SLOPE.tobytes()
    dataset.WindowCenter, dataset.WindowWidth, dataset.PatientName = 100, 90, "Doe^Jane"
    dataset["PixelData"].VR = "OB"
    out = io.BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


WHOLE = {
    ".dcm": dicom(),
    ".png": stored("PNG", SLOPE.astype(np.uint16) * 16),
    ".jpg": stored("JPEG", exif=b"Exif\0\0" + bytes(40)),
    ".tif": stored("TIFF"),
    ".bmp": stored("BMP"),
}


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(sorted(WHOLE)),
    st.lists(st.tuples(st.integers(0, 900), st.integers(0, 255)), max_size=6),
    st.integers(0, 2000) | st.none(),
)
def test_damaged_films_are_films_or_data_errors(
    tmp_path: Path, suffix: str, flips: list[tuple[int, int]], end: int | None
) -> None:
    data = bytearray(WHOLE[suffix])
    for at, value in flips:
        data[at % len(data)] = value
    (tmp_path / f"film{suffix}").write_bytes(data[:end])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            found = open_film(tmp_path / f"film{suffix}")
        except DataError as error:
            assert f"film{suffix}: " in str(error)
            assert "Jane" not in str(error)
        else:
            assert (found.dtype, found.ndim) == (np.uint8, 2)


NOISE = np.clip(SLOPE + np.random.default_rng(0).normal(0, 12, SLOPE.shape), 0, 255).astype(np.uint8)
RGB_NOISE = Image.fromarray(NOISE).convert("RGB")


@pytest.mark.parametrize("options", [{}, {"quality": 95, "optimize": True}, {"restart_marker_blocks": 3}])
@pytest.mark.parametrize("pixels", [NOISE, RGB_NOISE], ids=["grey", "colour"])
def test_a_jpeg_that_is_cut_and_closed_is_not_taken_as_whole(pixels: Any, options: dict) -> None:
    whole = stored("JPEG", pixels, **options)
    assert (open_film(Path("film.jpg"), whole) == np.asarray(Image.open(io.BytesIO(whole)).convert("L"))).all()
    for end in range(whole.rindex(b"\xff\xda") + 20, len(whole) - 100, 7):
        with pytest.raises(DataError, match="truncated"):
            open_film(Path("film.jpg"), whole[:end] + b"\xff\xd9")


def test_a_progressive_jpeg_without_its_last_scans_is_not_taken_as_whole() -> None:
    whole = stored("JPEG", RGB_NOISE, progressive=True)
    scans = [found.start() for found in re.finditer(b"\xff\xda", whole)]
    assert len(scans) == 10
    for end in scans[1:]:
        with pytest.raises(DataError, match="truncated: scans are missing"):
            open_film(Path("film.jpg"), whole[:end] + b"\xff\xd9")


@pytest.mark.parametrize("data", [png(SLOPE, 96, 8, 0), png(NOISE.astype(">u2"), 96, 16, 0)], ids=["8 bits", "16 bits"])
def test_every_flipped_bit_of_a_png_is_seen(data: bytes) -> None:
    for at in range(8, len(data), 5):
        damaged = data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]
        with pytest.raises(DataError, match="damaged|truncated"):
            open_film(Path("film.png"), damaged)


def directory(size: int) -> bytes:
    """An EXIF directory of 5,000 tags that all have the same `size` bytes."""
    tags = b"".join(struct.pack("<HHII", tag, 7, size, 8) for tag in range(500, 5500))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", 5000) + tags + bytes(size)


def frames_tiff() -> bytes:
    """A TIFF of 40,000 directories."""
    whole = stored("TIFF")
    at = struct.unpack_from("<I", whole, 4)[0]
    end = at + 2 + 12 * struct.unpack_from("<H", whole, at)[0]
    more = b"".join(struct.pack("<HHHIII", 1, 256, 4, 1, 96, len(whole) + 18 * n) for n in range(1, 40_001))
    return whole[:end] + struct.pack("<I", len(whole)) + whole[end + 4 :] + more


def scans_jpeg() -> bytes:
    """A progressive JPEG of 2,000 scans."""
    whole = stored("JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * 2000 + whole[-2:]


RLE_BMP = stored("BMP")[:30] + struct.pack("<I", 1) + stored("BMP")[34:]
ARITHMETIC = stored("JPEG").replace(b"\xff\xc0\0", b"\xff\xc9\0")
BUSY: dict[str, tuple[bytes, str]] = {
    "scans.jpg": (scans_jpeg(), "more than 20 scans"),
    "arithmetic.jpg": (ARITHMETIC, "a kind not read here"),
    "comments.jpg": (stored("JPEG")[:2] + b"\xff\xfe\0\2" * 2000 + stored("JPEG")[2:], "more than 1000 JPEG segments"),
    "fill.jpg": (stored("JPEG")[:2] + b"\xff" * 2000 + stored("JPEG")[2:], "damaged between two JPEG segments"),
    "chunks.png": (png(SLOPE, 96, 8, 0, chunk(b"tEXt", b"") * 100_001), "more than 100,000 PNG chunks"),
    "exif.png": (png(SLOPE, 96, 8, 0, chunk(b"eXIf", directory(70_000))), "EXIF is longer than 65,536 bytes"),
    "rle.bmp": (RLE_BMP, "compressed BMP"),
    "frames.tif": (frames_tiff(), "several frames"),
    "fax.tif": (stored("TIFF", Image.fromarray(SLOPE).convert("1"), compression="group4"), "compression not read here"),
}


@pytest.mark.parametrize("name", BUSY)
def test_what_would_keep_pillow_busy_is_refused_first(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, cause = BUSY[name]
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it is decoded"))
    with pytest.raises(DataError, match=cause):
        open_film(Path(name), data)


def test_text_is_not_read_however_long_and_tags_are_not_however_many() -> None:
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(4 << 20)))
    assert (open_film(Path("film.png"), png(SLOPE, 96, 8, 0, text)) == SLOPE).all()
    plain = stored("TIFF")
    at = struct.unpack_from("<I", plain, 4)[0]
    count = struct.unpack_from("<H", plain, at)[0]
    tags = b"".join(struct.pack("<HHII", tag, 7, len(plain), 0) for tag in range(40_000, 60_000))
    old = plain[at + 2 : at + 2 + 12 * count]
    many = struct.pack("<H", count + 20_000) + old + tags + bytes(4)
    assert (open_film(Path("film.tif"), plain[:4] + struct.pack("<I", len(plain)) + plain[8:] + many) == SLOPE).all()


@pytest.mark.parametrize("mode", ["I;16", "F", "RGBA"])
def test_grey_is_made_in_strips(mode: str) -> None:
    picture = Image.new(mode, (4000, 4000))
    tracemalloc.start()
    try:
        assert grey_of(picture).shape == (4000, 4000)
        assert tracemalloc.get_traced_memory()[1] < 16_000_000 + 40_000_000
    finally:
        tracemalloc.stop()


def test_colours_and_wide_values_count_against_the_bound() -> None:
    floats = stored("TIFF", np.zeros((40, 41), np.float32))
    for tag, value, claimed in ((256, 41, 7100), (257, 40, 7100)):
        entry = struct.pack("<HHI", tag, 4, 1)
        assert floats.count(entry + struct.pack("<I", value)) == 1
        floats = floats.replace(entry + struct.pack("<I", value), entry + struct.pack("<I", claimed))
    for name, data in {"a.png": claiming(5001, colour=6), "f.tif": floats}.items():
        with pytest.raises(DataError, match="px of [24] samples; at most 100,000,000"):
            open_film(Path(name), data)


def test_no_text_of_a_film_is_logged_or_kept_in_an_error(caplog: pytest.LogCaptureFixture) -> None:
    exif = Image.Exif()
    exif[0x010E] = "Doe^Jane"
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "Doe^Jane")
    films = {
        "film.tif": stored("TIFF", tiffinfo={270: "Doe^Jane"}),
        "film.png": stored("PNG", pnginfo=text, exif=exif),
        "film.jpg": stored("JPEG", exif=exif, comment="Doe^Jane"),
    }
    with caplog.at_level(logging.DEBUG):
        for name, data in films.items():
            assert b"Doe^Jane" in data
            assert open_film(Path(name), data).shape == SLOPE.shape
            with pytest.raises(DataError) as caught:
                open_film(Path(name), data[:-200])
            assert "Jane" not in "".join(traceback.format_exception(caught.value))
    assert not [record for record in caplog.records if record.name.startswith("PIL")]


@pytest.mark.parametrize(
    ("mode", "side", "decoded"), [("L", 1900, 475), ("RGB", 1900, 475), ("L", 800, 400), ("L", 700, 700)]
)
def test_whoever_shrinks_films_gets_a_jpeg_no_larger_than_needed(
    tmp_path: Path, mode: str, side: int, decoded: int
) -> None:
    y, x = np.mgrid[0 : side + 200, 0:side] / 90
    slope = np.clip(120 + 60 * np.sin(x) + 40 * np.cos(y), 0, 255).astype(np.uint8)
    path = tmp_path / "film.jpg"
    Image.fromarray(slope).convert(mode).save(path, quality=92)
    whole = open_film(path)
    with enough(400):
        film = open_film(path)
    assert whole.shape == (side + 200, side) and film.shape[1] == decoded >= 400
    assert (open_film(path) == whole).all(), "outside the block a film is as it is"
    one, other = (shrink(each, 400).astype(float) for each in (whole, film))
    assert one.shape == other.shape and np.mean((one - other) ** 2) < 255**2 / 10**4.5, "45 dB"


def test_a_damaged_jpeg_is_refused_at_any_scale(tmp_path: Path) -> None:
    path = tmp_path / "film.jpg"
    Image.fromarray(np.zeros((1900, 1900), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-700])
    for px in (0, 400):
        with pytest.raises(DataError, match=r"film\.jpg"), enough(px):
            open_film(path)
