"""Films of studies as small JPEGs in a page's own text, within a budget of bytes."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shards.errors import DataError
from shards.films.stored import decode, encode
from shards.stream.index import Index
from shards.study import SPLITS, Study
from shards.tars.format import Manifest, read_manifest

SIDE_PX, QUALITY = 320, 80
"""A film becomes a square of so many pixels, black at its margins: about 10 KB of a radiograph."""
MOST_FILMS = 6
"""Films of a study that are shown."""
PICTURE_BYTES = 24_000_000
"""All pictures of a page, films first come first served, before base64 makes a third more of them."""
MAX_PNG_BYTES = 3_000_000
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass
class Budget:
    """Bytes of pictures that a page may still take, and how many had to stay out."""

    left: int = PICTURE_BYTES
    out: int = 0

    def take(self, data: bytes, kind: str) -> str:
        """A data URI, or "" where the budget is spent."""
        if len(data) > self.left:
            self.out += 1
            return ""
        self.left -= len(data)
        return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"

    def picture(self, file: Path) -> str:
        """A PNG that `r2kg pictures` wrote; "" for one that is none, is too large, or finds the budget spent."""
        if file.stat().st_size > MAX_PNG_BYTES:
            self.out += 1
            return ""
        data = file.read_bytes()
        return self.take(data, "png") if data.startswith(PNG) else ""

    @property
    def notes(self) -> list[str]:
        """A sentence where pictures are lacking."""
        told = f"Pictures take at most {PICTURE_BYTES // 1_000_000} MB: {self.out} are left out. --most N shows fewer."
        return [told] if self.out else []


@dataclass
class Films:
    """The films of shards, by the key of a study."""

    root: str = ""
    manifest: Manifest | None = None
    why: str = ""
    """Why there are none."""
    rows: dict[str, tuple[Index, dict[str, int]]] = field(default_factory=dict)
    """Split → its index and the row of every key, once it was asked for."""

    @classmethod
    def of(cls, root: str, context: Mapping[str, Any], named: bool) -> "Films":
        """Those of the shards at `root`.

        Args:
            context: of the predictions, which names the shards' fingerprint.
            named: somebody asked for these shards: their fault is an error, not a page without films.

        Raises:
            DataError: `named` shards that are not there, or not those of the predictions.
        """
        if not root:
            return cls(why="the predictions lie in no run, so --shards DIR must say where the films are")
        try:
            manifest, wanted = read_manifest(root), context.get("shards")
            if wanted and manifest.fingerprint != wanted:
                raise DataError(
                    f"the predictions are of shards {str(wanted)[:12]}, those at {root} have "
                    f"{manifest.fingerprint[:12]}: say --shards DIR"
                )
        except DataError as error:
            if named:
                raise
            return cls(why=str(error))
        return cls(root, manifest)

    @property
    def licence(self) -> str:
        """That of the shards; "" where there are none."""
        return self.manifest.licence if self.manifest else ""

    def of_study(self, key: str, split: str, budget: Budget) -> tuple[list[tuple[str, str]], str]:
        """(position, data URI) of a study's films, and a sentence on what cannot be shown."""
        if self.manifest is None:
            return [], ""
        try:
            if split not in self.rows:
                if split not in SPLITS:
                    raise DataError("its line names no split of the shards")
                index = Index.open(self.root, split, "skip", self.manifest)
                self.rows[split] = index, {name.decode(): row for row, name in enumerate(index.keys)}
            index, rows = self.rows[split]
            if key not in rows:
                raise DataError(f"the shards have no such study in split {split}")
            films, record = index.read(rows[key])
            study = Study.model_validate_json(index.record_of(rows[key], record))
            shown = list[tuple[str, str]]()
            for number, film in enumerate(films[:MOST_FILMS]):
                position = study.views[number].position if number < len(study.views) else "unknown"
                small = encode(decode(film, SIDE_PX, f"film {number}", "pad"), QUALITY)
                shown += [(position, uri)] if (uri := budget.take(small, "jpeg")) else []
        except DataError as error:
            return [], f"Its films cannot be shown: {error}."
        more = len(films) - MOST_FILMS
        return shown, f"{more} more films are not shown." if more > 0 else ""
