"""A run that begins with another run's weights, or a file's: by name, once, and whatever becomes of them later."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file

from r2kg.config.overrides import parse_overrides
from r2kg.config.run import Run
from r2kg.rundir import RunFiles, saved_run
from r2kg.scoring.generate import generate
from r2kg.scoring.writing.writer import Writer
from r2kg.systems.contract import build_model, stored
from r2kg.training.artefacts import WEIGHTS, built, with_init
from r2kg.training.checkpoint import (
    find_checkpoint,
    newest_checkpoint,
    read_state,
    read_tensors,
    weights_of,
    write_checkpoint,
)  # fmt: skip
from r2kg.training.features import describe, frozen_encoder
from r2kg.training.launch import train
from shards.errors import CheckpointError, ConfigError, DataError
from tests.r2kg.killing import train_killed

slow = pytest.mark.slow
STEPS = 16


@pytest.fixture(scope="module")
def recipe(small_run) -> Run:
    """Sixteen steps of four films on two workers; the encoder is trained, and adapters of the language model."""
    return small_run(
        {
            "train.steps": STEPS,
            "train.global_batch": 4,
            "train.micro_batch": 2,
            "train.checkpoint_every": 2,
            "train.checkpoints_kept": 9,
            "train.validation_studies": 4,
        }
    )


def save(run: Run, step: int, loss: float, seed: int) -> dict[str, torch.Tensor]:
    """A checkpoint of a run with random weights, and those weights."""
    torch.manual_seed(seed)
    weights = {name: torch.randn_like(tensor) for name, tensor in stored(build_model(run.model)).items()}
    moments = {f"{name}@.exp_avg": torch.ones(1) for name in weights}
    RunFiles(run.directory).begin(run)
    state = {"step": step, "validation_loss": loss, "artefacts": {}}
    write_checkpoint(run.directory, weights | moments, state, 0, 1, lambda mine: [mine])
    return weights


@pytest.fixture
def stage1(recipe, tmp_path) -> Run:
    run = recipe.change({"root": str(tmp_path), "name": "stage1"})
    for step, loss in ((2, 1.0), (4, 0.5), (6, 2.0)):
        save(run, step, loss, seed=step)
    return run


def named(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(("which", "step"), [("best", 4), ("last", 6), ("2", 2)])
def test_a_stage_begins_with_the_checkpoint_it_names(stage1, which, step):
    begins = stage1.change({"name": "stage2", "train.init_from": f"stage1@{which}", "model.vision.tuning": "frozen"})
    run = with_init(begins)
    kept = weights_of(read_tensors(find_checkpoint(stage1.directory, str(step))))
    model = named(built(run))
    assert all(torch.equal(model[name], tensor) for name, tensor in kept.items()), "frozen and trained ones"
    assert set(load_file(Path(run.train.init_from) / WEIGHTS)) == set(kept), "no moments"
    by_path = begins.change({"name": "other", "train.init_from": f"{stage1.directory}@{which}"})
    assert all(torch.equal(tensor, model[name]) for name, tensor in named(built(with_init(by_path))).items())


def test_a_stage_that_began_keeps_its_weights_whatever_stage_1_does(stage1):
    begins = stage1.change({"name": "stage2", "train.init_from": "stage1@best"})
    run = with_init(begins)
    RunFiles(run.directory).begin(run)
    save(stage1, 8, loss=0.1, seed=8)
    assert with_init(begins) == run and with_init(run) == run
    assert with_init(begins.change({"name": "later"})).train.init_from != run.train.init_from
    assert with_init(begins.change({"train.init_map.writer": None})).train.init_from != run.train.init_from
    shutil.rmtree(stage1.directory)
    assert with_init(begins) == run
    before = named(built(run))
    assert all(torch.equal(tensor, before[name]) for name, tensor in named(built(run)).items())
    (Path(run.train.init_from) / WEIGHTS).unlink()
    with pytest.raises(DataError, match=f"{WEIGHTS} is missing"):
        built(run)


def test_the_chain_names_every_stage_before(stage1):
    def settings(run: Run) -> dict:
        return json.loads((Path(run.train.init_from) / "artefact.json").read_text())["settings"]

    stage2 = with_init(stage1.change({"name": "stage2", "train.init_from": "stage1@4"}))
    save(stage2, 3, loss=1.0, seed=3)
    checkpoint = newest_checkpoint(stage2.directory)
    state = read_state(checkpoint) | {"artefacts": {"init": {"settings": settings(stage2)}}, "step": 5}
    write_checkpoint(stage2.directory, dict(read_tensors(checkpoint)), state, 0, 1, lambda mine: [mine])
    chain = settings(with_init(stage1.change({"name": "stage3", "train.init_from": "stage2@last"})))["chain"]
    assert [(one["run"], one["step"]) for one in chain] == [("stage1", 4), ("stage2", 5)]
    assert all(len(one["checkpoint"]) == 64 for one in chain)


@pytest.mark.parametrize(
    ("ending", "level"), [("safetensors", ""), ("pth", "model"), ("pt", "state_dict"), ("bin", "")]
)
def test_a_file_is_put_in_by_its_map(recipe, tmp_path, ending, level):
    torch.manual_seed(0)
    own = named(built(recipe))
    vision = [name for name in own if name.startswith("vision.encoder.")]
    held = {name.replace("vision.encoder", "visual.trunk"): torch.randn_like(own[name]) for name in vision}
    held |= {"visual.trunk.head.weight": torch.zeros(3), "opt.a": torch.zeros(1), "visual.trunk10.b": torch.zeros(2)}
    file = tmp_path / f"blip.{ending}"
    if ending == "safetensors":
        save_file(held, file)
    else:
        torch.save({level: held, "epoch": 3} if level else held, file)
    names = {"visual.trunk": "vision.encoder", "visual": None, "visual.trunk.head": "", "opt": None}
    run = recipe.change({"root": str(tmp_path), "train.init_from": str(file), "train.init_map": names})
    torch.manual_seed(0)
    model = named(built(with_init(run)))
    for name, tensor in model.items():
        was = held.get(name.replace("vision.encoder", "visual.trunk"))
        assert torch.equal(tensor, own[name] if was is None else was), name


def test_a_prefix_is_a_word_of_the_command_line(recipe):
    words = ["train.init_map.writer.llm=null", "train.init_map.visual.trunk=vision.encoder", "train.init_map.a=b"]
    changed = recipe.change(parse_overrides(words)).train.init_map
    assert changed == {"writer.llm": None, "visual.trunk": "vision.encoder", "a": "b"}


def test_adapters_are_put_on_what_stage_1_trained_whole(stage1):
    whole = with_init(stage1.change({"name": "whole", "train.init_from": "stage1@best"}))
    lora = whole.change({"model.vision.tuning": "lora"})
    films = torch.randint(0, 256, (2, 64, 64), dtype=torch.uint8)
    models = [built(run).vision.eval() for run in (whole, lora, stage1)]  # type: ignore[attr-defined]
    ours, theirs, others = (model.encode(films) for model in models)
    assert torch.allclose(ours, theirs, atol=1e-4 * ours.abs().max().item())
    assert not torch.allclose(ours, others, atol=1e-2 * ours.abs().max().item())


def test_what_does_not_fit_is_refused_by_name_before_any_worker(stage1):
    narrow = {"model.vision.name": "test_convnext", "name": "stage2", "train.init_from": "stage1@best"}
    with pytest.raises(ConfigError, match=r"vision\S+ \[.*\] has no place.*train.init_map.vision=null"):
        train(stage1.change(narrow))
    other = stage1.change({"model.llm.lora.rank": 4, "name": "stage2", "train.init_from": "stage1@best"})
    shapes = r"4 of \d+ .*lora_A.default.weight is \[32, 32\] there, writer\S+ is \[4, 32\] here"
    with pytest.raises(ConfigError, match=rf"{shapes}.*adapter.*train.init_map.writer=null"):
        train(other)
    assert not RunFiles(other.directory).run.exists()
    left_out = with_init(other.change({"train.init_map.writer": None}))
    model, weights = named(built(left_out)), read_tensors(find_checkpoint(stage1.directory, "best"))
    assert torch.equal(model["projection.weight"], weights["projection.weight"])
    frozen = stage1.change({"model.llm.tuning": "frozen", "name": "frozen", "train.init_from": "stage1@best"})
    with pytest.raises(ConfigError, match=r"lora_A\S+ \[32, 32\] has no place"):
        built(with_init(frozen))


def test_words_that_name_no_weights_say_which_would(stage1, tmp_path):
    def refused(words: str, kind: type[Exception], message: str, **names: str | None) -> None:
        with pytest.raises(kind, match=message):
            with_init(stage1.change({"name": "stage2", "train.init_from": words, "train.init_map": names}))

    refused("stage1", ConfigError, "RUN@best, RUN@last or RUN@STEP")
    refused("stage0@best", ConfigError, "neither a file nor a checkpoint")
    refused("stage1@3", CheckpointError, "no checkpoint '3'; it holds step-00000002, step-00000004")
    refused(
        "stage1@best", ConfigError, r"train.init_map.visual is no name.*norm, projection, vision, writer", visual="eyes"
    )
    everything = dict.fromkeys(("norm", "projection", "vision", "writer"))
    refused("stage1@best", ConfigError, "nothing is left", **everything)
    refused("stage1@best", ConfigError, r"gives norm.\w+ and projection.\w+.* one name", norm="a", projection="a")
    with pytest.raises(ConfigError, match="another run"):
        with_init(stage1.change({"train.init_from": "stage1@best"}))
    torch.save({"model": Run}, tmp_path / "code.pth")
    refused(str(tmp_path / "code.pth"), ConfigError, "cannot be read as plain tensors")
    (tmp_path / "half.safetensors").write_bytes(b"half")
    refused(str(tmp_path / "half.safetensors"), ConfigError, "cannot be read as plain tensors")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    refused(str(tmp_path / "empty.pth"), ConfigError, "nothing is left.*no tensor at all")
    assert not [path for path in (tmp_path / "artefacts").iterdir() if path.name.startswith("init")]


def test_features_are_those_of_the_encoder_the_run_begins_with(stage1):
    frozen = stage1.change({"model.vision.tuning": "frozen", "model.llm.tuning": "frozen", "name": "stage2"})
    run = with_init(frozen.change({"train.init_from": "stage1@best", "train.init_map.writer": None}))
    ours, model = frozen_encoder(run), built(run)
    assert describe(run, ours) == describe(run, model.vision) != describe(frozen, frozen_encoder(frozen))  # type: ignore[attr-defined]


@pytest.mark.long
@slow
def test_two_stages_survive_kill_9_and_the_second_needs_the_first_no_more(twelve_steps, killed, tmp_path):
    """Stage 1 is a run that lost a worker, copied: what follows takes it away."""
    stage1 = Path(shutil.copytree(killed.directory, tmp_path / "stage1"))
    best = find_checkpoint(stage1, "best")
    earlier, step = weights_of(read_tensors(best)), read_state(best)["step"]
    begins = twelve_steps.change(
        {"root": str(tmp_path), "model.vision.tuning": "frozen", "train.init_from": "stage1@best"}
    )
    undisturbed, killed = begins.change({"name": "undisturbed"}), begins.change({"name": "killed"})
    train(undisturbed)
    assert train_killed(killed, checkpoint_step=3)["step"] == killed.train.steps
    ours, theirs = (weights_of(read_tensors(newest_checkpoint(run.directory))) for run in (killed, undisturbed))
    assert ours.keys() == theirs.keys() < earlier.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in theirs)
    assert not torch.allclose(ours["projection.weight"], earlier["projection.weight"], atol=1e-4)

    state = read_state(newest_checkpoint(killed.directory))
    (link,) = state["artefacts"]["init"]["settings"]["chain"]
    assert (link["run"], link["step"]) == ("stage1", step)
    assert "begins with stage1@best" in (killed.directory / "log.txt").read_text()
    ((uri, cursor),) = json.loads(RunFiles(killed.directory).cursor.read_text())["servers"].items()
    assert json.loads(MlflowClient(uri).get_run(cursor["run_id"]).data.tags["init"]) == [link]

    shutil.rmtree(stage1)
    assert train(killed)["step"] == killed.train.steps, "submitted again with the same words it has nothing left to do"
    saved = saved_run(killed.directory)
    writer = Writer(saved, newest_checkpoint(killed.directory), "synthetic")
    in_use = named(writer.model)
    vision = [name for name in earlier if name.startswith("vision.")]
    assert vision and all(torch.equal(in_use[name], earlier[name]) for name in vision)
    assert len(generate(saved, saved.data.shards, "test").read_text().splitlines()) > 0
