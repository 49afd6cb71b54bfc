"""Every film is read by a stated rule or refused with file and cause."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.errors import DataError
from shards.films.raw import open_film
from shards.films.stored import decode, encode, shrink

SLOPE = np.add.outer(np.arange(120), np.arange(96)).astype(np.uint8)

BODY = struct.pack(">I", 8) + b"IDAT" + b"\0" * 12


def alike(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference of two grey films of one shape."""
    return float(np.abs(a.astype(float) - b.astype(float)).max())


def bomb(side: int) -> bytes:
    """A small PNG whose header claims side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + BODY


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("size", [32, 64, 100])
def test_stored_films_are_squashed_to_a_square(size: int) -> None:
    film = shrink(np.kron(SLOPE, np.ones((4, 4), np.uint8)), 256)
    assert film.shape == (320, 256)
    found = decode(encode(film, 95), size)
    wanted = np.asarray(Image.fromarray(film).resize((size, size), Image.Resampling.BICUBIC))
    assert found.shape == (size, size)
    assert found.dtype == np.uint8
    assert np.abs(found.astype(float) - wanted).mean() < 2


@pytest.mark.parametrize("data", [b"", b"<html>", encode(SLOPE, 90)[:900], bomb(60000)])
def test_stored_films_that_do_not_decode_are_named(data: bytes) -> None:
    with pytest.raises(DataError, match=r"train-00000.tar, view 1: image does not decode: \w+") as caught:
        decode(data, 32, "train-00000.tar, view 1")
    assert "0x" not in str(caught.value)


def test_stored_films_of_others_may_have_sixteen_bits_or_colours() -> None:
    wanted = decode(png(SLOPE), 32)
    assert (decode(png(SLOPE.astype(np.uint16) * 257), 32) == wanted).all()
    assert (decode(png(np.dstack([SLOPE, SLOPE, SLOPE, np.zeros_like(SLOPE)])), 32) == wanted).all()


def test_shrinking_keeps_the_aspect_and_never_enlarges() -> None:
    assert shrink(SLOPE, 48).shape == (60, 48)
    assert shrink(SLOPE, 200) is SLOPE


def test_encoding_is_the_same_every_time() -> None:
    assert encode(SLOPE, 95) == encode(SLOPE.copy(), 95)


def test_12_bit_values_in_a_16_bit_film_are_scaled_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(SLOPE.astype(np.uint16) * 16 + 7).save(tmp_path / "film.png")
    assert alike(open_film(tmp_path / "film.png"), SLOPE) <= 1


def test_alpha_is_dropped_and_the_colours_below_it_kept(tmp_path: Path) -> None:
    alpha = np.full_like(SLOPE, 255)
    alpha[:, :24] = 0
    Image.fromarray(np.dstack([SLOPE, SLOPE, SLOPE, alpha])).save(tmp_path / "rgba.png")
    Image.fromarray(np.dstack([SLOPE, alpha])).save(tmp_path / "la.png")
    assert alike(open_film(tmp_path / "rgba.png"), SLOPE) == 0
    assert alike(open_film(tmp_path / "la.png"), SLOPE) == 0


def test_palette_and_cmyk_become_luminance(tmp_path: Path) -> None:
    grey = Image.fromarray(SLOPE)
    grey.convert("P").save(tmp_path / "palette.png")
    grey.convert("RGB").convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert alike(open_film(tmp_path / "palette.png"), SLOPE) == 0
    assert alike(open_film(tmp_path / "cmyk.jpg"), SLOPE) < 8


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(SLOPE).save(tmp_path / "turned.jpg", quality=95, exif=exif)
    assert alike(open_film(tmp_path / "turned.jpg"), np.rot90(SLOPE, -1)) < 8


def write(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def gif() -> bytes:
    out = io.BytesIO()
    Image.fromarray(SLOPE).save(out, "GIF")
    return out.getvalue()


def frames() -> bytes:
    out, films = io.BytesIO(), [Image.fromarray(SLOPE + i) for i in range(3)]
    films[0].save(out, "PNG", save_all=True, append_images=films[1:])
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "cause"),
    [
        ("zero.png", b"", "the file has 0 bytes"),
        ("cut.jpg", encode(SLOPE, 95)[:-300], "truncated"),
        ("page.jpg", b"<html>not found</html>", "the content is no image"),
        ("film.png", gif(), "the content is GIF, the suffix .png says PNG"),
        ("moving.png", frames(), "3 frames"),
        ("tiny.jpg", encode(SLOPE[:1, :1], 95), "1x1 px; every side must be at least 32"),
        ("bomb.png", bomb(60000), "DecompressionBombError"),
        ("large.png", bomb(10001), "claims 10001x10001 px; at most 100,000,000"),
        ("film.gif", gif(), ".gif is not a film format read here"),
    ],
)
def test_unreadable_raw_films_are_named_with_the_cause(tmp_path: Path, name: str, data: bytes, cause: str) -> None:
    with pytest.raises(DataError, match=rf"{name}.*({cause})"):
        open_film(write(tmp_path, name, data))


def test_missing_film_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone.png: image does not decode: FileNotFoundError"):
        open_film(tmp_path / "gone.png")


def test_signed_values_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 40), -5, np.int32)).save(tmp_path / "signed.tif")
    with pytest.raises(DataError, match="outside 0..65535"):
        open_film(tmp_path / "signed.tif")
