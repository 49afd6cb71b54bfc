"""Answers that are triples: references, order-free scores, floor and protocols are the task's own."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from r2kg.config.protocol import DEFAULT_PROTOCOLS, METRICS, PROTOCOLS, parse_choice, protocols_of
from r2kg.scoring.evaluate import choose_floor, evaluate
from r2kg.scoring.metrics.nlg import bleu
from r2kg.scoring.metrics.table import scores_table
from r2kg.scoring.metrics.triples import score_triples
from shards.errors import ConfigError
from shards.graphs.text import triples_text

EFFUSION = ("effusion", "located_at", "pleural")
SMALL = ("small", "modify", "effusion")
LARGE = ("large", "modify", "heart")
ANSWERS = [[EFFUSION, SMALL], [LARGE], []]


def write(folder: Path, predictions: list[str], **context: object) -> Path:
    lines = [
        {"id": f"s{i}", "split": "test", "prediction": text, "reference": triples_text(ANSWERS[i])}
        for i, text in enumerate(predictions)
    ]
    (folder / "context.json").write_text(json.dumps({"task": "triples", **context}))
    path = folder / "predictions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_f1_is_of_sets_and_knows_no_order() -> None:
    references = [triples_text(answer) for answer in ANSWERS]
    backwards = [triples_text(reversed(answer)) for answer in ANSWERS]
    scores = score_triples(references, backwards)
    assert set(scores) == set(METRICS["triples"])
    assert {scores[f"{kind}_f1"] for kind in ("triple", "entity", "relation")} == {1.0}
    assert scores["bleu4"] < 0.9


def test_half_right_answers_by_hand() -> None:
    """Study 1: a right triple and one joined to the wrong end; study 2: nothing said; study 3: something said."""
    references = [triples_text(answer) for answer in ANSWERS]
    said = [triples_text([SMALL, ("effusion", "located_at", "heart")]), "none", triples_text([LARGE])]
    scores = score_triples(references, said)
    assert scores["triple_f1"] == pytest.approx(0.5 / 3)
    assert scores["triple_f1_pooled"] == pytest.approx(2 * 1 / (3 + 3))
    assert scores["entity_precision"] == pytest.approx((2 / 3) / 3)
    assert scores["relation_f1"] == pytest.approx(0.75 / 3)
    assert scores["entity_recall_pooled"] == pytest.approx(2 / 5)


def test_triples_are_scored_under_their_own_protocols(tmp_path: Path) -> None:
    text = "1. small | modifies | effusion\n2. effusion | located at | pleural"
    path = write(tmp_path, [text, "nothing readable", "none"], floor={"triples": triples_text([LARGE])})
    scores = evaluate(path)
    assert tuple(scores["protocols"]) == DEFAULT_PROTOCOLS["triples"]
    written, ordered = (scores["protocols"][name] for name in DEFAULT_PROTOCOLS["triples"])
    assert written["score"]["triple_f1"] == ordered["score"]["triple_f1"] == pytest.approx(2 / 3, abs=1e-6)
    assert written["score"]["bleu4"] < ordered["score"]["bleu4"]
    assert written["floor"]["triple_f1"] == pytest.approx(1 / 3, abs=1e-6)
    assert ordered["floor"] is None and "floor" in ordered["unavailable"]
    assert scores["health"]["rejected_share"] == pytest.approx(1 / 3, abs=1e-6)
    faults = {name: scores["health"][f"{name}_pieces"] for name in ("rejected", "repeated", "truncated")}
    assert faults == {"rejected": 1, "repeated": 0, "truncated": 0} and scores["health"]["pieces"] == 3
    console = Console(width=160, record=True, file=(tmp_path / "table").open("w"))
    console.print(scores_table(scores))
    assert "triple_f1" in (shown := console.export_text()) and "meteor" not in shown


def test_of_a_truncated_answer_the_broken_piece_is_left_out_and_counted(tmp_path: Path) -> None:
    text = "effusion, located_at, pleural; small, modify, eff"
    path = write(tmp_path, [text, "none", "none"], floor={"triples": triples_text([LARGE])})
    whole = evaluate(path)["protocols"]["triples"]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["truncated"] = lines[1]["truncated"] = True
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    path.with_name("scores.json").unlink()
    scores = evaluate(path)
    cut = scores["protocols"]["triples"]
    assert cut["score"]["triple_precision_pooled"] == 1 > whole["score"]["triple_precision_pooled"]
    assert cut["floor"] == whole["floor"], "the floor is no text that broke off"
    assert scores["health"]["truncated_pieces"] == 2


def test_protocols_of_another_task_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"full-text cannot score the task 'triples'.*triples, triples-sorted"):
        evaluate(write(tmp_path, ["none"] * 3), ["triples", "full-text"])
    with pytest.raises(ConfigError, match=r"triples-sorted cannot score the task 'report'.*r2gen-2020"):
        protocols_of(["full-text", "triples-sorted"], "report")
    with pytest.raises(ConfigError, match=r"unknown protocols \['bleu'\]; known: triples, triples-sorted"):
        protocols_of(["bleu"], "triples")
    assert protocols_of([], "report") == ("r2gen-2020", "full-text")


def test_hashes_of_reports_are_as_they_were_published() -> None:
    hashes = {name: protocol.hash for name, protocol in PROTOCOLS.items() if protocol.task == "report"}
    assert hashes == {
        "r2gen-2020": "162f9884ad6a802e",
        "r2gen-2020-mimic": "33dbd5dc4e40e626",
        "r2gengpt-2023-mimic": "d042708fd1f700b1",
        "r2genkg-2025": "1179c8140d73c48c",
        "r2genkg-2025-mimic": "33900391b20b0e00",
        "full-text": "b1ea5c9e669105f2",
    }


def test_the_floor_is_the_answer_with_the_best_f1() -> None:
    references = [triples_text(answer) for answer in ([EFFUSION, SMALL], [EFFUSION], [EFFUSION, LARGE])]
    train = [triples_text([LARGE]), triples_text([EFFUSION]), references[0], "none", "none"]
    assert choose_floor(train, references, PROTOCOLS["triples"], None) == triples_text([EFFUSION])
    assert max(train, key=lambda text: bleu(references, [text] * 3)["bleu4"]) != triples_text([EFFUSION])


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("loss", {}),
        ("BLEU-4", {"bleu4": 1.0}),
        ("cider_d", {"cider_d": 1.0}),
        ("0.5*BLEU-4+0.5*CIDEr-D", {"bleu4": 0.5, "cider_d": 0.5}),
        (" 2 · ROUGE-L + METEOR ", {"rouge_l": 2.0, "meteor": 1.0}),
    ],
)
def test_a_choice_of_checkpoints_is_read(text: str, weights: dict[str, float]) -> None:
    assert parse_choice(text, "report") == weights


@pytest.mark.parametrize(
    ("text", "task", "said"),
    [
        ("BLEU", "report", "did you mean bleu"),
        ("CIDEr", "report", "did you mean cider_d"),
        ("bleu-4-cider", "report", "no metric of the task 'report'"),
        ("cider_d", "triples", "no metric of the task 'triples'.*triple_f1"),
        ("triple_f", "triples", "did you mean triple_f1"),
        ("loss+bleu4", "report", "names 'loss'"),
        ("0*bleu4", "report", "weights above 0"),
        ("-1*bleu4", "report", "cannot be read at '-1"),
        ("nan*bleu4", "report", "cannot be read"),
        ("bleu4+", "report", "cannot be read at ''"),
        ("bleu4*0.5", "report", "cannot be read"),
        ("bleu4+BLEU-4", "report", "twice"),
        ("", "report", "cannot be read"),
    ],
)
def test_a_choice_that_cannot_be_is_answered(text: str, task: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_choice(text, task)
