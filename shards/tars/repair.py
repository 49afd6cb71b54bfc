"""What becomes of shards that are there when the same command is given again: kept, written again, or refused.

Beside a tar lies NAME.raw, which says of each of its studies how many raw files it was made from and how they looked.
All tars are looked at before the first is touched. A study that is stored and could not be made again is never lost:
not where its raw files are gone, nor, without `--replace`, where it is no longer listed.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import ray.data
from pydantic import Field

from shards.errors import DataError, patiently
from shards.privacy import Names
from shards.session import in_our_words, quiet, watched
from shards.sources import ABSENT, Item, Source
from shards.study import SPLITS, Record
from shards.tars.format import FORMAT, MAX_JSON_BYTES, TarIndex, index_path, raw_path
from shards.tars.place import Place, names_in, read_whole, sha256_of, size_of

OTHER, RAW = "the listing, the settings or this program have changed", "raw files have changed or come"
DAMAGED, DROPS = "the tar is missing or damaged", "studies of it could not be used"
"""Why a tar that was finished is written again..."""
GONE = "raw files are gone"
"""...or is kept although it cannot be compared with what it was made from."""
LINE = re.compile(r"([a-z0-9_-]{1,120}) (\d{1,4}) ([0-9a-f]{16})")
MOST_LINES = 50_000
THREADS = 8
LOOK_CPUS = 0.5
SHOWN = 5


class Look(NamedTuple):
    """A study's raw files."""

    present: int
    """How many are there, of all that might be."""
    hash: str
    """Of all their sizes and times; salted where names are: nobody who has the owner's files finds a study by it."""


def looks_of(source: Source, items: Iterable[Item], names: Names = Names()) -> dict[str, Look]:  # noqa: B008
    """Key → how the raw files of a study look now; {} for a source that names none."""
    looks, named = dict[str, Look](), 0
    for item in items:
        found = [*map(_look, patiently("raw files", partial(list, source.raw_files(item))))]
        digest = hashlib.sha256(names.salt + "\0".join([item.id, *found]).encode("utf-8", "surrogatepass"))
        looks[names.key(item.id)] = Look(len(found) - found.count(ABSENT), digest.hexdigest()[:16])
        named += len(found)
    return looks if named else {}


def _look(file: Path | str) -> str:
    if isinstance(file, str):
        return file
    try:
        facts = patiently("a raw file", file.stat)
    except (OSError, ValueError):  # it is not there, or no path at all
        return ABSENT
    return f"{facts.st_size} {facts.st_mtime_ns}"


def raw_lines(looks: Mapping[str, Look]) -> bytes:
    """NAME.raw."""
    return "".join(f"{key} {look.present} {look.hash}\n" for key, look in looks.items()).encode()


class Held(NamedTuple):
    """What is known of a study that a directory of shards holds."""

    stored: bool
    """It is in a tar, or nobody can tell that it is not."""
    present: int = -1
    """Raw files it was made from; -1: not told."""
    look: str = ""
    """`Look.hash`; "": not told."""


class Question(Record):
    """What is asked of one tar."""

    name: str
    recipe: str
    items: tuple[Item, ...]
    held: dict[str, Held] = Field(default_factory=dict)
    """By key, of those items that the directory holds, in whichever tar."""


class Verdict(Record):
    """What one tar is to become."""

    name: str
    keep: bool
    why: str = ""
    """`GONE`, or why it is written again; "" of one that is as it should be, or was not there."""
    stored: tuple[str, ...] = ()
    """Keys of its studies that are stored, in whichever tar: none may be a drop when it is written..."""
    lost: tuple[str, ...] = ()
    """...as these would be, whose raw files are gone."""


def held_at(out: Place) -> dict[str, Held]:
    """Key → what the tars there hold, finished or not; {} where there is none."""
    stems = sorted({name.partition(".")[0] for name in names_in(out) if name.endswith((".index.json", ".raw"))})
    tars = [out / f"{stem}.tar" for stem in stems if stem.startswith(SPLITS)]
    held: dict[str, Held] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        for index, looks, size in pool.map(lambda tar: (indexed(tar), _looks_at(tar), size_of(tar)), tars):
            stored = {entry.key for entry in index.studies} if index else set(looks) if size >= 0 else set[str]()
            for key in stored | looks.keys():
                present, look = looks.get(key, (-1, ""))
                held[key] = Held(key in stored or (key in held and held[key].stored), present, look)
    return held


def _looks_at(tar: Place) -> dict[str, Look]:
    """What NAME.raw says; lines that are no such are left out."""
    try:
        lines = read_whole(raw_path(tar), MAX_JSON_BYTES).decode("ascii", "replace").splitlines()[:MOST_LINES]
    except (OSError, ValueError):
        return {}
    found = filter(None, map(LINE.fullmatch, lines))
    return {match[1]: Look(int(match[2]), match[3]) for match in found}


def indexed(path: Place) -> TarIndex | None:
    """The index beside a tar; None where it is not as it was written, or not there: the tar was never finished."""
    try:
        index = TarIndex.model_validate_json(read_whole(index_path(path), MAX_JSON_BYTES))
        return index if index == index.sealed() else None
    except (OSError, ValueError):
        return None


def standing(path: Place, recipe: str) -> tuple[TarIndex | None, str]:
    """The index of a tar that was finished, and why the tar is not what would be written; "" where it is.

    Every byte of it is read that this machine has not read before.
    """
    index = indexed(path)
    if index is None:
        return None, DAMAGED if max(size_of(index_path(path)), size_of(raw_path(path))) >= 0 else ""
    if index.format != FORMAT or index.recipe != recipe:
        return index, OTHER
    whole = index.bytes == size_of(path) and index.sha256 == sha256_of(path)
    return index, "" if whole else DAMAGED


def verdict_of(
    path: Place, asked: Question, now: Mapping[str, Look], keeps: Callable[[TarIndex], bool] = lambda index: True
) -> Verdict:
    """What becomes of the tar at `path`; `now` is how its raw files look, `keeps` asked of one that is as it should be.

    A tar is kept where nothing of it changed but that raw files went.
    """
    gone = {key for key, held in asked.held.items() if key in now and _lacks(held, now[key])}
    changed = {key for key, held in asked.held.items() if key in now and held.look not in ("", now[key].hash)}
    index, why = standing(path, asked.recipe)
    if index and not why:
        why = RAW if changed - gone else "" if keeps(index) else DROPS
        if not why:
            return Verdict(name=asked.name, keep=True, why=GONE if gone else "")
    stored = tuple(key for key, held in asked.held.items() if held.stored)
    return Verdict(name=asked.name, keep=False, why=why, stored=stored, lost=tuple(gone & {*stored}))


def _lacks(held: Held, now: Look) -> bool:
    return now.present < held.present or (held.present < 0 and not now.present)


def verdicts(
    out: Place, questions: Sequence[Question], names: Names, judge: Callable[[Question], Verdict], replace: bool = False
) -> dict[str, Verdict]:
    """Tar → what it is to become; nothing is touched. Where something is there, it is asked on the cluster, tar by tar.

    `questions` need not say yet what is held of them. `replace`: stored studies that are not listed any more may go.

    Raises:
        DataError: stored studies would be lost.
    """
    if not (held := held_at(out)):
        return {asked.name: Verdict(name=asked.name, keep=False) for asked in questions}
    rows, listed = list[dict[str, str]](), set[str]()
    for asked in questions:
        known = {key: held[key] for item in asked.items if (key := names.key(item.id)) in held}
        listed |= known.keys()
        rows.append({"asked": asked.model_copy(update={"held": known}).model_dump_json()})
    if not replace and (unlisted := sorted(key for key, one in held.items() if one.stored and key not in listed)):
        raise DataError(
            f"studies that {out} holds would be lost: {len(unlisted)} are not listed any more ({_some(unlisted)}). "
            "Nothing was changed: list them again, write to another place, or say --replace to let them go"
        )

    def answer(row: dict) -> dict:
        return {"verdict": judge(Question.model_validate_json(row["asked"])).model_dump_json()}

    with in_our_words():
        dataset = quiet(ray.data.from_items(rows, override_num_blocks=len(rows)).map(answer, num_cpus=LOOK_CPUS))
        answers = watched(dataset.iter_rows(), "looking at tars", len(rows))
        found = [Verdict.model_validate_json(row["verdict"]) for row in answers]
    if lost := [key for one in found for key in one.lost]:
        why = next(one.why for one in found if one.lost)
        raise DataError(
            f"studies that {out} holds would be lost: raw files of {len(lost)} are gone ({_some(lost)}), whose tars "
            f"would be written again because {why}. Nothing was changed: bring them back, or write to another place"
        )
    return {one.name: one for one in found}


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:SHOWN]) + (", ..." if len(keys) > SHOWN else "")


def tell(reasons: Mapping[str, str]) -> None:
    """Print what became of the tars of an earlier run, by reason: tar → `Verdict.why`."""
    by_reason = defaultdict[str, list[str]](list)
    for name, why in reasons.items():
        by_reason[why].append(name)
    for why, names in by_reason.items():
        if why:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            did = "kept as they are, although" if why == GONE else "written again, because"
            print(f"{len(names)} of {len(reasons)} tars were {did} {why}: {', '.join(names[:SHOWN])}{more}.")
