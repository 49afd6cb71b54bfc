"""Pixels: stored films at training speed, raw films with every rule stated. All failures are DataError."""

import io
import re
import stat
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from shards.errors import DataError

MIN_SIDE_PX = 32
MAX_PIXELS = 100_000_000
MAX_ASPECT = 10
"""No radiograph is ten times as long as wide; a strip that is would stay long when its short side is shrunk."""
MAX_FILE_BYTES = 400_000_000
FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF"}
"""Raw film formats by file suffix, read here."""
DICOM_SUFFIXES = (".dcm", ".dicom")
"""Read by shards.dicom, whose docstring has the rules of its own."""
DEPTHS_BITS = (8, 10, 12, 14, 16)
DEPTH_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
DEEP_COLOUR = re.compile(r"[ABXKa];16")
"""Raw modes in which Pillow keeps the high byte of 16 and silently turns a 12-bit film black."""
SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"RIFF": "WEBP",
    b"\0\0\0\x0cjP": "JPEG 2000",
    b"%PDF": "PDF",
    b"PK": "ZIP",
    b"\x1f\x8b": "GZIP",
}
HEAD_BYTES = 132
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262
"""TIFF tags. Photometric 0 says that zero is white, which Pillow heeds for 8 bits only."""

Film = NDArray[np.uint8]


def decode(data: bytes | memoryview, size: int, name: str = "film") -> Film:
    """A stored film (JPEG or PNG) as grey uint8 [size, size].

    Bicubic resize that squashes the film to a square: the aspect ratio is lost, as in R2Gen's validation transform. A
    JPEG much larger than `size` is decoded at 1/2, 1/4 or 1/8 of its side, the smallest that is not below `size`.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            refuse_size(*image.size, least=1)
            image.draft("L", (size, size))
            grey = image if image.mode == "L" else Image.fromarray(_grey(image))
            return np.asarray(grey.resize((size, size), Image.Resampling.BICUBIC))
    except Exception as error:  # hostile bytes: Pillow documents no closed set
        raise undecodable(name, error) from error


def open_film(path: Path) -> Film:
    """A raw film as grey uint8 [H, W]. The rules, each applied every time:

    - what is read: `FORMATS` and DICOM, by suffix in any case; the content must be what the suffix says. Regular files
      of 1 to `MAX_FILE_BYTES` bytes, one frame (of a multi-picture JPEG the first: the others are its previews)
    - size: every side at least `MIN_SIDE_PX`, no side more than `MAX_ASPECT` times the other, at most `MAX_PIXELS`,
      all read from the header before anything is decoded
    - truncated or damaged data is refused, never filled with grey
    - 1-, 2- and 4-bit grey is stretched to 0..255; palette, RGB and CMYK become luminance (ITU-R 601); a CMYK JPEG has
      Adobe's polarity, whatever its markers
    - 16-bit grey films are scaled by the smallest depth of 8, 10, 12, 14, 16 bits that holds the largest value, float
      films too, but one whose largest value is at most 1 is taken as a fraction of white; negative values, NaN and
      values above 65535 are refused
    - 16 bits per colour, or grey of 16 bits with alpha, is refused: it cannot be read without losing the low byte
    - alpha and transparent colours are dropped, not composited: what lies below is the film
    - a TIFF whose zero is white is inverted; the EXIF orientation is applied, all eight
    - gamma, ICC profiles, resolution and text are ignored

    Raises `DataError` naming the file and the cause, for every fault.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in DICOM_SUFFIXES:
        from shards.dicom import open_dicom  # here: pydicom is no cost to those who have none

        return open_dicom(path)
    if suffix not in FORMATS:
        known = ", ".join((*FORMATS, *DICOM_SUFFIXES))
        raise DataError(f"{shown(path)}: {suffix or 'no suffix'} is not a film format read here ({known})")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            refuse_file(path)
            return _read(path, FORMATS[suffix])
    except Exception as error:  # as in decode
        raise undecodable(shown(path), error) from error


def shown(path: Path) -> str:
    """The path for a message: bytes that are no UTF-8, line feeds and the like are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(path))


def undecodable(name: str, error: Exception) -> DataError:
    """The error of a film that is no film: its name, and the cause in one line."""
    kind = "" if isinstance(error, DataError) else f"{type(error).__name__}: "
    return DataError(f"{name}: image does not decode: {kind}{_text(error)}".rstrip(": "))


def _text(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "the content is neither JPEG nor PNG"
    text = (isinstance(error, OSError) and error.strerror) or str(error)
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:300]


def refuse_file(path: Path) -> None:
    """DataError unless the path is a regular file (no directory, pipe or device) of a size that is read."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise DataError("it is not a regular file")
    if found.st_size == 0 or found.st_size > MAX_FILE_BYTES:
        raise DataError(f"the file has {found.st_size} bytes; between 1 and {MAX_FILE_BYTES} are read")


def refuse_size(width: int, height: int, least: int = MIN_SIDE_PX, samples: int = 1) -> None:
    """DataError when the header claims a film too small, too long or too large to be one."""
    if min(width, height) < least:
        raise DataError(f"it is {width}x{height} px; every side must be at least {least}")
    if least > 1 and max(width, height) > MAX_ASPECT * min(width, height):
        raise DataError(f"it is {width}x{height} px; no side may be more than {MAX_ASPECT} times the other")
    if width * height * samples > MAX_PIXELS:
        of = "" if samples == 1 else f" of {samples} colours"
        raise DataError(f"it claims {width}x{height} px{of}; at most {MAX_PIXELS:,} pixels are read")


def content_of(head: bytes) -> str:
    """Format that the first `HEAD_BYTES` of a file announce; empty when they announce none."""
    if head[128:132] == b"DICM":
        return "DICOM"
    return next((kind for signature, kind in SIGNATURES.items() if head.startswith(signature)), "")


def refuse_content(head: bytes, format_: str, suffix: str) -> None:
    """DataError when a file begins unlike `format_`. It never quotes the content, which may be a report."""
    kind = content_of(head)
    if kind and kind != format_:
        raise DataError(f"the content is {kind}, the suffix {suffix} says {format_}")
    if not kind:
        text = head.lstrip()[:1] == b"<"
        raise DataError(f"the content is no image{' but markup, as a failed download leaves it' if text else ''}")


def _read(path: Path, format_: str) -> Film:
    with path.open("rb") as file:
        refuse_content(file.read(HEAD_BYTES), format_, path.suffix)
        file.seek(0)
        try:
            image = Image.open(file, formats=(format_,))
        except UnidentifiedImageError:
            raise DataError(f"the content begins as {format_}, but its header is damaged or cut off") from None
        with image:
            refuse_size(*image.size)
            _refuse_kind(image)
            image.load()
            negative = image.mode in DEPTH_MODES and getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0
            film = _grey(ImageOps.exif_transpose(image))
            return 255 - film if negative else film


def _refuse_kind(image: ImageFile.ImageFile) -> None:
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames != 1:
        raise DataError(f"the file holds {frames} frames; a film has one")
    bits = max(getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (8,)))
    if DEEP_COLOUR.search(str(image.tile)) or (bits > 8 and image.mode not in DEPTH_MODES):
        raise DataError("it has 16 bits per colour, of which 8 would be lost: save it as 16-bit grey")


def _grey(image: Image.Image) -> Film:
    if image.mode in DEPTH_MODES:
        return _scale_depth(np.asarray(image, np.float64), fractions=image.mode == "F")
    if image.mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info:
        image = Image.fromarray(np.asarray(image.convert("RGBA"))[..., :3])
    return np.array(image.convert("L"))


def depth_of(high: float) -> int:
    """The smallest of the usual bit depths that holds the value."""
    return next(bits for bits in DEPTHS_BITS if high <= 2**bits - 1)


def _scale_depth(values: NDArray[np.float64], fractions: bool) -> Film:
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all() or low < 0 or high > 65535:
        raise DataError(f"pixel values {low} to {high} are outside 0..65535")
    white = 1 if fractions and high <= 1 else 2 ** depth_of(high) - 1
    return np.round(values * (255.0 / white)).astype(np.uint8)


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
