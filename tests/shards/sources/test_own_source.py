"""The README's example of a dataset of one's own: it runs as it stands, and refuses what it must."""

import importlib.util
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from shards.errors import ConfigError, DataError
from shards.sources import Listing, Source, open_source
from shards.sources.split import hash_split
from shards.study import BadStudy
from shards.tars.format import read_manifest

ROOT = Path(__file__).parents[3]
SECTION = (ROOT / "README.md").read_text().partition("### Another dataset\n")[2].partition("\n### ")[0]
[EXAMPLE] = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)


def own_source(folder: Path, **options: object) -> Source:
    """The example's source, from a file written into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.py").write_text(EXAMPLE)
    spec = importlib.util.spec_from_file_location("mine", folder / "mine.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MyFilms(**options)


def draw(raw: Path, rows: list[str], header: str = "id,patient,image,findings") -> Path:
    """A raw directory of six drawn films 0.png to 5.png and a table of the given rows."""
    (raw / "images").mkdir(parents=True)
    for number in range(6):
        Image.linear_gradient("L").resize((48, 48)).rotate(60 * number).save(raw / "images" / f"{number}.png")
    (raw / "reports.csv").write_text("\n".join([header, *rows]) + "\n")
    return raw


def listed(tmp_path: Path, rows: list[str], header: str = "id,patient,image,findings", **options: object) -> Listing:
    return own_source(tmp_path / "code", raw=draw(tmp_path / "raw", rows, header), **options).listing()


def test_it_is_one_short_file() -> None:
    assert len(EXAMPLE.splitlines()) <= 100
    assert all(len(line) <= 120 for line in EXAMPLE.splitlines())


def test_the_command_of_the_readme_writes_shards(tmp_path: Path) -> None:
    rows = [f"s{number},p{number // 2},{number}.png;{5 - number}.png,Film {number} is clear." for number in range(6)]
    raw = draw(tmp_path / "our-films", [*rows, "s6,p9,6.png,Clear."])
    (tmp_path / "mine.py").write_text(EXAMPLE)
    [command] = re.findall(r"^r2kg shard mine:MyFilms .*$", SECTION, re.MULTILINE)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "jobs.shard", *command.split()[2:], "--size", "48"]
    ended = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr[-2000:]
    manifest = read_manifest(tmp_path / "films")
    splits = Counter(hash_split(f"p{number // 2}") for number in range(6))
    assert {split: count.studies for split, count in manifest.splits.items() if count.studies} == splits
    assert (manifest.given, manifest.drops, manifest.cleaning) == (7, {"film is missing": 1}, "clean-1")
    assert raw.name in command


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("s1,p1,0.png", "broken row"),
        (f"{'x' * 121},p1,0.png,Clear.", "id is not a name"),
        (",p1,0.png,Clear.", "id is not a name"),
        ("s1,,0.png,Clear.", "no patient"),
        ("s1,p1,,Clear.", "too few views"),
        ("s1,p1,../reports.csv,Clear.", "path leaves the data root"),
        ("s1,p1,/etc/hostname,Clear.", "path leaves the data root"),
        ("s1,p1,9.png,Clear.", "film is missing"),
        ("s0,p0,1.png,Clear.", "duplicate id"),
    ],
)
def test_rows_that_cannot_be_used_are_dropped_by_name(tmp_path: Path, row: str, reason: str) -> None:
    source = own_source(tmp_path / "code", raw=draw(tmp_path / "raw", ["s0,p0,0.png,Clear.", row]))
    listing = source.listing()
    drops = list(listing.drops)
    for item in listing.items[1:]:
        with pytest.raises(BadStudy) as caught:
            source.read(item)
        drops.append(caught.value.drop(item.id, item.split))
    [drop] = drops
    assert drop.reason == reason and source.read(listing.items[0])[0].id == "s0"
    assert drop.file or "reports.csv line 3" in drop.detail


def test_the_split_is_the_column_s_where_there_is_one(tmp_path: Path) -> None:
    header = "id,image,findings,split"
    listing = listed(tmp_path, ["a,0.png,Clear.,train", "b,1.png,Clear.,test", "c,2.png,Clear.,exam"], header)
    assert [(item.id, item.patient, item.split) for item in listing.items] == [("a", "a", "train"), ("b", "b", "test")]
    assert [(drop.id, drop.reason) for drop in listing.drops] == [("c", "unknown split")]
    assert listing.notes == ["no column patient: every study counts as its own patient"]


def test_options_are_checked_as_those_of_every_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_checked.py").write_text(EXAMPLE)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="min_views=0"):
        open_source("mine_checked:MyFilms", raw=tmp_path, min_views=0)
    with pytest.raises(ConfigError, match="no option views: its options are raw, min_views"):
        open_source("mine_checked:MyFilms", raw=tmp_path, views=2)
    with pytest.raises(DataError, match=r"reports.csv is missing"):
        open_source("mine_checked:MyFilms", raw=tmp_path).listing()
