"""VLM-KG from drawn films and reports to triples: two stages on two workers, at ZeRO-2 and 3, and a killed worker."""

import json

import pytest

from r2kg.graph.build.triples import of_file, write_listed_triples
from r2kg.recipes import find_recipe
from r2kg.rundir import UNSCORED, newest_predictions, saved_run
from r2kg.scoring.evaluate import evaluate, read_predictions
from r2kg.scoring.generate import generate
from r2kg.scoring.writing.writer import NOT_KNOWN
from r2kg.tracking import track_scores
from r2kg.training.checkpoint import newest_checkpoint, read_tensors
from r2kg.training.launch import train
from shards.errors import ConfigError, DataError
from shards.stream.index import read_studies
from shards.tars.format import read_manifest
from tests.r2kg.killing import train_killed

SMALL = {
    "model.llm.tiny": {"width": 32, "layers": 1, "heads": 2, "vocabulary": 400, "epochs": 1},
    "model.decoding.max_new_tokens": 40,
    "train.steps": 6,
    "train.global_batch": 8,
    "train.micro_batch": 4,
    "train.cpus_per_worker": 0.4,
    "train.checkpoint_every": 2,
    "train.validation_studies": 6,
}


@pytest.mark.slow
def test_stage_two_goes_on_from_stage_one_through_a_kill_and_is_scored(phantom_shards, tmp_path):
    place = {"data.shards": str(phantom_shards), "root": str(tmp_path)}
    first = find_recipe("vlm_kg.llm_tiny").change(place | SMALL)
    assert train(first)["step"] == 6
    told = [json.loads(line)["metrics"] for line in (first.directory / "metrics.jsonl").read_text().splitlines()]
    assert any("train.padding" in metrics for metrics in told)
    second = find_recipe("vlm_kg.tiny").change(place | SMALL)
    train_killed(second, 2)
    whole = second.change({"name": "whole", "engine.zero": 3})
    assert train(whole)["step"] == 6
    ours, theirs = (read_tensors(newest_checkpoint(run.directory)) for run in (second, whole))
    assert ours.keys() == theirs.keys() and {name.partition(".")[0] for name in ours} >= {
        "vision",
        "vector",
        "mapper",
        "writer",
    }
    worst = max(float((ours[name].float() - theirs[name].float()).abs().max()) for name in ours)
    assert worst < 1e-4, "killed at ZeRO-2, undisturbed at ZeRO-3"
    state = json.loads((newest_checkpoint(second.directory) / "state.json").read_text())
    chain = state["artefacts"]["init"]["settings"]["chain"]
    assert [one["run"] for one in chain] == ["vlm-kg-llm-tiny"]

    predictions = generate(saved_run(second.directory), phantom_shards, "test")
    lines = read_predictions(predictions)
    assert len(lines) == read_manifest(phantom_shards).splits["test"].studies
    assert predictions.with_name("shuffled.jsonl").is_file() and any(" , " in line["reference"] for line in lines)
    scores = evaluate(predictions)
    triples = scores["protocols"]["triples"]
    assert triples["floor"]["triple_f1"] > 0 and 0 <= triples["score"]["triple_f1"] <= 1
    track_scores(predictions, scores)
    logged = {name for line in (second.directory / "metrics.jsonl").open() for name in json.loads(line)["metrics"]}
    assert "test.triples.score.triple_f1" in logged, "the usual ones have the usual name"

    run, written = saved_run(second.directory), set()
    for withheld in ([], ["film"], ["report"]):
        changed = run.change({"model.decoding.withhold": withheld})
        path = generate(changed, phantom_shards, "test")
        written.add(path)
        assert len(read_predictions(path)) == len(lines)
        no_control = json.loads(path.with_name("context.json").read_text()).get("no_control", "")
        assert ("black" in no_control) == (withheld == ["film"])
    assert len(written) == 3 and predictions in written
    assert newest_predictions(second.directory) == predictions, "controls are passed over"
    with pytest.raises(ConfigError, match="vlm_kg reads no films, so none can be withheld"):
        generate(saved_run(first.directory).change({"model.decoding.withhold": ["film"]}), phantom_shards, "test")


@pytest.mark.slow
def test_studies_of_which_nothing_right_is_known_are_not_scored_by_and_can_be_written_about(phantom_shards, tmp_path):
    """A side without validation would make the first checkpoint the best, whose loss is 0."""
    studies = read_studies(phantom_shards, "train")
    rows = [f"{study.key},{','.join(triple)}" for study in studies for triple in study.triples]
    (tmp_path / "triples.csv").write_text("\n".join(["key,head,relation,tail", *rows]) + "\n")
    write_listed_triples(phantom_shards, side := tmp_path / "side", of_file(tmp_path / "triples.csv"))
    place = {"data.shards": str(phantom_shards), "root": str(tmp_path), "data.sides.triples": str(side)}
    run = find_recipe("vlm_kg.llm_tiny").change({"model.triples": "side"} | place | SMALL)
    with pytest.raises(DataError, match=r"say nothing of val, so nothing .* annotate SHARDS --split train --split val"):
        train(run)
    assert train(run.change({"train.validation_studies": 0, "train.steps": 2}))["step"] == 2
    told = (run.directory / "metrics.jsonl").read_text()
    assert '"cut.train"' in told

    studies = [*read_studies(phantom_shards, "test")]
    rows = [json.dumps({"key": study.key, "triples": study.triples}) + "\n" for study in studies[::3]]
    (tmp_path / "test.jsonl").write_text("".join(rows))
    write_listed_triples(phantom_shards, some := tmp_path / "some", of_file(tmp_path / "test.jsonl"))
    trained = saved_run(run.directory)
    path = generate(trained.change({"data.sides.triples": str(some)}), phantom_shards, "test")
    assert [line["key"] for line in read_predictions(path)] == [study.key for study in studies[::3]]
    context = json.loads(path.with_name("context.json").read_text())
    assert context["given"] == len(studies) and {*context["unread"].values()} == {NOT_KNOWN}
    assert {*context["unread"]} == {study.key for study in studies} - {study.key for study in studies[::3]}
    with pytest.raises(DataError, match="hold none of split 'test'"):
        generate(trained, phantom_shards, "test")
    path = generate(trained.change({"data.sides.triples": "nowhere"}), phantom_shards, "test", scored=False)
    assert path.name == UNSCORED and newest_predictions(run.directory, unscored=True) == path != newest_predictions(
        run.directory
    )
    lines = read_predictions(path, scored=False)
    assert [line["key"] for line in lines] == [study.key for study in studies]
    assert not any({"reference", "labels", "triples"} & line.keys() for line in lines)
    with pytest.raises(DataError, match=r"no text under reference, so that it cannot be scored"):
        evaluate(path)
    assert generate(trained, phantom_shards, "test", scored=False) == path, "it does not depend on what is right"
