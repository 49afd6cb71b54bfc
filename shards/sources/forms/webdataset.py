"""Shards that others wrote: WebDataset archives, whole samples wherever their members lie, the rest refused by name."""

import dataclasses
import json
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import BinaryIO, ClassVar

import numpy as np
from pydantic import ValidationError

from shards.errors import DataError, RetryableError, may_pass
from shards.films.raw import open_film
from shards.sources import Item, Listing, Source
from shards.sources.archive import BLOCK, Member, Walk, digest_of, walk_tar
from shards.sources.tables import shown_names
from shards.study import (
    KEY,
    MAX_RECORD_BYTES,
    SPLITS,
    BadStudy,
    Drop,
    Split,
    Study,
    View,
    key_of,
    refuse_bomb,
)

FILM = re.compile(r"(?:(\d{1,2})\.)?(?:jpe?g|png)")
PACKED = re.compile(r".*\.(tar\.\w+|tgz|tbz2?|txz)")
MAX_STUDY_PIXELS = 300_000_000
TEXT = "txt"
UNFINISHED = ".writing"
"""What `r2kg shard` leaves where it was killed."""
SECTIONS = ("findings", "impression", "indication", "comparison")
Sample = dict[str, Member]
"""The members of one sample: "json", and "0", "1", ... for its films."""


class WebDataset(Source):
    """The archives train*.tar, val*.tar and test*.tar of a directory, as the `webdataset` package writes them.

    A sample is what shares the name up to the first dot: KEY.json beside KEY.jpg, or KEY.0.jpg, KEY.1.jpg, ... (also
    .jpeg and .png; everything else is ignored), members in any order. The record is a `Study` of ours or an object
    with the target under "report" (or "findings"), and "id", "patient", "split" where it knows them; without a record,
    or beside one that has no report, KEY.txt is the target, in UTF-8. What is not whole,
    not safe or not readable is dropped by name; a film is raw data like any other and read by the same rules.
    """

    name: ClassVar[str] = "webdataset"
    cleaning: ClassVar[str] = "raw"

    raw: Path
    """The directory that holds the archives."""
    licence: str = "unknown"  # type: ignore[misc]  # archives do not tell their terms, so here it is an option
    """Tag of the data's terms; one of your own, or none, is treated as credentialed (`shards.privacy.TERMS`)."""

    def listing(self) -> Listing:
        """One item per whole sample. Headers and records are read, films are not."""
        if not self.raw.is_dir():
            raise DataError(f"{self.raw} is missing: raw must be the directory that holds the archives")
        names = sorted(path.name for path in self.raw.iterdir() if path.is_file())
        if UNFINISHED in names:
            raise DataError(f"{self.raw} holds shards that were never finished: run the command that wrote them again")
        if packed := [name for name in names if name.startswith(SPLITS) and PACKED.fullmatch(name)]:
            raise DataError(
                f"{self.raw} holds packed archives, in which no sample can be found without unpacking all before it: "
                f"{', '.join(packed[:5])}. Unpack them to .tar first (gunzip FILE.tar.gz) and move the packed ones away"
            )
        archives = [name for name in names if name.endswith(".tar")]
        tars = [(split, name) for split in SPLITS for name in archives if name.startswith(split)]
        others = sorted(set(archives) - {name for _, name in tars})
        if not tars:
            there = f"its archives are {', '.join(others[:5])}" if others else "it holds no .tar at all"
            raise DataError(f"{self.raw}: {there}, and only train*.tar, val*.tar and test*.tar are read")
        items: list[Item] = []
        drops: list[Drop] = []
        first: dict[tuple[Split, str], str] = {}
        for split, tar in tars:
            samples, refused = samples_of(tar, split, walk_tar(self.raw / tar))
            drops += refused
            with (self.raw / tar).open("rb") as file:
                for key, sample in samples.items():
                    try:
                        record = _record(file, tar, sample["json"])
                        if TEXT in sample and not _tells(record):  # captions beside their metadata (img2dataset)
                            sample["json"] = sample[TEXT]
                            record = _record(file, tar, sample[TEXT])
                        item = item_of(tar, split, key, sample, record)
                        here = f"sample {key!r} of {tar}"
                        if (before := first.setdefault((split, key_of(item.id)), here)) is not here:
                            raise BadStudy("duplicate key", f"{here} has the id of {before}, which is kept", tar)
                        items.append(item)
                    except BadStudy as error:
                        drops.append(error.drop(key, split))
        notes = [f"{len(others)} archives whose names begin with no split are not read"] if others else []
        return Listing(items, drops, notes)

    def raw_files(self, item: Item) -> Iterable[Path | str]:
        """The archive of an item."""
        return [self.raw / item.payload["tar"]]

    def read(self, item: Item) -> tuple[Study, list[np.ndarray]]:
        """The study and its films uint8 [H, W]; BadStudy when a film does not decode or the archive has changed."""
        tar, films, key = item.payload["tar"], [], item.payload["key"]
        try:
            with (self.raw / tar).open("rb") as file:
                record = _record(file, tar, Member(*item.payload["record"]))
                if digest_of(record) != item.payload["digest"]:
                    raise BadStudy(
                        "archive changed", f"{tar}: the record of {key} is not what was listed: run again", tar
                    )
                for name, *rest in item.payload["films"]:  # one at a time: each may be as large as a film may be
                    films.append(open_film(Path(name), _content(file, tar, Member(name, *rest))))
                    if (pixels := sum(film.size for film in films)) > MAX_STUDY_PIXELS:
                        raise BadStudy("study is too large", f"{tar}: films of {key} have {pixels:,} pixels", tar)
        except OSError as error:
            kind = RetryableError if may_pass(error) else DataError
            raise kind(f"{tar} cannot be read: {error.strerror or type(error).__name__}") from error
        except BadStudy:
            raise
        except DataError as error:
            raise BadStudy("image does not decode", f"{tar}: {error}", tar) from error
        study = study_of(tar, item.split, key, len(films), record)
        return study.model_copy(update={"provenance": {**study.provenance, "source": self.name, "file": tar}}), films


def samples_of(tar: str, split: str, walk: Walk) -> tuple[dict[str, Sample], list[Drop]]:
    """Key → members of the whole samples of a walked archive, and a drop for everything that cannot be used."""

    def drop(key: str, reason: str, detail: str) -> None:
        drops.append(Drop(id=key, reason=reason, detail=f"{tar}: {detail}", split=split, file=tar))

    drops: list[Drop] = []
    samples: dict[str, Sample] = {}
    twice: dict[str, str] = {}
    for member in walk.members:
        key, kind = key_and_kind(member.name)
        if kind and kind in samples.setdefault(key, {}) and kind != TEXT:
            twice[key] = member.name
        elif kind:
            samples[key][kind] = member
    for name, cause in walk.refused:
        drop(name, "tar member refused", f"member {name!r}: {cause}")
    if walk.cut_at >= 0:
        partial, cause = key_and_kind(walk.cut_name)[0], walk.cut_cause and f" ({walk.cut_cause})"
        samples.pop(partial, None)
        where = f"breaks off at byte {walk.cut_at}{cause} in or after {walk.cut_name!r}"
        drop(partial, "truncated tar", f"{where}: this sample is not used, the {len(samples)} before it are")
    for name, _ in walk.refused:
        samples.pop(key_and_kind(name)[0], None)
    for sample in samples.values():
        if "json" not in sample and TEXT in sample:
            sample["json"] = sample.pop(TEXT)
    for key, sample in list(samples.items()):
        films = sorted(int(kind) for kind in sample if kind not in ("json", TEXT))
        if key in twice:
            reason, fault = "duplicate tar member", f"member {twice[key]!r} is there twice"
        elif "json" not in sample or not films:
            there = ", ".join(PurePosixPath(member.name).name for member in sample.values()) or "nothing readable"
            reason, fault = "incomplete sample", f"it has {there}; a .json or .txt and at least one film are needed"
        elif films != list(range(len(films))):
            reason, fault = "incomplete sample", f"it has films {films}; they must count from 0 without a gap"
        elif sample["json"].size > MAX_RECORD_BYTES:
            fault = f"its record has {sample['json'].size} bytes; at most {MAX_RECORD_BYTES} are read"
            reason = "incomplete sample"
        else:
            continue
        drop(key, reason, fault)
        del samples[key]
    return samples, drops


def key_and_kind(name: str) -> tuple[str, str]:
    """WebDataset's rule: the key ends at the base name's first dot. Kind: "json", TEXT, "0", ... or "" (ignored)."""
    path = PurePosixPath(name)
    stem, _, suffix = path.name.partition(".")
    film = FILM.fullmatch(suffix.lower())
    kind = suffix.lower() if suffix.lower() in ("json", TEXT) else str(int(film[1] or 0)) if film else ""
    return str(path.parent / stem), kind


def item_of(tar: str, split: Split, key: str, sample: Sample, record: bytes) -> Item:
    """The item of a whole sample; BadStudy when its record is of no use."""
    films = [sample[str(view)] for view in range(len(sample) - 1 - (TEXT in sample))]
    study = study_of(tar, split, key, len(films), record)
    payload = {
        "tar": tar,
        "key": key,
        "record": dataclasses.astuple(sample["json"]),
        "digest": digest_of(record),
        "films": [dataclasses.astuple(film) for film in films],
    }
    return Item(id=study.id, split=split, patient=study.patient, payload=payload)


def study_of(tar: str, split: Split, key: str, films: int, data: bytes) -> Study:
    """The `Study` in a record: one of ours, its target left empty, else made from its "report" (or "findings").

    Raises BadStudy, which quotes nothing of the record but the names of its fields.
    """
    try:
        refuse_bomb(data)
        record = json.loads(data)
        if not isinstance(record, dict):
            raise ValueError(f"a {type(record).__name__} where an object with a report is needed")
        json.dumps(record, ensure_ascii=False).encode()  # half a surrogate pair would fail when it is written
        if "key" in record and "target" in record:
            study = Study.model_validate(record | {"target": ""})
        else:
            report = record.get("report", record.get("findings"))
            if not isinstance(report, str):
                raise ValueError(f'no text under "report" or "findings"; it has {shown_names(record)}')
            study = Study(
                key="-",
                id=str(record.get("id", key)),
                patient=str(record.get("patient") or ""),
                split=record["split"] if record.get("split") in SPLITS else split,
                views=(View(),) * films,
                sections={name: record[name] for name in SECTIONS if isinstance(record.get(name), str)},
                report=report,
                target="",
            )
    except (ValueError, RecursionError) as error:
        cause = str(error) if type(error) is ValueError else type(error).__name__
        if isinstance(error, ValidationError):
            cause = f"{error.error_count()} fields do not fit"
        raise BadStudy("record is not readable", f"{tar}: record of {key} is not readable: {cause}", tar) from None
    if study.split != split:
        raise BadStudy("two splits", f"{tar}: the record of {key} says split {study.split!r}", tar)
    if ".." in study.id or not study.id.isprintable() or not KEY.fullmatch(key_of(study.id)):
        fault = f"{tar}: id {study.id[:200]!r}; it must be 1 to 120 characters without '..'"
        raise BadStudy("id is not a name", fault, tar)
    return study.model_copy(update={"key": key_of(study.id)})


def _tells(record: bytes) -> bool:
    """Whether a record has a report, or is damaged, which is for `study_of` to say."""
    try:
        refuse_bomb(record)
        found = json.loads(record)
    except (ValueError, RecursionError):
        return True
    return not isinstance(found, dict) or bool({"report", "findings", "target"} & found.keys())


def _record(file: BinaryIO, tar: str, member: Member) -> bytes:
    """A sample's record; of a text the record that it would have. BadStudy when it is not UTF-8."""
    data = _content(file, tar, member)
    if not member.name.lower().endswith(f".{TEXT}"):
        return data
    try:
        return json.dumps({"report": data.decode("utf-8-sig")}).encode()
    except UnicodeDecodeError as error:
        what = f"{tar}: {member.name!r} is no UTF-8 at byte {error.start}"
        raise BadStudy("record is not readable", what, tar) from None


def _content(file: BinaryIO, tar: str, member: Member) -> bytes:
    """A member's bytes; BadStudy when its header is no longer the one that was walked over."""
    file.seek(member.offset - BLOCK)
    data = file.read(BLOCK + member.size)
    if len(data) != BLOCK + member.size or digest_of(data[:BLOCK]) != member.header:
        raise BadStudy("archive changed", f"{tar}: {member.name!r} is not where it was listed: run again", tar)
    return data[BLOCK:]
