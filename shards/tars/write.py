"""A directory of tars while it is written: one Ray Data task a tar, the same bytes whatever runs beside what.

Shards and sides are written alike. A mark says that the directory is ours; every tar appears whole or not at all, with
its index last; a tar whose index fits is not written again, so a run that broke off at any moment is resumed by running
it again; the manifest closes the run.
"""

import errno
import io
import re
import shutil
import tarfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ray.data import Dataset

from shards.errors import ConfigError, DataError, RetryableError, may_pass
from shards.session import in_our_words, quiet, watched
from shards.study import SPLITS, Drop, Record
from shards.tars.format import (
    FORMAT,
    UNFINISHED,
    Entry,
    TarIndex,
    index_path,
    raw_path,
)
from shards.tars.place import (
    Place,
    create,
    is_local,
    make_directory,
    names_in,
    size_of,
    write_atomic,
)

NAME = re.compile(rf"({'|'.join(SPLITS)})-\d{{5}}\.(tar|index\.json|raw)")


class Job(Record):
    """One tar to write."""

    name: str
    split: str
    recipe: str
    """Hash of everything the tar is made from."""


@dataclass
class Made:
    """What became of one study: members for its tar, or why there are none."""

    members: dict[str, bytes] = field(default_factory=dict)
    """Suffix → content."""
    cause: str = ""
    """Of a side: why the member that is streamed is not among them, a short slug that studies are counted by."""
    detail: str = ""
    """What was found; never report text."""
    totals: dict[str, int] = field(default_factory=dict)
    largest: dict[str, int] = field(default_factory=dict)
    key: str = ""
    facts: dict = field(default_factory=dict)
    """Further fields of the study's `Entry`."""
    drop: Drop | None = None
    """The study is not in the tar at all."""
    said: tuple[str, ...] = ()
    """What was repaired in it, or is unusual."""


def refuse_foreign(out: Place, manifest: str, are: str) -> None:
    """ConfigError when `out` holds tars and neither the manifest nor the mark that would make them ours."""
    there = names_in(out)
    tars = [name for name in there if name.endswith(".tar")]
    if tars and manifest not in there and UNFINISHED[manifest] not in there:
        raise ConfigError(f"{out} holds archives that {are} ({', '.join(tars[:3])}): choose another place")


def claim(out: Place, manifest: str, note: str = "") -> None:
    """Make `out` ours: set the mark, which says `note`, take the old manifest away, sweep what a broken run left."""
    make_directory(out)
    write_atomic(out / UNFINISHED[manifest], note.encode())
    for name in names_in(out):
        if name == manifest or (name.startswith(".") and name.endswith(".tmp")):
            (out / name).unlink(missing_ok=True)


def release(out: Place, manifest: str, tars: Iterable[str]) -> None:
    """Remove tars of an earlier, longer listing, then the mark of an unfinished run."""
    keep = {name for tar in tars for name in (tar, index_path(Path(tar)).name, raw_path(Path(tar)).name)}
    for name in names_in(out):
        if NAME.fullmatch(name) and name not in keep:
            (out / name).unlink()
    (out / UNFINISHED[manifest]).unlink(missing_ok=True)


def write_tar(out: Place, job: Job, make: Callable[[], Iterable[Made]], raw: bytes = b"") -> TarIndex:
    """Write one tar and its index from what `make` gives, study by study; `raw` is what NAME.raw is to say.

    A kill between two of the files leaves an index that is not of its tar, or none, and beside a tar without an index
    always what is known of its studies: a new tar comes behind its NAME.raw, one in another's place before it.

    Raises:
        DataError: a full disk, or what `make` raises.
        RetryableError: storage that does not answer.
    """
    path = out / job.name
    first = raw if size_of(index_path(path)) < 0 else b""
    studies, drops = list[Entry](), list[Drop]()
    said, totals, largest = defaultdict[str, list[str]](list), Counter[str](), dict[str, int]()
    try:
        if first:
            write_atomic(raw_path(path), first)
        with create(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:  # type: ignore[call-overload]
            for made in make():
                if made.drop:
                    drops.append(made.drop)
                    continue
                spans = {name: add_member(tar, f"{made.key}.{name}", data) for name, data in made.members.items()}
                studies.append(Entry(key=made.key, members=spans, cause=made.cause, detail=made.detail, **made.facts))
                totals.update(made.totals)
                largest |= {what: max(size, largest.get(what, 0)) for what, size in made.largest.items()}
                for what in made.said:
                    said[what].append(studies[-1].id)
        index = TarIndex(
            format=FORMAT, **job.model_dump(include={"name", "split", "recipe"}), sha256=file.sha256, bytes=file.size,
            studies=tuple(studies), drops=tuple(drops), warnings={what: tuple(ids) for what, ids in said.items()},
            totals=dict(sorted(totals.items())), largest=dict(sorted(largest.items())),
        )  # fmt: skip
        if raw and not first:
            write_atomic(raw_path(path), raw)
        elif not raw:
            raw_path(path).unlink(missing_ok=True)
        index = index.sealed()
        write_atomic(index_path(path), index.model_dump_json(exclude_defaults=True).encode())
    except Exception as error:
        if isinstance(error, OSError) or may_pass(error):
            raise unwritable(path, error) from error
        raise
    return index


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> tuple[int, int, int]:
    """Append a file to an archive; returns offset, size and CRC-32 of its content."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
    at = tar.offset - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return at, len(data), zlib.crc32(data)


def unwritable(path: Place, error: Exception) -> DataError | RetryableError:
    """What to tell when a tar cannot be written."""
    if getattr(error, "errno", None) not in (errno.ENOSPC, errno.EDQUOT):
        if may_pass(error):
            cause = getattr(error, "strerror", None) or type(error).__name__
            return RetryableError(f"{path} cannot be written at the moment ({cause}): run the same command again")
        return DataError(f"{path} cannot be written: {getattr(error, 'strerror', None) or type(error).__name__}")
    free = f" ({shutil.disk_usage(path.parent).free:,} bytes free)" if is_local(path) else ""
    return DataError(
        f"no space left for {path}{free}: free some or choose another directory, then run the same command again. "
        "Whole shards are kept"
    )


def run_tasks(dataset: Dataset, tars: int) -> list[dict]:
    """What the tasks return, one a tar; an error of ours is raised as it was in the worker."""
    with in_our_words():
        return list(watched(quiet(dataset).iter_rows(), "writing tars", tars))
