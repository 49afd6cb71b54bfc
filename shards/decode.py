"""Pixels: stored films at training speed, raw films with every rule stated. All failures are DataError."""

import io
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from shards.errors import DataError

MIN_SIDE_PX = 32
MAX_PIXELS = 100_000_000
MAX_FILE_BYTES = 400_000_000
FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF"}
"""Raw film formats by file suffix. DICOM has a reader of its own."""
DEPTH_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I")
DECODE_FAULTS = (OSError, ValueError, SyntaxError, EOFError, MemoryError, Image.DecompressionBombError)

Film = NDArray[np.uint8]


def decode(data: bytes | memoryview, size: int, name: str = "film") -> Film:
    """A stored film (JPEG or PNG) as grey uint8 [size, size].

    Bicubic resize that squashes the film to a square: the aspect ratio is lost, as in R2Gen's validation transform. A
    JPEG much larger than `size` is decoded at 1/2, 1/4 or 1/8 of its side, the smallest that is not below `size`.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            _refuse_size(image, name, least=1)
            image.draft("L", (size, size))
            grey = image if image.mode == "L" else image.convert("L")
            return np.asarray(grey.resize((size, size), Image.Resampling.BICUBIC))
    except DECODE_FAULTS as error:
        raise DataError(f"{name}: image does not decode: {_cause(error)}") from error


def open_film(path: Path) -> Film:
    """A raw film as grey uint8 [H, W]. The rules, each applied every time:

    - the content must be what the suffix says (`FORMATS`), with one frame, every side at least `MIN_SIDE_PX`, at most
      `MAX_PIXELS`; a truncated file is refused, never filled with grey
    - 16-bit and float films are scaled by the smallest bit depth of 8, 10, 12, 14, 16 that holds the stored maximum
    - alpha is dropped, not composited: the colours below transparent pixels are the film
    - palette, RGB and CMYK become luminance (ITU-R 601); the EXIF orientation is applied
    """
    path = Path(path)
    format_ = FORMATS.get(path.suffix.lower())
    if format_ is None:
        raise DataError(f"{path}: {path.suffix or 'no suffix'} is not a film format read here ({', '.join(FORMATS)})")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return _grey(_load(path, format_))
    except DECODE_FAULTS as error:
        raise DataError(f"{path}: image does not decode: {_cause(error)}") from error


def _cause(error: Exception) -> str:
    if isinstance(error, DataError):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _load(path: Path, format_: str) -> Image.Image:
    if (size := path.stat().st_size) == 0 or size > MAX_FILE_BYTES:
        raise ValueError(f"the file has {size} bytes; between 1 and {MAX_FILE_BYTES} are read")
    try:
        image = Image.open(path)
    except UnidentifiedImageError:
        raise ValueError(f"the content is no image; it begins with {path.open('rb').read(16)!r}") from None
    if image.format != format_ and not (image.format == "MPO" and format_ == "JPEG"):
        raise ValueError(f"the content is {image.format}, the suffix {path.suffix} says {format_}")
    if (frames := getattr(image, "n_frames", 1)) != 1 and image.format != "MPO":
        raise ValueError(f"the file holds {frames} frames; a film has one")
    _refuse_size(image, path.name, MIN_SIDE_PX)
    image.load()
    return ImageOps.exif_transpose(image)


def _refuse_size(image: Image.Image, name: str, least: int) -> None:
    width, height = image.size
    if min(width, height) < least:
        raise ValueError(f"{name} is {width}x{height} px; every side must be at least {least}")
    if width * height > MAX_PIXELS:
        raise ValueError(f"{name} claims {width}x{height} px; at most {MAX_PIXELS:,} pixels are read")


def _grey(image: Image.Image) -> Film:
    if image.mode in DEPTH_MODES or image.mode == "F":
        return _scale_depth(np.asarray(image, np.float64))
    if image.mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info:
        image = Image.fromarray(np.asarray(image.convert("RGBA"))[..., :3])
    return np.array(image.convert("L"))


def _scale_depth(values: NDArray[np.float64]) -> Film:
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all() or low < 0 or high > 65535:
        raise ValueError(f"pixel values {low} to {high} are outside 0..65535")
    bits = next(bits for bits in (8, 10, 12, 14, 16) if high < 2**bits)
    return np.round(values * (255.0 / (2**bits - 1))).astype(np.uint8)


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
