"""What no film may be: too large, too long, of other content than its name says. All failures are DataError."""

import numpy as np
from numpy.typing import NDArray

from shards.errors import DataError

MIN_SIDE_PX = 32
MAX_PIXELS = 100_000_000
MAX_ASPECT = 10
"""No radiograph is ten times as long as wide; a strip that is would stay long when its short side is shrunk."""
MAX_FILE_BYTES = 256_000_000
"""`MAX_PIXELS` of 16 bits, and what lies around them."""
DEPTHS_BITS = (8, 10, 12, 14, 16)
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
KNOWN_CAUSES = ("truncated", "broken data stream", "embedded null byte")
"""Phrases in the errors of libraries that are repeated to the user."""

Film = NDArray[np.uint8]


def undecodable(name: str, error: Exception) -> DataError:
    """The error of a film that is no film: its name, and the cause in one line."""
    return DataError(f"{name}: image does not decode: {cause_of(error)}")


def cause_of(error: Exception) -> str:
    """What went wrong, in words that cannot be a file's: libraries quote values of it, a patient's name for one."""
    if isinstance(error, DataError):
        return str(error)
    known = error.strerror if isinstance(error, OSError) else None
    text = known or next((phrase for phrase in KNOWN_CAUSES if phrase in str(error)), "the data is damaged")
    return f"{type(error).__name__}: {text}"


def refuse_size(width: int, height: int, least: int = MIN_SIDE_PX, samples: int = 1) -> None:
    """DataError when the header claims a film too small, too long or too large to be one."""
    if min(width, height) < least:
        raise DataError(f"it is {width}x{height} px; every side must be at least {least}")
    if least > 1 and max(width, height) > MAX_ASPECT * min(width, height):
        raise DataError(f"it is {width}x{height} px; no side may be more than {MAX_ASPECT} times the other")
    if width * height * samples > MAX_PIXELS:
        of = "" if samples == 1 else f" of {samples} samples"
        raise DataError(f"it claims {width}x{height} px{of}; at most {MAX_PIXELS:,} pixels are read")


def refuse_content(head: bytes, format_: str, suffix: str) -> None:
    """DataError when a file whose first `HEAD_BYTES` are `head` begins unlike `format_`.

    It never quotes the content, which may be a report.
    """
    kind = next((kind for signature, kind in SIGNATURES.items() if head.startswith(signature)), "")
    if head[128:132] == b"DICM":
        kind = "DICOM"
    if kind and kind != format_:
        raise DataError(f"the content is {kind}, the suffix {suffix} says {format_}")
    if not kind and format_ == "DICOM":
        raise DataError("there is no DICM at byte 128: not DICOM, or without the preamble that dcmconv or pydicom adds")
    if not kind:
        text = head.lstrip()[:1] == b"<"
        raise DataError(f"the content is no image{' but markup, as a failed download leaves it' if text else ''}")


def depth_of(high: float) -> int:
    """The smallest of the usual bit depths that holds the value."""
    return next(bits for bits in DEPTHS_BITS if high <= 2**bits - 1)
