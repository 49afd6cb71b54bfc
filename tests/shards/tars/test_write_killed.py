"""A writer that is killed at any moment: no half tar is counted, no study is lost or written twice."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from shards.sources.phantom.source import Phantom
from shards.stream.index import Index
from shards.tars.format import SHARDS_FILE, read_manifest
from shards.tars.place import sha256_of
from shards.tars.shards import write_shards
from shards.tars.verify import contents_faults

pytestmark = pytest.mark.slow
STUDIES, PER_SHARD = 400, 8
WRITER = """
import sys, ray
from shards.sources.phantom.source import Phantom
from shards.tars.shards import write_shards
quiet = {"include_dashboard": False, "log_to_driver": False}
ray.init(num_cpus=2, object_store_memory=100 * 2**20, _temp_dir=sys.argv[2], **quiet)
write_shards(Phantom(studies=int(sys.argv[3]), size=96), sys.argv[1], size=96, studies_per_shard=int(sys.argv[4]))
"""


def start(out: Path, session: str) -> subprocess.Popen:
    command = [sys.executable, "-c", WRITER, str(out), session, str(STUDIES), str(PER_SHARD)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ))


def kill(process: subprocess.Popen) -> None:
    """SIGKILL for the writer and everything it started, workers in the middle of a tar included."""
    everyone = [process, *psutil.Process(process.pid).children(recursive=True)]
    for one in everyone:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one.pid, signal.SIGKILL)
    process.wait()


def tars(out: Path) -> int:
    return len(list(out.glob("*.tar")))


def test_three_kills_change_nothing(ray_session: None, tmp_path: Path) -> None:
    out, moment = tmp_path / "killed", random.Random(0)
    with tempfile.TemporaryDirectory(prefix="k", dir="/tmp", ignore_cleanup_errors=True) as session:
        for _ in range(3):
            process, before = start(out, session), tars(out) if out.exists() else 0
            while process.poll() is None and not (out.exists() and tars(out) > before + 2):
                time.sleep(0.02)
            time.sleep(moment.random() / 5)
            assert process.poll() is None, "the writer ended before it could be killed: write more studies"
            kill(process)
            assert not (out / SHARDS_FILE).exists(), "shards that are not all there have no manifest"
    left = {path.name: sha256_of(path) for path in out.glob("*.tar")}
    source = Phantom(studies=STUDIES, size=96)
    resumed = write_shards(source, out, size=96, studies_per_shard=PER_SHARD)
    whole = write_shards(source, tmp_path / "whole", size=96, studies_per_shard=PER_SHARD)
    assert 6 <= len(left) < len(whole.shards), "some tars were kept, some had to be written"
    assert resumed == whole == read_manifest(out) and contents_faults(out, resumed) == []
    assert left.items() <= {shard.name: shard.sha256 for shard in whole.shards}.items()
    keys = [key for split in resumed.splits for key in Index.open(out, split).keys]
    assert len(keys) == len(set(keys)) == STUDIES
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]
