"""Where shards lie: a local directory, or an fsspec URL such as s3://bucket/films, behind the same few operations.

Remote files appear whole or not at all: an object is committed when its upload ends, and an upload that breaks off
leaves nothing that can be listed. Local files get the same by a temporary name, fsync and rename.
"""

import errno
import hashlib
import os
import secrets
import stat
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, TypeAlias

import fsspec
from fsspec.utils import merge_offset_ranges
from typing_extensions import TypeIs
from upath import UPath

from shards.errors import ConfigError, DataError, RetryableError, may_pass, patiently
from shards.study import refuse_bomb

Place: TypeAlias = Path | UPath
MAX_OPEN = 128
REMOTE = "://"
MERGE_BYTES = 1 << 16
"""Ranges of one remote file that lie closer than this are fetched as one..."""
MERGED_BYTES = 16 << 20
"""...of at most this size."""
REMEMBERED_BYTES = 1 << 20
"""Smaller files are hashed every time."""
RACY_NS = 2_000_000_000
"""A file that changed within this is hashed every time: many file systems keep no finer time."""


def place(where: str | Place) -> Place:
    """A directory or file as a path object: absolute when local, a `UPath` for a URL.

    Raises:
        ConfigError: no such protocol, or its package is not installed.
    """
    text = str(where).removeprefix("file://")
    if REMOTE not in text:
        return Path(text).expanduser().resolve()
    try:
        fsspec.get_filesystem_class(text.partition(REMOTE)[0])
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{text} cannot be opened: {error} (for s3:// install the extra: r2kg[s3])") from None
    return where if isinstance(where, UPath) else UPath(text, use_listings_cache=False)


def is_local(path: Place) -> TypeIs[Path]:
    """Whether `path` is on a file system of this machine."""
    return isinstance(path, Path)


def make_directory(path: Place) -> None:
    """Make a local directory with its parents; object stores have none."""
    if is_local(path):
        path.mkdir(parents=True, exist_ok=True)


def _anew(path: UPath) -> Any:
    """The file system of a URL, which remembers nothing of it."""
    path.fs.invalidate_cache(path.path)
    return path.fs


def names_in(path: Place) -> list[str]:
    """Sorted names of the files directly in a directory; none when it does not exist."""
    try:
        if is_local(path):
            local = patiently(str(path), lambda: list(os.scandir(path)))
            return sorted(entry.name for entry in local if entry.is_file())
        found = patiently(str(path), lambda: _anew(path).ls(path.path, detail=True))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(entry["name"].rstrip("/").rpartition("/")[2] for entry in found if entry["type"] == "file")


class HashingFile:
    """A binary file open for writing that knows the size and SHA-256 of what went through it."""

    def __init__(self, file: IO[bytes]):
        """Wrap a file at its beginning."""
        self.file, self.size, self._digest = file, 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Pass the bytes on."""
        self._digest.update(data)
        self.size += len(data)
        self.file.write(data)
        return len(data)

    def tell(self) -> int:
        """Bytes written so far."""
        return self.size

    @property
    def sha256(self) -> str:
        """Hash of the bytes written so far."""
        return self._digest.hexdigest()


@contextmanager
def create(path: Place) -> Iterator[HashingFile]:
    """Write a file that nobody sees before the block has ended without an error."""
    if not is_local(path):
        file = path.fs.open(path.path, "wb")
        try:
            yield HashingFile(file)
        except BaseException:
            file.discard() if hasattr(file, "discard") else None
            file.closed = True  # else its destructor would commit what is there
            raise
        file.close()
        return
    part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(part, "wb") as file:
            yield HashingFile(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_atomic(path: Place, data: bytes) -> None:
    """Write a file so that a reader sees either nothing, the old content or all of the new content."""
    with create(path) as file:
        file.write(data)


def size_of(path: Place) -> int:
    """Bytes of a file; -1 when it is not there, or is no file."""
    try:
        if is_local(path):
            found = patiently(str(path), lambda: os.stat(path))
            return found.st_size if stat.S_ISREG(found.st_mode) else -1
        info = patiently(str(path), lambda: _anew(path).info(path.path))
        return int(info["size"]) if info["type"] == "file" else -1
    except (FileNotFoundError, NotADirectoryError):
        return -1


def read_whole(path: Place, most: int) -> bytes:
    """All bytes of a file of JSON; OSError when it cannot be read, ValueError when `refuse_bomb` says so."""
    if (size := size_of(path)) < 0:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    if size > most:
        raise ValueError(f"it has {size:,} bytes, and at most {most:,} are read")
    refuse_bomb(data := patiently(str(path), path.read_bytes), most)
    return data


def sha256_of(path: Place, fresh: bool = False) -> str:
    """SHA-256 of a file, read in pieces.

    Of a large local file it is remembered, by path, inode, size and times, below the user's cache directory: shards,
    weights and checkpoints are read for it once a machine, not once by every process. `fresh` reads them anyway.
    """
    return patiently(str(path), lambda: _sha256_of(path, fresh))


def _sha256_of(path: Place, fresh: bool) -> str:
    with path.open("rb") as file:
        note = None
        if is_local(path) and (now := os.fstat(file.fileno())).st_size >= REMEMBERED_BYTES:
            young = time.time_ns() - now.st_ctime_ns < RACY_NS  # a change in the same tick would not show in its times
            note = None if young else _note_of(path, now)
        if note and not fresh:
            with suppress(OSError):
                if len(found := note.read_text()) == 64:
                    return found
        digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # BinaryIO lacks readinto
    if note:
        _keep(note, digest)
    return digest


def remember_sha256(path: Path, digest: str) -> None:
    """Spare `sha256_of` reading a file that whoever calls knows to be finished, and its SHA-256 with it."""
    if (now := os.stat(path)).st_size >= REMEMBERED_BYTES:
        _keep(_note_of(path, now), digest)


def _note_of(path: Path, now: os.stat_result) -> Path:
    """Where the SHA-256 of a file as it stands now is remembered."""
    name = f"{path.resolve()} {now.st_dev} {now.st_ino} {now.st_size} {now.st_mtime_ns} {now.st_ctime_ns}"
    return cache_directory() / "sha256" / hashlib.sha256(name.encode()).hexdigest()


def _keep(note: Path, digest: str) -> None:
    with suppress(OSError):  # a cache that cannot be written is none
        note.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(note, digest.encode())


def cache_directory() -> Path:
    """Where this user's programs keep what they can make again: XDG_CACHE_HOME/r2kg, else ~/.cache/r2kg."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "r2kg"


def config_directory() -> Path:
    """Where this user's programs keep what nothing can make again: XDG_CONFIG_HOME/r2kg, else ~/.config/r2kg."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "r2kg"


_open: OrderedDict[tuple[str, str], int] = OrderedDict()


def _descriptor(path: str, stamp: str) -> int:
    """An open file per path and process; the stamp keeps a file written anew from being read through an old one."""
    if (found := _open.get((path, stamp))) is None:
        if len(_open) >= MAX_OPEN:
            os.close(_open.popitem(last=False)[1])
        found = _open[path, stamp] = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    return found


@lru_cache(maxsize=16)
def _file_system(root: str) -> Any:
    return place(root).fs  # type: ignore[union-attr]  # called for URLs only


def read_at(root: str, name: str, at: int, size: int, stamp: str = "") -> memoryview:
    """`size` bytes at offset `at` of the file `name` below `root`; `stamp` changes when the file's content does.

    Raises:
        DataError: the file is missing, cannot be read, or ends before at + size.
    """
    path = f"{root.rstrip('/')}/{name}"
    try:
        if REMOTE in root:
            data = patiently(path, lambda: _file_system(root).cat_file(path, start=at, end=at + size))
        else:
            data = patiently(path, lambda: _read_local(path, at, size, stamp))
    except Exception as error:
        if (fault := _fault_of(name, error, REMOTE in root)) is error:
            raise
        raise fault from error
    if len(data) != size:
        raise DataError(f"{name} breaks off: {len(data)} of {size} bytes at {at}")
    return memoryview(data)


def _fault_of(name: str, error: Exception, remote: bool) -> Exception:
    """What an error that does not pass says of a tar: a `DataError`, or of the storage, and then nothing of any study.

    An expired token, or one that was never there, looks like every study being gone.
    """
    cause = getattr(error, "strerror", None) or type(error).__name__
    if isinstance(error, OSError) and not (remote and isinstance(error, PermissionError)):
        return DataError(f"{name} cannot be read: {cause}")
    if remote and not isinstance(error, RetryableError):
        return RetryableError(f"storage refuses {name} ({cause}): renew the credentials and run the same command again")
    return error


def _read_local(path: str, at: int, size: int, stamp: str) -> bytes:
    try:
        file = _descriptor(path, stamp)
        there = max(0, os.fstat(file).st_size - at)  # memory is taken for what is asked for, not for what is there
        return os.pread(file, min(size, there), at)
    except OSError:  # ESTALE would stay with this descriptor for ever
        if (held := _open.pop((path, stamp), None)) is not None:
            with suppress(OSError):
                os.close(held)
        raise


def read_ranges(root: str, ranges: list[tuple[str, int, int]]) -> list[memoryview | DataError]:
    """Many (name, offset, size) of a remote directory at once: requests run side by side, near ones become one.

    Raises:
        RetryableError: one of them was not answered, however often it was asked again; nothing is said of its study.
    """
    names, starts = [name for name, _, _ in ranges], [at for _, at, _ in ranges]
    ends = [at + size for _, at, size in ranges]
    merged = list(zip(*merge_offset_ranges(names, starts, ends, MERGE_BYTES, MERGED_BYTES), strict=True))
    fetched, left = list[bytes | Exception]([b""] * len(merged)), list(range(len(merged)))

    def ask() -> None:
        names, starts, ends = zip(*(merged[number] for number in left), strict=True)
        paths = [f"{root.rstrip('/')}/{name}" for name in names]
        answers = _file_system(root).cat_ranges(paths, list(starts), list(ends), on_error="return")
        for number, answer in zip([*left], answers, strict=True):
            if not may_pass(answer):
                fetched[number] = answer
                left.remove(number)
        if left:
            raise next(answer for answer in answers if may_pass(answer))

    patiently(f"{len(merged)} requests to {root}", ask)
    pieces: dict[str, list[tuple[int, int, bytes | Exception]]] = {}
    for (name, at, end), data in zip(merged, fetched, strict=True):
        pieces.setdefault(name, []).append((at, end, data))
    out: list[memoryview | DataError] = []
    for name, at, size in ranges:
        start, _, data = next(piece for piece in pieces[name] if piece[0] <= at and at + size <= piece[1])
        if isinstance(data, Exception):
            fault = _fault_of(name, data, remote=True)
            if not isinstance(fault, DataError):
                raise fault from data
            out.append(fault)
        elif len(data) < at + size - start:
            out.append(DataError(f"{name} breaks off: {max(0, len(data) - at + start)} of {size} bytes at {at}"))
        else:
            out.append(memoryview(data)[at - start : at - start + size])
    return out
