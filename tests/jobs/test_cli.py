"""The command line: what is refused, and help, need no training library, and nothing is said but our own sentence."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from jobs.cli import VERBS, run
from r2kg.recipes import find_recipe
from shards.errors import CheckpointError, ConfigError, DataError, RetryableError
from shards.study import BadStudy

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "ray", "deepspeed", "transformers", "mlflow", "timm", "peft", "torch_geometric")
WRAPPER = f"""
import atexit, sys
from jobs.cli import main
atexit.register(lambda: print("imported:", *[name for name in {HEAVY} if name in sys.modules]))
main()
"""
REFUSED = {
    "train TYPO": (2, "ConfigError: unknown recipe 'TYPO'; known: cknet."),
    "train r2gengpt.tinny": (2, "ConfigError: unknown recipe 'r2gengpt.tinny'; did you mean r2gengpt.tiny"),
    "train r2gengpt.tiny optim.lrr=1": (2, "ConfigError: unknown key 'optim.lrr'; did you mean optim.lr"),
    "train r2gengpt.tiny train.epochs": (2, "ConfigError: 'train.epochs' is not an override: write key=value"),
    "train vlm_kg.llm_tiny vlm_kg.tiny name=x": (2, "ConfigError: two of these would be one run, x:"),
    "train vlm_kg.tiny vlm_kg.llm_tiny": (2, "ConfigError: vlm-kg-tiny begins with vlm-kg-llm-tiny@best, and no run"),
    "train vlm_kg.llm_iu vlm_kg.iu": (
        2,
        "ConfigError: vlm-kg-iu: model.vision.weights=medclip/pytorch_model.bin is",
    ),
    "train vlm_kg.llm_tiny vlm_kg.tiny model.nosuch=1": (2, "ConfigError: unknown key 'model.nosuch'"),
    "train vlm_kg.llm_tiny vlm_kg.tinny": (2, "ConfigError: unknown recipe 'vlm_kg.tinny'; did you mean vlm_kg.tiny"),
    "train r2gengpt.tiny": (2, "ConfigError: data.shards is empty: give the directory that `r2kg shard` wrote"),
    "train r2gengpt.tiny data.shards=empty": (3, "DataError: no shards at {cwd}/empty: manifest.json is missing"),
    "features TYPO": (2, "ConfigError: unknown recipe 'TYPO'; known: cknet."),
    "features r2gengpt.tiny data.shards=empty": (3, "DataError: no shards at {cwd}/empty: manifest.json is missing"),
    "generate NOSUCHDIR": (2, "ConfigError: NOSUCHDIR is not a run: {cwd}/NOSUCHDIR/run.json is missing."),
    "generate trained": (3, "DataError: no shards at {cwd}/gone: manifest.json is missing"),
    "evaluate NOSUCHFILE": (3, "DataError: cannot read predictions NOSUCHFILE: No such file or directory"),
    "evaluate NOSUCHFILE --shards empty": (3, "DataError: no shards at empty: manifest.json is missing"),
    "cases NOSUCHFILE": (3, "DataError: cannot read predictions NOSUCHFILE: No such file or directory"),
    "cases NOSUCHFILE privacy=1": (2, "ConfigError: privacy=1: nothing but privacy.allow_text=true or false can be"),
    "compare NOSUCHFILE": (2, "ConfigError: one run is named, and two are needed to compare: name another"),
    "compare empty empty": (3, "DataError: there is no predictions.jsonl below empty: write it with"),
    "protocols nosuch": (2, "ConfigError: there is no protocol 'nosuch': choose one of r2gen-2020,"),
    "shard nosuch --out x": (
        2,
        "ConfigError: unknown source 'nosuch': use one of chexpert_plus, csv, iu_xray,",
    ),
    "shard phantom --out x sise=3": (2, "ConfigError: source 'phantom'"),
    "shard phantom --out nosuch://x": (2, "ConfigError: nosuch://x cannot be opened"),
    "shards verify empty": (3, "DataError: no shards at empty: manifest.json is missing"),
    "shards show empty KEY": (3, "DataError: no shards at {cwd}/empty: manifest.json is missing"),
    "subgraphs empty": (3, "DataError: no shards at {cwd}/empty: manifest.json is missing"),
    "shard iu_xray --out x": (2, "ConfigError: source 'iu_xray': raw= is missing: say --raw DIR"),
    "shard phantom --out x --studies 10 studies=20": (2, "ConfigError: studies is given twice, by an option and as"),
    "shard phantom --out x --terms public": (2, "ConfigError: --terms public: the terms of phantom are known"),
    "tranin r2gengpt.tiny": (2, "no verb 'tranin'; did you mean train?"),
    "nonsense": (2, "no verb 'nonsense': `r2kg --help` lists them"),
    "show r2gengpt.tiny optim.lr_of.nonsense=1": (
        2,
        "ConfigError: run: optim.lr_of names nonsense; vision, projection, graph, queries, llm",
    ),
    "show r2gengpt.tiny optim.lr=inf": (2, "ConfigError: optim.lr: Input should be a finite number"),
    'show r2gengpt.tiny protocols=["nosuch"]': (2, "ConfigError: unknown protocols ['nosuch']; known: "),
    "show gone/run.json": (2, "ConfigError: gone/run.json is missing: give a run.json"),
    "show r2gengpt.tiny train.steps=0": (2, "ConfigError: train.steps: Input should be greater than or equal to 1"),
    "graph annotate empty": (3, "DataError: no shards at {cwd}/empty: manifest.json is missing"),
    "graph build empty": (3, "DataError: no shards at {cwd}/empty: manifest.json is missing"),
    "graph findings empty": (3, "DataError: no shards at {cwd}/empty: manifest.json is missing"),
    "graph card empty": (3, "DataError: no graph at {cwd}/empty: graph.json is missing there"),
    "graph evaluate empty": (3, "DataError: no shards at empty: manifest.json is missing"),
    "sweep cknet_tabel4": (2, "ConfigError: unknown table 'cknet_tabel4'; did you mean cknet_table4"),
    "sweep cknet_table4 --dry-run": (2, "ConfigError: data.shards is empty: give the directory that"),
    "sweep cknet_table4 --tiny --dry-run data.shards=x": (2, "ConfigError: --tiny draws its own films: leave"),
    "table cknet_table4": (3, "DataError: no sweep at {cwd}/runs/cknet_table4 (sweep.json is missing"),
    "demo --steps 0": (2, "ConfigError: train.steps: Input should be greater than or equal to 1"),
}


def ended(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """`r2kg COMMAND` in a process of its own, whose last line names the heavy libraries that it imported."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", WRAPPER, *command.split()]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("command", REFUSED)
def test_what_cannot_be_is_one_sentence_and_nothing_else(command, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "trained").mkdir()
    gone = {"data.shards": str(tmp_path / "gone")}
    find_recipe("r2gengpt.tiny").change(gone).save(tmp_path / "trained" / "run.json")
    code, sentence = REFUSED[command]
    result = ended(command, tmp_path)
    assert result.stderr.startswith(sentence.format(cwd=tmp_path.resolve()))
    assert result.stderr.count("\n") == 1, "one sentence on one line, and no library's warning"
    assert (result.returncode, result.stdout) == (code, "imported:\n")
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "trained"}, "nothing was begun"


@pytest.mark.parametrize("verb", VERBS)
def test_help_waits_for_no_library(verb, tmp_path):
    result = ended(f"{verb} --help", tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert f"Usage: r2kg {verb}" in result.stdout
    assert result.stdout.splitlines()[-1] == "imported:"


@pytest.mark.parametrize("command", ["recipes", "show r2gengpt.tiny", "sweep systems --tiny --dry-run"])
def test_listing_recipes_and_runs_needs_no_training_library(command, tmp_path):
    result = ended(command, tmp_path)
    assert (result.returncode, result.stderr) == (0, "") and re.search("r2gengpt.tiny", result.stdout)
    assert result.stdout.splitlines()[-1] == "imported:"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("why"), 2),
        (DataError("why"), 3),
        (BadStudy("no_film", "why"), 3),
        (CheckpointError("why"), 4),
        (RetryableError("why"), 75),
    ],
)
def test_every_kind_of_failure_has_its_exit_code(error, code, monkeypatch, capsys):
    def fail() -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["r2kg fail"])
    with pytest.raises(SystemExit) as stopped:
        run(fail)
    assert stopped.value.code == code and capsys.readouterr().err == f"{type(error).__name__}: {error}\n"


@pytest.mark.parametrize(
    ("address", "code", "told"),
    [
        ("foo", 2, "ConfigError: RAY_ADDRESS=foo is no address: give HOST:PORT"),
        ("127.0.0.1:{port}", 75, "RetryableError: no Ray cluster answers at RAY_ADDRESS=127.0.0.1:"),
    ],
)
def test_a_cluster_that_is_not_there_is_told_at_once(address, code, told, free_port, tmp_path, monkeypatch):
    """Ray itself asks for a quarter of an hour, in which no Ctrl-C is heard."""
    monkeypatch.setenv("RAY_ADDRESS", address.format(port=free_port()))
    began, result = time.monotonic(), ended("shard phantom --out films --studies 4", tmp_path)
    assert result.stderr.startswith(told) and result.stderr.count("\n") == 1
    assert result.returncode == code and time.monotonic() - began < 60


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "afile").touch()
    for command in ("shard phantom --studies 4 --out afile", "shard phantom --studies 4 --out afile/below"):
        result = ended(command, tmp_path)
        assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
        assert result.stderr.startswith("ConfigError: ") and "afile" in result.stderr


def test_what_a_task_refuses_is_one_sentence_and_no_other_session_is_joined(drawn_iu, tmp_path):
    """Beside the note of a Ray session that is gone, which Ray by itself would wait for."""
    raw = drawn_iu(train=2, val=1)
    film = raw / "images" / "CXR1_IM-0001" / "0.png"
    film.write_bytes(film.read_bytes()[:-200])
    temporary = Path(tempfile.mkdtemp(prefix="r2kg-"))  # sockets lie below, and their paths are short
    (temporary / "ray").mkdir()
    (temporary / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
    command = [sys.executable, "-m", "jobs.shard", "iu_xray", "--raw", raw, "--out", tmp_path / "out", "--on-bad"]
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_JOB_ID")}
    environment |= {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(temporary)}
    result = subprocess.run(
        [*map(str, command), "fail"], env=environment, capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    shutil.rmtree(temporary)
    assert result.stderr.startswith("DataError: study 'CXR1_IM-0001' of split train: image does not decode: ")
    assert (result.returncode, result.stderr.count("\n")) == (3, 1)
    assert re.fullmatch(r"A Ray session of its own: \d+ CPUs, \d+ GPUs\.\n", result.stdout)
    assert not list((tmp_path / "out").glob(".ray-spill*"))
