"""Stored films at training speed: to grey, smaller, and back to JPEG. All failures are DataError."""

import io
from typing import Literal

import numpy as np
from PIL import Image

from shards.errors import DataError
from shards.films.limits import MAX_PIXELS, Film, undecodable
from shards.films.raster import grey_of, open_picture

STARTS = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG"}
Fit = Literal["squash", "pad"]
"""How a film that is no square becomes one, as `decode` says."""


def decode(data: bytes | memoryview, size: int, name: str = "film", fit: Fit = "squash") -> Film:
    """A stored film (JPEG or PNG) as grey uint8 [size, size].

    - squash: a bicubic resize to a square: the aspect ratio is lost, as in R2Gen's validation transform
    - pad: the film is pasted into the middle of a black square of its long side, which is resized: the aspect ratio
      stays, as in MedCLIP, but that films smaller than `size` are enlarged here, and left as they are there

    A JPEG much larger than what it becomes is decoded at 1/2, 1/4 or 1/8 of its side, the smallest that is not below.
    What is refused as damaged, and what cannot be seen to be, is said in `shards.films.containers`.
    """
    try:
        format_ = next((kind for start, kind in STARTS.items() if data[: len(start)] == start), None)
        if format_ is None:
            raise DataError("the content is neither JPEG nor PNG")
        with open_picture(bytes(data), format_) as image:
            width, height, side = *image.size, max(image.size)
            image.draft("L", (size, size) if fit == "squash" else (-(-width * size // side), -(-height * size // side)))
            grey = image if image.mode == "L" else Image.fromarray(grey_of(image))
            if fit == "pad" and grey.width != grey.height:
                return np.asarray(_in_a_square(grey, size))
            return np.asarray(grey.resize((size, size), Image.Resampling.BICUBIC))
    except Exception as error:  # hostile bytes: Pillow documents no closed set
        raise undecodable(name, error) from None


def _in_a_square(grey: Image.Image, size: int) -> Image.Image:
    """The picture in the middle of a black square of its long side, resized to [size, size].

    Pixels far from the picture stay black whatever is computed: only a strip of the square is made and resized, the
    picture and `reach` more on either side. So it takes little longer than squashing, and the same film comes of it as
    of the whole square, but for rounding (2 of 255 grey values).
    """
    side = max(grey.size)
    scale = side / size
    reach = 5 * max(scale, 1.0)  # beyond the bicubic filter of those pixels that see the picture
    margins = [(side - length) // 2 for length in grey.size]
    skipped = [max(0, int((margin - reach) / scale)) for margin in margins]  # pixels of the result, on either side
    offsets = [int(pixels * scale) for pixels in skipped]
    width, height = (side - 2 * offset for offset in offsets)
    if width * height > MAX_PIXELS:
        raise DataError(
            f"it is {grey.width}x{grey.height} px, and padded {width}x{height}; at most {MAX_PIXELS:,} pixels are read"
        )
    strip = Image.new("L", (width, height))
    strip.paste(grey, (margins[0] - offsets[0], margins[1] - offsets[1]))
    left, top = (pixels * scale - offset for pixels, offset in zip(skipped, offsets, strict=True))
    seen = (size - 2 * skipped[0], size - 2 * skipped[1])
    square = Image.new("L", (size, size))
    box = (left, top, width - left, height - top)
    square.paste(strip.resize(seen, Image.Resampling.BICUBIC, box), (skipped[0], skipped[1]))
    return square


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
