"""The jobs that write beside shards, called as the command line calls them."""

import subprocess
import sys
from pathlib import Path

import pytest

from jobs.features import main as features
from jobs.subgraphs import main as subgraphs
from shards.errors import ConfigError
from shards.tars.format import read_manifest
from shards.tars.kinds import read_side

VISION = {"tuning": "frozen", "name": "test_vit", "options": "{}", "image_px": 64}
FROZEN = [f"model.vision.{field}={value}" for field, value in VISION.items()]


def test_subgraphs_prints_what_it_wrote_and_where(phantom_shards: Path, tmp_path: Path, capsys) -> None:
    subgraphs(str(phantom_shards), out=str(tmp_path / "graphs"))
    lines = capsys.readouterr().out.splitlines()
    side = read_side(lines[-1])
    assert lines[-1] == str(tmp_path / "graphs") and side.parent == read_manifest(phantom_shards).fingerprint
    train = next(line.split() for line in lines if line.startswith("train"))
    assert int(train[1]) == int(train[3]) + int(train[6]) == 45
    assert any(line.startswith("Largest, nodes: ") for line in lines)


def test_what_cannot_be_is_one_sentence_before_a_cluster_starts(phantom_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model.vision.tuning=full changes it"):
        features("r2gengpt.tiny", [f"data.shards={phantom_shards}"])
    command = [sys.executable, "-m", "jobs.subgraphs", str(tmp_path / "nowhere")]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 3 and ended.stderr.startswith("DataError: no shards at")
    assert "Traceback" not in ended.stderr and not (tmp_path / "nowhere").exists()


@pytest.mark.slow
def test_features_prints_what_it_wrote_and_where(phantom_shards: Path, tmp_path: Path, capsys) -> None:
    features("r2gengpt.tiny", [f"data.shards={phantom_shards}", *FROZEN], out=str(tmp_path / "features"))
    lines = capsys.readouterr().out.splitlines()
    side = read_side(lines[-1])
    assert side.description["name"] == "test_vit" and sum(shard.held for shard in side.shards) == 60
    assert "films: 120" in lines
