"""What a run will cut is counted before it starts."""

from pathlib import Path

from r2kg.config.protocol import PROTOCOLS
from r2kg.systems.contract import build_model
from r2kg.training.plan import count_cut, preflight
from shards.clean import clean
from shards.stream.index import read_studies
from shards.tars.format import read_manifest


def test_reports_that_the_model_is_taught_cut_are_counted(small_run, phantom_shards: Path, monkeypatch) -> None:
    manifest, model = read_manifest(phantom_shards), build_model(small_run({}).model)
    targets = [study.target for study in read_studies(phantom_shards, "train")]
    whole = [model.writer.tokenize([target], 4000)[0].shape[1] for target in targets]
    for limit in (4, sorted(whole)[len(whole) // 2], 4000):
        run = small_run({"model.report_tokens": limit})
        model.config = run.model
        cut, sentence = count_cut(run, manifest, model)
        longer = sum(length > limit for length in whole)
        assert (cut["train"] == longer / len(whole) and longer > 0) or limit == 4000
        assert (f"{longer} of {len(whole)} reports of train are longer" in sentence) == bool(longer)
    monkeypatch.setattr("r2kg.training.plan.COUNTED", 7)
    model.config = small_run({"model.report_tokens": 4}).model
    assert "7 of the first 7 reports of train" in count_cut(run, manifest, model)[1]


def test_references_that_a_protocol_compares_cut_are_counted(small_run, phantom_shards: Path, monkeypatch) -> None:
    manifest, run = read_manifest(phantom_shards), small_run({"model.report_tokens": 4000})
    short = {name: one.model_copy(update={"max_length": one.max_length and 40}) for name, one in PROTOCOLS.items()}
    monkeypatch.setattr("r2kg.config.protocol.PROTOCOLS", short)
    words = [len(clean("r2gen-2020-iu", study.report).split()) for study in read_studies(phantom_shards, "test")]
    longer = sum(count >= 40 for count in words)
    plan = preflight(run, manifest, {})
    assert 0 < longer < len(words) and plan.cut == {"train": 0, "r2gen-2020": longer / len(words)}
    assert f"{longer} of {len(words)} reports of test are compared by their beginning" in plan.cuts


def test_references_that_are_cut_by_the_models_tokens_are_counted(small_run, phantom_shards: Path) -> None:
    manifest, run = read_manifest(phantom_shards), small_run({"protocols": ["r2genkg-2025"]})
    tokenizer = build_model(run.model).writer.tokenizer
    reports = [clean("r2gen-2020-iu", study.report) for study in read_studies(phantom_shards, "test")]
    longer = sum(len(tokenizer(report, add_special_tokens=False).input_ids) > 60 for report in reports)
    assert 0 < longer < len(reports)
    assert preflight(run, manifest, {}).cut["r2genkg-2025"] == longer / len(reports)
