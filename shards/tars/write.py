"""Raw dataset → shards: one Ray Data task per tar, the same bytes whatever runs beside what.

Shard i of a split holds items [i*S, (i+1)*S). It appears whole or not at all, and its index is written last: a tar
whose index fits is not written again, so a run that broke off at any moment is resumed by running it again. The driver
holds the listing and one index at a time, never the studies.
"""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import ray.data

from shards.clean import VERSIONS, clean
from shards.errors import ConfigError, DataError, OnBad
from shards.privacy import Names, fence
from shards.sources import Item, Listing, Source
from shards.sources.split import patients_in_two_splits
from shards.study import SPLITS, Drop
from shards.tars.directory import claim, refuse_foreign, release, run_tasks
from shards.tars.fill import Job, Settings, private_drop, shown_drop, stopped, write_tar
from shards.tars.manifest import FILE, Manifest, write_manifest
from shards.tars.place import Place, place
from shards.tars.private import begin_names, write_private_lines
from shards.tars.shard_index import VERSION, index_path
from shards.tars.tally import FILM_IN_TWO_SPLITS, PATIENT_IN_TWO_SPLITS, Tally

UNFINISHED = ".writing"
"""Present while shards are being written; tells our unfinished tars from tars that others put there."""
LISTING = "listing.jsonl"
TASK_CPUS = 0.5
"""Two tars per core: while one is flushed to the disk, or its end not yet seen by the executor, the other is filled."""
Overlap = Literal["fail", "report"]
SHOWN = 5


def write_shards(
    source: Source,
    out: str | Place,
    size: int = 512,
    quality: int = 95,
    studies_per_shard: int = 512,
    cleaning: str | None = None,
    on_bad: OnBad = "skip",
    overlap: Overlap = "fail",
) -> Manifest:
    """Write the shards, their indices and the manifest of `source` into `out`; tars that are whole are kept.

    `out` is a directory or an fsspec URL. `size` is the short side of the stored films in pixels, aspect kept; smaller
    films are not enlarged. `cleaning` names the rule that makes targets, by default the source's. Under on_bad="skip"
    an unusable study becomes a `Drop`. A patient in two splits is an error; overlap="report" writes the shards all the
    same and names the patients in the manifest's warnings.

    Raises:
        ConfigError: unknown cleaning, sizes that cannot be, or `out` holding archives of others.
        DataError: no studies, no training studies, an id or a patient in two splits; under on_bad="fail" the first
            unusable study; a full disk.
    """
    out, cleaning = place(out), cleaning or source.cleaning
    _check_settings(size, quality, studies_per_shard, on_bad, overlap)
    clean(cleaning, "")
    listing = source.listing()
    items = listing.items
    refuse_foreign(out, FILE, UNFINISHED, "were not written here")
    names = begin_names(out, source.licence)
    if on_bad == "fail" and listing.drops:
        raise stopped(out, names, listing.drops[0], "in the listing")
    refuse_listing(source.name, items, names, listing.drops)
    shared = shared_patients(source.name, items, names, overlap)
    settings = Settings(out=str(out), cleaning=cleaning, size=size, quality=quality, on_bad=on_bad)
    jobs = plan_tars(items, studies_per_shard, recipe_of(source, settings, names))
    claim(out, FILE, UNFINISHED)
    if names.salt:
        write_private_lines(out, LISTING, (private_drop(names, drop) for drop in listing.drops))
    _run(source, settings, jobs, names)
    manifest = _manifest(source, settings, jobs, names, shared, listing)
    _check_count(manifest, items, len(listing.drops))
    manifest = write_manifest(out, manifest)
    release(out, (job.name for job in jobs), UNFINISHED)
    return manifest


def _check_settings(size: int, quality: int, studies_per_shard: int, on_bad: str, overlap: str) -> None:
    choices = on_bad in ("skip", "fail") and overlap in ("fail", "report")
    if size < 32 or not 1 <= quality <= 100 or studies_per_shard < 1 or not choices:
        raise ConfigError(
            f"shards with {size=} {quality=} {studies_per_shard=} {on_bad=} {overlap=}: size must be at least 32 px, "
            "quality 1 to 100, studies_per_shard at least 1, on_bad skip or fail, overlap fail or report"
        )


def refuse_listing(source: str, items: Sequence[Item], names: Names = Names(), drops: Sequence[Drop] = ()) -> None:  # noqa: B008
    """DataError when the listing as a whole cannot become shards: nothing, no training split, a name used twice."""
    if not items:
        reasons = Counter(drop.reason for drop in drops).most_common(3)
        why = "; ".join(f"{reason} ({count:,})" for reason, count in reasons) or "it names no study at all"
        raise DataError(f"{source} lists no usable study, so there is nothing to write: {why}")
    if not any(item.split == "train" for item in items):
        raise DataError(
            f"{source} lists {len(items)} studies and none in split 'train': a run on it would train nothing"
        )
    places: dict[str, int] = {}
    for number, item in enumerate(items):
        if (before := places.setdefault(names.key(item.id), number)) != number:
            one, two, shown = items[before], item, names.id(item.id)
            same = one.id == two.id
            what = f"id {shown!r} is" if same else f"ids {names.id(one.id)!r} and {shown!r} become one shard key,"
            raise DataError(
                f"{source}: {what} listed twice, as {_place(one, before)} and as {_place(two, number)}: a study of one "
                "split must not be in another. Remove one of the two from the raw listing"
            )


def _place(item: Item, number: int) -> str:
    return f"{item.split} entry {item.payload.get('row', number)}"


def shared_patients(source: str, items: Sequence[Item], names: Names, overlap: Overlap) -> tuple[str, ...]:
    """Patients listed in more than one split, as "patient: splits"; DataError under overlap="fail" if there are any."""
    found = patients_in_two_splits((item.patient, item.split) for item in items if item.patient)
    shown = tuple(sorted(f"{names.patient(patient)}: {', '.join(splits)}" for patient, splits in found.items()))
    if shown and overlap == "fail":
        some = "; ".join(shown[:SHOWN]) + (", ..." if len(shown) > SHOWN else "")
        raise DataError(
            f"{source}: {len(shown)} patients are in more than one split ({some}): a model tested on them has seen "
            "them. Choose a patient-disjoint split, or say --overlap report to write the shards all the same, which "
            "the manifest then states"
        )
    return shown


def recipe_of(source: Source, settings: Settings, names: Names = Names()) -> str:  # noqa: B008
    """Text of all but the items that decides a tar's bytes. Paths are left out: moving raw data changes nothing."""
    fields: Iterable[dataclasses.Field] = dataclasses.fields(source) if dataclasses.is_dataclass(source) else ()
    options = {field.name: getattr(source, field.name) for field in fields if field.init}
    if isinstance(source, Source):
        options = {name: getattr(source, name) for name in type(source).model_fields}
    content = {name: value for name, value in options.items() if not isinstance(value, Path)}
    rule = settings.cleaning, VERSIONS.get(settings.cleaning), settings.size, settings.quality, names.digest
    return json.dumps([VERSION, source.name, content, rule], sort_keys=True, default=str)


def plan_tars(items: Sequence[Item], studies_per_shard: int, recipe: str) -> list[Job]:
    """The tars of every split: item i of a split goes to tar i // studies_per_shard."""
    jobs = []
    for split in SPLITS:
        mine = [item for item in items if item.split == split]
        for number, at in enumerate(range(0, len(mine), studies_per_shard)):
            part = tuple(mine[at : at + studies_per_shard])
            digest = hashlib.sha256(recipe.encode())
            for item in part:
                digest.update(item.model_dump_json().encode())
            jobs.append(Job(name=f"{split}-{number:05d}.tar", split=split, recipe=digest.hexdigest(), items=part))
    return jobs


def _run(source: Source, settings: Settings, jobs: list[Job], names: Names) -> None:
    def write(row: dict) -> dict:
        with fence(source.licence):
            job = Job.model_validate_json(row["job"])
            return {"name": job.name, "studies": len(write_tar(source, settings, job, names).studies)}

    rows = [{"job": job.model_dump_json()} for job in jobs]
    run_tasks(ray.data.from_items(rows, override_num_blocks=len(rows)).map(write, num_cpus=TASK_CPUS), len(jobs))


def _manifest(
    source: Source, settings: Settings, jobs: list[Job], names: Names, shared: tuple[str, ...], listing: Listing
) -> Manifest:
    tally = Tally()
    for job in jobs:
        tally.add(index_path(place(settings.out) / job.name))
    suspicious = {PATIENT_IN_TWO_SPLITS: shared, FILM_IN_TWO_SPLITS: tuple(tally.twins)}
    return Manifest(
        source=source.name,
        licence=source.licence,
        cleaning=settings.cleaning,
        size_px=settings.size,
        quality=settings.quality,
        splits=tally.splits(),
        shards=tuple(tally.shards),
        drops=(*(shown_drop(names, drop) for drop in listing.drops), *tally.drops),
        warnings=tally.warnings() | {what: found for what, found in suspicious.items() if found},
        notes=tuple(listing.notes),
        published=listing.published,
    )


def _check_count(manifest: Manifest, items: Sequence[Item], listed_drops: int) -> None:
    if manifest.given != len(items) + listed_drops:
        raise DataError(
            f"{len(items)} studies and {listed_drops} drops were listed, but used + dropped is {manifest.given}: "
            "a study was lost. Remove the shards and write them again"
        )
    if not manifest.splits["train"].studies:
        raise DataError(
            f"every study of split 'train' was dropped: {manifest.drop_counts()}. Nothing is left to train on"
        )
