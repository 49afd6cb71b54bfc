"""The annotation.json of the R2GenKG group's benchmark on CheXpert Plus: its own split, reports and lists of films."""

from typing import Any, NamedTuple

from shards.sources.annotation import object_in
from shards.sources.chexpert_plus.films import Position, order, patient_of, position_of, refuse_path, stem_of
from shards.study import KEY, BadStudy, Split, key_of


class Entry(NamedTuple):
    """One usable entry: all but its report."""

    id: str
    patient: str
    films: list[str]
    """Frontal first, then by path."""
    positions: list[Position]


def entry_of(data: bytes, place: str, views: str) -> Entry:
    """The entry in `data`; BadStudy, in words that name `place` and quote no report, when it cannot be used."""
    entry = object_in(data, place)
    identifier, report = entry.get("id"), entry.get("report")
    if not isinstance(identifier, str) or not KEY.fullmatch(key_of(identifier)) or ".." in identifier:
        raise BadStudy("id is not a name", f"{place}: it must be a text of 1 to 120 characters without '..'")
    if not isinstance(report, str):
        raise BadStudy("report is not a string", f"{place}: it is a {type(report).__name__}")
    films = _films(entry.get("image_path"), place, views)
    if len({patient_of(film) for film in films}) > 1:
        raise BadStudy("films of two patients", f"{place}: {', '.join(films[:5])}")
    return Entry(identifier, patient_of(films[0]), films, [position_of(film) for film in films])


def _films(paths: Any, place: str, views: str) -> list[str]:
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str) for path in paths):
        raise BadStudy("image_path is not a list of paths", f"{place}: it is a {type(paths).__name__}")
    films = [path.removeprefix("PNG/") for path in paths]
    for film in films:
        refuse_path(film, place)
    films = [film for film in films if views == "all" or position_of(film) == "frontal"]
    if not films:
        raise BadStudy("no frontal film", f"{place}: {len(paths)} films of other views")
    return sorted(films, key=lambda film: order(position_of(film), film))


def distinct(entry: Entry, split: Split, place: str, seen: dict[str, tuple[str, Split]]) -> Entry:
    """The entry under an id that no other film has: one id may stand for a study with an entry for each of its films.

    BadStudy when the entry stands earlier in its split. One that stands in another split is left for the writer to
    refuse, because nobody can tell which of the two was meant.
    """
    name, film = entry.id, entry.films[0]
    if seen.get(name, (film, split))[0] != film:
        name = f"{name}/{stem_of(film)}"
        if not KEY.fullmatch(key_of(name)):
            raise BadStudy(
                "id is not a name", f"{place}: another entry has it, and with the film's name it is too long"
            )
    if seen.get(name) == (film, split):
        raise BadStudy("duplicate id", f"{place}: it stands earlier in this split, with the same film")
    seen.setdefault(name, (film, split))
    return entry._replace(id=name)
