"""The README's commands run as they stand, on fewer films and steps."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [line.partition("#")[0].strip() for line in re.findall(r"^r2kg .*$", README, re.MULTILINE)]
SMALLER = {
    "r2kg train": "train.steps=3 train.cpus_per_worker=0.4 tiny_lm.epochs=1 tiny_lm.layers=1 decoding.max_new_tokens=8",
    "r2kg shard phantom": "--studies 60",
}


def run(command: str, folder: Path) -> str:
    extra = next((more for start, more in SMALLER.items() if command.startswith(start)), "")
    words = [sys.executable, "-m", f"jobs.{command.split()[1]}", *shlex.split(command)[2:], *shlex.split(extra)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, f"{command}\n{ended.stdout[-2000:]}\n{ended.stderr[-3000:]}"
    return ended.stdout


def test_the_readme_names_every_verb():
    from jobs.cli import VERBS

    told = {command.split()[1] for command in COMMANDS} | {"demo"}
    assert told == set(VERBS)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.split()[1] in ("recipes", "show")])
def test_looking_costs_nothing(command, tmp_path):
    assert "r2gengpt" in run(command, tmp_path)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.split()[1] == "train"])
def test_every_training_command_is_a_run(command):
    from jobs.train import resolve

    recipe, *changes = shlex.split(command)[2:]
    assert resolve(recipe, changes).data.shards


@pytest.mark.slow
def test_from_films_to_scores_by_the_commands(tmp_path):
    block = next(text for text in re.findall(r"```\n(.*?)```", README, re.DOTALL) if "\nr2kg generate" in text)
    chain = [line for line in block.splitlines() if line.startswith("r2kg") and "--raw" not in line]
    printed = [run(command, tmp_path) for command in chain]
    scores = Path(printed[-1].splitlines()[-1])
    assert scores.name == "scores.json" and scores.is_file()


def test_a_wrong_verb_or_recipe_is_one_sentence():
    for words, told in ((["nosuch"], "usage: r2kg VERB"), (["show", "r2gengpt.tinny"], "did you mean r2gengpt.tiny")):
        ended = subprocess.run(
            [sys.executable, "-m", "jobs.cli", *words], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert ended.returncode == 2 and told in ended.stdout + ended.stderr
        assert "Traceback" not in ended.stderr
