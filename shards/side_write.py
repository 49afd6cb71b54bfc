"""Shards → a side of them: one Ray Data task per tar, the same bytes whatever runs beside what.

A side tar appears whole or not at all and its index is written last, so a writer that broke off at any moment is
resumed by running it again. The shards' own files are read and never touched.
"""

import hashlib
import json
import sys
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
import ray.data
from ray.data import Dataset
from ray.exceptions import RayTaskError
from rich.progress import track

from shards.errors import ConfigError, DataError
from shards.fill import add_member
from shards.guard import OURS, fence
from shards.index import Index
from shards.manifest import FILE as SHARDS_FILE
from shards.manifest import Manifest, sha256_of
from shards.shard_index import index_path
from shards.side_manifest import (
    FILE,
    MEMBER,
    UNREAD,
    VERSION,
    Kind,
    SideEntry,
    SideIndex,
    SideManifest,
    SideShard,
    read_side_index,
    write_side_manifest,
)
from shards.storage import HashingFile, Place, create, make_directory, names_in, place, size_of, write_atomic
from shards.study import Record

UNFINISHED = ".writing-side"


@dataclass
class Made:
    """What a maker made of one study."""

    members: dict[str, bytes] = field(default_factory=dict)
    """Suffix → content."""
    cause: str = ""
    """Why the member that is streamed is not among them: a short slug that studies are counted by."""
    detail: str = ""
    """What was found; never report text."""
    totals: dict[str, int] = field(default_factory=dict)
    largest: dict[str, int] = field(default_factory=dict)


Maker = Callable[[Index, range, bytes], Iterator[Made]]
"""(index of a split, the rows of one tar in it, what was given for that tar) → one `Made` for every row, in order."""


class SideJob(Record):
    """One side tar to write."""

    name: str
    split: str
    kind: Kind
    recipe: str
    """Hash of the description and of the shards' tar."""
    first: int
    """Rows [first, end) of the split's index."""
    end: int


def open_splits(root: str | Place, manifest: Manifest) -> dict[str, Index]:
    """The index of every split that has studies; DataError when one is torn: a side's keys must be the shards'."""
    return {split: Index.open(root, split) for split, count in manifest.splits.items() if count.studies}


def write_side(
    root: str | Place,
    out: str | Place,
    kind: Kind,
    manifest: Manifest,
    indices: Mapping[str, Index],
    description: dict[str, Any],
    build: Callable[[], Maker],
    given: Mapping[str, bytes] | None = None,
    warnings: dict[str, tuple[str, ...]] | None = None,
    actors: int = 0,
) -> SideManifest:
    """Write the side tars, their indices and side.json of the shards at `root` into `out`; whole tars are kept.

    Args:
        description: what decides the content, JSON; a tar is made again when it or the shards' tar changed.
        build: makes the maker, once per actor, or per task when `actors` is 0.
        given: tar name → bytes handed to the maker with that tar.
        actors: processes that hold a maker, with one GPU each where the cluster has them; 0: tasks.

    Raises:
        ConfigError: `out` holds shards, or archives of others.
        DataError: what the maker raises; a full disk.
    """
    root, out, description = place(root), place(out), json.loads(json.dumps(description))
    _refuse_taken(root, out)
    jobs = plan_side(manifest, indices, kind, description)
    _claim(out)
    _run(out, jobs, indices, build, given or {}, manifest.licence, actors)
    side = _manifest(out, jobs, kind, manifest, description, warnings or {})
    _release(out, {job.name for job in jobs})
    return side


def plan_side(manifest: Manifest, indices: Mapping[str, Index], kind: Kind, description: dict) -> list[SideJob]:
    """One job for every tar of the shards."""
    jobs = []
    for split, index in indices.items():
        for number, name in enumerate(index.tars):
            first, end = np.searchsorted(index.tar, [number, number + 1]).tolist()
            content = json.dumps([VERSION, kind, description, name, index.stamps[number]], sort_keys=True)
            recipe = hashlib.sha256(content.encode()).hexdigest()
            jobs.append(SideJob(name=name, split=split, kind=kind, recipe=recipe, first=first, end=end))
    return jobs


def write_side_tar(out: Place, job: SideJob, index: Index, make: Maker, given: bytes = b"") -> SideIndex:
    """Write one side tar and its index, unless both are there, fit, and miss no study that could not be read."""
    path = out / job.name
    if (kept := _whole(path, job)) is not None:
        return kept
    totals: Counter[str] = Counter()
    largest: dict[str, int] = {}
    studies = []
    try:
        index_path(path).unlink(missing_ok=True)
        with create(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:  # type: ignore[call-overload]
            rows = range(job.first, job.end)
            for row, made in zip(rows, make(index, rows, given), strict=True):
                studies.append(_add(tar, index.keys[row].decode(), made))
                totals.update(made.totals)
                largest |= {what: max(size, largest.get(what, 0)) for what, size in made.largest.items()}
        found = _index(job, file, studies, totals, largest)
        write_atomic(index_path(path), found.model_dump_json().encode())
    except OSError as error:
        raise DataError(
            f"{path} cannot be written: {error.strerror or error}. Make room or choose another place, then run the "
            "same command again: whole tars are kept"
        ) from error
    return found


def _add(tar: tarfile.TarFile, key: str, made: Made) -> SideEntry:
    members = {}
    for name, data in made.members.items():
        members[name] = add_member(tar, f"{key}.{name}", data), len(data), zlib.crc32(data)
    return SideEntry(key=key, members=members, cause=made.cause, detail=made.detail)


def _index(job: SideJob, file: HashingFile, studies: list, totals: Counter, largest: dict[str, int]) -> SideIndex:
    return SideIndex(
        name=job.name,
        recipe=job.recipe,
        sha256=file.sha256,
        bytes=file.size,
        studies=tuple(studies),
        totals=dict(sorted(totals.items())),
        largest=dict(sorted(largest.items())),
    )


def _whole(path: Place, job: SideJob) -> SideIndex | None:
    try:
        index = read_side_index(index_path(path))
    except DataError:
        return None
    fits = index.recipe == job.recipe and index.bytes == size_of(path) and index.sha256 == sha256_of(path)
    return index if fits and not any(entry.cause == UNREAD for entry in index.studies) else None


def _refuse_taken(root: Place, out: Place) -> None:
    there = names_in(out)
    if out == root or SHARDS_FILE in there:
        raise ConfigError(f"{out} holds shards: a side needs a place of its own, such as {root / 'side' / 'NAME'}")
    tars = [name for name in there if name.endswith(".tar")]
    if tars and FILE not in there and UNFINISHED not in there:
        raise ConfigError(f"{out} holds archives that are no side ({', '.join(tars[:3])}): choose another place")


def _claim(out: Place) -> None:
    """Make `out` ours: take the old side.json away, sweep what a broken run left."""
    make_directory(out)
    write_atomic(out / UNFINISHED, b"")
    for name in names_in(out):
        if name == FILE or (name.startswith(".") and name.endswith(".tmp")):
            (out / name).unlink(missing_ok=True)


def _release(out: Place, names: set[str]) -> None:
    """Remove tars that the shards no longer have, then the mark of an unfinished run."""
    keep = names | {index_path(place(name)).name for name in names} | {FILE}
    for name in names_in(out):
        if name.endswith((".tar", ".index.json")) and name not in keep:
            (out / name).unlink()
    (out / UNFINISHED).unlink(missing_ok=True)


def _run(
    out: Place,
    jobs: list[SideJob],
    indices: Mapping[str, Index],
    build: Callable[[], Maker],
    given: Mapping[str, bytes],
    licence: str,
    actors: int,
) -> None:
    refs, where = {split: ray.put(index) for split, index in indices.items()}, str(out)

    def later(index: Index, rows: range, given: bytes) -> Iterator[Made]:
        return build()(index, rows, given)  # a tar that is whole needs no maker

    def write(row: dict, make: Maker | None = None) -> dict:
        with fence(licence):
            job = SideJob.model_validate_json(row["job"])
            write_side_tar(place(where), job, ray.get(refs[job.split]), make or later, row["given"])
            return {"name": job.name}

    class Writer:
        """A process that keeps its maker."""

        def __init__(self) -> None:
            with fence(licence):
                self.make = build()

        def __call__(self, row: dict) -> dict:
            return write(row, self.make)

    rows = [{"job": job.model_dump_json(), "given": given.get(job.name, b"")} for job in jobs]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    if actors:
        gpus = 1 if ray.cluster_resources().get("GPU", 0) >= actors else 0
        dataset = dataset.map(Writer, compute=ray.data.ActorPoolStrategy(size=actors), num_gpus=gpus)
    else:
        dataset = dataset.map(write)
    dataset.context.raise_original_map_exception = True
    dataset.context.enable_progress_bars = False
    for _ in track(in_our_words(dataset), "writing tars", len(jobs), disable=not sys.stdout.isatty()):
        pass


def in_our_words(dataset: Dataset) -> Iterator[dict]:
    """The rows of a dataset; an error of ours in a worker is raised as it was there."""
    try:
        yield from dataset.iter_rows()
    except RayTaskError as error:
        if isinstance(error.cause, OURS):
            raise error.cause from None
        raise


def _manifest(
    out: Place, jobs: list[SideJob], kind: Kind, manifest: Manifest, description: dict, warnings: dict
) -> SideManifest:
    """side.json from the indices, one in memory at a time."""
    shards, without, totals = [], Counter(), Counter()
    largest: dict[str, int] = {}
    for job in jobs:
        index = read_side_index(index_path(out / job.name))
        held = sum(MEMBER[kind] in entry.members for entry in index.studies)
        what = {"name": job.name, "split": job.split, "bytes": index.bytes, "sha256": index.sha256}
        shards.append(SideShard(studies=len(index.studies), held=held, **what))
        without.update(entry.cause for entry in index.studies if MEMBER[kind] not in entry.members)
        totals.update(index.totals)
        largest |= {name: max(size, largest.get(name, 0)) for name, size in index.largest.items()}
    if (given := sum(count.studies for count in manifest.splits.values())) != sum(shard.studies for shard in shards):
        raise DataError(f"the shards hold {given} studies and the side at {out} lists another number: write it again")
    side = SideManifest(
        kind=kind, parent=manifest.fingerprint, licence=manifest.licence, description=description,
        shards=tuple(shards), without=dict(sorted(without.items())), totals=dict(sorted(totals.items())),
        largest=dict(sorted(largest.items())), warnings=warnings,
    )  # fmt: skip
    return write_side_manifest(out, side)
