"""The best checkpoint by a metric of what each writes, chosen after the training workers have ended."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from r2kg.recipes import find_recipe
from r2kg.rundir import RunFiles, saved_run
from r2kg.scoring import choose
from r2kg.scoring.choose import choose_checkpoint
from r2kg.scoring.controls.withheld import derangement
from r2kg.scoring.evaluate import evaluate, read_predictions
from r2kg.scoring.generate import generate
from r2kg.systems.r2genkg.config import R2GenKGConfig
from r2kg.training.checkpoint import checkpoints, find_checkpoint, prune
from r2kg.training.plan import preflight
from shards.errors import CheckpointError, ConfigError
from shards.tars.format import read_manifest

TAKEN = ("prediction", "tokens", "truncated")
CHANGES: dict = {
    "model.decoding": {"max_new_tokens": 6, "beams": 1},
    "train.checkpoints_kept": 1,
    "train.validation_studies": 4,
    "train.choose": "0.5*BLEU-1 + 0.5*ROUGE-L",
}


@pytest.mark.long
@pytest.mark.slow
def test_the_best_is_chosen_by_what_is_written(phantom_shards, undisturbed, tmp_path, monkeypatch, capsys):
    """Is killed in the choice, goes on, prunes; then the control of a system that reads more than films."""
    run = saved_run(Path(shutil.copytree(undisturbed.directory, tmp_path / "chosen"))).change(CHANGES)
    run.save(RunFiles(run.directory).run)
    shutil.rmtree(checkpoints(run.directory)[0])
    prune(run.directory, run.train.checkpoints_kept)
    assert len(checkpoints(run.directory)) == 3, "none is pruned before all are scored"
    with pytest.raises(CheckpointError, match=r"not chosen yet: 3 of 3 .*r2kg train"):
        find_checkpoint(run.directory, "best")
    written = []

    def write_once(*args, **words):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(args[3].name)
        return write(*args, **words)

    write = choose.write_reports
    monkeypatch.setattr(choose, "write_reports", write_once)
    with pytest.raises(KeyboardInterrupt):
        choose_checkpoint(run.directory)
    with pytest.raises(CheckpointError, match=r"2 of 3 .*step-00000009, step-00000012"):
        find_checkpoint(run.directory, "best")
    monkeypatch.setattr(choose, "write_reports", write)
    best = choose_checkpoint(run.directory)
    records = {path.stem: json.loads(path.read_text()) for path in (run.directory / "validation").glob("*.json")}
    assert len(records) == 3 and all(record["scored"] == 4 for record in records.values())
    values = {name: 0.5 * (r["values"]["bleu1"] + r["values"]["rouge_l"]) for name, r in records.items()}
    assert values[best.name] == max(values.values()) and find_checkpoint(run.directory, "best") == best
    assert {path.name for path in checkpoints(run.directory)} == {best.name, "step-00000012"}
    logged = [json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logged if "val.rouge_l" in row["metrics"]] == [6, 9, 12]
    monkeypatch.setattr(choose, "write_reports", None)
    assert choose_checkpoint(run.directory) == best, "what is scored is not written again"

    capsys.readouterr()
    reads = R2GenKGConfig.inputs
    monkeypatch.setattr(R2GenKGConfig, "inputs", lambda part, data: replace(reads(part, data), text=("indication",)))
    predictions = generate(saved_run(run.directory), phantom_shards, "test", "12")
    assert "with the films of other studies, for the control" in capsys.readouterr().out
    lines, control = (read_predictions(predictions.with_name(f"{name}.jsonl")) for name in ("predictions", "shuffled"))
    donors = derangement(len(lines), run.train.seed)
    wanted = [line | {field: lines[donor][field] for field in TAKEN} for line, donor in zip(lines, donors, strict=True)]
    assert control == wanted, "this model reads films alone, in truth"
    assert json.loads(predictions.with_name("context.json").read_text())["protocols"] == ["r2gen-2020", "full-text"]
    assert evaluate(predictions)["protocols"]["full-text"]["shuffled"]


def test_a_choice_that_cannot_be_stops_before_any_worker(phantom_shards, tmp_path):
    run = find_recipe("r2gengpt.tiny").change(
        {"root": str(tmp_path), "data.shards": str(phantom_shards), "model.llm.source": "no-such-model"}
    )
    for changes, said in (
        ({"train.choose": "BLEU-5"}, "did you mean bleu"),
        ({"train.choose": "Loss"}, r"did you mean loss\?"),
        ({"train.choose": "BLEU-4", "train.validation_studies": 0}, "validation studies, of which there are none"),
        (
            {"train.choose": "BLEU-4", "protocols": ["r2gen-2020-mimic"]},
            "cleaned with r2gen-2020-mimic, and the",
        ),
        ({"protocols": ["triples"]}, "triples cannot score the task 'report'"),
    ):
        with pytest.raises(ConfigError, match=said):
            preflight(run.change(changes), read_manifest(phantom_shards), {})


def test_room_is_wanted_for_all_checkpoints_until_one_is_chosen(small_run, phantom_shards, monkeypatch):
    run = small_run({"train.steps": 100, "train.checkpoint_every": 9})
    wanted: list[tuple[int, int]] = []
    monkeypatch.setattr("r2kg.training.plan.check_room", lambda directory, *needed: wanted.append(needed))
    plan = preflight(run, read_manifest(phantom_shards), {})
    preflight(run.change({"train.choose": "BLEU-4"}), read_manifest(phantom_shards), {})
    for step in (9, 18, 27):  # of a run that goes on: they take their room already
        (RunFiles(run.directory).checkpoints / f"step-{step:08d}").mkdir(parents=True)
    preflight(run, read_manifest(phantom_shards), {})
    (RunFiles(run.directory).checkpoints / "step-00000100").mkdir()
    preflight(run, read_manifest(phantom_shards), {})  # one that is at its end writes none
    assert wanted == [(count * plan.checkpoint_bytes, count) for count in (4, 13, 1)]
