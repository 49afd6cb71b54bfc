"""Stored films at training speed: to grey, smaller, and back to JPEG. All failures are DataError."""

import io

import numpy as np
from PIL import Image

from shards.errors import DataError
from shards.films.limits import Film, undecodable
from shards.films.raster import grey_of, open_picture

STARTS = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG"}


def decode(data: bytes | memoryview, size: int, name: str = "film") -> Film:
    """A stored film (JPEG or PNG) as grey uint8 [size, size].

    Bicubic resize that squashes the film to a square: the aspect ratio is lost, as in R2Gen's validation transform. A
    JPEG much larger than `size` is decoded at 1/2, 1/4 or 1/8 of its side, the smallest that is not below `size`.
    What is refused as damaged, and what cannot be seen to be, is said in `shards.films.containers`.
    """
    try:
        format_ = next((kind for start, kind in STARTS.items() if data[: len(start)] == start), None)
        if format_ is None:
            raise DataError("the content is neither JPEG nor PNG")
        with open_picture(bytes(data), format_) as image:
            image.draft("L", (size, size))
            grey = image if image.mode == "L" else Image.fromarray(grey_of(image))
            return np.asarray(grey.resize((size, size), Image.Resampling.BICUBIC))
    except Exception as error:  # hostile bytes: Pillow documents no closed set
        raise undecodable(name, error) from None


def shrink(film: Film, short_side: int) -> Film:
    """The film with its short side at most `short_side` px, aspect kept (bicubic); a smaller film stays as it is."""
    height, width = film.shape
    scale = short_side / min(height, width)
    if scale >= 1:
        return film
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.array(Image.fromarray(film).resize(size, Image.Resampling.BICUBIC))


def encode(film: Film, quality: int) -> bytes:
    """The film as a grey 8-bit JPEG: the same bytes for the same film, quality and libjpeg."""
    out = io.BytesIO()
    Image.fromarray(film).save(out, "JPEG", quality=quality)
    return out.getvalue()
