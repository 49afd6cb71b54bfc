"""Tar archives by a plain walk over 512-byte headers: nothing is extracted, nothing outside the archive is opened.

The standard reader costs about ten times as much per member, and follows what a hostile archive tells it.
"""

import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from shards.errors import DataError

BLOCK = 512
MAX_MEMBER_BYTES = 400_000_000
MAX_NAME_BYTES = 4096
MAX_EXTENDED_BYTES, MAX_RECORDS = 1 << 20, 40
"""Of an extended header, and of what it says."""
MAX_HEADERS = 1_000_000
MAX_TAIL_BYTES = 64 << 20
"""Zeros behind the end mark that are looked through for what they may hide."""
NOT_FILES = {b"1": "hard link", b"2": "symbolic link", b"3": "character device", b"4": "block device", b"6": "pipe"}


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file of an archive."""

    name: str
    offset: int
    """Byte at which its content begins; its header is the block before."""
    size: int
    header: str = ""
    """`digest_of` its header, by which to know the member again."""


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
    cut_cause: str = ""
    """What is wrong there; empty when the file just ends."""


def digest_of(data: bytes) -> str:
    """BLAKE2b of some bytes, short."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def walk_tar(path: Any) -> Walk:
    """List an archive, local or remote; DataError only when it cannot be opened or does not begin as a tar."""
    try:
        if not path.is_file():
            raise DataError(f"{path} is missing, or no file")
        with path.open("rb") as file:
            return walk_file(file, path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def walk_file(file: BinaryIO, path: Any) -> Walk:
    """List an open archive, which messages call `path`; DataError when it does not begin as a tar."""
    walk = Walk()
    _walk(file, file.seek(0, os.SEEK_END), walk, path)
    return walk


def _walk(file: BinaryIO, end: int, walk: Walk, path: Any) -> None:
    """From header to header, always forward: a header whose size cannot be ends the walk where it stands."""

    def read(size: int, at: int) -> bytes:
        file.seek(at)
        return file.read(size)

    def cut(at: int, cause: str = "") -> None:
        walk.cut_at, walk.cut_cause = at, cause

    def hidden(at: int) -> bool:
        return end - at > MAX_TAIL_BYTES or any(any(read(1 << 20, here)) for here in range(at, end, 1 << 20))

    at, said = 0, dict[bytes, bytes]()
    for _ in range(MAX_HEADERS):
        header = read(BLOCK, at)
        if len(header) < BLOCK:
            return cut(end)
        if not any(header):
            return cut(at, "a header of zeros, and no end mark") if hidden(at + BLOCK) else None
        if _number(header[148:156]) != sum(header[:148]) + 8 * 32 + sum(header[156:]):
            if at == 0:
                raise DataError(f"{path} is not a tar archive: its first header's checksum does not hold")
            return cut(at, "a header whose checksum does not hold")
        kind, size, body = header[156:157], _number(header[124:136]), at + BLOCK
        extended = kind in b"LxgK"
        if not extended:
            name = said[b"path"].decode("utf-8", "replace") if b"path" in said else _name(header)
            size = _decimal(said[b"size"]) if b"size" in said else size
            sparse, said = any(key.startswith(b"GNU.sparse") for key in said), {}
            walk.cut_name = name
        if size < 0:
            return cut(at, "a header whose size is no number of 0 or more")
        if body + size > end:
            return cut(end)
        if extended:
            more = _extended(kind, size, read(-(-size // BLOCK) * BLOCK, body)) if size <= MAX_EXTENDED_BYTES else None
            if more is None or more.keys() & said.keys() or (more and kind == b"g"):
                return cut(at, "an extended header that is too long, malformed or there twice")
            said |= more
        elif cause := "sparse file" if sparse else _refusal(name, kind, size):
            walk.refused.append((name, cause))
        elif kind != b"5":
            walk.members.append(Member(name, body, size, digest_of(header)))
        at = body + -(-size // BLOCK) * BLOCK
    cut(at, f"more than {MAX_HEADERS:,} headers")


def _decimal(digits: bytes) -> int:
    return int(digits) if re.fullmatch(rb"[0-9]{1,18}", digits) else -1


def _number(digits: bytes) -> int:
    """A field of a header: octal, or base-256 where the first bit says so; -1 when negative or no number."""
    if digits[0] & 0x80:
        return -1 if digits[0] & 0x40 else int.from_bytes(bytes([digits[0] & 0x3F]) + digits[1:])
    digits = digits.strip(b" \0")
    return int(digits or b"0", 8) if re.fullmatch(rb"[0-7]*", digits) else -1


def _name(header: bytes) -> str:
    name, prefix = (part.split(b"\0", 1)[0].decode("utf-8", "replace") for part in (header[:100], header[345:500]))
    return f"{prefix}/{name}" if prefix and header[257:263] == b"ustar\0" else name


def _extended(kind: bytes, size: int, data: bytes) -> dict[bytes, bytes] | None:
    """What a GNU long-name or pax header says of the next member's path, size and holes; None when malformed."""
    if kind in b"KL":
        name = data.split(b"\0", 1)[0]
        return None if not 0 < len(name) <= size else {b"path": name} if kind == b"L" else {}
    said, at = dict[bytes, bytes](), 0
    for _ in range(MAX_RECORDS):
        if at == size:
            return said
        digits = data[at : max(at, data.find(b" ", at, at + 9))]
        end = at + max(0, _decimal(digits))
        key, equals, value = data[at + len(digits) + 1 : end - 1].partition(b"=")
        if not equals or end > size or data[end - 1 : end] != b"\n":
            return None
        if key in (b"path", b"size") or key.startswith(b"GNU.sparse"):
            said[key] = value
            if not value:
                return None
        at = end
    return None


def _refusal(name: str, kind: bytes, size: int) -> str:
    if kind in NOT_FILES:
        return NOT_FILES[kind]
    if kind not in (b"0", b"\0", b"7", b"5"):
        return f"entry type {kind!r}"
    if name.startswith("/") or "\\" in name or "\0" in name:
        return "absolute path" if name.startswith("/") else "path with a backslash or NUL"
    if ".." in PurePosixPath(name).parts:
        return "path to a parent directory"
    if size > MAX_MEMBER_BYTES or len(name) > MAX_NAME_BYTES:
        return f"{size} bytes under a name of {len(name)} characters is over the limit"
    return ""
