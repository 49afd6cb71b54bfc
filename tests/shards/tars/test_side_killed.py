"""A side's writer that is killed at any moment: nothing half is kept, what was whole is not written again."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from shards.sources.phantom.source import Phantom
from shards.stream.index import open_splits
from shards.tars.format import read_manifest
from shards.tars.kinds import FILE
from shards.tars.place import sha256_of
from shards.tars.shards import write_shards
from shards.tars.sides import write_side
from shards.tars.verify import faults_of
from shards.tars.write import Made

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session")]
WRITER = """
import sys, time, ray
from shards.stream.index import open_splits
from shards.tars.format import read_manifest
from shards.tars.sides import write_side
from shards.tars.write import Made
root, out, session = sys.argv[1:]
quiet = {"include_dashboard": False, "log_to_driver": False}
ray.init(num_cpus=2, object_store_memory=100 * 2**20, _temp_dir=session, **quiet)
def make(index, rows, given):
    for row in rows:
        time.sleep(0.1)
        yield Made({"kg.safetensors": index.keys[row] * 99})
manifest = read_manifest(root)
write_side(root, out, "subgraphs", manifest, open_splits(root, manifest), {"nodes": [], "relations": []}, lambda: make)
"""


def test_two_kills_change_nothing(tmp_path: Path) -> None:
    root, out = tmp_path / "shards", tmp_path / "side"
    manifest = write_shards(Phantom(studies=80, size=64), root, size=64, studies_per_shard=4)
    films = {path.name: sha256_of(path) for path in root.iterdir()}
    with tempfile.TemporaryDirectory(prefix="k", dir="/tmp", ignore_cleanup_errors=True) as session:
        for wanted in (3, 8):
            command = [sys.executable, "-c", WRITER, str(root), str(out), session]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while process.poll() is None and len(list(out.glob("*.tar"))) < wanted:
                time.sleep(0.02)
            assert process.poll() is None, "the writer ended before it could be killed"
            kill(process)
            assert not (out / FILE).exists()
    left = {path.name: path.stat().st_mtime_ns for path in out.glob("*.index.json")}

    def make(index, rows, given):
        return (Made({"kg.safetensors": index.keys[row] * 99}) for row in rows)

    words, indices = {"nodes": [], "relations": []}, open_splits(root, read_manifest(root))
    side = write_side(root, out, "subgraphs", manifest, indices, words, lambda: make)
    again = write_side(root, tmp_path / "again", "subgraphs", manifest, indices, words, lambda: make)
    assert side == again and faults_of(out, side.shards) == [] and sum(shard.held for shard in side.shards) == 80
    assert 7 <= len(left) < len(side.shards), "some tars were kept, some had to be written"
    assert all((out / name).stat().st_mtime_ns == then for name, then in left.items())
    assert {path.name: sha256_of(path) for path in root.iterdir()} == films
    assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "again").iterdir()}


def kill(process: subprocess.Popen) -> None:
    """SIGKILL for the writer and everything it started."""
    for one in [process, *psutil.Process(process.pid).children(recursive=True)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one.pid, signal.SIGKILL)
    process.wait()
