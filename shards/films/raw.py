"""A raw film of any format that is read, by its suffix. What is wrong with a film is a DataError."""

import io
import stat
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path

from shards.errors import ConfigError, DataError, RetryableError, patiently
from shards.films.limits import MAX_FILE_BYTES, Film, undecodable
from shards.films.raster import FORMATS, read_raster

DICOM_SUFFIXES = (".dcm", ".dicom")
"""Read by shards.films.dicom, whose docstring has the rules of its own."""


A_FILM = "a raw film"
DECODING = 1
"""Raised when `open_film` or `shards.films.stored` would make another film of the same bytes: it is in all that is made
from films."""


_enough: ContextVar[int] = ContextVar("enough", default=0)


@contextmanager
def enough(short_side: int) -> Iterator[None]:
    """Inside the block `open_film` may give a film smaller than it is, with no side shorter than this many px.

    Whoever is about to shrink films says so: of a JPEG of 2544x3056 px a quarter is decoded in half the time, and what
    is then shrunk to 512 px differs by less than its storing as JPEG changes it. Here and not an argument, so that a
    source of one's own needs to know nothing of it.
    """
    token = _enough.set(short_side)
    try:
        yield
    finally:
        _enough.reset(token)


def refuse_missing(films: Iterable[str | Path]) -> None:
    """ConfigError naming the first path at which there is no file."""
    if gone := [film for film in films if not Path(film).is_file()]:
        raise ConfigError(f"{gone[0]} is no file: give the films of one study")


def open_film(path: Path, data: bytes | None = None) -> Film:
    """A raw film as grey uint8 [H, W]: a file, or bytes `data` that are called `path`.

    The rules, each applied every time:

    - what is read: `FORMATS` and DICOM, by suffix in any case; the content must be what the suffix says. Regular files
      of 1 to `MAX_FILE_BYTES` bytes, one frame (of a multi-picture JPEG the first: the others are its previews)
    - size: every side at least `MIN_SIDE_PX`, no side more than `MAX_ASPECT` times the other, at most `MAX_PIXELS`
      times samples (colours, alpha; 32 bits count as two), all read from the header before anything is decoded
    - truncated or damaged data is refused, never filled with grey, as far as a format lets it be known:
      `shards.films.containers` has what is and what is not
    - JPEG is baseline, extended or progressive, of few scans; BMP is not compressed; TIFF is not, or by LZW, deflate or
      PackBits
    - 1-, 2- and 4-bit grey is stretched to 0..255; palette, RGB and CMYK become luminance (ITU-R 601); a CMYK JPEG has
      Adobe's polarity, whatever its markers
    - 16-bit grey films are scaled by the smallest depth of 8, 10, 12, 14, 16 bits that holds the largest value, float
      films too, but one whose largest value is at most 1 is taken as a fraction of white; negative values, NaN and
      values above 65535 are refused
    - 16 bits per colour, or grey of 16 bits with alpha, is refused: it cannot be read without losing the low byte
    - alpha and transparent colours are dropped, not composited: what lies below is the film
    - a TIFF whose zero is white is inverted; the EXIF orientation is applied, all eight
    - gamma, ICC profiles, resolution and text are ignored
    - inside `enough` a JPEG far larger than that is decoded at 1/2, 1/4 or 1/8 of its side (the DCT's own scaling)

    Whatever the bytes, it takes at most 10 s and 1 GB, the file's own bytes among them. Raises `DataError` naming the
    file and the cause, for every fault; no text that stands in the file is quoted, nor kept as the error's cause.
    `RetryableError`, which names no film, where the file system does not answer: that is no fault of the film.
    """
    path = Path(path)
    # Bytes of a name that are no UTF-8, line feeds and the like are escaped.
    name = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(path))
    suffix = path.suffix.lower()
    if suffix in DICOM_SUFFIXES:
        from shards.films.dicom import read_dicom as read  # here: pydicom is no cost to those who have none
    elif suffix in FORMATS:
        read = partial(read_raster, enough=_enough.get())
    else:
        known = ", ".join((*FORMATS, *DICOM_SUFFIXES))
        raise DataError(f"{name}: {suffix or 'no suffix'} is not a film format read here ({known})")
    try:
        facts = patiently(A_FILM, path.stat) if data is None else None
        if facts and not stat.S_ISREG(facts.st_mode):  # a directory, a pipe, a device
            raise DataError("it is not a regular file")
        if not 0 < (size := facts.st_size if facts else len(data or b"")) <= MAX_FILE_BYTES:
            raise DataError(f"the file has {size} bytes; between 1 and {MAX_FILE_BYTES} are read")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with io.BytesIO(patiently(A_FILM, path.read_bytes) if data is None else data) as file:
                return read(file, path.suffix)
    except RetryableError:
        raise
    except Exception as error:  # hostile bytes: Pillow and pydicom document no closed set
        raise undecodable(name, error) from None
