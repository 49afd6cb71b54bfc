"""A directory of tars while it is written: one Ray Data task a tar, the same bytes whatever runs beside what.

Shards and sides are written alike. A mark says that the directory is ours; every tar appears whole or not at all, with
its index last; a tar whose index fits is not written again, so a run that broke off at any moment is resumed by running
it again; the manifest closes the run.
"""

import errno
import io
import re
import shutil
import sys
import tarfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ray.data import Dataset
from rich.progress import track

from shards.errors import ConfigError, DataError, RetryableError, may_pass, patiently
from shards.session import in_our_words, quiet
from shards.study import SPLITS, Drop, Record
from shards.tars.format import (
    FORMAT,
    MAX_JSON_BYTES,
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
    read_whole,
    sha256_of,
    size_of,
    write_atomic,
)

OTHER, RAW = "the listing, the settings or this program have changed", "raw files have changed or come"
DAMAGED, DROPS = "the tar is missing or damaged", "studies of it could not be used"
"""Why a tar that was finished is written again..."""
GONE = "raw files are gone"
"""...or is kept although it cannot be compared with what it was made from."""
NAME = re.compile(rf"({'|'.join(SPLITS)})-\d{{5}}\.(tar|index\.json|raw)")


SHOWN = 5


class Job(Record):
    """One tar to write."""

    name: str
    split: str
    recipe: str
    """Hash of everything the tar is made from..."""
    raw: str = ""
    """...and how its raw files look: how many are there, and a hash; "" where none are named."""


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


def write_tar(
    out: Place, job: Job, make: Callable[[], Iterable[Made]], keeps: Callable[[TarIndex], bool] = lambda index: True
) -> tuple[TarIndex, str]:
    """Write one tar and its index from what `make` gives, study by study.

    A tar that is there and whole (`unlike`), was made from the same things and of which `keeps` says so, is
    kept, and nothing is made.

    Returns:
        the index, and why one that was there was written again, or `GONE`; "" where none was.

    Raises:
        DataError: a full disk; a tar that would be written again and of whose raw files some are gone; or what `make`
            raises.
        RetryableError: storage that does not answer.
    """
    path = out / job.name
    there, looked = indexed(path), _looked(path)
    if there is None:
        why = DAMAGED if looked[0] or size_of(index_path(path)) >= 0 else ""
    else:
        why = unlike(path, there, job, looked) or ("" if keeps(there) else DROPS)
    if why and looked[0] > int(job.raw.partition(" ")[0] or 0):  # written again, it would lack those films
        if there and why == RAW and not unlike(path, there, job, None):
            return there, GONE
        raise DataError(
            f"{path} was made from {looked[0]} raw files, of which some are gone, and would be written again "
            f"because {why}. It stays as it is: bring the raw files back, or write to another place"
        )
    if there and not why:
        return there, ""
    studies, drops = list[Entry](), list[Drop]()
    said, totals, largest = defaultdict[str, list[str]](list), Counter[str](), dict[str, int]()
    try:
        index_path(path).unlink(missing_ok=True)
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
        if job.raw:
            write_atomic(raw_path(path), job.raw.encode())
        index = index.sealed()
        write_atomic(index_path(path), index.model_dump_json(exclude_defaults=True).encode())
    except Exception as error:
        if isinstance(error, OSError) or may_pass(error):
            raise unwritable(path, error) from error
        raise
    return index, why


def indexed(path: Place) -> TarIndex | None:
    """The index beside a tar; None where it is not as it was written, or not there: the tar was never finished."""
    try:
        index = TarIndex.model_validate_json(read_whole(index_path(path), MAX_JSON_BYTES))
        return index if index == index.sealed() else None
    except (OSError, ValueError):
        return None


def unlike(path: Place, index: TarIndex, job: Job, looked: tuple[int, str] | None) -> str:
    """Why a tar is not what `job` would write; "" where it is. Every byte is read then that this machine has not read.

    `looked` is how its raw files were when it was written; None: that does not matter.
    """
    if index.format != FORMAT or index.recipe != job.recipe:
        return OTHER
    if looked and looked[1] != job.raw:
        return RAW
    if index.bytes != size_of(path) or index.sha256 != sha256_of(path):
        return DAMAGED
    return ""


def _looked(path: Place) -> tuple[int, str]:
    """(raw files that were there, how they looked) when a tar was written; (0, "") where that is not told."""
    raw = raw_path(path)
    said = patiently(str(raw), raw.read_text) if size_of(raw) >= 0 else ""
    return (int(said.partition(" ")[0]), said) if re.fullmatch(r"\d{1,9} [0-9a-f]{64}", said) else (0, "")


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


def run_tasks(dataset: Dataset, tars: int) -> None:
    """Run the tasks, one a tar, with a bar on a terminal; an error of ours is raised as it was in the worker.

    Rows are {"name", "why"}: what `write_tar` says of a tar that it wrote again is counted and printed.
    """
    again = defaultdict[str, list[str]](list)
    with in_our_words():
        for row in track(quiet(dataset).iter_rows(), "writing tars", tars, disable=not sys.stdout.isatty()):
            again[row["why"]].append(row["name"])
    for why, names in again.items():
        if why:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            did = "kept as they are, although" if why == GONE else "written again, because"
            print(f"{len(names)} of {tars} tars were {did} {why}: {', '.join(names[:SHOWN])}{more}.")
