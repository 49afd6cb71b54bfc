"""A whole run on data tagged as credentialed: no report and no identifier is found outside the data and the run."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.stream.index import Index
from shards.tars.format import read_manifest
from shards.tars.private import PRIVATE
from tests.shards.sources.mimic_tree import MimicTree, write_mimic_tree

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
TINY = [
    "r2gengpt.tiny", "root=runs", "data.shards=data/shards", "train.steps=4", "train.global_batch=4",
    "train.micro_batch=2", "train.workers=2", "train.cpus_per_worker=0.4", "train.validation_studies=2",
    'model.vision={"name": "test_vit", "weights": "random", "image_px": 64}', "model.decoding.max_new_tokens=8",
    'protocols=["full-text", "r2gen-2020-mimic"]',
    'model.llm.tiny={"width": 32, "layers": 1, "heads": 2, "vocabulary": 320, "epochs": 1}',
]  # fmt: skip


class Bench:
    """A working directory, with everything that is printed and every temporary file kept to be searched."""

    def __init__(self, folder: Path, session: Path):
        self.folder, self.session, self.printed = folder, session, ""
        self.temporary = folder / "tmp"
        self.temporary.mkdir()

    def run(self, *words: str, rc: int = 0) -> str:
        """One job in a process of its own; what it printed."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
        environment |= {"TMPDIR": str(self.temporary), "RAY_TMPDIR": str(self.session), "PYTHONPATH": str(ROOT)}
        ended = subprocess.run(
            [sys.executable, "-m", f"jobs.{words[0]}", *words[1:]],
            cwd=self.folder, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        told = ended.stdout + ended.stderr
        self.printed += told
        assert ended.returncode == rc, told[-3000:]
        return told


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    session = Path(tempfile.mkdtemp(prefix="p", dir="/tmp"))  # Ray's sockets need a short path
    yield Bench(tmp_path, session)
    shutil.rmtree(session, ignore_errors=True)


def leaks(tree: MimicTree, folder: Path) -> dict[str, list[str]]:
    """File → what of the tree is found in it or in its name."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            text = f"{path.relative_to(folder)} {path.read_bytes().decode('latin-1')}"
            if secrets := tree.found_in(text):
                found[str(path)] = secrets[:5]
    return found


def test_nothing_of_a_patient_leaves_the_data(bench: Bench) -> None:
    tree = write_mimic_tree(bench.folder / "data" / "raw", patients=8)
    shard = ("shard", "mimic_cxr", "--raw", "data/raw", "--out", "data/shards", "--size", "64")
    film = next((tree.root / "files" / tree.written[1].folder).glob("*.jpg"))
    film.write_bytes(film.read_bytes()[:-500])
    told = bench.run(*shard, "--studies-per-shard", "4", "--on-bad", "fail", rc=3)
    assert "image does not decode" in told and f"{PRIVATE}/stopped.jsonl" in told
    bench.run(*shard, "--studies-per-shard", "4")
    bench.run("shards", "verify", "data/shards")
    bench.run("train", *TINY, "name=whole")
    bench.run("generate", "runs/whole", "--split", "test")
    bench.run("evaluate", "runs/whole", "--protocol", "full-text", "--protocol", "r2gen-2020-mimic")

    first = bench.folder / "data" / "shards" / "train-00000.tar"
    first.write_bytes(first.read_bytes()[:9000])
    bench.run("train", *TINY, "name=strict", rc=3)
    bench.run("train", *TINY, "name=lenient", "data.on_bad=skip")

    assert tree.found_in(bench.printed) == []
    assert leaks(tree, bench.temporary) == {} == leaks(tree, bench.session), "temporary files and Ray's own logs"
    for name in ("whole", "lenient"):
        shutil.rmtree(bench.folder / "runs" / name / "predictions", ignore_errors=True)  # these hold the reports
    shutil.rmtree(bench.folder / "runs" / "artefacts")  # as does, word by word, a tokenizer trained on them
    assert (bench.folder / "runs" / "mlflow.db").stat().st_size > 10_000
    assert leaks(tree, bench.folder / "runs") == {}, "MLflow's store, metrics, logs, checkpoints, failure notes"


def test_what_is_kept_private_leads_back_to_the_owner(bench: Bench) -> None:
    tree = write_mimic_tree(bench.folder / "data" / "raw", patients=8, zipped=True)
    bench.run("shard", "mimic_cxr", "--raw", "data/raw", "--out", "data/shards", "--size", "64")
    shards = bench.folder / "data" / "shards"
    beside = *shards.glob("*.index.json"), *shards.glob("*.raw")
    outside = [path.read_text() for path in (shards / "manifest.json", *beside)]
    assert tree.found_in("".join(outside)) == []
    lines = [json.loads(line) for file in (shards / PRIVATE).glob("train-*.jsonl") for line in file.open()]
    keys = {key.decode() for key in Index.open(shards, "train").keys}
    assert {line["key"] for line in lines} == keys
    assert {line["id"] for line in lines} == {w.study for w in tree.written if w.split == "train"}
    manifest = read_manifest(shards)
    assert manifest.splits["train"].patients == len({w.patient for w in tree.written if w.split == "train"})
    shown = bench.run("shards", "show", str(shards), tree.written[0].study)
    [key] = [line["key"] for line in lines if line["id"] == tree.written[0].study]
    assert key in shown, "whoever has the salt can ask by the owner's identifier"
