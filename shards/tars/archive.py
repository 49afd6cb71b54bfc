"""Tar archives by a plain walk over 512-byte headers: nothing is extracted, nothing outside the archive is opened.

The standard reader costs about ten times as much per member, and follows what a hostile archive tells it.
"""

from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import BinaryIO

from shards.errors import DataError
from shards.tars.place import Place, place, size_of

BLOCK = 512
MAX_MEMBER_BYTES = 400_000_000
MAX_NAME_BYTES = 4096
KINDS = {b"1": "hard link", b"2": "symbolic link", b"3": "character device", b"4": "block device", b"6": "pipe"}


@dataclass(frozen=True)
class Member:
    """A regular file of an archive."""

    name: str
    offset: int
    """Byte at which its content begins."""
    size: int


@dataclass
class Walk:
    """What one archive holds."""

    members: list[Member] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    """(name, cause) of every member that is not read: links, devices, paths that leave the archive."""
    cut_at: int = -1
    """Byte at which a truncated archive breaks off; -1 when its end mark is there."""
    cut_name: str = ""
    """Member in which, or after which, it breaks off."""


def walk_tar(path: str | Place) -> Walk:
    """List an archive; DataError only when it cannot be opened or does not begin as a tar."""
    walk, path = Walk(), place(path)
    try:
        with path.open("rb") as file:
            _walk(file, size_of(path), walk, path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    return walk


def _walk(file: BinaryIO, end: int, walk: Walk, path: Place) -> None:
    at, long_name = 0, ""
    while True:
        header = _pread(file, BLOCK, at)
        if len(header) < BLOCK:
            walk.cut_at = end
            return
        if not any(header):
            return
        if not _checksum_holds(header):
            if at == 0:
                raise DataError(f"{path} is not a tar archive: its first header's checksum does not hold")
            walk.cut_at, walk.cut_name = at, walk.cut_name
            return
        kind, size = header[156:157], _number(header[124:136])
        body, at = at + BLOCK, at + BLOCK + -(-size // BLOCK) * BLOCK
        if kind in b"LxgK" and kind:
            long_name = _extended(file, kind, body, size) or long_name
            continue
        name, long_name = long_name or _name(header), ""
        walk.cut_name = name
        if body + size > end:
            walk.cut_at = end
            return
        if cause := _refusal(name, kind, size):
            walk.refused.append((name, cause))
        elif kind != b"5":
            walk.members.append(Member(name, body, size))


def _pread(file: BinaryIO, size: int, at: int) -> bytes:
    file.seek(at)
    return file.read(size)


def _checksum_holds(header: bytes) -> bool:
    try:
        return int(header[148:156].strip(b" \0") or b"-1", 8) == sum(header[:148]) + 8 * 32 + sum(header[156:])
    except ValueError:
        return False


def _number(field_: bytes) -> int:
    if field_[0] & 0x80:
        return int.from_bytes(field_[1:], "big")
    try:
        return int(field_.strip(b" \0") or b"0", 8)
    except ValueError:
        return 1 << 62


def _name(header: bytes) -> str:
    name, prefix = (part.split(b"\0", 1)[0].decode("utf-8", "replace") for part in (header[:100], header[345:500]))
    return f"{prefix}/{name}" if prefix and header[257:263] == b"ustar\0" else name


def _extended(file: BinaryIO, kind: bytes, body: int, size: int) -> str:
    """The name in a GNU long-name or pax header; "" when it carries none."""
    data = _pread(file, min(size, 4 * MAX_NAME_BYTES), body)
    if kind == b"L":
        return data.rstrip(b"\0").decode("utf-8", "replace")
    if kind != b"x":
        return ""
    lines = (line.split(b" ", 1)[-1] for line in data.split(b"\n"))
    return next((line[5:].decode("utf-8", "replace") for line in lines if line.startswith(b"path=")), "")


def _refusal(name: str, kind: bytes, size: int) -> str:
    if kind in KINDS:
        return KINDS[kind]
    if kind not in (b"0", b"\0", b"7", b"5"):
        return f"entry type {kind!r}"
    if name.startswith("/") or "\\" in name or "\0" in name:
        return "absolute path" if name.startswith("/") else "path with a backslash or NUL"
    if ".." in PurePosixPath(name).parts:
        return "path to a parent directory"
    if size > MAX_MEMBER_BYTES or len(name) > MAX_NAME_BYTES:
        return f"{size} bytes under a name of {len(name)} characters is over the limit"
    return ""
