"""Shards → a side of them: one Ray Data task per tar, the same bytes whatever runs beside what.

A side tar appears whole or not at all and its index is written last, so a writer that broke off at any moment is
resumed by running it again. The shards' own files are read and never touched.
"""

import hashlib
import json
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.data

from shards.errors import ConfigError, DataError
from shards.privacy import fence
from shards.stream.index import Index
from shards.study import Record
from shards.tars.directory import claim, is_whole, refuse_foreign, release, run_tasks, unwritable
from shards.tars.fill import add_member
from shards.tars.manifest import FILE as SHARDS_FILE
from shards.tars.manifest import Manifest
from shards.tars.place import HashingFile, Place, create, names_in, place, write_atomic
from shards.tars.shard_index import index_path
from shards.tars.side_manifest import (
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
    claim(out, FILE, UNFINISHED)
    _run(out, jobs, indices, build, given or {}, manifest.licence, actors)
    side = _manifest(out, jobs, kind, manifest, description, warnings or {})
    release(out, (job.name for job in jobs), UNFINISHED)
    return side


def plan_side(manifest: Manifest, indices: Mapping[str, Index], kind: Kind, description: dict) -> list[SideJob]:
    """One job for every tar of the shards."""
    jobs = []
    for split, index in indices.items():
        for number, name in enumerate(index.tars):
            rows = index.rows_of(number)
            content = json.dumps([VERSION, kind, description, name, index.stamps[number]], sort_keys=True)
            recipe = hashlib.sha256(content.encode()).hexdigest()
            jobs.append(SideJob(name=name, split=split, kind=kind, recipe=recipe, first=rows.start, end=rows.stop))
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
        raise unwritable(path, error) from error
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
    if any(entry.cause == UNREAD for entry in index.studies):
        return None
    return index if is_whole(path, index, job.recipe) else None


def _refuse_taken(root: Place, out: Place) -> None:
    if out == root or SHARDS_FILE in names_in(out):
        raise ConfigError(f"{out} holds shards: a side needs a place of its own, such as {root / 'side' / 'NAME'}")
    refuse_foreign(out, FILE, UNFINISHED, "are no side")


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
    run_tasks(dataset, len(jobs))


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
