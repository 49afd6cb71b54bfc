"""A directory of tars while it is written: whose it is, which tars are whole, and how a run of tasks fails.

Shards and sides are written alike: a mark says that the directory is ours, every tar appears whole with its index last,
and the manifest closes the run.
"""

import errno
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from ray.data import Dataset
from rich.progress import track

from shards.errors import ConfigError, DataError
from shards.session import in_our_words, quiet
from shards.study import SPLITS
from shards.tars.manifest import sha256_of
from shards.tars.place import Place, is_local, make_directory, names_in, size_of, write_atomic
from shards.tars.shard_index import index_path

NAME = re.compile(rf"({'|'.join(SPLITS)})-\d{{5}}\.(tar|index\.json)")


class TarIndex(Protocol):
    """What the index beside a tar says of the tar itself."""

    recipe: str
    sha256: str
    bytes: int


def refuse_foreign(out: Place, manifest: str, mark: str, are: str) -> None:
    """ConfigError when `out` holds tars and neither the manifest nor the mark that would make them ours."""
    there = names_in(out)
    tars = [name for name in there if name.endswith(".tar")]
    if tars and manifest not in there and mark not in there:
        raise ConfigError(f"{out} holds archives that {are} ({', '.join(tars[:3])}): choose another place")


def claim(out: Place, manifest: str, mark: str) -> None:
    """Make `out` ours: set the mark, take the old manifest away, sweep what a broken run left."""
    make_directory(out)
    write_atomic(out / mark, b"")
    for name in names_in(out):
        if name == manifest or (name.startswith(".") and name.endswith(".tmp")):
            (out / name).unlink(missing_ok=True)


def release(out: Place, tars: Iterable[str], mark: str) -> None:
    """Remove tars of an earlier, longer listing, then the mark of an unfinished run."""
    keep = {name for tar in tars for name in (tar, index_path(Path(tar)).name)}
    for name in names_in(out):
        if NAME.fullmatch(name) and name not in keep:
            (out / name).unlink()
    (out / mark).unlink(missing_ok=True)


def is_whole(path: Place, index: TarIndex, recipe: str) -> bool:
    """Whether a tar is there, is what its index describes, and was made from the same things; reads every byte."""
    return index.recipe == recipe and index.bytes == size_of(path) and index.sha256 == sha256_of(path)


def unwritable(path: Place, error: OSError) -> DataError:
    """What to tell when a tar cannot be written."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return DataError(f"{path} cannot be written: {error.strerror or error}")
    free = f" ({shutil.disk_usage(path.parent).free:,} bytes free)" if is_local(path) else ""
    return DataError(
        f"no space left for {path}{free}: free some or choose another directory, then run the same command again. "
        "Whole shards are kept"
    )


def run_tasks(dataset: Dataset, tars: int) -> None:
    """Run the tasks, one a tar, with a bar on a terminal; an error of ours is raised as it was in the worker."""
    with in_our_words():
        for _ in track(quiet(dataset).iter_rows(), "writing tars", tars, disable=not sys.stdout.isatty()):
            pass
