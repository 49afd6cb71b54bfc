"""A system that r2kg has never heard of goes the whole way (tests/own/pairs.py); nothing of r2kg was made for it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from pairs import Pairs, write_marks

from r2kg.config.run import Run
from r2kg.rundir import saved_run
from r2kg.scoring.evaluate import evaluate
from r2kg.scoring.generate import generate
from r2kg.systems.contract import build_model, fill, stored, to_bf16
from r2kg.training.checkpoint import newest_checkpoint, read_state, read_tensors
from r2kg.training.launch import train
from shards.errors import ConfigError, DataError
from tests.r2kg.modules.decoder_checks import check_cached_equals_uncached

STEPS = 6


@pytest.fixture(scope="module")
def shards(phantom_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn films with marks beside them."""
    root = tmp_path_factory.mktemp("pairs") / "films"
    shutil.copytree(phantom_shards, root)
    write_marks(root)
    return root


@pytest.fixture(scope="module")
def recipe(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Six steps of eight studies, with a checkpoint after three."""
    return Run(name="pairs", model={"system": "pairs:Pairs"}).change(
        {
            "root": str(tmp_path_factory.mktemp("runs")),
            "data.shards": str(shards),
            "optim": {"lr": 3e-3, "lr_of": {"encoder": 1e-3}},
            "engine.precision": "fp32",
            "train": {
                "steps": STEPS, "global_batch": 8, "micro_batch": 4, "workers": 2, "gpus": False,
                "cpus_per_worker": 0.4, "checkpoint_every": 3, "checkpoints_kept": 9, "validation_studies": 6,
                "log_every": 1,
            },
            "protocols": ["full-text"],
        }
    )  # fmt: skip


def losses(run: Run) -> list[dict[str, float]]:
    rows = [json.loads(line)["metrics"] for line in (run.directory / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "train.loss" in row]


@pytest.mark.slow
def test_it_trains_moves_generates_and_is_scored(recipe: Run, shards: Path) -> None:
    run = recipe.change({"train.steps": 3})
    assert train(run)["step"] == 3
    first = newest_checkpoint(run.directory)
    state, tensors = read_state(first), read_tensors(first)
    assert state["artefacts"]["words"]["fingerprint"] and state["validation_loss"] > 0
    assert tensors["seen"] == 3 * 4 and tensors["centre"].abs().sum() > 0, "buffers are in the checkpoint"
    assert tensors["cell.weight_hh@exp_avg_sq"].abs().sum() > 0

    alone = recipe.change({"train.workers": 1, "train.micro_batch": 8})
    assert train(alone)["step"] == STEPS
    undisturbed = alone.change({"name": "undisturbed"})
    train(undisturbed)
    found, wanted = losses(alone), losses(undisturbed)
    for name in ("train.loss", "train.loss.report", "train.loss.marks"):
        assert [row[name] for row in found] == pytest.approx([row[name] for row in wanted], abs=1e-4)
    for row in found:
        assert row["train.loss"] == pytest.approx(row["train.loss.report"] + 0.5 * row["train.loss.marks"], abs=1e-5)
        assert 0 < row["train.count.marks"] <= 8 < row["train.count.report"]
    assert wanted[-1]["train.loss"] < wanted[0]["train.loss"]

    predictions = generate(saved_run(alone.directory), shards, "test")
    scores = evaluate(predictions, alone.protocols)["protocols"]["full-text"]
    assert scores["score"]["bleu1"] is not None and scores["floor"]["bleu1"] > 0
    assert scores["shuffled"]["bleu1"] is not None
    lines = {path: [json.loads(line) for line in predictions.with_name(path).read_text().splitlines()]
             for path in ("predictions.jsonl", "shuffled.jsonl")}  # fmt: skip
    assert [line["id"] for line in lines["predictions.jsonl"]] == [line["id"] for line in lines["shuffled.jsonl"]]


def test_without_the_side_that_it_reads_nothing_starts(recipe: Run, phantom_shards: Path) -> None:
    with pytest.raises(DataError, match="no side at .*side/marks"):
        train(recipe.change({"name": "sideless", "data.shards": str(phantom_shards)}))


@pytest.fixture
def model(tmp_path: Path) -> torch.nn.Module:
    (tmp_path / "words.json").write_text(json.dumps(["clear", "heart", "large", "lungs"]))
    torch.manual_seed(0)
    return build_model(Pairs(words=str(tmp_path))).eval()


def test_its_decoder_passes_what_every_decoder_must(model: torch.nn.Module) -> None:
    from pairs_model import Attending

    decoder, memory = Attending(model), 2 * torch.randn(4, 5, model.config.width)

    def uncached(row: int, written: list[int]) -> torch.Tensor:
        logits, cache = decoder.first(memory[[row]])
        for token in written:
            logits, cache = decoder.step(torch.tensor([token]), cache)
        return logits[0]

    check_cached_equals_uncached(decoder, memory, uncached)


def test_in_bf16_its_buffers_keep_what_training_made_of_them(model: torch.nn.Module) -> None:
    model.centre.fill_(1.003)  # 1.0 in bf16
    to_bf16(model)
    assert model.head.weight.dtype == torch.bfloat16 and model.centre[0] == torch.tensor(1.003)
    memory, _ = model.memory(
        {
            "films": (torch.zeros(2, 1, 32, 32, dtype=torch.uint8), torch.ones(2, 1, dtype=torch.bool)),
            "marks": {"value": torch.zeros(2, 4)},
        }
    )
    assert memory.dtype == torch.bfloat16


def test_what_it_stores_is_what_it_trains_and_what_training_changes(model: torch.nn.Module) -> None:
    assert set(stored(model)) == {name for name, _ in model.named_parameters()} | {"centre", "seen"}


def test_weights_of_an_earlier_stage_do_not_become_whole_numbers() -> None:
    quantised = torch.nn.Module()
    quantised.weight = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ConfigError, match=r"weight is torch.float32 there, weight is torch.int8 here, quantised"):
        fill(quantised, {"weight": ("weight", torch.full((2, 2), 0.02))}, "stage1@best")
