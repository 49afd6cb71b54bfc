"""Predictions that are there are found again, and made fit for further protocols without a report being written."""

import json

import torch

from r2kg.config.protocol import PROTOCOLS
from r2kg.scoring.context import scoring_context
from r2kg.scoring.evaluate import protocols_beside
from r2kg.scoring.writing.further import add_protocols, written_before
from r2kg.systems.contract import build_model
from shards.stream.index import read_studies
from shards.tars.format import read_manifest

DECIDED = {"checkpoint_sha256": "c", "decoding": {"beams": 2}, "sides": {}}


def test_a_further_protocol_is_added_and_the_reports_stay(small_run, phantom_shards, tmp_path):
    run, manifest, out = small_run({}), read_manifest(phantom_shards), tmp_path / "step-1-beams2-old"
    out.mkdir()
    lines = [
        {"id": s.id, "key": s.key, "prediction": "no finding .", "reference": s.target, "reference_raw": s.report}
        for s in read_studies(phantom_shards, "test")
    ]
    for name in ("predictions.jsonl", "shuffled.jsonl"):
        (out / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = DECIDED | {"protocols": ["full-text"]} | scoring_context(phantom_shards, manifest, ["full-text"])
    (out / "context.json").write_text(json.dumps(before))
    assert written_before(tmp_path / "step-1-beams2-new", DECIDED) == out
    assert add_protocols(run, manifest, out, ["full-text"]) == []
    assert json.loads((out / "context.json").read_text()) == before

    both = ["full-text", "r2genkg-2025"]
    assert add_protocols(run, manifest, out, both) == ["r2genkg-2025"]
    told = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [{**line, "reference_cut": None} for line in told] == [{**line, "reference_cut": None} for line in lines]
    with torch.device("meta"):
        model = build_model(run.model)
    texts = [PROTOCOLS["r2genkg-2025"].uncut.reference(line) for line in lines]
    assert [line["reference_cut"]["r2genkg-2025"] for line in told] == model.fitting(texts, 60)
    assert (out / "shuffled.jsonl").read_bytes() == (out / "predictions.jsonl").read_bytes()
    context = json.loads((out / "context.json").read_text())
    assert context == before | scoring_context(phantom_shards, manifest, both) | {"protocols": both}
    stamps = [(out / name).stat().st_mtime_ns for name in ("predictions.jsonl", "context.json")]
    assert add_protocols(run, manifest, out, both[::-1]) == []
    assert [(out / name).stat().st_mtime_ns for name in ("predictions.jsonl", "context.json")] == stamps
    assert protocols_beside(out / "predictions.jsonl") == tuple(both)

    context.pop("protocols")  # as a kill between the lines and the context, or an older version, left it
    (out / "context.json").write_text(json.dumps(context | {"floor": before["floor"]}))
    assert add_protocols(run, manifest, out, both) == ["r2genkg-2025"]
    assert json.loads((out / "context.json").read_text())["floor"].keys() >= {*both}


def test_other_reports_are_not_taken_for_these(tmp_path):
    new = tmp_path / "step-1-beams2-aaaa"
    for name, told in {
        "step-1-beams2-b": {"decoding": {"beams": 3}},
        "step-1-beams2-c": {},
        "step-2-beams2-d": {},
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "context.json").write_text(json.dumps(DECIDED | told))
        if not name.endswith("c"):  # that one was not finished
            (tmp_path / name / "predictions.jsonl").touch()
    assert written_before(new, DECIDED) == new
    (tmp_path / "step-1-beams2-b" / "context.json").write_text("torn")
    assert written_before(new, DECIDED) == new
    (tmp_path / "step-1-beams2-c" / "predictions.jsonl").touch()
    assert written_before(new, DECIDED) == tmp_path / "step-1-beams2-c"
