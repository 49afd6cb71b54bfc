"""IU X-Ray (Demner-Fushman et al., JAMIA 2016) in the layout R2Gen released: annotation.json and images/."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from shards.decode import open_film
from shards.errors import DataError
from shards.manifest import BadStudy, Drop
from shards.sources import Item
from shards.study import KEY, SPLITS, Study, View, key_of

ANNOTATION = "annotation.json"
MAX_ANNOTATION_BYTES = 1_000_000_000
PATIENT = re.compile(r"CXR\d+")
SECTIONS = ("findings", "impression", "indication", "comparison")
POSITIONS: dict[str, Literal["frontal", "lateral"]] = {"frontal": "frontal", "lateral": "lateral"}
FRONTAL_FIRST = {"frontal": 0, "unknown": 1, "lateral": 2}


@dataclass
class IuXray:
    """Studies of an annotation.json `{"train": [{"id", "report", "image_path"}], "val": [...], "test": [...]}`.

    Policy for views: a study is kept with all its films in the order listed, frontal first where the annotation has a
    "views" key (without one the position is "unknown"); one with fewer than `min_views` is dropped by name; one of
    whose films any does not decode is dropped whole, so that no study silently loses a view. The patient is the id's
    leading CXR number.
    """

    raw: Path
    """The directory that holds annotation.json and images/, or a JSON file of that shape with images/ beside it."""
    min_views: int = 1
    """Fewest films a study may have; 2 is R2Gen's own requirement."""
    drops: list[Drop] = field(default_factory=list, init=False)

    name = "iu_xray"
    licence = "cc-by-nc-nd-4.0"
    cleaning = "r2gen-2020-iu"

    @property
    def annotation(self) -> Path:
        """The JSON file."""
        raw = Path(self.raw)
        return raw if raw.suffix == ".json" else raw / ANNOTATION

    @property
    def images(self) -> Path:
        """The root below which every film must lie."""
        return self.annotation.parent / "images"

    def items(self) -> list[Item]:
        """One item per usable entry; DataError when the file as a whole is not what it should be."""
        listing = read_annotation(self.annotation)
        if not self.images.is_dir():
            raise DataError(f"{self.annotation} is there, the directory {self.images} with its films is not")
        self.drops, items = [], []
        seen: set[tuple[str, str]] = set()
        for split in SPLITS:
            for row, entry in enumerate(listing[split]):
                try:
                    items.append(self._item(split, row, entry, seen))
                except BadStudy as error:
                    name = str(entry.get("id", "")) if isinstance(entry, dict) else ""
                    what = {"reason": error.reason, "detail": error.detail, "file": error.file}
                    self.drops.append(Drop(id=name or f"{split}[{row}]", split=split, **what))
        return items

    def read(self, item: Item) -> tuple[Study, list[np.ndarray]]:
        """The study and its films uint8 [H, W]; BadStudy names the first film that does not decode."""
        entry = item.payload
        views = sorted(_views(entry["image_path"], entry.get("views")), key=lambda view: FRONTAL_FIRST[view.position])
        films = []
        for view in views:
            try:
                films.append(open_film(self.images / view.file))
            except DataError as error:
                raise BadStudy("image does not decode", _short(str(error), self.images), view.file) from error
        patient = PATIENT.match(item.id)
        study = Study(
            key=key_of(item.id),
            id=item.id,
            patient=patient[0] if patient else "",
            split=item.split,
            views=tuple(views),
            sections={"findings": entry["report"], **entry.get("sections", {})},
            report=entry["report"],
            target="",
            provenance={"source": self.name, "file": self.annotation.name, "row": f"{item.split}[{entry['row']}]"},
        )
        return study, films

    def _item(self, split: Literal["train", "val", "test"], row: int, entry: Any, seen: set[tuple[str, str]]) -> Item:
        """The item of one entry; BadStudy when this entry cannot be used."""
        place = f"{self.annotation.name} {split}[{row}]"
        if not isinstance(entry, dict):
            raise BadStudy("entry is not an object", f"{place} is a {type(entry).__name__}")
        identifier, report, paths = entry.get("id"), entry.get("report"), entry.get("image_path")
        if not isinstance(identifier, str) or not KEY.fullmatch(key_of(identifier)) or ".." in identifier:
            shown = f"{place}: id {str(identifier)[:200]!r} with image_path {str(paths)[:200]}"
            raise BadStudy("id is not a name", f"{shown}; it must be 1 to 120 characters without '..'")
        if not isinstance(report, str):
            raise BadStudy("report is not a string", f"{place}: it is {_kind(report)}")
        _check_paths(paths, place, self.images, self.min_views)
        if (split, identifier) in seen:
            raise BadStudy("duplicate id", f"{place}: id {identifier!r} stands earlier in this split, which is kept")
        seen.add((split, identifier))
        sections = {name: entry[name] for name in SECTIONS if isinstance(entry.get(name), str)}
        kept: dict[str, Any] = {"sections": sections}
        if isinstance(entry.get("views"), list):
            kept["views"] = [str(view) for view in entry["views"]]
        return Item(id=identifier, split=split, payload={"row": row, "report": report, "image_path": paths, **kept})


def read_annotation(path: Path) -> dict[str, list[Any]]:
    """The three lists of an annotation file (a byte-order mark is allowed); DataError names what is wrong."""
    if not path.is_file():
        raise DataError(f"{path} is missing: raw must be the directory with {ANNOTATION} and images/, or that file")
    if (size := path.stat().st_size) > MAX_ANNOTATION_BYTES:
        raise DataError(f"{path} has {size} bytes; at most {MAX_ANNOTATION_BYTES} are read")
    data = path.read_bytes()
    try:
        listing = json.loads(data.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        at = len(data) - len(error.doc[error.pos :].encode())
        raise DataError(
            f"{path} is not valid JSON at line {error.lineno}, byte {at} of {len(data)}: {error.msg}. Nothing of it is "
            "used; if the file ends there, the copy broke off: fetch it again"
        ) from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path} is not UTF-8 JSON: {type(error).__name__}: {error}") from None
    return _checked(path, listing)


def _checked(path: Path, listing: Any) -> dict[str, list[Any]]:
    keys = sorted(listing) if isinstance(listing, dict) else []
    missing = [split for split in SPLITS if split not in keys]
    if missing:
        found = f"an object with {keys[:9]}" if isinstance(listing, dict) else f"a {type(listing).__name__}"
        raise DataError(f"{path} holds {found}; missing keys: {', '.join(missing)}. It must be an object with {SPLITS}")
    if wrong := [split for split in SPLITS if not isinstance(listing[split], list)]:
        raise DataError(f"{path}: {', '.join(wrong)} must be lists of studies")
    if not listing["train"]:
        counts = ", ".join(f"{split} {len(listing[split])}" for split in SPLITS)
        raise DataError(f"{path}: split 'train' is empty ({counts}): a run on it would train nothing")
    return listing


def _kind(value: Any) -> str:
    if value is None:
        return "missing or null"
    return f"the number {value}" if isinstance(value, float | int) else type(value).__name__


def _check_paths(paths: Any, place: str, root: Path, min_views: int) -> None:
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str) and path for path in paths):
        raise BadStudy("image_path is not a list of paths", f"{place}: it is {str(paths)[:200]!r}")
    for path in paths:
        if not _is_inside(path, root):
            raise BadStudy("path leaves the data root", f"{place}: {path[:200]!r} is not below {root.name}/", path)
    if len(paths) < min_views:
        raise BadStudy("too few views", f"{place}: {len(paths)} film listed, min_views={min_views}")


def _is_inside(path: str, root: Path) -> bool:
    """Whether `path` below `root` stays there, also after links are followed."""
    if os.path.isabs(path) or "\0" in path or "\\" in path or ".." in Path(path).parts:
        return False
    return os.path.realpath(root / path).startswith(os.path.realpath(root) + os.sep)


def _views(paths: list[str], named: list[str] | None) -> Iterator[View]:
    names = named if named and len(named) == len(paths) else [""] * len(paths)
    for path, name in zip(paths, names, strict=True):
        yield View(position=POSITIONS.get(name.lower(), "unknown"), file=path)


def _short(message: str, root: Path) -> str:
    """The message with paths below the root: a manifest may be shown to others."""
    return message.replace(f"{root}{os.sep}", "")
