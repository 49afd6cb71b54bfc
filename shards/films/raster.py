"""Raw rasters (JPEG, PNG, BMP, TIFF) as grey uint8 [H, W]; the rules are in `shards.films.raw.open_film`."""

import re
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from shards.errors import DataError
from shards.films.limits import HEAD_BYTES, Film, depth_of, refuse_content, refuse_size

FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF"}
"""Raw film formats by file suffix, read here."""
DEPTH_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
DEEP_COLOUR = re.compile(r"[ABXKa];16")
"""Raw modes in which Pillow keeps the high byte of 16 and silently turns a 12-bit film black."""
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262
"""TIFF tags. Photometric 0 says that zero is white, which Pillow heeds for 8 bits only."""


def read_raster(file: BinaryIO, suffix: str) -> Film:
    """The film of a file with a suffix of `FORMATS`; Pillow's own errors are the caller's to name."""
    format_ = FORMATS[suffix.lower()]
    refuse_content(file.read(HEAD_BYTES), format_, suffix)
    file.seek(0)
    try:
        image = Image.open(file, formats=(format_,))
    except UnidentifiedImageError:
        raise DataError(f"the content begins as {format_}, but its header is damaged or cut off") from None
    with image:
        refuse_size(*image.size)
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        if frames != 1:
            raise DataError(f"the file holds {frames} frames; a film has one")
        tags = getattr(image, "tag_v2", {})
        deep = max(tags.get(BITS_PER_SAMPLE, (8,))) > 8 and image.mode not in DEPTH_MODES
        if deep or DEEP_COLOUR.search(str(image.tile)):
            raise DataError("it has 16 bits per colour, of which 8 would be lost: save it as 16-bit grey")
        image.load()
        negative = image.mode in DEPTH_MODES and tags.get(PHOTOMETRIC) == 0
        film = grey_of(ImageOps.exif_transpose(image))
        return 255 - film if negative else film


def grey_of(image: Image.Image) -> Film:
    """A decoded picture as grey uint8 [H, W]."""
    if image.mode in DEPTH_MODES:
        values = np.asarray(image, np.float64)
        low, high = float(values.min()), float(values.max())
        if not np.isfinite([low, high]).all() or low < 0 or high > 65535:
            raise DataError(f"pixel values {low} to {high} are outside 0..65535")
        white = 1 if image.mode == "F" and high <= 1 else 2 ** depth_of(high) - 1
        return np.round(values * (255.0 / white)).astype(np.uint8)
    if image.mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info:
        image = Image.fromarray(np.asarray(image.convert("RGBA"))[..., :3])
    return np.array(image.convert("L"))
