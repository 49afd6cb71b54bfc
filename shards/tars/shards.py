"""Raw dataset → shards: films and records in tars, their indices, manifest.json.

A split is put into an order that says nothing of patients (`mixed`); shard i holds its items [i*S, (i+1)*S). The driver
holds the listing and one index at a time, never the studies.
"""

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray.data
from pydantic import Field, ValidationError
from pydantic_core import PydanticSerializationError

from shards.clean import VERSIONS, clean
from shards.errors import ConfigError, DataError, OnBad
from shards.films.raw import DECODING, enough
from shards.films.stored import encode, shrink
from shards.privacy import Names, fence
from shards.sources import Item, Listing, Source
from shards.sources.split import Overlap, refuse_listing, shared_patients
from shards.study import MAX_RECORD_BYTES, SPLITS, BadStudy, Drop, Record, Study, View, refuse_bomb
from shards.tars.format import (
    DROPS_FILE,
    FORMAT,
    MAX_MEMBERS,
    MAX_STUDY_BYTES,
    QUALITY,
    RECORD,
    SHARDS_FILE,
    SIZE,
    WARNINGS_FILE,
    Manifest,
    Remark,
    Shard,
    Tally,
    TarIndex,
    counted,
    described,
    write_manifest,
    write_named,
)
from shards.tars.place import Place, names_in, place, read_at, size_of
from shards.tars.private import begin_names, begun_at, forget, private_line, write_private_lines
from shards.tars.repair import Question, Verdict, looks_of, raw_lines, tell, verdict_of, verdicts
from shards.tars.write import Job, Made, claim, refuse_foreign, release, run_tasks, write_tar

LISTING, STOPPED = "listing.jsonl", "stopped.jsonl"
"""Files of private/: drops while listing; the study that ended a run under on_bad="fail"."""
ORDER = "mixed-1"
"""Name of the order of studies and of a study's films in shards, in all that is made from it."""
TASK_CPUS = 0.5
"""Two tars per core: while one is flushed to the disk, or its end not yet seen by the executor, the other is filled."""
PATIENT_IN_TWO_SPLITS = "patient in two splits"
FILM_IN_TWO_SPLITS = "film in two splits"
CONTROLS_REMOVED = "control characters removed"
LONG_WORDS = 500
"""Words of a target above which it is named."""
LONG_TARGET = f"target has more than {LONG_WORDS} words"
NOT_UNICODE = "text is not Unicode"
KEPT_CONTROLS = "\n\r\t"


class Settings(Record):
    """What all tars of a run share."""

    out: str
    cleaning: str
    """Name in `shards.clean.CLEANINGS`."""
    size: int = Field(SIZE, ge=32)
    """Short side of the stored films, px, aspect kept; smaller films are not enlarged."""
    quality: int = Field(QUALITY, ge=1, le=100)
    """JPEG quality of the stored films."""
    studies_per_shard: int = Field(512, ge=1, le=50_000)
    on_bad: OnBad = "skip"
    """An unusable study becomes a `Drop`, or ends the run."""
    overlap: Overlap = "fail"


class ShardJob(Job):
    """One shard to write."""

    items: tuple[Item, ...]
    stored: tuple[str, ...] = ()
    """`Verdict.stored`."""

    def question(self) -> Question:
        """What is asked before it is written."""
        return Question(name=self.name, recipe=self.recipe, items=self.items)

    def answered(self, verdict: Verdict) -> "ShardJob":
        """The same, which knows what may not be lost when it is written."""
        return self.model_copy(update={"stored": verdict.stored})


def write_shards(
    source: Source,
    out: str | Place,
    size: int = SIZE,
    quality: int = QUALITY,
    studies_per_shard: int = 512,
    cleaning: str | None = None,
    on_bad: OnBad = "skip",
    overlap: Overlap = "fail",
    replace: bool = False,
) -> Manifest:
    """Write the shards, their indices and the manifest of `source` into `out`; tars that are whole are kept.

    `out` is a directory or an fsspec URL. `cleaning` names the rule that makes targets, by default the source's.
    `replace`: shards that are there and were asked for otherwise may go. The other arguments are those of `Settings`.

    Raises:
        ConfigError: unknown cleaning, sizes that cannot be, or `out` holding archives of others, or other shards.
        DataError: no studies, no training studies, an id or a patient in two splits; studies that `out` holds and that
            would be lost; under on_bad="fail" the first unusable study; a full disk.
    """
    out, cleaning = place(out), cleaning or source.usual_cleaning
    try:
        settings = Settings(
            out=str(out), cleaning=cleaning, size=size, quality=quality, studies_per_shard=studies_per_shard,
            on_bad=on_bad, overlap=overlap,
        )  # fmt: skip
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}={e['input']!r}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"shards cannot be written with {faults}") from None
    clean(cleaning, "")
    refuse_foreign(out, SHARDS_FILE, "were not written here")
    if not replace:
        refuse_other(out, asked_of(source, settings))
    listing = writable(source.listing())
    names = begin_names(out, source.licence)
    if on_bad == "fail" and listing.drops:
        raise _stop(out, names, listing.drops[0], "in the listing")
    refuse_listing(source.name, listing.items, names, listing.drops)
    shared = shared_patients(source.name, listing.items, names, overlap)

    def judge(asked: Question) -> Verdict:
        with fence(source.licence):
            now = looks_of(source, asked.items, names)
            return verdict_of(out / asked.name, asked, now, lambda index: on_bad == "skip" or not index.drops)

    jobs = plan_shards(listing.items, studies_per_shard, recipe_of(source, settings, names), names)
    judged = verdicts(out, [job.question() for job in jobs], names, judge, replace)

    def write(row: dict) -> dict:
        with fence(source.licence):
            write_shard(source, settings, ShardJob.model_validate_json(row["job"]), names)
            return {"name": row["name"]}

    left = [job.answered(judged[job.name]) for job in jobs if not judged[job.name].keep]
    if rows := [{"name": job.name, "job": job.model_dump_json()} for job in left]:
        claim(out, SHARDS_FILE, json.dumps({"names": names.digest, "asked": asked_of(source, settings)}))
        run_tasks(ray.data.from_items(rows, override_num_blocks=len(rows)).map(write, num_cpus=TASK_CPUS), len(rows))
    tell({name: verdict.why for name, verdict in judged.items()})
    if names.salt:
        write_private_lines(out, LISTING, (private_line(names, drop) for drop in listing.drops))
        forget(out, (job.name for job in jobs))
    manifest = write_manifest(out, _manifest(source, settings, jobs, names, listing, shared))
    release(out, SHARDS_FILE, (job.name for job in jobs))
    return manifest


def writable(listing: Listing) -> Listing:
    """The listing, where an entry with half a surrogate pair, which no UTF-8 file can hold, is a drop."""
    items, drops = list[Item](), [_escaped(drop) for drop in listing.drops]
    for row, item in enumerate(listing.items):
        try:
            item.model_dump_json()
            items.append(item)
        except PydanticSerializationError:
            drops.append(_escaped(Drop(id=item.id, reason=NOT_UNICODE, detail=f"entry {row}", split=item.split)))
    return listing._replace(items=items, drops=drops)


def _escaped(drop: Drop) -> Drop:
    escaped = {name: text.encode("utf-8", "backslashreplace").decode() for name, text in dict(drop).items()}
    return drop if escaped == dict(drop) else Drop(**escaped)


def asked_of(source: Source, settings: Settings) -> dict[str, Any]:
    """`Manifest.asked`. Paths are left out: moving raw data does not change it."""
    options = {name: getattr(source, name) for name in type(source).model_fields}
    said = {f"{source.name} {name}": value for name, value in options.items() if not isinstance(value, Path)}
    said |= {"source": source.name} | settings.model_dump(include={"cleaning", "size", "quality", "studies_per_shard"})
    return json.loads(json.dumps(said, default=str))


def refuse_other(out: Place, asked: dict[str, Any]) -> None:
    """ConfigError when `out` holds studies, finished or not, that were asked for otherwise, or in another format."""
    there = begun_at(out)
    if there.get("format", FORMAT) != FORMAT:
        what = f"are of format {there['format']}, and {FORMAT} is written now"
    elif there.get("asked", asked) != asked and holds_studies(out):
        was = there["asked"]
        differing = sorted(name for name in was.keys() | asked.keys() if was.get(name) != asked.get(name))
        named = "; ".join(f"{name} was {was.get(name)}, is now {asked.get(name)}" for name in differing)
        what = f"were asked for otherwise: {named}"
    else:
        return
    raise ConfigError(
        f"the shards at {out} {what}. Say --replace to put the new ones in their place, or choose another directory"
    )


def holds_studies(out: Place) -> bool:
    """Whether a tar that is finished holds any: none does where every study was dropped."""
    indices = [out / name for name in names_in(out) if name.endswith(".index.json")]
    heads = (bytes(read_at(str(out), path.name, 0, min(1000, size_of(path)))) for path in indices)
    return any(b'"studies":[]' not in head for head in heads)


def recipe_of(source: Source, settings: Settings, names: Names = Names()) -> str:  # noqa: B008
    """Text of all but the items that decides a tar's bytes."""
    asked = {name: value for name, value in asked_of(source, settings).items() if name != "studies_per_shard"}
    versions = FORMAT, ORDER, DECODING, source.version, VERSIONS.get(settings.cleaning), names.digest
    return json.dumps([versions, asked], sort_keys=True)


def mixed(items: Iterable[Item], names: Names = Names()) -> list[Item]:  # noqa: B008
    """The items by the SHA-256 of their shard keys.

    Owners list studies by patient. Whoever reads a directory in its order, be it in chunks (`shards.stream.order`) or
    as plain WebDataset, would meet a patient's studies side by side, and in the first N studies few patients. A key of
    credentialed data is salted: its order tells nothing to who has the owner's names and not the salt.
    """
    return sorted(items, key=lambda item: hashlib.sha256(f"{ORDER}:{names.key(item.id)}".encode()).digest())


def plan_shards(items: Iterable[Item], studies_per_shard: int, recipe: str, names: Names = Names()) -> list[ShardJob]:  # noqa: B008
    """The shards of every split: the i-th of its `mixed` items goes to tar i // studies_per_shard."""
    jobs, items = [], mixed(items, names)
    for split in SPLITS:
        mine = [item for item in items if item.split == split]
        for number, at in enumerate(range(0, len(mine), studies_per_shard)):
            part = tuple(mine[at : at + studies_per_shard])
            digest = hashlib.sha256(recipe.encode())
            for item in part:
                digest.update(item.model_dump_json().encode())
            jobs.append(ShardJob(name=f"{split}-{number:05d}.tar", split=split, recipe=digest.hexdigest(), items=part))
    return jobs


def write_shard(source: Source, settings: Settings, job: ShardJob, names: Names = Names()) -> TarIndex:  # noqa: B008
    """Write one tar, its index, and how the raw files looked before they were read."""
    out, looks = place(settings.out), looks_of(source, job.items, names)

    def studies() -> Iterator[Made]:
        private = []
        for item in job.items:
            try:
                study, films, said = prepare(source, item, settings)
            except DataError as error:
                bad = error if isinstance(error, BadStudy) else BadStudy("study cannot be read", str(error))
                drop = _escaped(bad.drop(item.id, item.split))
                if (key := names.key(item.id)) in job.stored:
                    raise DataError(
                        f"study {key} is stored in {out} and cannot be made again: {bad.reason}. {job.name} stays as "
                        "it is: mend the raw files, or write to another place"
                    ) from (None if names.salt else error)
                if settings.on_bad == "fail":
                    raise _stop(out, names, drop, job.name) from (None if names.salt else error)
                private.append(private_line(names, drop))
                yield Made(drop=names.drop(drop))
                continue
            private.append({"key": names.key(item.id), "id": item.id, "patient": study.patient})
            shown = names.study(study)
            members = {f"{view}.jpg": film for view, film in enumerate(films)}
            members[RECORD] = shown.model_dump_json().encode()
            digests = tuple(hashlib.sha256(film).hexdigest()[:16] for film in films)
            facts = {"id": shown.id, "patient": shown.patient, "films": digests, "content": content_of(shown, digests)}
            yield Made(members, key=shown.key, facts=facts, said=said)
        if names.salt:
            write_private_lines(out, f"{job.name.removesuffix('.tar')}.jsonl", private)

    return write_tar(out, job, studies, raw_lines(looks))


def content_of(study: Study, films: Sequence[str]) -> str:
    """First 16 hex digits of the SHA-256 of a study without its names, its films by their digests."""
    record = study.model_dump(mode="json", exclude={"key", "id", "patient", "provenance", "views"})
    content = [record, [view.position for view in study.views], films]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def prepare(source: Source, item: Item, settings: Settings) -> tuple[Study, list[bytes], tuple[str, ...]]:
    """Read one study: its record with the target filled in, its films as JPEG, what is to be said of its text."""
    with enough(settings.size):
        study, films = source.read(item)
    if len(films) != len(study.views) or not films:
        raise BadStudy("films and views differ", f"{len(films)} films for {len(study.views)} views")
    report = without_controls(study.report)
    sections = {name: without_controls(text) for name, text in study.sections.items()}
    target = clean(settings.cleaning, report)
    if is_blank(report) or not any(letter.isalnum() for letter in target):
        raise BadStudy(
            "empty report", "white space or nothing" if is_blank(report) else f"nothing after {settings.cleaning}"
        )
    order = films_first(study.views)
    changed = {"report": report, "sections": sections, "target": target, "views": [study.views[i] for i in order]}
    whole = Study.model_validate(study.model_dump() | changed)
    try:
        refuse_bomb(whole.model_dump_json().encode())
    except PydanticSerializationError:
        raise BadStudy(NOT_UNICODE, "the report, or what else is known, holds half a surrogate pair") from None
    except ValueError as error:
        raise BadStudy("record is too large", str(error)) from None
    stored = [encode(shrink(np.asarray(films[i]), settings.size), settings.quality) for i in order]
    if (size := sum(map(len, stored))) > MAX_STUDY_BYTES - MAX_RECORD_BYTES or len(stored) >= MAX_MEMBERS:
        raise BadStudy("study is too large", f"{len(stored)} films of {size:,} bytes as stored")
    said = {
        CONTROLS_REMOVED: report != study.report or sections != study.sections,
        LONG_TARGET: len(target.split()) > LONG_WORDS,
    }
    return whole, stored, (*(what for what, so in said.items() if so), *source.remarks(study))


def films_first(views: Sequence[View]) -> list[int]:
    """Numbers of the films in the order in which they are stored: the first frontal, the first lateral, the others.

    So who reads two films of a study sees both sides of it, where it has them.
    """
    named = [view.position for view in views]
    first = [named.index(position) for position in ("frontal", "lateral") if position in named]
    return first + [number for number in range(len(views)) if number not in first]


def without_controls(text: str) -> str:
    """The text without control characters; line feeds, returns and tabs stay."""
    if text.isprintable():
        return text
    return "".join(c for c in text if c in KEPT_CONTROLS or unicodedata.category(c) != "Cc")


def is_blank(text: str) -> bool:
    """Whether nothing but white space, zero-width and control characters is there."""
    return all(c.isspace() or unicodedata.category(c) in ("Cc", "Cf") for c in text)


def _stop(out: Place, names: Names, drop: Drop, where: str) -> DataError:
    """The error that ends a run under on_bad="fail"; for credentialed data its details go to private/ only."""
    if not names.salt:
        return DataError(f"study {drop.id!r} of split {drop.split}: {drop.reason}: {drop.detail}")
    write_private_lines(out, STOPPED, [private_line(names, drop)])
    return DataError(
        f"study {names.key(drop.id)} of split {drop.split} ({where}): {drop.reason}. private/{STOPPED} below the "
        "shards says which film or report that is"
    )


def _manifest(
    source: Source, settings: Settings, jobs: list[ShardJob], names: Names, listing: Listing, shared: tuple[str, ...]
) -> Manifest:
    """The manifest from the indices, one in memory at a time; DataError when given is not used + dropped."""
    out, tally, shards = place(settings.out), Tally(), []
    for job in jobs:
        index, tar = described(out, job.name)
        shards.append(Shard(images=tally.add(index), **tar))
    drops = [*map(names.drop, listing.drops), *tally.drops]
    suspicious = {PATIENT_IN_TWO_SPLITS: shared, FILM_IN_TWO_SPLITS: tally.twins}
    remarks = [*tally.remarks, *(Remark(warning=what, of=one) for what, those in suspicious.items() for one in those)]
    write_named(out, DROPS_FILE, drops)
    write_named(out, WARNINGS_FILE, remarks)
    manifest = Manifest(
        source=source.name, licence=source.licence, cleaning=settings.cleaning, size_px=settings.size,
        quality=settings.quality, splits=tally.splits(), shards=tuple(shards), notes=tuple(listing.notes),
        drops=counted(drop.reason for drop in drops), warnings=counted(remark.warning for remark in remarks),
        names=names.digest, content=tally.content(), asked=asked_of(source, settings), published=listing.published,
    )  # fmt: skip
    if manifest.given != len(listing.items) + len(listing.drops):
        raise DataError(
            f"{len(listing.items)} studies and {len(listing.drops)} drops were listed, but used + dropped is "
            f"{manifest.given}: a study was lost. Remove the shards and write them again"
        )
    if not manifest.splits["train"].studies:
        why = "; ".join(f"{reason} ({count:,})" for reason, count in manifest.drops.items())
        raise DataError(
            f"every study of split 'train' was dropped: {why}. Nothing is left to train on; see {out / DROPS_FILE}"
        )
    return manifest
