"""A report of films at hand is the one that the study they are of would get."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

import r2kg
from r2kg.config.needs import Inputs
from r2kg.config.parts import Data
from r2kg.config.run import Run, System
from r2kg.scoring.report import report
from shards.errors import ConfigError, DataError
from shards.sources.phantom.source import Phantom

ROOT = Path(__file__).parents[3]


class Reader(System):
    """A system that reads what the referring physician asked."""

    build: ClassVar[str] = "nowhere:Model"
    system: str = f"{__name__}:Reader"

    def inputs(self, data: Data) -> Inputs:
        return Inputs(image_px=64, views=1, text=("indication",))


@pytest.mark.slow
def test_a_report_of_films_is_that_of_their_study(undisturbed: Run, tmp_path: Path) -> None:
    """From the raw films, not from those in the shards; from Python and from the command line."""
    run = r2kg.load_run(undisturbed.directory)
    predictions = r2kg.generate(run, run.data.shards, "test")
    lines = {line["id"]: line for line in map(json.loads, predictions.read_text().splitlines())}
    source = Phantom(studies=60, size=64)
    items = [item for item in source.listing().items if item.id in lines]
    assert len(items) >= 5
    for item in items:
        _, films = source.read(item)
        written = r2kg.report(run, films)
        assert (written.text, written.tokens) == (lines[item.id]["prediction"], lines[item.id]["tokens"])
    paths = [tmp_path / f"{view}.png" for view in range(len(films))]
    for path, film in zip(paths, films, strict=True):
        Image.fromarray(film).save(path)
    words = [sys.executable, "-m", "jobs.report", run.directory, *paths]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [*map(str, words)], capture_output=True, text=True, timeout=200, cwd=tmp_path, env=environment
    )
    assert (ended.returncode, ended.stdout) == (0, written.text + "\n"), ended.stderr
    with pytest.raises(ConfigError, match=r"3 films: undisturbed reads 1 to 2 of a study"):
        report(run, [*films, films[0]])
    (tmp_path / "torn.png").write_bytes(paths[0].read_bytes()[:500])
    with pytest.raises(DataError, match="torn.png: image does not decode"):
        report(run, [tmp_path / "torn.png"])


def test_a_system_that_reads_more_than_films_is_sent_to_its_shards(tmp_path: Path) -> None:
    run = Run(name="words", root=str(tmp_path), model=Reader())
    with pytest.raises(ConfigError, match="words reads indication: put the study into shards, and say `r2kg generate`"):
        report(run, [np.zeros((64, 64), np.uint8)])


def test_the_package_has_what_it_says_and_imports_nothing_before_it_is_used() -> None:
    asked = "import sys, r2kg; print(r2kg.__version__, {'torch', 'ray', 'pydantic'} & {*sys.modules})"
    told = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.split(maxsplit=1) == [r2kg.__version__, "set()\n"]
    assert all(callable(getattr(r2kg, name)) for name in r2kg.WHERE)
    with pytest.raises(AttributeError, match="has no attribute 'trian': it has find_recipe"):
        _ = r2kg.trian
