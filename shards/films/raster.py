"""Raw rasters (JPEG, PNG, BMP, TIFF) as grey uint8 [H, W]; the rules are in `shards.films.raw.open_film`."""

import io
import logging
import math
import re
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from shards.errors import DataError
from shards.films.containers import picture_of
from shards.films.limits import HEAD_BYTES, MAX_PIXELS, Film, depth_of, refuse_content, refuse_size

FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF"}
"""Raw film formats by file suffix, read here."""
DEPTH_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
DEEP_COLOUR = re.compile(r"[ABXKa];16")
"""Raw modes in which Pillow keeps the high byte of 16 and silently turns a 12-bit film black."""
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262
"""TIFF tags. Photometric 0 says that zero is white, which Pillow heeds for 8 bits only."""
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientations, and what brings each upright."""
STRIP_PIXELS = 1 << 20
"""A picture becomes grey in strips of so many pixels: in one piece, 100 million would take gigabytes."""

logging.getLogger("PIL").setLevel(logging.CRITICAL + 1)  # its records quote the text that is in a file


def read_raster(file: BinaryIO, suffix: str, enough: int = 0) -> Film:
    """The film of a file with a suffix of `FORMATS`; Pillow's own errors are the caller's to name.

    `enough` as in `shards.films.raw.enough`; 0: the film as it is.
    """
    format_ = FORMATS[suffix.lower()]
    refuse_content(file.read(HEAD_BYTES), format_, suffix)
    file.seek(0)
    with open_picture(file.read(), format_) as image:
        refuse_size(*image.size)
        tags = getattr(image, "tag_v2", {})
        deep = max(tags.get(BITS_PER_SAMPLE, (8,))) > 8 and image.mode not in DEPTH_MODES
        if deep or DEEP_COLOUR.search(str(image.tile)):
            raise DataError("it has 16 bits per colour, of which 8 would be lost: save it as 16-bit grey")
        if enough and format_ == "JPEG" and image.mode in ("L", "RGB"):
            width, height = (math.ceil(side * enough / min(image.size)) for side in image.size)
            image.draft(image.mode, (width, height))
        image.load()
        film = grey_of(image)
        turn = TURNS.get(image.getexif().get(ORIENTATION, 1))  # of a TIFF Pillow has applied it
        film = film if turn is None else np.array(Image.fromarray(film).transpose(turn))
        return 255 - film if image.mode in DEPTH_MODES and tags.get(PHOTOMETRIC) == 0 else film


def open_picture(data: bytes, format_: str) -> ImageFile.ImageFile:
    """A JPEG, PNG, BMP or TIFF ready to be decoded, without what is not its picture, within the bounds of size."""
    try:
        image = Image.open(io.BytesIO(picture_of(data, format_)), formats=(format_,))
    except UnidentifiedImageError:
        raise DataError(f"the content begins as {format_}, but its header is damaged or cut off") from None
    except Image.DecompressionBombError:
        raise DataError(f"it claims far more than the {MAX_PIXELS:,} pixels that are read") from None
    refuse_size(*image.size, least=1, samples=2 if image.mode in ("I", "F") else len(image.getbands()))
    return image


def grey_of(image: Image.Image) -> Film:
    """A decoded picture as grey uint8 [H, W]."""
    rows = max(1, STRIP_PIXELS // image.width)
    boxes = [(0, top, image.width, min(top + rows, image.height)) for top in range(0, image.height, rows)]
    film = np.empty((image.height, image.width), np.uint8)
    if image.mode in DEPTH_MODES:
        ends = [(part.min(), part.max()) for part in (np.asarray(image.crop(box)) for box in boxes)]
        low, high = (float(end) for end in (np.min(ends), np.max(ends)))
        if not np.isfinite([low, high]).all() or low < 0 or high > 65535:
            raise DataError(f"pixel values {low} to {high} are outside 0..65535")
        white = 1 if image.mode == "F" and high <= 1 else 2 ** depth_of(high) - 1
    for box in boxes:
        strip = image.crop(box)
        if image.mode in DEPTH_MODES:
            grey = np.round(np.asarray(strip, np.float64) * (255.0 / white))
        else:
            if image.mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info:
                strip = Image.fromarray(np.asarray(strip.convert("RGBA"))[..., :3])
            grey = np.asarray(strip.convert("L"))
        film[box[1] : box[3]] = grey
    return film
