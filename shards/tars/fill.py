"""One tar: studies read, checked and encoded by a worker, written so that it appears whole or not at all."""

import hashlib
import io
import tarfile
import unicodedata
import zlib
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from shards.clean import clean
from shards.errors import DataError, OnBad
from shards.films.stored import encode, shrink
from shards.privacy import Names
from shards.sources import Item, Source
from shards.study import BadStudy, Drop, Record, Study
from shards.tars.directory import is_whole, unwritable
from shards.tars.place import HashingFile, Place, create, place, write_atomic
from shards.tars.private import write_private_lines
from shards.tars.shard_index import Entry, ShardIndex, index_path, read_shard_index

KEPT_CONTROLS = "\n\r\t"
CONTROLS_REMOVED = "control characters removed"
STOPPED = "stopped.jsonl"


class Job(Record):
    """One tar to write."""

    name: str
    split: str
    recipe: str
    items: tuple[Item, ...]


class Settings(Record):
    """What all tars of a run share."""

    out: str
    cleaning: str
    size: int
    quality: int
    on_bad: OnBad


@dataclass
class Filling:
    """What becomes known while a tar is filled."""

    studies: list[Entry] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)
    warnings: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    private: list[dict] = field(default_factory=list)
    """Lines for private/: the owner's names of what is in the tar and what was dropped."""


def write_tar(source: Source, settings: Settings, job: Job, names: Names = Names()) -> ShardIndex:  # noqa: B008
    """Write one tar and its index, unless both are there and fit; DataError when the disk is full."""
    path = place(settings.out) / job.name
    if (kept := _whole(path, job, settings.on_bad)) is not None:
        return kept
    filling = Filling()
    try:
        index_path(path).unlink(missing_ok=True)
        with create(path) as file:
            _fill(source, settings, job, names, file, filling)
        if names.salt:
            write_private_lines(path.parent, f"{path.stem}.jsonl", filling.private)
        index = _index(job, file, filling)
        write_atomic(index_path(path), index.model_dump_json().encode())
    except OSError as error:
        raise unwritable(path, error) from error
    return index


def _index(job: Job, file: HashingFile, filling: Filling) -> ShardIndex:
    return ShardIndex(
        name=job.name,
        split=job.split,
        recipe=job.recipe,
        sha256=file.sha256,
        bytes=file.size,
        studies=tuple(filling.studies),
        drops=tuple(filling.drops),
        warnings={reason: tuple(ids) for reason, ids in filling.warnings.items()},
    )


def _whole(path: Place, job: Job, on_bad: OnBad) -> ShardIndex | None:
    try:
        index = read_shard_index(index_path(path))
    except DataError:
        return None
    if index.drops and on_bad == "fail":
        return None
    return index if is_whole(path, index, job.recipe) else None


def _fill(source: Source, settings: Settings, job: Job, names: Names, file: HashingFile, filling: Filling) -> None:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:  # type: ignore[call-overload]
        for item in job.items:
            try:
                study, films, repaired = prepare(source, item, settings)
            except DataError as error:
                drop = drop_of(item, error)
                if settings.on_bad == "fail":
                    cause = None if names.salt else error
                    raise stopped(place(settings.out), names, drop, job.name) from cause
                filling.drops.append(shown_drop(names, drop))
                filling.private.append(private_drop(names, drop))
                continue
            filling.studies.append(_add(tar, names.study(study), films))
            filling.private.append({"key": names.key(item.id), "id": item.id, "patient": study.patient})
            if repaired:
                filling.warnings[CONTROLS_REMOVED].append(names.id(item.id))


def drop_of(item: Item, error: DataError) -> Drop:
    """The drop that says why `item` is not in the shards."""
    bad = error if isinstance(error, BadStudy) else BadStudy("study cannot be read", str(error))
    return bad.drop(item.id, item.split)


def shown_drop(names: Names, drop: Drop) -> Drop:
    """The drop as the manifest shows it: for credentialed data under a salted name, its details in private/."""
    if not names.salt:
        return drop
    return Drop(id=names.key(drop.id), reason=drop.reason, detail="see private/", split=drop.split)


def private_drop(names: Names, drop: Drop) -> dict:
    """The line of private/ that tells what `shown_drop` withholds."""
    return {"key": names.key(drop.id), **drop.model_dump()}


def stopped(out: Place, names: Names, drop: Drop, where: str) -> DataError:
    """The error that ends a run under on_bad="fail"; for credentialed data its details go to private/ only."""
    if not names.salt:
        return DataError(f"study {drop.id!r} of split {drop.split}: {drop.reason}: {drop.detail}")
    write_private_lines(out, STOPPED, [private_drop(names, drop)])
    return DataError(
        f"study {names.key(drop.id)} of split {drop.split} ({where}): {drop.reason}. private/{STOPPED} below the "
        "shards says which film or report that is"
    )


def prepare(source: Source, item: Item, settings: Settings) -> tuple[Study, list[bytes], bool]:
    """Read one study: its record with the target filled in, its films as JPEG, whether its text was repaired."""
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
    whole = Study.model_validate(study.model_dump() | {"report": report, "sections": sections, "target": target})
    stored = [encode(shrink(np.asarray(film), settings.size), settings.quality) for film in films]
    return whole, stored, report != study.report or sections != study.sections


def without_controls(text: str) -> str:
    """The text without control characters; line feeds, returns and tabs stay."""
    if text.isprintable():
        return text
    return "".join(c for c in text if c in KEPT_CONTROLS or unicodedata.category(c) != "Cc")


def is_blank(text: str) -> bool:
    """Whether nothing but white space, zero-width and control characters is there."""
    return all(c.isspace() or unicodedata.category(c) in ("Cc", "Cf") for c in text)


def _add(tar: tarfile.TarFile, study: Study, films: list[bytes]) -> Entry:
    members = {f"{view}.jpg": film for view, film in enumerate(films)}
    members["json"] = study.model_dump_json().encode()
    spans, crc = {}, 0
    for name, data in members.items():
        spans[name] = add_member(tar, f"{study.key}.{name}", data), len(data)
        crc = zlib.crc32(data, crc)
    digests = tuple(hashlib.sha256(film).hexdigest()[:16] for film in films)
    return Entry(key=study.key, id=study.id, patient=study.patient, members=spans, crc32=crc, films=digests)


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a file to an archive; returns the offset of its content."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
    return tar.offset - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
