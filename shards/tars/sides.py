"""Shards → a side of them: the maker of each study's member is given, the way into tars is that of `shards.tars.write`.

The shards' own files are read and never touched.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol

import ray
import ray.data
from numpy.typing import NDArray

from shards.errors import ConfigError, DataError
from shards.privacy import fence
from shards.session import gpus_for
from shards.tars.format import FORMAT, SHARDS_FILE, Manifest, TarIndex, described, write_sealed
from shards.tars.kinds import FILE, KINDS, UNREAD, SideManifest, SideTar
from shards.tars.place import Place, names_in, place
from shards.tars.repair import DROPS, standing, tell
from shards.tars.write import Job, Made, claim, refuse_foreign, release, run_tasks, write_tar


class Studies(Protocol):
    """What a maker sees of the index of a split (`shards.stream.index.Index`)."""

    @property
    def tars(self) -> tuple[str, ...]:
        """Names of the shards' tars."""
        ...

    @property
    def stamps(self) -> tuple[str, ...]:
        """Hashes of the shards' tars."""
        ...

    @property
    def keys(self) -> NDArray[Any]:
        """[n] names inside the shards."""
        ...

    def __len__(self) -> int: ...

    def rows_of(self, tar: int) -> range:
        """The rows of a tar."""
        ...


Maker = Callable[[Any, range, bytes], Iterable[Made]]
"""(index of a split, the rows of one tar in it, what was given for that tar) → one `Made` for every row, in order."""


class SideJob(Job):
    """One side tar to write."""

    first: int
    """Rows [first, end) of the split's index."""
    end: int


def write_side(
    root: str | Place,
    out: str | Place,
    kind: str,
    manifest: Manifest,
    indices: Mapping[str, Studies],
    description: dict[str, Any],
    build: Callable[[], Maker],
    given: Mapping[str, bytes] | None = None,
    warnings: dict[str, tuple[str, ...]] | None = None,
    actors: int = 0,
) -> SideManifest:
    """Write the side tars, their indices and side.json of the shards at `root` into `out`; whole tars are kept.

    Args:
        indices: split → its index (`shards.stream.index.open_splits`).
        description: what decides the content, JSON; a tar is made again when it or the shards' tar changed.
        build: makes the maker, once per actor, or per task when `actors` is 0.
        given: tar name → bytes handed to the maker with that tar.
        actors: processes that hold a maker, with one GPU each where the cluster has them; 0: tasks.

    Raises:
        ConfigError: `out` holds shards, or archives of others.
        DataError: what the maker raises; a full disk.
    """
    root, out, description = place(root), place(out), json.loads(json.dumps(description))
    refuse_place(root, out)
    jobs = plan_side(indices, kind, description)
    claim(out, FILE)
    _write_tars(out, jobs, manifest.licence, indices, build, given or {}, actors)
    side = write_sealed(out / FILE, _manifest(out, jobs, kind, manifest, description, warnings or {}))
    release(out, FILE, (job.name for job in jobs))
    return side


def refuse_place(root: Place, out: Place) -> None:
    """ConfigError where no side of the shards at `root` can be written: at shards, or at what others put there."""
    if out == root or SHARDS_FILE in names_in(out):
        raise ConfigError(f"{out} holds shards: a side needs a place of its own, such as {root / 'side' / 'NAME'}")
    refuse_foreign(out, FILE, "are no side")


def _write_tars(
    out: Place,
    jobs: list[SideJob],
    licence: str,
    indices: Mapping[str, Studies],
    build: Callable[[], Maker],
    given: Mapping[str, bytes],
    actors: int,
) -> None:
    """One task a tar, or as many actors as are asked for, each with a maker that it keeps."""
    refs, where = {split: ray.put(index) for split, index in indices.items()}, str(out)

    def write(row: dict, make: Maker | None = None) -> dict:
        with fence(licence):
            job = SideJob.model_validate_json(row["job"])
            # A tar that is whole needs no maker, so that it is built where the first study is made.
            maker = make or (lambda index, rows, given: build()(index, rows, given))
            _, why = write_side_tar(place(where), job, ray.get(refs[job.split]), maker, row["given"])
            return {"name": job.name, "why": why}

    class Writer:
        """A process that keeps its maker."""

        def __init__(self) -> None:
            with fence(licence):
                self.make = build()

        def __call__(self, row: dict) -> dict:
            return write(row, self.make)

    rows = [{"job": job.model_dump_json(), "given": given.get(job.name, b"")} for job in jobs]
    dataset: ray.data.Dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    if actors:
        pool = ray.data.ActorPoolStrategy(size=actors)
        dataset = dataset.map(Writer, compute=pool, num_gpus=int(gpus_for(actors) > 0))  # type: ignore[arg-type]  # a class is documented
    else:
        dataset = dataset.map(write)
    tell({row["name"]: row["why"] for row in run_tasks(dataset, len(jobs))})


def plan_side(indices: Mapping[str, Studies], kind: str, description: dict) -> list[SideJob]:
    """One job for every tar of the shards."""
    jobs = []
    for split, index in indices.items():
        for number, name in enumerate(index.tars):
            rows = index.rows_of(number)
            content = json.dumps([FORMAT, kind, description, name, index.stamps[number]], sort_keys=True)
            recipe = hashlib.sha256(content.encode()).hexdigest()
            jobs.append(SideJob(name=name, split=split, recipe=recipe, first=rows.start, end=rows.stop))
    return jobs


def write_side_tar(out: Place, job: SideJob, index: Studies, make: Maker, given: bytes = b"") -> tuple[TarIndex, str]:
    """Write one side tar and its index, unless both are there, fit, and miss no study that could not be read.

    Returns the index, and why a tar that was there was written again; "" where none was.
    """

    def studies() -> Iterator[Made]:
        rows = range(job.first, job.end)
        for row, made in zip(rows, make(index, rows, given), strict=True):
            yield replace(made, key=index.keys[row].decode())

    there, why = standing(out / job.name, job.recipe)
    if there and not why and all(entry.cause != UNREAD for entry in there.studies):
        return there, ""
    return write_tar(out, job, studies), why or (DROPS if there else "")


def _manifest(
    out: Place, jobs: list[SideJob], kind: str, manifest: Manifest, description: dict, warnings: dict
) -> SideManifest:
    """side.json from the indices, one in memory at a time."""
    suffix, tars = KINDS[kind].suffix, []
    without, totals, largest = Counter[str](), Counter[str](), dict[str, int]()
    for job in jobs:
        index, tar = described(out, job.name)
        tars.append(SideTar(held=sum(suffix in entry.members for entry in index.studies), **tar))
        without.update(entry.cause for entry in index.studies if suffix not in entry.members)
        totals.update(index.totals)
        largest |= {name: max(size, largest.get(name, 0)) for name, size in index.largest.items()}
    if (given := sum(count.studies for count in manifest.splits.values())) != sum(tar.studies for tar in tars):
        raise DataError(f"the shards hold {given} studies and the side at {out} lists another number: write it again")
    return SideManifest(
        kind=kind, parent=manifest.fingerprint, licence=manifest.licence, description=description,
        shards=tuple(tars), without=dict(sorted(without.items())), totals=dict(sorted(totals.items())),
        largest=dict(sorted(largest.items())), warnings=warnings,
    )  # fmt: skip
