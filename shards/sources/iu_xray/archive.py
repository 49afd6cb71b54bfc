"""The Open-i XML reports as files in a directory or members of a .tgz, which is read without being unpacked to disk."""

import gzip
import io
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from shards.errors import DataError
from shards.sources.paths import is_inside

MAX_XML_BYTES = 1_000_000
"""Of one report; the largest real one has 12,000."""
MAX_UNPACKED_BYTES = 1 << 28
MAX_MEMBERS = 50_000
GZIP = b"\x1f\x8b"
AGAIN = "Nothing of it is used; fetch it again"


class Refused(str):
    """Why a file or member is not read."""


def read_reports(path: Path) -> Iterator[tuple[str, bytes | Refused]]:
    """(name, XML) of every .xml file of a directory or tar archive; `Refused` for what is hostile or too large.

    Raises:
        DataError: the path is neither, the archive is cut or damaged anywhere, or unpacks to more than is read.
    """
    return _directory(path) if path.is_dir() else _archive(path)


def _directory(path: Path) -> Iterator[tuple[str, bytes | Refused]]:
    names = sorted((entry.name for entry in os.scandir(path)), key=lambda name: (len(name), name))
    _refuse_many(path, len(names))
    for name in names:
        if not name.lower().endswith(".xml"):
            continue
        shown = f"{path.name}/{name}"
        if not is_inside(name, path) or not (path / name).is_file():
            yield shown, Refused("no regular file of this directory")
        elif (size := (path / name).stat().st_size) > MAX_XML_BYTES:
            yield shown, Refused(_too_large(size))
        else:
            yield shown, (path / name).read_bytes()


def _archive(path: Path) -> Iterator[tuple[str, bytes | Refused]]:
    data = _unpacked(path)
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for count, member in enumerate(tar, start=1):
                _refuse_many(path, count)
                if cause := _refusal(member):
                    yield member.name, Refused(cause)
                elif member.isreg() and member.name.lower().endswith(".xml"):
                    yield member.name, data[member.offset_data : member.offset_data + member.size]
            end = tar.offset  # type: ignore[attr-defined]
    except tarfile.TarError as error:
        raise DataError(f"{path} is no whole tar archive: {error}. {AGAIN}") from None
    if len(mark := data[end : end + tarfile.BLOCKSIZE]) < tarfile.BLOCKSIZE or any(mark):
        raise DataError(f"{path} breaks off or is damaged at byte {end} of {len(data)} unpacked. {AGAIN}")


def _unpacked(path: Path) -> bytes:
    """The tar inside, bounded; a .tar is taken as it is."""
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == GZIP
            file.seek(0)
            data = (gzip.GzipFile(fileobj=file) if packed else file).read(MAX_UNPACKED_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is cut or damaged: {error}. {AGAIN}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_UNPACKED_BYTES:
        raise DataError(f"{path} unpacks to more than {MAX_UNPACKED_BYTES:,} bytes; the whole corpus has 30 million")
    return data


def _refusal(member: tarfile.TarInfo) -> str:
    if member.isdir():
        return ""
    if not member.isreg() or member.issparse():
        kinds = {tarfile.SYMTYPE: "symbolic link", tarfile.LNKTYPE: "hard link"}
        return kinds.get(member.type, f"entry type {member.type!r}")
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or "\0" in member.name:
        return "path that leaves the archive"
    return _too_large(member.size) if member.size > MAX_XML_BYTES else ""


def _too_large(size: int) -> str:
    return f"{size} bytes; a report has at most {MAX_XML_BYTES:,}"


def _refuse_many(path: Path, count: int) -> None:
    if count > MAX_MEMBERS:
        raise DataError(f"{path} holds more than {MAX_MEMBERS:,} files; IU X-Ray has 3,955 reports")
