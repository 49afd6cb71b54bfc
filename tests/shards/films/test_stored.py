"""Stored films: squashed to a square, shrunk with their aspect kept, encoded the same every time, or refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from shards.errors import DataError
from shards.films.stored import decode, encode, shrink

SLOPE = np.add.outer(np.arange(120), np.arange(96)).astype(np.uint8)

BODY = struct.pack(">I", 8) + b"IDAT" + b"\0" * 12


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


@pytest.mark.parametrize("shape", [(320, 256), (256, 320), (97, 311), (40, 31), (200, 200)])
@pytest.mark.parametrize("size", [32, 64, 224])
def test_stored_films_are_pasted_into_a_black_square(shape: tuple[int, int], size: int) -> None:
    film = np.asarray(Image.fromarray(SLOPE).resize(shape[::-1])) // 2 + 100  # no black of its own
    side = max(shape)
    square = np.zeros((side, side), np.uint8)
    top, left = ((side - length) // 2 for length in shape)
    square[top : top + shape[0], left : left + shape[1]] = film
    wanted = np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.BICUBIC)).astype(int)
    found = decode(png(film), size, fit="pad")
    assert found.shape == (size, size) and found.dtype == np.uint8
    assert np.abs(found - wanted).max() <= 2
    stored = decode(encode(film, 95), size, fit="pad")  # at 1/2 to 1/8, and in its middle to a whole pixel of that
    assert np.abs(stored - wanted).mean() < 5
    assert (found != decode(png(film), size)).any() == (shape != (200, 200))


def test_a_strip_that_would_be_a_huge_square_is_refused() -> None:
    strip = np.ones((2, 40000), np.uint8)
    assert decode(png(strip), 32).shape == (32, 32)
    with pytest.raises(
        DataError, match=r"film: image does not decode: it is 40000x2 px, and padded 40000x\d+; at most"
    ):
        decode(png(strip), 32, fit="pad")


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


def test_a_cut_film_is_refused_and_whole_ones_decode_as_pillow_does() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (96, 80), np.uint8)
    for size in (16, 32, 96):
        with Image.open(io.BytesIO(encode(noise, 90))) as picture:
            picture.draft("L", (size, size))
            wanted = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))
        assert (decode(encode(noise, 90), size) == wanted).all()
        for end in range(700, len(encode(noise, 90)) - 500, 97):
            with pytest.raises(DataError, match="truncated"):
                decode(encode(noise, 90)[:end] + b"\xff\xd9", size)


def test_a_jpeg_of_many_scans_and_a_damaged_png_are_refused() -> None:
    out = io.BytesIO()
    Image.fromarray(SLOPE).save(out, "JPEG", progressive=True)
    last = out.getvalue().rindex(b"\xff\xda")
    with pytest.raises(DataError, match="more than 20 scans"):
        decode(out.getvalue()[:last] + out.getvalue()[last:-2] * 2000 + b"\xff\xd9", 32)
    damaged = bytearray(png(SLOPE))
    damaged[-30] ^= 1
    with pytest.raises(DataError, match="checksum") as caught:
        decode(bytes(damaged), 32)
    assert caught.value.__cause__ is None
