"""Runs in pairs: what is compared, what is grouped, what is refused, and what MLflow gets."""

import hashlib
import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from rich.console import Console

from r2kg.config.run import Run
from r2kg.tracking import tracking_uri
from shards.errors import ConfigError, DataError
from tune.compare import compare, comparison_table, grouped, track_comparison

REFERENCES = [f"the {size} heart is {state} ." for size in ("large", "small") for state in ("seen", "gone", "new")] * 4


@pytest.fixture(autouse=True)
def no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Java program takes seconds to start."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def write(root: Path, name: str, wrong: int, references: list[str] = REFERENCES, **changes: object) -> Path:
    """A run whose first predictions are wrong, two studies a patient."""
    run = Run(name=name, root=str(root)).change(changes)
    out = run.directory / "predictions" / "test" / "step-9-beams3-0"
    out.mkdir(parents=True)
    run.save(run.directory / "run.json")
    told = {"decoding": run.model.decoding.told(), "split": "test", "step": 9, "protocols": ["full-text"]}
    (out / "context.json").write_text(json.dumps({**told, "task": "report", "cleaning": "raw"}))
    lines = [
        {"id": f"s{at}", "patient": f"p{at // 2}", "prediction": "no" if at < wrong else text, "reference": text}
        for at, text in enumerate(references)
    ]
    (out / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run.directory


def test_differences_are_paired_and_corrected(tmp_path: Path) -> None:
    runs = [str(write(tmp_path, name, wrong, **{"optim.lr": rate})) for name, wrong, rate in
            (("base", 20, 1e-4), ("better", 2, 2e-4), ("same", 20, 3e-4))]  # fmt: skip
    result = compare(runs, metrics=["rouge_l", "bleu1"])
    one = result["protocols"]["full-text"]
    better, same = one["compared"]
    assert (result["baseline"], one["by"], one["drawn"], one["n"]) == ("base", "patients", 12, 24)
    cell = better["difference"]["rouge_l"]
    assert cell["value"] == pytest.approx(18 / 24, abs=1e-6) and cell["interval"][0] > 0
    assert cell["p"] < 0.01 and cell["p"] < cell["p_holm"] <= 4 * cell["p"] and result["how"]["comparisons"] == 4
    assert same["difference"]["bleu1"] == {"value": 0.0, "interval": [0.0, 0.0], "p": 1.0, "p_holm": 1.0}
    console = Console(width=160, record=True, file=(tmp_path / "table").open("w"))
    console.print(comparison_table(result))
    shown = console.export_text()
    assert "+0.750 (+" in shown and "corrected for all 4 comparisons" in shown and "12 patients of 24 studies" in shown
    assert compare(runs, metrics=["ROUGE-L", "BLEU-1"]) == result
    (told,) = better["members"]
    content = next((tmp_path / "better").rglob("predictions.jsonl")).read_bytes()
    assert (told["run"], told["sha256"], told["split"]) == ("better", hashlib.sha256(content).hexdigest(), "test")
    assert "decoded alike" not in shown


def test_runs_that_differ_in_their_seed_alone_stand_together(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        write(tmp_path, f"base-seed{seed}", 20 + seed, **{"train.seed": seed})
        write(tmp_path, f"full-seed{seed}", seed, **{"train.seed": seed, "optim.lr": 2e-4})
    (tmp_path / "base-seed0.json").write_text("{}")  # a pattern is of runs, not of what lies beside them
    words = [f"{tmp_path}/base-seed*", f"{tmp_path}/full-seed*"]
    groups = grouped(words)
    assert {name: [one.seed for one in group] for name, group in groups.items()} == {
        "base": [0, 1, 2],
        "full": [0, 1, 2],
    }
    one = compare(words, metrics=["rouge_l"])["protocols"]["full-text"]
    assert one["compared"][0]["values"]["rouge_l"] == pytest.approx(1 - 1 / 24, abs=1e-6)
    assert one["compared"][0]["half_width"]["rouge_l"] == pytest.approx(4.302653 / 24 / 3**0.5, abs=1e-6)
    assert one["compared"][0]["difference"]["rouge_l"]["p"] < 0.01
    uneven = compare([*words[:1], f"{tmp_path}/full-seed1"], metrics=["rouge_l"])["protocols"]["full-text"]
    assert uneven["compared"][0]["difference"]["rouge_l"]["p"] is None
    assert uneven["unavailable"]["p of full-seed1"] == "it has 1 runs and base 3: give as many"
    assert len(grouped(words, each=True)) == 6
    with pytest.raises(ConfigError, match="all 3 runs differ in train.seed alone.*say --each"):
        grouped(words[:1])
    with pytest.raises(ConfigError, match="none-[*] matches no run"):
        grouped([f"{tmp_path}/none-*"])


def test_runs_stand_together_where_each_begins_with_its_own_seeds_first_stage(tmp_path: Path) -> None:
    for seed, end in ((0, "0a1b2c3d"), (1, "4e5f6a7b")):
        first = f"first-seed{seed}-{end}"
        write(tmp_path, first, seed, **{"train.seed": seed})
        write(tmp_path, f"second-seed{seed}-{end[::-1]}", 3, **{"train.seed": seed, "train.init_from": f"{first}@best"})
        copy = tmp_path / "artefacts" / f"init-{seed}"  # what training makes of the same words
        copy.mkdir(parents=True)
        (copy / "artefact.json").write_text(json.dumps({"settings": {"from": f"{first}@best", "map": {}}}))
        write(tmp_path, f"third-seed{seed}", 3, **{"train.seed": seed, "optim.lr": 0.5, "train.init_from": str(copy)})
    words = [f"{tmp_path}/{name}-seed*" for name in ("first", "second", "third")]
    assert {name: len(group) for name, group in grouped(words).items()} == {"first": 2, "second": 2, "third": 2}
    changed = Run(name="first-seed1-4e5f6a7b", root=str(tmp_path)).change({"train.seed": 1, "optim.lr": 0.25})
    changed.save(changed.directory / "run.json")
    assert len(grouped(words[1:])) == 4, "the first stages are not the same by now"


def test_other_studies_and_references_are_refused_with_their_number(tmp_path: Path) -> None:
    base = str(write(tmp_path, "base", 3))
    fewer = str(write(tmp_path, "fewer", 3, REFERENCES[:20], **{"optim.lr": 2e-4}))
    other = str(write(tmp_path, "other", 3, ["a mass .", *REFERENCES[1:]], **{"optim.lr": 3e-4}))
    with pytest.raises(DataError, match="differ in 4 studies"):
        compare([base, fewer])
    with pytest.raises(DataError, match="have other references in 1 of 24 studies under full-text"):
        compare([base, other])
    with pytest.raises(
        ConfigError, match="--metric names 'bleu5', which is no metric of the task 'report'; did you mean bleu4"
    ):
        compare([base, fewer], metrics=["bleu5"])


@pytest.mark.slow
def test_differences_are_recorded_with_the_run_and_no_text(tmp_path: Path) -> None:
    runs = [str(write(tmp_path, "base", 20)), str(write(tmp_path, "better", 2, **{"optim.lr": 2e-4}))]
    result = compare(runs, metrics=["rouge_l"])
    (note,) = track_comparison(runs, result)
    assert "holds all records of better" in note
    client = MlflowClient(tracking_uri=tracking_uri(Run(name="better", root=str(tmp_path))))
    experiment = client.get_experiment_by_name("r2kg")
    (found,) = client.search_runs([experiment.experiment_id], "tags.`mlflow.runName` = 'better'")
    cell = result["protocols"]["full-text"]["compared"][0]["difference"]["rouge_l"]
    assert found.data.metrics["test/full-text/above/base/rouge_l"] == cell["value"]
    assert found.data.metrics["test/full-text/above/base/rouge_l/p"] == cell["p"]
    place = "predictions/test/step-9-beams3-0/compared-to-base.json"
    kept = Path(client.download_artifacts(found.info.run_id, place)).read_text()
    assert json.loads(kept) == result and "heart" not in kept and str(tmp_path) not in kept
