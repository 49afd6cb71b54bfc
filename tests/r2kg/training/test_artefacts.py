"""What a run needs made is made once, whole or not at all, and known again by its content."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from ray.exceptions import RayTaskError

from r2kg.config.needs import Artefact, Inputs
from r2kg.config.parts import Data, Local
from r2kg.config.run import Run, System
from r2kg.recipes import find_recipe
from r2kg.rundir import RunFiles, saved_run
from r2kg.training.artefacts import built, checked_card, fingerprints, make_artefact, prepared
from r2kg.training.plan import refuse_changed
from shards.errors import ConfigError, DataError, RetryableError
from shards.tars.format import read_manifest

FORK = multiprocessing.get_context("fork")  # another process without another half minute of imports


def thing(make, **changes) -> Artefact:
    return Artefact(name="thing", settings={"of": 1}, make=make, into="model.llm.source", sentence="Making", **changes)


def run_in(root: Path) -> Run:
    return find_recipe("r2gengpt.tiny").change({"root": str(root)})


def ask(root: Path, seconds: float) -> None:
    """A process's whole life: it asks for the artefact, makes it if it must, and notes what it got."""

    def make(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        with (root / "makers.txt").open("a") as makers:
            makers.write(f"{os.getpid()}\n")
        time.sleep(seconds)
        (folder / "whole.txt").write_text("whole")

    (root / f"asks-{os.getpid()}").touch()
    wait_until(lambda: (root / "go").exists())
    (root / f"got-{os.getpid()}").write_text(str(make_artefact(thing(make), run_in(root))))


def wait_until(true) -> None:
    for _ in range(1200):
        if true():
            return
        time.sleep(0.05)
    raise TimeoutError


def test_two_who_ask_at_once_get_the_one_that_is_made_once(tmp_path):
    askers = [FORK.Process(target=ask, args=(tmp_path, 0.5)) for _ in range(2)]
    for asker in askers:
        asker.start()
    wait_until(lambda: len(list(tmp_path.glob("asks-*"))) == 2)
    (tmp_path / "go").touch()
    for asker in askers:
        asker.join(60)
    assert len((tmp_path / "makers.txt").read_text().splitlines()) == 1
    (folder,) = {Path(got.read_text()) for got in tmp_path.glob("got-*")}
    assert len(list(tmp_path.glob("got-*"))) == 2
    assert sorted(path.name for path in folder.iterdir()) == ["artefact.json", "half.txt", "whole.txt"]


def test_a_maker_that_is_killed_leaves_nothing_that_counts(tmp_path):
    (tmp_path / "go").touch()
    asker = FORK.Process(target=ask, args=(tmp_path, 600))
    asker.start()
    wait_until((tmp_path / "makers.txt").exists)
    os.kill(asker.pid or 0, signal.SIGKILL)
    asker.join(60)
    left = [path.name for path in (tmp_path / "artefacts").iterdir() if not path.name.endswith(".lock")]
    assert len(left) == 1 and left[0].startswith(".thing-"), "half of it lies under another name"
    folder = make_artefact(thing(lambda folder: (folder / "a.txt").write_text("a")), run_in(tmp_path))
    assert [path.name for path in folder.parent.iterdir() if not path.name.endswith(".lock")] == [folder.name]
    assert (folder / "a.txt").is_file() and not (folder / "half.txt").exists()


def test_a_maker_that_fails_leaves_its_error_and_nothing_else(tmp_path):
    def fails(folder: Path) -> None:
        (folder / "a.txt").write_text("half")
        raise DataError("no report has any text")

    with pytest.raises(DataError, match="no report has any text") as caught:
        make_artefact(thing(fails), run_in(tmp_path))
    assert "thing was not made" in caught.value.__notes__[0]
    with pytest.raises(DataError, match="thing wrote no file"):
        make_artefact(thing(lambda folder: None), run_in(tmp_path))
    assert [path.suffix for path in (tmp_path / "artefacts").iterdir()] == [".lock"]
    assert make_artefact(thing(lambda folder: (folder / "a.txt").write_text("a")), run_in(tmp_path)).is_dir()


def test_a_big_one_is_made_by_a_ray_job(tmp_path, ray_session):
    def makes(folder: Path) -> None:
        (folder / "process.txt").write_text(str(os.getpid()))

    def fails(folder: Path) -> None:
        raise ConfigError("no such graph")

    with pytest.raises(ConfigError, match="^no such graph$"):
        make_artefact(thing(fails, resources={"num_cpus": 0.5}), run_in(tmp_path))

    def quotes(folder: Path) -> None:
        raise ValueError("the report says: a large effusion")

    with pytest.raises(RayTaskError, match="its message is withheld") as caught:
        make_artefact(thing(quotes, resources={"num_cpus": 0.5}), run_in(tmp_path), "physionet-credentialed-1.5.0")
    assert "effusion" not in str(caught.value)

    def dies(folder: Path) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(RetryableError, match="the Ray job that makes thing was lost"):
        make_artefact(thing(dies, resources={"num_cpus": 0.5}), run_in(tmp_path))
    folder = make_artefact(thing(makes, resources={"num_cpus": 0.5}), run_in(tmp_path))
    assert int((folder / "process.txt").read_text()) != os.getpid()
    assert checked_card(folder, hashes=True)["name"] == "thing"


@pytest.mark.parametrize(
    ("damage", "hashes", "message"),
    [("cut", False, "a.txt has 2 of 3 bytes"), ("lost", False, "a.txt is missing"), ("flip", True, "another sha256"),
     ("card", False, "artefact.json cannot be read")],
)  # fmt: skip
def test_a_damaged_one_is_noticed(tmp_path, damage, hashes, message):
    folder = make_artefact(thing(lambda folder: (folder / "a.txt").write_text("abc")), run_in(tmp_path))
    assert checked_card(folder, hashes=True)
    if damage == "lost":
        (folder / "a.txt").unlink()
    elif damage == "card":
        (folder / "artefact.json").write_text("{")
    else:
        (folder / "a.txt").write_text({"cut": "ab", "flip": "abd"}[damage])
    with pytest.raises(DataError, match=f"{message}.*delete the directory"):
        checked_card(folder, hashes)
    if damage == "flip":
        assert checked_card(folder), "sizes alone do not show it"


@pytest.mark.parametrize(
    "change",
    [
        lambda card: [],
        lambda card: {key: value for key, value in card.items() if key != "settings"},
        lambda card: card | {"name": ["thing"]},
        lambda card: card | {"files": []},
        lambda card: card | {"files": {"a.txt": [3]}},
        lambda card: card | {"files": card["files"] | {"/etc/hostname": [1, "0"]}},
        lambda card: card | {"files": card["files"] | {"../a.txt": [1, "0"]}},
        lambda card: card | {"files": card["files"] | {"a" * 5_000: [1, "0"]}},
        lambda card: "[" * 100_000,
        lambda card: None,
    ],
)
def test_a_card_that_is_none_is_no_artefact(tmp_path, change):
    folder = make_artefact(thing(lambda folder: (folder / "a.txt").write_text("abc")), run_in(tmp_path))
    changed = change(json.loads((folder / "artefact.json").read_text()))
    (folder / "artefact.json").unlink()
    if changed is None:
        os.mkfifo(folder / "artefact.json")
    else:
        (folder / "artefact.json").write_text(changed if isinstance(changed, str) else json.dumps(changed))
    with pytest.raises(DataError, match=r"is not what was made for this run: (artefact.json cannot|.*leads out)"):
        checked_card(folder, hashes=True)


@pytest.fixture(scope="module")
def recipe(phantom_shards, tmp_path_factory) -> Run:
    small = {"width": 32, "layers": 1, "heads": 2, "vocabulary": 320, "epochs": 1}
    changes = {"root": str(tmp_path_factory.mktemp("runs")), "data.shards": str(phantom_shards)}
    return find_recipe("r2gengpt.tiny").change(
        changes | {f"model.llm.tiny.{key}": value for key, value in small.items()}
    )


def test_the_tiny_lm_is_the_same_whenever_and_wherever_it_is_made(recipe, tmp_path, capsys):
    manifest = read_manifest(recipe.data.shards)
    run, made = prepared(recipe, manifest)
    assert "Training a small language model" in capsys.readouterr().out
    again, same = prepared(recipe.change({"name": "another"}), manifest)
    assert (again.model, same) == (run.model, made) and not capsys.readouterr().out, "it is made once for all runs"
    elsewhere, other = prepared(recipe.change({"root": str(tmp_path)}), manifest)
    assert elsewhere.model != run.model and fingerprints(other) == fingerprints(made)
    assert list(fingerprints(made)) == ["tiny-lm"]


def test_a_run_submitted_again_is_the_same_run_by_its_words_or_its_run_json(recipe, tmp_path):
    manifest = read_manifest(recipe.data.shards)
    run, made = prepared(recipe, manifest)
    refuse_changed(run, prepared(recipe, manifest)[0])
    assert prepared(run, manifest) == (run, made), "a saved run names the directory, which is known again"
    with pytest.raises(ConfigError, match=r"model.llm.source"):
        refuse_changed(run, prepared(recipe.change({"model.llm.tiny.width": 16}), manifest)[0])
    RunFiles(run.directory).begin(run)
    new_root = (Path(run.root)).rename(tmp_path / "moved")
    moved = saved_run(new_root / run.name)
    assert moved.model.llm.source.startswith(str(new_root))  # type: ignore[attr-defined]
    refuse_changed(run, moved)
    assert fingerprints(prepared(moved, manifest)[1]) == fingerprints(made)
    new_root.rename(run.root)


def test_a_run_whose_artefact_is_damaged_stops_before_any_worker(recipe):
    manifest = read_manifest(recipe.data.shards)
    run, made = prepared(recipe, manifest)
    weights = Path(made["tiny-lm"]["path"]) / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match="model.safetensors has another sha256"):
        prepared(recipe, manifest)
    weights.write_bytes(content[:-1])
    with pytest.raises(DataError, match="model.safetensors has .* bytes"):
        built(run)
    weights.write_bytes(content)
    assert built(run)
    assert json.loads((weights.parent / "artefact.json").read_text())["name"] == "tiny-lm"


class Chained(System):
    """Two artefacts, the second made from the first."""

    build: ClassVar[str] = "nowhere:Model"
    system: str = f"{__name__}:Chained"
    words: Local = ""
    bank: Local | None = None

    def inputs(self, data: Data) -> Inputs:
        return Inputs(text=("indication",))

    def prepare(self, run: Run, manifest) -> Iterable[Artefact]:
        if not self.words:
            yield Artefact("words", {}, lambda folder: note(folder, "heart lungs"), "model.words", "Counting")
        if not self.bank:
            words = (Path(self.words) / "note").read_text()
            yield Artefact("bank", {"of": words}, lambda folder: note(folder, words[::-1]), "model.bank", "Making")


def note(folder: Path, text: str) -> None:
    (folder / "note").write_text(text)


def test_one_artefact_is_made_from_another_and_both_are_known_from_the_saved_run(phantom_shards, tmp_path):
    run, manifest = Run(name="c", root=str(tmp_path), model=Chained()), read_manifest(phantom_shards)
    named, made = prepared(run, manifest)
    assert (Path(named.model.bank) / "note").read_text() == "sgnul traeh"
    again, known = prepared(named, manifest)
    assert again == named and known == made and set(made) == {"words", "bank"}


def test_a_directory_goes_into_a_field_that_is_known_to_hold_one(tmp_path):
    artefact = replace(thing(lambda folder: note(folder, "x")), into="model.prompt")
    with pytest.raises(ConfigError, match=r"thing goes into model.prompt, which must be a `Local` field"):
        make_artefact(artefact, run_in(tmp_path))
