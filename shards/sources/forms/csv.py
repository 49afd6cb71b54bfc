"""Any dataset that fits into one CSV file beside its films: a row a study, films by path."""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from shards.errors import DataError
from shards.sources import Item, Listing, Source
from shards.sources.films import Films
from shards.sources.split import hash_split
from shards.sources.tables import Row, Span, Table, read_span
from shards.study import KEY, SPLITS, BadStudy, Drop, Study, View, key_of

SECTIONS = ("findings", "impression", "indication", "comparison")
POSITIONS = ("frontal", "lateral", "unknown")
SEPARATOR = ";"


class Csv(Source):
    """A table with the columns id, image (or images) and findings or impression, or both; further ones where known.

    Of image the paths below `raw` of a study's films, divided by semicolons; of position, in the same order, frontal,
    lateral or unknown; patient, without whom every study counts as its own; split, without which patients are put into
    train, val and test by hash, 70 : 10 : 20; indication and comparison. Rows that cannot be used are drops of their
    own, as are studies of which a film is missing or does not decode.
    """

    name: ClassVar[str] = "csv"
    cleaning: ClassVar[str] = "clean-1"

    raw: Path
    """The directory with the table, below which the films lie."""
    table: str = "reports.csv"
    """The table's name below raw; .csv or .csv.gz."""
    licence: str = "unknown"  # type: ignore[misc]  # a table does not tell its terms, so here it is an option
    """Tag of the data's terms; one of your own, or none, is treated as credentialed (`shards.privacy.TERMS`)."""
    section: Literal["findings", "impression", "findings+impression"] = "findings"
    """What of the report is the target."""
    min_views: int = Field(default=1, ge=1)
    """Fewest films a study may have."""

    @property
    def _path(self) -> Path:
        return self.raw / self.table

    @property
    def _wanted(self) -> list[str]:
        return self.section.split("+")

    def listing(self) -> Listing:
        """One item for every usable row, one drop for every other; DataError when the table lacks a column."""
        table = Table(self._path, needed=["id", *self._wanted])
        if not {"image", "images"} & set(table.columns):
            raise DataError(
                f"{self._path} has no column image, nor images: the paths of a study's films below {self.raw}"
            )
        items, drops, seen = list[Item](), list[Drop](), set[str]()
        for row in table.rows():
            place = f"{self.table} line {row.line}"
            try:
                item = self._item(row, place)
                if (key := key_of(item.id)) in seen:
                    raise BadStudy("duplicate id", f"{place}: an earlier row has the id, and is kept")
                seen.add(key)
                items.append(item)
            except BadStudy as error:
                drops.append(error.drop(row.cells.get("id", "").strip() or place))
        notes = ["no column patient: every study counts as its own patient"] if "patient" not in table.columns else []
        notes += ["no column split: patients are put into splits by hash"] if "split" not in table.columns else []
        return Listing(items, drops, notes)

    def _item(self, row: Row, place: str) -> Item:
        """The item of a row, without its report; BadStudy names what is wrong with it."""
        if row.fault:
            raise BadStudy("broken row", f"{place}: {row.fault}")
        cells = {column: text.strip() for column, text in row.cells.items()}
        if not KEY.fullmatch(key_of(cells["id"])):
            raise BadStudy("id is not a name", f"{place}: an id has 1 to 120 characters")
        if not (patient := cells.get("patient", cells["id"])):
            raise BadStudy("no patient", f"{place}: without one the study could stand in two splits")
        split = cells["split"] if "split" in cells else hash_split(patient)
        if split not in SPLITS:
            raise BadStudy("unknown split", f"{place}: a split is one of {', '.join(SPLITS)}")
        films = _divided(cells.get("image") or cells.get("images") or "")
        if len(films) < self.min_views:
            raise BadStudy("too few views", f"{place}: {len(films)} films, min_views={self.min_views}")
        positions = _divided(cells.get("position", "")) or ["unknown"] * len(films)
        if len(positions) != len(films) or not set(positions) <= set(POSITIONS):
            raise BadStudy(
                "positions are unclear", f"{place}: one of {', '.join(POSITIONS)} for each of {len(films)} films"
            )
        payload = {"films": films, "positions": positions, "span": list(row.span), "line": row.line}
        return Item(id=cells["id"], split=split, patient=patient, payload=payload)

    def raw_files(self, item: Item) -> Iterable[Path]:
        """The films of an item."""
        return [self.raw / film for film in item.payload["films"]]

    def read(self, item: Item) -> tuple[Study, list[np.ndarray]]:
        """The study and its films uint8 [H, W]; BadStudy names the section or the first film that cannot be used."""
        known, films = item.payload, Films(self.raw)
        cells = dict(zip(_columns(self._path), Table.parse(read_span(self._path, Span(*known["span"]))), strict=False))
        sections = {name: cells[name].strip() for name in SECTIONS if cells.get(name, "").strip()}
        if missing := [name for name in self._wanted if name not in sections]:
            raise BadStudy(f"no {missing[0]} section", f"{self.table} line {known['line']} has none")
        files = [films.find([film], f"{film} is not below {self.raw.name}/") for film in known["films"]]
        return Study(
            key=key_of(item.id),
            id=item.id,
            patient=item.patient,
            split=item.split,
            views=tuple(View(position=p, file=file) for p, file in zip(known["positions"], files, strict=True)),
            sections=sections,
            report="\n".join(sections[name] for name in self._wanted),
            target="",
            provenance={"source": self.name, "file": self.table, "row": str(known["line"])},
        ), [films.read(file) for file in files]


@lru_cache(maxsize=4)
def _columns(path: Path) -> tuple[str, ...]:
    return tuple(Table(path, ("id",)).columns)


def _divided(cell: str) -> list[str]:
    return [part.strip() for part in cell.split(SEPARATOR) if part.strip()]
