"""One tar: studies read, checked and encoded by a worker, written under a temporary name and renamed when whole."""

import errno
import io
import os
import shutil
import tarfile
import unicodedata
from collections import defaultdict
from pathlib import Path
from typing import Literal

import numpy as np

from shards.clean import clean
from shards.decode import encode, shrink
from shards.errors import DataError
from shards.manifest import BadStudy, Drop, sha256_of, write_atomic
from shards.shard_index import Entry, ShardIndex, index_path, read_shard_index
from shards.sources import Item, Source
from shards.study import Record, Study

OnBad = Literal["skip", "fail"]
KEPT_CONTROLS = "\n\r\t"
CONTROLS_REMOVED = "control characters removed"


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


def write_tar(source: Source, settings: Settings, job: Job) -> ShardIndex:
    """Write one tar and its index, unless both are there and fit; DataError when the disk is full."""
    path = Path(settings.out) / job.name
    if (kept := _whole(path, job, settings.on_bad)) is not None:
        return kept
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        index_path(path).unlink(missing_ok=True)
        index = _fill(source, settings, job, part)
        os.replace(part, path)
        write_atomic(index_path(path), index.model_dump_json().encode())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(f"{path} cannot be written: {error.strerror or error}") from error
        free = shutil.disk_usage(path.parent).free
        raise DataError(
            f"no space left for {path} ({free:,} bytes free): free some or choose another directory, then run the same "
            "command again. Whole shards are kept"
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return index


def _whole(path: Path, job: Job, on_bad: OnBad) -> ShardIndex | None:
    if not (path.is_file() and index_path(path).is_file()):
        return None
    try:
        index = read_shard_index(index_path(path))
    except DataError:
        return None
    fits = index.recipe == job.recipe and index.bytes == path.stat().st_size and index.sha256 == sha256_of(path)
    return index if fits and not (index.drops and on_bad == "fail") else None


def _fill(source: Source, settings: Settings, job: Job, part: Path) -> ShardIndex:
    studies: list[Entry] = []
    drops: list[Drop] = []
    warnings: defaultdict[str, list[str]] = defaultdict(list)
    with open(part, "wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for item in job.items:
                try:
                    study, films, repaired = prepare(source, item, settings)
                except DataError as error:
                    if settings.on_bad == "fail":
                        raise DataError(f"study {item.id!r} of split {item.split}: {error}") from error
                    drops.append(drop_of(item, error))
                    continue
                studies.append(_add(tar, study, films))
                if repaired:
                    warnings[CONTROLS_REMOVED].append(item.id)
        file.flush()
        os.fsync(file.fileno())
    return ShardIndex(
        name=job.name,
        split=job.split,
        recipe=job.recipe,
        sha256=sha256_of(part),
        bytes=part.stat().st_size,
        studies=tuple(studies),
        drops=tuple(drops),
        warnings={reason: tuple(ids) for reason, ids in warnings.items()},
    )


def drop_of(item: Item, error: DataError) -> Drop:
    """The drop that says why `item` is not in the shards."""
    reason, file = getattr(error, "reason", "study cannot be read"), getattr(error, "file", "")
    return Drop(id=item.id, reason=reason, detail=getattr(error, "detail", str(error)), split=item.split, file=file)


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
    return "".join(c for c in text if c in KEPT_CONTROLS or unicodedata.category(c) != "Cc")


def is_blank(text: str) -> bool:
    """Whether nothing but white space, zero-width and control characters is there."""
    return all(c.isspace() or unicodedata.category(c) in ("Cc", "Cf") for c in text)


def _add(tar: tarfile.TarFile, study: Study, films: list[bytes]) -> Entry:
    members = {f"{view}.jpg": film for view, film in enumerate(films)}
    members["json"] = study.model_dump_json().encode()
    spans = {}
    for name, data in members.items():
        info = tarfile.TarInfo(f"{study.key}.{name}")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
        spans[name] = tar.offset - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE, len(data)
    return Entry(key=study.key, id=study.id, patient=study.patient, members=spans)
