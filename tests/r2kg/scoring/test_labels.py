"""Answers that are labels of findings: their scores, protocols, floor and control are the task's own."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from sklearn import metrics

from r2kg.config.needs import Inputs
from r2kg.config.protocol import DEFAULT_PROTOCOLS, METRICS, PROTOCOLS, parse_choice, protocols_of
from r2kg.modules.beams import Generated
from r2kg.scoring.context import answer_of, scoring_context
from r2kg.scoring.controls.withheld import derangement, shuffled
from r2kg.scoring.evaluate import choose_floor, evaluate, read_predictions
from r2kg.scoring.metrics.labels import MOST, names_in, names_text, score_labels
from r2kg.scoring.metrics.table import scores_table
from r2kg.scoring.writing.writer import prediction_line
from shards.errors import ConfigError, DataError
from shards.sources.iu_xray.source import IuXray
from shards.stream.index import read_studies
from shards.study import Study
from shards.tars.format import read_manifest
from shards.tars.shards import write_shards

TRUE: list[dict] = [
    {"Edema": 1, "Fracture": 0, "Nodule": -1},
    {"Edema": 1, "Fracture": 1},
    {"Edema": 0, "Fracture": None, "Nodule": 0},
    {"Edema": -1, "Fracture": 1, "Nodule": 1},
]
GIVEN = [
    {"Edema": 0.9, "Fracture": 0.1, "Nodule": 0.7},
    {"Edema": 0.4, "Fracture": 0.8, "Nodule": 0.2},
    {"Edema": 0.6, "Fracture": 0.3, "Nodule": 0.1},
    {"Edema": 0.2, "Fracture": 0.2, "Nodule": 0.6},
]


def line_of(at: int, probabilities: dict | None, prediction: str | None = None, labels: object = None) -> dict:
    """A prediction line; its answer names what has at least one half."""
    named = ", ".join(name for name, value in (probabilities or {}).items() if value >= 0.5)
    line = {
        "id": f"s{at}",
        "split": "test",
        "prediction": named if prediction is None else prediction,
        "reference": names_text(TRUE[at]),
        "labels": TRUE[at] if labels is None else labels,
    }
    return line | ({} if probabilities is None else {"extra": {"probabilities": probabilities}})


LINES = [line_of(at, given) for at, given in enumerate(GIVEN)]


def write(folder: Path, lines: list[dict], name: str = "predictions.jsonl", **context: object) -> Path:
    if name == "predictions.jsonl":
        (folder / "context.json").write_text(json.dumps({"task": "labels", **context}))
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / name


def test_scores_by_hand() -> None:
    """Edema 1 1 0 0 ranked .9 .4 .6 .2; Fracture 0 1 0 1 ranked .1 .8 .3 .2; Nodule 0 0 0 1 ranked .7 .2 .1 .6."""
    values, by_label, unavailable = score_labels(LINES, "absent")
    assert tuple(values) == METRICS["labels"] and not unavailable
    assert by_label["Edema"] == {
        **{"positives": 2, "negatives": 2, "auroc": 3 / 4, "average_precision": pytest.approx((1 + 2 / 3) / 2)},
        **{"precision": 1 / 2, "recall": 1 / 2, "f1": 1 / 2},
    }
    assert by_label["Fracture"]["f1"] == pytest.approx(2 / 3) and by_label["Nodule"]["auroc"] == pytest.approx(2 / 3)
    assert values["auroc"] == pytest.approx((3 / 4 + 3 / 4 + 2 / 3) / 3)
    assert values["f1"] == pytest.approx((1 / 2 + 2 / 3 + 2 / 3) / 3)
    assert values["precision"] == pytest.approx((1 / 2 + 1 + 1 / 2) / 3)
    assert values["recall"] == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)
    assert [values[f"{name}_pooled"] for name in ("precision", "recall", "f1")] == [3 / 5, 3 / 5, pytest.approx(3 / 5)]


def test_what_is_uncertain_or_not_mentioned_is_left_out_of_its_label_alone() -> None:
    values, by_label, unavailable = score_labels(LINES, "left_out")
    assert {name: (each["positives"], each["negatives"]) for name, each in by_label.items()} == {
        **{"Edema": (2, 1), "Fracture": (2, 1), "Nodule": (1, 1)},
    }
    assert by_label["Edema"]["auroc"] == 1 / 2 and by_label["Nodule"]["auroc"] == by_label["Fracture"]["auroc"] == 1.0
    assert values["auroc"] == pytest.approx((1 / 2 + 1 + 1) / 3)
    assert values["precision_pooled"] == 3 / 4 and values["recall_pooled"] == 3 / 5 and not unavailable


@pytest.mark.parametrize("uncertain", ["absent", "left_out"])
def test_scores_are_those_of_sklearn_on_random_data(uncertain: str) -> None:
    draw, names = np.random.default_rng(0), [f"finding {i}" for i in range(7)]
    true = draw.choice([1, 0, -1, 9], (300, 7), p=[0.3, 0.4, 0.1, 0.2])
    ranks = draw.random((300, 7)).round(2)
    lines = [
        {
            "id": f"s{at}",
            "prediction": ", ".join(name for name, rank in zip(names, row, strict=True) if rank >= 0.4),
            "labels": {name: int(value) for name, value in zip(names, true[at], strict=True) if value != 9},
            "extra": {"probabilities": dict(zip(names, row.tolist(), strict=True))},
        }
        for at, row in enumerate(ranks)
    ]
    values, by_label, _ = score_labels(lines, uncertain)
    if uncertain == "absent":
        truth, named = true == 1, ranks >= 0.4
        for average, suffix in (("macro", ""), ("micro", "_pooled")):
            wanted = metrics.precision_recall_fscore_support(truth, named, average=average)
            assert [values[f"{name}{suffix}"] for name in ("precision", "recall", "f1")] == pytest.approx(wanted[:3])
        assert values["auroc"] == pytest.approx(metrics.roc_auc_score(truth, ranks, average="macro"))
        assert values["average_precision"] == pytest.approx(metrics.average_precision_score(truth, ranks))
    else:
        kept = np.isin(true, (0, 1))
        for at, name in enumerate(names):
            truth, rank = true[kept[:, at], at], ranks[kept[:, at], at]
            assert by_label[name]["auroc"] == pytest.approx(metrics.roc_auc_score(truth, rank))
            assert by_label[name]["f1"] == pytest.approx(metrics.f1_score(truth, rank >= 0.4))
            assert by_label[name]["positives"] + by_label[name]["negatives"] == kept[:, at].sum()
        assert values["f1"] == pytest.approx(np.mean([each["f1"] for each in by_label.values()]))
        assert values["f1_pooled"] == pytest.approx(metrics.f1_score(true[kept], (ranks >= 0.4)[kept]))


def test_a_label_on_which_all_studies_agree_is_in_no_mean() -> None:
    lines = [
        line_of(at, {**given, "Everywhere": 0.5, "Nowhere": 0.5}, labels={**TRUE[at], "Everywhere": 1, "Unknown": 0})
        for at, given in enumerate(GIVEN)
    ]
    values, by_label, unavailable = score_labels(lines, "absent")
    plain = score_labels(LINES, "absent").values
    assert {name for name in plain if values[name] != plain[name]} == {
        f"{name}_pooled" for name in ("precision", "recall", "f1")
    }, "over all labels together they count"
    assert by_label["Everywhere"]["positives"] == by_label["Nowhere"]["negatives"] == 4
    assert by_label["Everywhere"]["f1"] is by_label["Nowhere"]["auroc"] is None
    assert unavailable == {
        "label Everywhere": "all 4 studies have it, so it is in no mean over labels",
        "label Nowhere": "none of 4 studies has it, so it is in no mean over labels",
        "labels": "the system does not know the labels Unknown: they are not scored",
    }


def test_without_probabilities_all_labels_of_the_studies_are_scored() -> None:
    lines = [line_of(at, None, "Edema,  Nodule, Heart") for at in range(4)]
    values, by_label, unavailable = score_labels(lines, "absent")
    assert list(by_label) == ["Edema", "Fracture", "Nodule"]
    assert values["auroc"] is None and "no probabilities" in unavailable["auroc"]
    assert values["recall"] == pytest.approx((1 + 0 + 1) / 3) and values["precision_pooled"] == 3 / 8
    none = score_labels([line | {"labels": dict.fromkeys(TRUE[0])} for line in LINES], "absent")
    assert set(none.values.values()) == {None} and none.unavailable.keys() >= none.values.keys()


def test_names_are_read_back_or_refused() -> None:
    assert names_text({"B b": 1, "A": 0, "C": 1, "D": -1, "E": None}) == "B b, C" and names_text({}) == ""
    assert names_in("B b,C ,, ") == {"B b", "C"} and names_in("") == set()
    for name in ("a, b", " a", "a  b", ""):
        with pytest.raises(DataError, match=r"cannot be named in an answer.*without commas"):
            names_text({name: 0})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"extra": {"probabilities": {"Edema": 0.1, "Fracture": 0.2}}}, "no probability of Nodule"),
        ({"extra": {}}, "no probability of Edema, Fracture, Nodule"),
        ({"extra": {"probabilities": {**GIVEN[2], "Heart": 0.3}}}, "a probability of Heart, which other"),
        ({"extra": {"probabilities": {**GIVEN[2], "Edema": float("nan")}}}, "from 0 to 1 as probability of Edema"),
        ({"extra": {"probabilities": {**GIVEN[2], "Edema": 1.01}}}, "from 0 to 1 as probability of Edema"),
        ({"extra": {"probabilities": {**GIVEN[2], "Edema": "0.5"}}}, "from 0 to 1 as probability of Edema"),
        ({"extra": {"probabilities": {**GIVEN[2], "Edema": True}}}, "from 0 to 1 as probability of Edema"),
        ({"extra": {"probabilities": [0.5]}}, "no object of labels and numbers"),
        ({"extra": "secret"}, "no object of labels and numbers"),
        ({"labels": None}, "no labels to compare with"),
        ({"labels": {"Edema": 2}}, "no labels to compare with"),
        ({"labels": {"Edema": [1]}}, "no labels to compare with"),
    ],
)
def test_a_malformed_line_names_the_study_and_no_text(tmp_path: Path, changes: dict, said: str) -> None:
    bad = LINES[2] | {"prediction": "secret", "reference": "secret"} | changes
    path = write(tmp_path, [*LINES[:2], bad, LINES[3]])
    with pytest.raises(DataError, match=f"study 's2' has .*{said}") as caught:
        evaluate(path)
    assert "secret" not in str(caught.value) and "again" in str(caught.value)


def test_too_many_labels_and_none_are_refused() -> None:
    for labels in ({}, {f"l{at}": 0 for at in range(MOST + 1)}):
        with pytest.raises(DataError, match=rf"the studies have {len(labels):,} labels and 1 to 1,000"):
            score_labels([line_of(0, None, "", labels)], "absent")


def test_labels_are_scored_beside_both_floors(tmp_path: Path) -> None:
    path = write(tmp_path, LINES, floor={"labels": "Fracture", "labels-certain": ""})
    donors = [LINES[(at + 1) % 4] for at in range(4)]
    control = [
        own | {key: donor[key] for key in ("prediction", "extra")} for own, donor in zip(LINES, donors, strict=True)
    ]
    write(tmp_path, control, "shuffled.jsonl")
    scores = evaluate(path)
    assert tuple(scores["protocols"]) == DEFAULT_PROTOCOLS["labels"]
    assert json.loads((tmp_path / "scores.json").read_text()) == scores
    result, certain = (scores["protocols"][name] for name in DEFAULT_PROTOCOLS["labels"])
    wanted = {
        name: round(value, 6) for name, value in score_labels(LINES, "absent").values.items() if value is not None
    }
    assert result["score"] == wanted and result["hash"] == PROTOCOLS["labels"].hash != certain["hash"]
    assert result["labels"]["Nodule"]["auroc"] == pytest.approx(2 / 3, abs=1e-6)
    assert result["labels"]["Nodule"]["positives"] == 1 and certain["labels"]["Nodule"]["negatives"] == 1
    assert result["floor"]["auroc"] is result["floor"]["average_precision"] is None
    assert result["floor"]["recall"] == round(1 / 3, 6) and result["floor"]["f1_pooled"] == round(4 / 9, 6)
    assert set(result["unavailable"]) == {"floor.auroc", "floor.average_precision"}
    assert result["unavailable"]["floor.auroc"] == "one answer for all ranks no study"
    assert certain["floor"]["recall_pooled"] == certain["floor"]["f1"] == 0
    own = score_labels(control, "absent").values
    assert result["shuffled"] == pytest.approx(own, abs=1e-6) and own["auroc"] != result["score"]["auroc"]
    assert scores["health"]["mean_labels_prediction"] == 5 / 4 == scores["health"]["mean_labels_reference"]
    assert scores["health"]["unknown_share"] == 0 and scores["health"]["unique_share"] == 1
    console = Console(width=160, record=True, file=(tmp_path / "table").open("w"))
    console.print(scores_table(scores))
    rows = console.export_text().splitlines()
    row = next(row for row in rows if "auroc" in row)
    assert f"{result['score']['auroc']:.3f}" in row and "–" in row and f"{result['shuffled']['auroc']:.3f}" in row
    assert sum("f1_pooled" in row and row.startswith("│") for row in rows) == 2 and not any(
        "meteor" in row for row in rows
    )


def test_the_control_is_known_by_its_probabilities_too(tmp_path: Path) -> None:
    path = write(tmp_path, LINES)
    shutil.copy(path, tmp_path / "shuffled.jsonl")
    before = evaluate(path)
    other = LINES[3] | {"extra": {"probabilities": {**GIVEN[3], "Fracture": 0.0}}}
    write(tmp_path, [*LINES[:3], other], "shuffled.jsonl")
    after = evaluate(path)
    assert before["predictions"]["shuffled_sha256"] != after["predictions"]["shuffled_sha256"]
    assert before["protocols"]["labels"]["shuffled"]["auroc"] > after["protocols"]["labels"]["shuffled"]["auroc"]
    lacking = [{key: value for key, value in line.items() if key != "extra"} for line in LINES]
    write(tmp_path, lacking, "shuffled.jsonl")
    result = evaluate(path)["protocols"]["labels"]
    assert result["shuffled"]["auroc"] is None and "no probabilities" in result["unavailable"]["shuffled.auroc"]
    assert result["shuffled"]["f1"] == result["score"]["f1"]


def test_what_the_table_says_of_labels(tmp_path: Path) -> None:
    lines = [line_of(at, {**given, "Nowhere": 0.5}) for at, given in enumerate(GIVEN)]
    scores = evaluate(write(tmp_path, [*lines[:3], lines[3] | {"labels": {}}]), ["labels"])
    assert scores["protocols"]["labels"]["unlabelled"] == 1
    console = Console(width=200, record=True, file=(tmp_path / "table").open("w"))
    console.print(scores_table(scores))
    text = " ".join(console.export_text().split())
    assert "labels: of 1 of 4 studies no label is known" in text
    assert "labels leaves 2 labels out of means, as all studies agree: Nodule, Nowhere" in text


def test_protocols_and_choices_of_the_task() -> None:
    assert protocols_of([], "labels") == ("labels", "labels-certain")
    with pytest.raises(ConfigError, match=r"full-text cannot score the task 'labels'.*labels, labels-certain"):
        protocols_of(["full-text"], "labels")
    assert parse_choice("0.5*AUROC+f1-pooled", "labels") == {"auroc": 0.5, "f1_pooled": 1.0}
    with pytest.raises(ConfigError, match=r"no metric of the task 'labels'; did you mean auroc"):
        parse_choice("AUC-ROC", "labels")


def test_the_floor_is_the_answer_with_the_best_f1() -> None:
    references = ["Edema, Nodule", "Edema", "Edema, Fracture", ""]
    assert (
        choose_floor(["Fracture", "", "", "Edema", "Edema, Nodule"], references, PROTOCOLS["labels"], None) == "Edema"
    )
    assert choose_floor(["Fracture", "", ""], ["", "", "Edema"], PROTOCOLS["labels-certain"], None) == ""


def test_the_context_of_drawn_shards(phantom_shards: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(phantom_shards, tmp_path / "shards", ignore=lambda *_: ["facts"]))
    manifest = read_manifest(root)
    context = scoring_context(root, manifest, DEFAULT_PROTOCOLS["labels"])
    answers = {split: [names_text(study.labels) for study in read_studies(root, split)] for split in ("train", "val")}
    best = choose_floor(answers["train"], answers["val"], PROTOCOLS["labels"], None)
    assert context["floor"] == {"labels": best, "labels-certain": best} and best in answers["train"]
    assert context["vocabulary"] is None and context["task"] == "labels"
    assert scoring_context(root, manifest, DEFAULT_PROTOCOLS["labels"]) == context, "as it was kept"


def test_shards_without_labels_say_what_to_do(drawn_iu: Callable, ray_session: None, tmp_path: Path) -> None:
    for val in (1, 0):
        root = tmp_path / f"shards-{val}"
        shutil.rmtree(tmp_path / "raw", ignore_errors=True)
        write_shards(IuXray(raw=drawn_iu(val=val)), root, size=64)
        with pytest.raises(DataError, match=r"no training study of .* has a label that is 1: write shards"):
            scoring_context(root, read_manifest(root), ["labels"])


STUDY = Study(key="a", id="A", split="test", views=(), report="r", target="t", labels={"Edema": 1, "Nodule": -1})


def test_what_a_system_adds_stands_in_the_line() -> None:
    written = Generated("Edema", 1, False, {"probabilities": {"Edema": 0.8, "Nodule": 0.1}})
    line = prediction_line(STUDY, written, "labels")
    assert line["extra"] == {"probabilities": {"Edema": 0.8, "Nodule": 0.1}} and line["reference"] == "Edema"
    assert "reference_raw" not in line and json.loads(json.dumps(line))["labels"] == STUDY.labels
    assert "extra" not in prediction_line(STUDY, written._replace(extra={}), "labels")
    assert prediction_line(STUDY, written._replace(extra={"paths": [[1, "x"]]}), "report")["extra"]["paths"] == [
        [1, "x"]
    ]
    assert answer_of(STUDY, "labels") == {"reference": "Edema"}
    for extra in ({"a": float("nan")}, {"a": np.float32(1)}, {"a": {1}}, {(1, 2): 3}):
        with pytest.raises(ConfigError, match=r"`extra` that the system gives for study A is no JSON"):
            prediction_line(STUDY, written._replace(extra=extra), "labels")


def test_what_a_system_adds_goes_with_its_prediction(tmp_path: Path) -> None:
    lines = [
        {"id": str(at), "prediction": f"p{at}", "reference": "", "tokens": 1, "truncated": False} for at in range(4)
    ]
    for line in lines[:3]:
        line["extra"] = {"probabilities": {"Edema": int(str(line["id"])) / 10}}
    path = write(tmp_path, lines)
    starts = np.cumsum([0, *(len(row) for row in path.read_bytes().splitlines(keepends=True))])[:-1]
    donors = derangement(4, seed=3)
    for own, (at, line) in zip(read_predictions(path), enumerate(shuffled(path, starts, donors)), strict=True):
        assert line["id"] == own["id"] and line["prediction"] == f"p{donors[at]}"
        assert line.get("extra") == lines[donors[at]].get("extra")


def test_a_system_that_names_findings_is_not_shown_the_report() -> None:
    Inputs(image_px=64, text=("indication",)).refuse_answers("labels")
    with pytest.raises(ConfigError, match=r"names findings reads findings: their labels are made from it"):
        Inputs(text=("findings",)).refuse_answers("labels")
    with pytest.raises(ConfigError, match=r"names findings is shown subgraphs, which are made from the report"):
        Inputs(sides=("subgraphs",)).refuse_answers("labels")
