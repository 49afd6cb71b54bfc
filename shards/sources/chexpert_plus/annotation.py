"""The annotation.json of the R2GenKG group's benchmark on CheXpert Plus: its own split, reports and lists of films."""

from os.path import splitext
from pathlib import Path
from typing import Any

from shards.sources import Item
from shards.sources.annotation import object_in, read_entries, refuse_surrogates
from shards.sources.chexpert_plus.films import RANK, patient_and_study, position_of
from shards.sources.films import MAX_FILMS
from shards.study import KEY, BadStudy, Drop, Split, key_of


def list_entries(path: Path, folder: str, views: str) -> tuple[list[Item], list[Drop]]:
    """An item of every entry that can be used and a drop of every other, in words that quote no report.

    The payload is as of rows of the CSV. Films lie in `folder`; views="frontal" leaves others out.
    """
    items, drops = list[Item](), list[Drop]()
    seen: dict[str, tuple[str, Split]] = {}
    for split, row, span, data in read_entries(path):
        place = f"{path.name} {split}[{row}]"
        try:
            entry = object_in(data, place)
            refuse_surrogates(entry, place)
            patient, films = _patient_and_films(entry, place, views)
            name = _distinct_id(entry["id"], films[0], split, place, seen)
        except BadStudy as error:
            drops.append(error.drop(f"{split}[{row}]", split))
            continue
        payload = {"file": path.name, "folder": folder, "row": row, **span._asdict(), "labels": splitext(films[0])[0]}
        payload |= {"films": films, "positions": [position_of(film) for film in films]}
        items.append(Item(id=name, split=split, patient=patient, payload=payload))
    return items, drops


def _patient_and_films(entry: dict[str, Any], place: str, views: str) -> tuple[str, list[str]]:
    """The patient and the films, frontal first, then by path; BadStudy when the entry cannot be used."""
    identifier, report, paths = entry.get("id"), entry.get("report"), entry.get("image_path")
    if not isinstance(identifier, str) or not KEY.fullmatch(key_of(identifier)) or ".." in identifier:
        raise BadStudy("id is not a name", f"{place}: it must be a text of 1 to 120 characters without '..'")
    if not isinstance(report, str):
        raise BadStudy("report is not a string", f"{place}: it is a {type(report).__name__}")
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str) for path in paths):
        raise BadStudy("image_path is not a list of paths", f"{place}: it is a {type(paths).__name__}")
    if len(paths) > MAX_FILMS:
        raise BadStudy("too many films", f"{place}: {len(paths):,}, no study has more than {MAX_FILMS}")
    films = sorted((path.removeprefix("PNG/") for path in paths), key=lambda film: (RANK[position_of(film)], film))
    patients = {film: patient_and_study(film, place)[0] for film in films}
    films = [film for film in films if views == "all" or position_of(film) == "frontal"]
    if not films:
        raise BadStudy("no frontal film", f"{place}: {len(paths)} films of other views")
    if len({patients[film] for film in films}) > 1:
        raise BadStudy("films of two patients", f"{place}: {', '.join(films[:5])}")
    return patients[films[0]], films


def _distinct_id(name: str, film: str, split: Split, place: str, seen: dict[str, tuple[str, Split]]) -> str:
    """An id that no other film has: one id may stand for a study with an entry for each of its films.

    BadStudy when the entry stands earlier in its split. One that stands in another split is left for the writer to
    refuse, because nobody can tell which of the two was meant.
    """
    if seen.get(name, (film, split))[0] != film:
        name = f"{name}/{splitext(film)[0]}"
        if not KEY.fullmatch(key_of(name)):
            raise BadStudy(
                "id is not a name", f"{place}: another entry has it, and with the film's name it is too long"
            )
    if seen.get(name) == (film, split):
        raise BadStudy("duplicate id", f"{place}: it stands earlier in this split, with the same film")
    seen.setdefault(name, (film, split))
    return name
