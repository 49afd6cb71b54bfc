"""Which paths of a data file lead to a film below the root, and which leave it."""

import os
from pathlib import Path

import pytest

from shards.sources.films import Films


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """root/, itself reached by a link, with a folder, a link to it, and links that leave."""
    real = tmp_path / "real"
    (real / "a" / "b").mkdir(parents=True)
    (real / "a" / "b" / "0.png").write_bytes(b"film")
    (tmp_path / "outside.png").write_bytes(b"other")
    (tmp_path / "real-too").mkdir()
    (tmp_path / "real-too" / "0.png").write_bytes(b"other")
    os.symlink("a", real / "same")
    os.symlink(tmp_path / "outside.png", real / "a" / "out.png")
    os.symlink(tmp_path / "real-too", real / "near")
    os.symlink("../real/a", real / "back")
    os.symlink(real, tmp_path / "root")
    return tmp_path / "root"


@pytest.mark.parametrize(
    ("file", "stays"),
    [
        ("a/b/0.png", True),
        ("a/b/none.png", True),
        ("same/b/0.png", True),
        ("back/b/0.png", True),
        ("a/out.png", False),
        ("near/0.png", False),
        ("../real/a/b/0.png", False),
        ("/etc/hostname", False),
        ("", False),
        (".", False),
        ("a\\b", False),
        ("a\0b", False),
        ("a/" * 600, False),
    ],
)
def test_a_path_is_below_the_root_also_when_its_links_are_followed(root: Path, file: str, stays: bool) -> None:
    assert Films(root).holds(file) is stays


def test_a_folder_that_becomes_a_link_is_seen(root: Path) -> None:
    films = Films(root)
    assert films.holds("a/b/0.png")
    (root / "a" / "b" / "0.png").unlink()
    (root / "a" / "b").rmdir()
    os.symlink(root.parent / "real-too", root / "a" / "b")
    assert not films.holds("a/b/0.png")
