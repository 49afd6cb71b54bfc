"""The raw films below one directory: found, bounded to it, decoded. What fails is a BadStudy that names the film."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from shards.errors import DataError, patiently
from shards.films.limits import Film
from shards.films.raw import open_film
from shards.study import BadStudy

MAX_PATH = 1_000
"""Characters; following links takes time by them."""
MAX_FILMS = 100
"""Of one study; a real one has fewer than twenty."""


@lru_cache(maxsize=16)
def _real(root: str) -> str:
    """The root itself, links followed: asked once a process, not for every film."""
    return os.path.realpath(root)


@dataclass(frozen=True)
class Films:
    """Films below `root`. Paths in data files are hostile until shown to stay there."""

    root: Path

    def holds(self, file: str) -> bool:
        """Whether the path `file` below the root can be one and stays there, also after links are followed."""
        if len(file) > MAX_PATH or os.path.isabs(file) or "\0" in file or "\\" in file or ".." in Path(file).parts:
            return False
        real, parts = _real(str(self.root)), Path(file).parts
        at = real
        for part in parts:
            at = os.path.join(at, part)
            if os.path.islink(at):
                return os.path.realpath(os.path.join(real, file)).startswith(os.path.join(real, ""))
        return bool(parts)

    def find(self, files: Iterable[str], missing: str) -> str:
        """The first of the paths `files` that is there; BadStudy with `missing` when none is, or one leads outside."""
        files = list(files)
        able = [file for file in files if "\0" not in file and len(file) <= MAX_PATH]
        try:
            there = next((file for file in able if patiently("a raw film", (self.root / file).is_file)), None)
        except OSError as error:
            raise BadStudy("film cannot be read", error.strerror or type(error).__name__, files[0]) from error
        for file in files if there is None else [there]:
            if not self.holds(file):
                raise BadStudy("path leaves the data root", f"{file[:200]!r} is not below {self.root.name}/", file)
        if there is None:
            raise BadStudy("film is missing", missing, files[0])
        return there

    def read(self, file: str) -> Film:
        """The film uint8 [H, W] of a path below the root, by the rules of `open_film`.

        Whether it stays there is asked again: it may have become a link since it was listed.
        """
        if not self.holds(file):
            raise BadStudy("path leaves the data root", f"{file[:200]!r} is not below {self.root.name}/", file)
        try:
            return open_film(self.root / file)
        except DataError as error:
            detail = str(error).replace(f"{self.root}{os.sep}", "")
            raise BadStudy("image does not decode", detail, file) from error
