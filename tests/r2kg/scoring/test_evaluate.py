"""predictions.jsonl → scores.json, with both floors, as a pure function of files."""

import json
import os
import time
from pathlib import Path

import pytest
from rich.console import Console

from r2kg.config.protocol import METRICS, PROTOCOLS
from r2kg.scoring.evaluate import choose_floor, evaluate, protocols_beside, read_predictions
from r2kg.scoring.metrics.health import score_health
from r2kg.scoring.metrics.nlg import bleu
from r2kg.scoring.metrics.rule_labeler import label_report
from r2kg.scoring.metrics.table import scores_table
from shards.clean import clean, vocabulary
from shards.errors import ConfigError, DataError

REPORTS = [
    "The heart is large. No effusion. The lungs are clear.",
    "The heart is normal. Small left effusion is present.",
    "The lungs are clear. No effusion. No pneumothorax.",
    "Stable mild edema. The heart is large.",
]
FLOOR = "the lungs are clear . no effusion ."
TARGETS = [clean("r2gen-2020-iu", report) for report in REPORTS]


@pytest.fixture(autouse=True)
def no_java(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A Java program takes seconds to start; METEOR itself is tested with the metrics."""
    monkeypatch.setenv("PATH", str(tmp_path_factory.mktemp("empty")))


def write_lines(path: Path, predictions: list[str]) -> Path:
    lines = [
        {"id": f"s{i}", "split": "test", "prediction": text, "reference": TARGETS[i], "reference_raw": REPORTS[i]}
        for i, text in enumerate(predictions)
    ]
    path.write_text("".join(json.dumps({**line, "tokens": 9, "truncated": False}) + "\n" for line in lines))
    return path


def write_run(folder: Path) -> Path:
    write_lines(folder / "shuffled.jsonl", TARGETS[1:] + TARGETS[:1])
    context = {
        "vocabulary": vocabulary(TARGETS, 1),
        "cleaning": "r2gen-2020-iu",
        "floor": dict.fromkeys(PROTOCOLS, FLOOR),
        "shards": "f1",
    }
    (folder / "context.json").write_text(json.dumps(context))
    return write_lines(folder / "predictions.jsonl", [*TARGETS[:3], "the heart is normal ."])


def test_scores_stand_beside_both_floors(tmp_path: Path) -> None:
    scores = evaluate(write_run(tmp_path))
    assert list(scores["protocols"]) == ["r2gen-2020", "full-text"]
    for name, result in scores["protocols"].items():
        assert result["hash"] == PROTOCOLS[name].hash
        assert all(set(result[system]) == set(METRICS["report"]) for system in ("score", "floor", "shuffled"))
        assert result["score"]["bleu4"] > max(result["floor"]["bleu4"], result["shuffled"]["bleu4"])
        assert result["floor"]["bleu4"] == pytest.approx(bleu(TARGETS, [FLOOR] * 4)["bleu4"], abs=1e-6)
        assert set(result["unavailable"]) == {"meteor"}
    assert scores["predictions"]["n"] == 4
    assert scores["predictions"]["splits"] == {"test": 4}
    assert scores["predictions"]["shards"] == "f1"


def test_same_files_give_the_same_bytes_and_nothing_else(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    before = {each.name for each in tmp_path.iterdir()}
    returned = evaluate(path)
    first = (tmp_path / "scores.json").read_bytes()
    evaluate(path)
    assert (tmp_path / "scores.json").read_bytes() == first
    assert json.loads(first) == returned
    assert {each.name for each in tmp_path.iterdir()} - before == {"scores.json"}


def test_another_protocol_is_scored_beside_those_before(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    evaluate(path)
    both = evaluate(path, ["full-text"])
    assert set(both["protocols"]) == {"full-text", "r2gen-2020"}
    assert json.loads((tmp_path / "scores.json").read_text()) == both
    write_lines(path, TARGETS[1:] + TARGETS[:1])
    assert set(evaluate(path, ["full-text"])["protocols"]) == {"full-text"}, "of other predictions nothing stays"
    (tmp_path / "scores.json").write_text("{")
    assert set(evaluate(path, ["full-text"])["protocols"]) == {"full-text"}


def test_scores_hold_no_report_text(tmp_path: Path) -> None:
    evaluate(write_run(tmp_path))
    written = (tmp_path / "scores.json").read_text()
    assert not any(word in written for word in ("effusion", "edema", "lungs"))


def test_every_changed_input_shows(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    before = evaluate(path)["predictions"]
    write_lines(tmp_path / "shuffled.jsonl", TARGETS[2:] + TARGETS[:2])
    after = evaluate(path)["predictions"]
    assert {key for key in before if before[key] != after[key]} == {"shuffled_sha256"}
    (tmp_path / "context.json").write_text(json.dumps({"vocabulary": ["<unk>"], "cleaning": "r2gen-2020-iu"}))
    assert evaluate(path)["predictions"]["context_sha256"] != after["context_sha256"]


def test_without_the_files_beside_it_the_reasons_are_given(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "predictions.jsonl", TARGETS)
    result = evaluate(path, ["full-text"])["protocols"]["full-text"]
    assert result["floor"] is result["shuffled"] is None
    assert "--shards" in result["unavailable"]["floor"]
    assert "no shuffled.jsonl" in result["unavailable"]["shuffled"]
    assert "names no cleaning" in result["unavailable"]["hypothesis_cleaning"]
    with pytest.raises(DataError, match="--shards"):
        evaluate(path, ["r2gen-2020"])


def test_a_system_without_films_says_why_it_has_no_control(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "predictions.jsonl", TARGETS)
    (tmp_path / "context.json").write_text(json.dumps({"no_control": "x reads no films, so none can be another's"}))
    assert evaluate(path, ["full-text"])["protocols"]["full-text"]["unavailable"]["shuffled"].startswith("x reads no")


def test_a_given_context_fills_what_the_file_lacks(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    complete = evaluate(path)
    given = json.loads((tmp_path / "context.json").read_text())
    (tmp_path / "context.json").write_text(json.dumps({"shards": "f1", "floor": {"r2gen-2020": FLOOR}}))
    assert evaluate(path, context=given) == complete
    (tmp_path / "context.json").unlink()
    assert evaluate(path, context=given) == complete
    (tmp_path / "context.json").write_text(json.dumps({**given, "floor": {"full-text": "no pneumothorax ."}}))
    changed = evaluate(path, context=given)["protocols"]
    assert changed["full-text"]["floor"] != complete["protocols"]["full-text"]["floor"]
    assert changed["r2gen-2020"]["floor"] == complete["protocols"]["r2gen-2020"]["floor"]


def test_full_text_cleans_predictions_as_the_manifest_says(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "predictions.jsonl", REPORTS)
    cleaned = evaluate(path, ["full-text"], {"cleaning": "r2gen-2020-iu"})["protocols"]["full-text"]["score"]
    assert cleaned["bleu4"] == cleaned["rouge_l"] == 1.0
    assert evaluate(path, ["full-text"], {"cleaning": "raw"})["protocols"]["full-text"]["score"]["bleu4"] < 0.5


def test_vocabulary_of_another_cleaning_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"r2gen-2020-mimic, and the shards are cleaned with r2gen-2020-iu"):
        evaluate(write_run(tmp_path), ["r2gen-2020-mimic"])


def test_shuffled_of_other_studies_is_refused(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    write_lines(tmp_path / "shuffled.jsonl", TARGETS[:3])
    with pytest.raises(DataError, match=r"differ in 1 studies \(s3\)"):
        evaluate(path)


def test_unknown_protocol_is_refused_before_reading(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="r2gen-2020"):
        evaluate(tmp_path / "missing.jsonl", ["bleu"])


def test_studies_that_occur_twice_are_named(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "predictions.jsonl", TARGETS)
    path.write_text(path.read_text() * 2)
    with pytest.raises(DataError, match=r"4 studies more than once \(s0, s1, s2, s3\)"):
        read_predictions(path)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (b'{"id": "s9", "prediction": "the edema', "not one JSON object"),
        (b"", "not one JSON object"),
        (b"[1]", "no text under id, prediction, reference"),
        (b'{"id": "s9", "prediction": null, "reference": "edema"}', "no text under prediction"),
        (b'{"id": 9, "prediction": "edema", "reference": "edema"}', "no text under id"),
        (b'{"id": "\xff"}', "not UTF-8"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"id": ' + b"9" * 5_000 + b"}", "not one JSON object"),
        (b'{"id": "s9", "prediction": "\\udc00", "reference": "edema"}', "not UTF-8"),
        (
            b'{"id": "s9", "prediction": "' + b"edema " * 20_000 + b'", "reference": ""}',
            "prediction has more than 100,000",
        ),
    ],
)
def test_a_malformed_line_is_placed_and_not_quoted(tmp_path: Path, bad: bytes, said: str) -> None:
    path = write_lines(tmp_path / "predictions.jsonl", TARGETS[:2])
    path.write_bytes(path.read_bytes() + bad + b"\n")
    with pytest.raises(DataError, match=f"predictions.jsonl:3 .*{said}") as caught:
        read_predictions(path)
    assert "edema" not in str(caught.value)


@pytest.mark.parametrize("name", ["predictions.jsonl", "shuffled.jsonl", "context.json"])
def test_a_pipe_is_never_waited_for(tmp_path: Path, name: str) -> None:
    path = write_run(tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=rf"{name}.*no regular file"):
        evaluate(path)


@pytest.mark.parametrize(
    "context",
    [
        "[]",
        "[" * 100_000,
        "9" * 5_000,
        '{"vocabulary": 5}',
        '{"vocabulary": [["heart"]]}',
        '{"cleaning": ["raw"]}',
        '{"floor": [1]}',
        '{"floor": {"full-text": 5}}',
        '{"task": "other"}',
        '{"protocols": [["full-text"]]}',
        '{"no_control": 5}',
        '{"shards": "\\udc00"}',
        '{"decoding": {"length_penalty": Infinity}}',
    ],
    ids=lambda text: text[:30],
)
def test_a_context_that_is_none_is_refused(tmp_path: Path, context: str) -> None:
    path = write_run(tmp_path)
    (tmp_path / "context.json").write_text(context)
    for read in (evaluate, protocols_beside):
        with pytest.raises(DataError, match=r"context.json and pass --shards, or generate the predictions again"):
            read(path)


@pytest.mark.parametrize("split", ['["secret"]', '"%s"' % ("x" * 5_000), "7"])
def test_what_is_no_name_of_a_split_is_not_quoted(tmp_path: Path, split: str) -> None:
    path = write_run(tmp_path)
    path.write_text(path.read_text().replace('"split": "test"', f'"split": {split}'))
    assert evaluate(path)["predictions"]["splits"] == {"unnamed": 4}


def test_missing_and_empty_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        read_predictions(tmp_path / "predictions.jsonl")
    (tmp_path / "predictions.jsonl").write_text("")
    with pytest.raises(DataError, match="no predictions"):
        read_predictions(tmp_path / "predictions.jsonl")


def test_line_separators_inside_a_report_do_not_end_a_line(tmp_path: Path) -> None:
    line = {"id": "a", "prediction": "one\u2028two\x85", "reference": "one"}
    (tmp_path / "p.jsonl").write_text(json.dumps(line, ensure_ascii=False), encoding="utf-8")
    assert read_predictions(tmp_path / "p.jsonl") == [line]


def test_floor_is_the_best_report_of_all_when_all_are_tried() -> None:
    protocol, words = PROTOCOLS["r2gen-2020"], vocabulary(TARGETS, 1)
    train = [TARGETS[1], FLOOR, TARGETS[1], TARGETS[3]]
    wanted = max(set(train), key=lambda report: bleu(TARGETS, [report] * 4)["bleu4"])
    assert choose_floor(train, TARGETS, protocol, words) == wanted
    assert choose_floor(reversed(train), TARGETS, protocol, words) == wanted
    assert choose_floor(train, TARGETS, protocol, words, candidates=1) == TARGETS[1]


def test_floor_is_scored_against_the_cut_references() -> None:
    """Where rare words of the references are <unk>, the report that copies them loses."""
    train, references = ["a b c d e", "b c <unk> <unk> <unk>"], ["a b c d e"] * 3
    assert choose_floor(train, references, PROTOCOLS["full-text"], None) == train[0]
    assert choose_floor(train, references, PROTOCOLS["r2gen-2020"], ("<unk>", "b", "c")) == train[1]


def test_floor_needs_reports() -> None:
    with pytest.raises(DataError, match="got 0 and 4"):
        choose_floor([], TARGETS, PROTOCOLS["full-text"], None)


def test_choosing_a_floor_takes_seconds() -> None:
    reports = [" . ".join(TARGETS[(i + j) % 4] + f" x{(i * j) % 17}" for j in range(4)) for i in range(400)]
    began = time.perf_counter()
    choose_floor(reports, reports[:300], PROTOCOLS["full-text"], None)
    assert time.perf_counter() - began < 5


def test_health_shares() -> None:
    lines = [
        {"prediction": "no  effusion .", "reference": "a b c d", "truncated": True},
        {"prediction": "no effusion .", "reference": "a b", "truncated": False},
        {"prediction": "", "reference": "a b", "truncated": False},
        {"prediction": "edema", "reference": ""},
    ]
    assert score_health(lines) == {
        "unique_share": 0.75,
        "commonest_share": 0.5,
        "empty_share": 0.25,
        "truncated_share": pytest.approx(1 / 3),
        "mean_words_prediction": 1.75,
        "mean_words_reference": 2.0,
    }
    assert score_health(lines[3:])["truncated_share"] is None


def test_table_shows_ours_both_floors_and_the_reasons(tmp_path: Path) -> None:
    scores = evaluate(write_run(tmp_path), ["full-text"])
    console = Console(width=160, record=True, file=(tmp_path / "table").open("w"))
    console.print(scores_table(scores))
    text = console.export_text()
    result = scores["protocols"]["full-text"]
    row = next(line for line in text.splitlines() if "bleu4" in line)
    assert all(f"{result[system]['bleu4']:.3f}" in row for system in ("score", "floor", "shuffled"))
    assert "–" in next(line for line in text.splitlines() if "meteor " in line)
    assert "`java`" in text


def test_findings_are_those_of_the_whole_reference(tmp_path):
    """What R2Gen's cut leaves of it states others: its end is gone, and "ruled", a rare word, is <unk>."""
    raw = "pneumothorax has been ruled out . " + "the lungs are clear . " * 12 + "there is cardiomegaly ."
    words = ["the", "lungs", "are", "clear", ".", "pneumothorax", "has", "been", "out", "there", "is", "cardiomegaly"]
    line = {"id": "a", "split": "test", "reference": raw, "reference_raw": raw, "prediction": "there is cardiomegaly ."}
    (tmp_path / "p.jsonl").write_text(json.dumps(line) + "\n")
    context = {"vocabulary": words, "cleaning": "r2gen-2020-iu", "floor": {}}
    result = evaluate(tmp_path / "p.jsonl", ["r2gen-2020", "full-text"], context)["protocols"]
    cut = PROTOCOLS["r2gen-2020"].reference(line, frozenset(words))
    assert "cardiomegaly" not in cut and "<unk>" in cut and label_report(cut)["Pneumothorax"] == 1
    assert result["r2gen-2020"]["cut_references"] == 1
    assert result["r2gen-2020"]["score"]["finding_f1"] == result["full-text"]["score"]["finding_f1"] == 1
