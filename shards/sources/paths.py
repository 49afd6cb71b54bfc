"""Paths that stand in data files: hostile until shown to stay below the raw dataset's root."""

import os
from pathlib import Path


def is_inside(path: str, root: Path) -> bool:
    """Whether `path` below `root` stays there, also after links are followed."""
    if os.path.isabs(path) or "\0" in path or "\\" in path or ".." in Path(path).parts:
        return False
    return os.path.realpath(root / path).startswith(os.path.realpath(root) + os.sep)
