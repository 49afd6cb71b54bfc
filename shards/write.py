"""Raw dataset → shards: one Ray Data task per tar, the same bytes whatever runs beside what.

Shard i of a split holds items [i*S, (i+1)*S). It is written under a temporary name, renamed when whole, and its index
is written last: a tar whose index fits is not written again, so a run that broke off is resumed by running it again.
"""

import dataclasses
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import ray.data
from ray.exceptions import RayTaskError

from shards.clean import VERSIONS, clean
from shards.errors import ConfigError, DataError
from shards.fill import Job, OnBad, Settings, write_tar
from shards.manifest import FILE, Drop, Manifest, Shard, SplitCount, write_atomic, write_manifest
from shards.shard_index import VERSION, Entry, ShardIndex, index_path, read_shard_index
from shards.sources import Item, Source
from shards.study import SPLITS, key_of

UNFINISHED = ".writing"
"""Present while shards are being written; tells our unfinished tars from tars that others put there."""
NAME = re.compile(rf"({'|'.join(SPLITS)})-\d{{5}}\.(tar|index\.json)")


def write_shards(
    source: Source,
    out: Path,
    size: int = 512,
    quality: int = 95,
    studies_per_shard: int = 512,
    cleaning: str | None = None,
    on_bad: OnBad = "skip",
) -> Manifest:
    """Write the shards, their indices and the manifest of `source` into `out`; tars that are whole are kept.

    `size` is the short side of the stored films in pixels, aspect kept; smaller films are not enlarged. `cleaning`
    names the rule that makes targets, by default the source's. Under on_bad="skip" an unusable study becomes a `Drop`.

    Raises:
        ConfigError: unknown cleaning, sizes that cannot be, or `out` holding archives of others.
        DataError: no studies, no training studies, an id in two splits; under on_bad="fail" the first unusable study;
            a full disk.
    """
    out, cleaning = Path(out), cleaning or source.cleaning
    if size < 32 or not 1 <= quality <= 100 or studies_per_shard < 1 or on_bad not in ("skip", "fail"):
        raise ConfigError(
            f"shards with {size=} {quality=} {studies_per_shard=} {on_bad=}: size must be at least 32 px, quality 1 to "
            "100, studies_per_shard at least 1, on_bad skip or fail"
        )
    clean(cleaning, "")
    items = source.items()
    if on_bad == "fail" and source.drops:
        first = source.drops[0]
        raise DataError(f"study {first.id!r} of split {first.split}: {first.reason}: {first.detail}")
    refuse_listing(source.name, items)
    settings = Settings(out=str(out.resolve()), cleaning=cleaning, size=size, quality=quality, on_bad=on_bad)
    jobs = plan_tars(items, studies_per_shard, recipe_of(source, settings))
    _claim(out)
    _run(source, settings, jobs)
    manifest = _manifest(source, settings, [read_shard_index(index_path(out / job.name)) for job in jobs])
    _check_count(manifest, items, source.drops)
    manifest = write_manifest(out, manifest)
    _release(out, {job.name for job in jobs})
    return manifest


def refuse_listing(source: str, items: list[Item]) -> None:
    """DataError when the listing as a whole cannot become shards: nothing, no training split, a name used twice."""
    if not items:
        raise DataError(f"{source} lists no usable study: there is nothing to write. Check the raw dataset's path")
    if not any(item.split == "train" for item in items):
        raise DataError(
            f"{source} lists {len(items)} studies and none in split 'train': a run on it would train nothing"
        )
    places: dict[str, tuple[str, str]] = {}
    for number, item in enumerate(items):
        key, place = key_of(item.id), f"{item.split} entry {item.payload.get('row', number)}"
        if key in places:
            other, before = places[key]
            what = f"id {item.id!r} is" if other == item.id else f"ids {other!r} and {item.id!r} become one shard key,"
            raise DataError(
                f"{source}: {what} listed twice, as {before} and as {place}: a study of one split must not be in "
                "another. Remove one of the two from the raw listing"
            )
        places[key] = item.id, place


def recipe_of(source: Source, settings: Settings) -> str:
    """Text of all but the items that decides a tar's bytes. Paths are left out: moving raw data changes nothing."""
    fields: Iterable[dataclasses.Field] = dataclasses.fields(source) if dataclasses.is_dataclass(source) else ()
    options = {field.name: getattr(source, field.name) for field in fields if field.init}
    content = {name: value for name, value in options.items() if not isinstance(value, Path)}
    rule = settings.cleaning, VERSIONS.get(settings.cleaning), settings.size, settings.quality
    return json.dumps([VERSION, source.name, content, rule], sort_keys=True, default=str)


def plan_tars(items: list[Item], studies_per_shard: int, recipe: str) -> list[Job]:
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


def _claim(out: Path) -> None:
    """Make `out` ours: refuse archives of others, take the old manifest away, sweep what a broken run left."""
    out.mkdir(parents=True, exist_ok=True)
    ours = (out / FILE).is_file() or (out / UNFINISHED).is_file()
    if not ours and (tars := sorted(path.name for path in out.glob("*.tar"))):
        shown = ", ".join(tars[:3])
        raise ConfigError(f"{out} holds archives that were not written here ({shown}): choose another directory")
    write_atomic(out / UNFINISHED, b"")
    (out / FILE).unlink(missing_ok=True)
    for part in out.glob(".*.tmp"):
        part.unlink(missing_ok=True)


def _release(out: Path, names: set[str]) -> None:
    """Remove tars of an earlier, longer listing, then the mark of an unfinished run."""
    keep = names | {index_path(Path(name)).name for name in names}
    for path in out.iterdir():
        if NAME.fullmatch(path.name) and path.name not in keep:
            path.unlink()
    (out / UNFINISHED).unlink(missing_ok=True)


def _run(source: Source, settings: Settings, jobs: list[Job]) -> None:
    def write(row: dict) -> dict:
        job = Job.model_validate_json(row["job"])
        return {"name": job.name, "studies": len(write_tar(source, settings, job).studies)}

    rows = [{"job": job.model_dump_json()} for job in jobs]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(write)
    dataset.context.raise_original_map_exception = True
    dataset.context.enable_progress_bars = False
    try:
        dataset.take_all()
    except RayTaskError as error:
        if isinstance(error.cause, ConfigError | DataError):
            raise error.cause from None
        raise


def _manifest(source: Source, settings: Settings, indices: list[ShardIndex]) -> Manifest:
    warnings: defaultdict[str, list[str]] = defaultdict(list)
    for index in indices:
        for reason, ids in index.warnings.items():
            warnings[reason] += ids
    return Manifest(
        source=source.name,
        licence=source.licence,
        cleaning=settings.cleaning,
        size_px=settings.size,
        quality=settings.quality,
        splits={split: _count(entry for i in indices if i.split == split for entry in i.studies) for split in SPLITS},
        shards=tuple(_shard(index) for index in indices),
        drops=(*source.drops, *(drop for index in indices for drop in index.drops)),
        warnings={reason: tuple(ids) for reason, ids in warnings.items()},
    )


def _shard(index: ShardIndex) -> Shard:
    return Shard(
        name=index.name,
        split=index.split,
        studies=len(index.studies),
        images=_films(index.studies),
        bytes=index.bytes,
        sha256=index.sha256,
    )


def _films(entries: Iterable[Entry]) -> int:
    return sum(len(entry.members) - 1 for entry in entries)


def _count(entries: Iterable[Entry]) -> SplitCount:
    entries = list(entries)
    patients = {entry.patient for entry in entries if entry.patient}
    return SplitCount(studies=len(entries), images=_films(entries), patients=len(patients))


def _check_count(manifest: Manifest, items: list[Item], listed_drops: list[Drop]) -> None:
    if manifest.given != len(items) + len(listed_drops):
        raise DataError(
            f"{len(items)} studies and {len(listed_drops)} drops were listed, but used + dropped is {manifest.given}: "
            "a study was lost. Remove the shards and write them again"
        )
    if not manifest.splits["train"].studies:
        raise DataError(
            f"every study of split 'train' was dropped: {manifest.drop_counts()}. Nothing is left to train on"
        )
