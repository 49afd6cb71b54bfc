"""WebDataset archives that others wrote: which samples are whole, and their records as `Study`."""

import json
import re
from pathlib import PurePosixPath

from shards.study import SPLITS, Drop, Split, Study, View, key_of
from shards.tars.archive import Walk
from shards.tars.shard_index import Entry

FILM = re.compile(r"(?:(\d{1,2})\.)?(?:jpe?g|png)")
MAX_RECORD_BYTES = 4_000_000


def samples_of(tar: str, split: str, walk: Walk) -> tuple[list[Entry], list[Drop]]:
    """The whole samples of a walked archive, members in any order, and a drop for everything that cannot be used."""

    def drop(key: str, reason: str, detail: str) -> None:
        drops.append(Drop(id=key, reason=reason, detail=f"{tar}: {detail}", split=split, file=tar))

    drops: list[Drop] = []
    groups: dict[str, dict[str, tuple[int, int]]] = {}
    twice: dict[str, str] = {}
    for name, cause in walk.refused:
        drop(name, "tar member refused", f"member {name!r}: {cause}")
    for member in walk.members:
        key, kind = _key_and_kind(member.name)
        if kind and kind in groups.setdefault(key, {}):
            twice[key] = member.name
        elif kind:
            groups[key][kind] = (member.offset, member.size)
    if walk.cut_at >= 0:
        partial = _key_and_kind(walk.cut_name)[0]
        groups.pop(partial, None)
        where = f"breaks off at byte {walk.cut_at} in or after {walk.cut_name!r}"
        drop(partial, "truncated tar", f"{where}: this sample is not used, the {len(groups)} before it are")
    for name, _ in walk.refused:
        groups.pop(_key_and_kind(name)[0], None)
    entries = []
    for key, members in groups.items():
        if key in twice:
            drop(key, "duplicate tar member", f"member {twice[key]!r} is there twice")
        elif fault := _incomplete(members):
            drop(key, "incomplete sample", fault)
        else:
            entries.append(Entry(key=key, id=key, members=members))
    return entries, drops


def _key_and_kind(name: str) -> tuple[str, str]:
    """WebDataset's rule: the key ends at the first dot of the base name. Kind: "json", "0.jpg", ... or "" (ignored)."""
    path = PurePosixPath(name)
    stem, _, suffix = path.name.partition(".")
    film = FILM.fullmatch(suffix.lower())
    kind = "json" if suffix.lower() == "json" else f"{int(film[1] or 0)}.jpg" if film else ""
    return str(path.parent / stem), kind


def _incomplete(members: dict[str, tuple[int, int]]) -> str:
    films = sorted(int(kind.split(".")[0]) for kind in members if kind != "json")
    if "json" not in members or not films:
        return f"it has {', '.join(members) or 'nothing readable'}; a .json and at least one film are needed"
    if members["json"][1] > MAX_RECORD_BYTES:
        return f"its record has {members['json'][1]} bytes; at most {MAX_RECORD_BYTES} are read"
    return "" if films == list(range(len(films))) else f"it has films {films}; they must count from 0 without a gap"


def adopt(key: str, split: str, views: int, text: str) -> Study:
    """A `Study` from a record of others: one of ours as it is, else its "report" (or "findings") becomes the target."""
    record = json.loads(text)
    if not isinstance(record, dict):
        raise ValueError(f"a {type(record).__name__} where an object with a report is needed")
    if "key" in record and "target" in record:
        return Study.model_validate(record)
    report = record.get("report", record.get("findings"))
    if not isinstance(report, str):
        raise ValueError(f'no text under "report" or "findings"; it has {sorted(record)[:9]}')
    own: Split = next((name for name in SPLITS if name == record.get("split", split)), "test")
    identifier = str(record.get("id", key))
    return Study(key=key_of(key)[:120], id=identifier, split=own, views=(View(),) * views, report=report, target=report)
