"""Statistics of studies give the scores, and intervals and p-values mean what they say."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from r2kg.config.run import Run
from r2kg.scoring.evaluate import evaluate, nearest_beside
from r2kg.scoring.metrics.labels import score_labels
from r2kg.scoring.metrics.nlg import score_nlg
from r2kg.scoring.metrics.resample import bootstrap, drawn, half_width, holm, interval, p_of_swaps, patients_of
from r2kg.scoring.metrics.rule_labeler import score_findings
from r2kg.scoring.metrics.samples import (
    Ranked,
    sample_findings,
    sample_labels,
    sample_means,
    sample_texts,
    sample_triples,
)
from r2kg.scoring.metrics.table import scores_table
from r2kg.scoring.metrics.triples import score_triples
from shards.graphs.text import triples_text

WORDS = ["the", "heart", "is", "large", "effusion", "no", ".", "small", "lungs", "clear"]


def texts(seed: int, studies: int = 30) -> list[str]:
    drawing = random.Random(seed)
    return [" ".join(drawing.choices(WORDS, k=drawing.randint(0, 12))) for _ in range(studies)]


def label_lines(studies: int = 40, ranked: bool = True) -> list[dict]:
    drawing, names = random.Random(3), ("Edema", "Nodule", "Fracture")
    lines = []
    for at in range(studies):
        labels = {name: drawing.choice([1, 0, 0, -1, None]) for name in names}
        given = {name: drawing.choice([0.1, 0.4, 0.4, 0.8]) for name in names}
        said = ", ".join(name for name in names if drawing.random() < 0.4)
        line = {"id": f"s{at}", "patient": f"p{at // 2}", "prediction": said, "reference": "", "labels": labels}
        lines.append(line | ({"extra": {"probabilities": given}} if ranked else {}))
    return lines


def test_sums_of_texts_give_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """METEOR's stand with its own tests, which share one Java program."""
    monkeypatch.setenv("PATH", "")
    wanted, reasons = score_nlg(texts(0), texts(1))
    samples, same = sample_texts(texts(0), texts(1))
    known = {name: value for name, value in wanted.items() if value is not None}
    assert samples.values() == pytest.approx(known, abs=1e-9) and len(known) == 6 and reasons == same


def test_sums_of_triples_give_the_scores() -> None:
    drawing, names = random.Random(1), ["heart", "effusion", "large", "small"]
    sides = [
        [
            triples_text((drawing.choice(names), "modify", drawing.choice(names)) for _ in range(drawing.randint(0, 3)))
            for _ in range(25)
        ]
        for _ in range(2)
    ]
    assert sample_triples(*sides).values() == pytest.approx(score_triples(*sides), abs=1e-9)
    nothing = ["none"] * 3
    assert sample_triples(nothing, nothing).values() == pytest.approx(score_triples(nothing, nothing), abs=1e-9)


@pytest.mark.parametrize("uncertain", ["absent", "left_out"])
@pytest.mark.parametrize("ranked", [True, False])
def test_sums_of_labels_and_ranks_give_the_scores(uncertain: str, ranked: bool) -> None:
    lines = label_lines(ranked=ranked)
    values, by_label, _ = score_labels(lines, uncertain)
    known = {name: value for name, value in values.items() if value is not None}
    assert len(known) == (8 if ranked else 6)
    assert sample_labels(lines, uncertain, tuple(by_label)).values() == pytest.approx(known, abs=1e-9)


def test_weights_are_studies_that_count_more_than_once() -> None:
    lines = label_lines()
    weights = np.random.default_rng(0).multinomial(40, np.full(40, 1 / 40), 3)
    samples = sample_labels(lines, "absent", ("Edema", "Nodule", "Fracture"))
    assert isinstance(samples.ranked, Ranked)
    for row in weights:
        taken = [line for line, times in zip(lines, row, strict=True) for _ in range(times)]
        wanted = score_labels(taken, "absent").values
        found = {**samples.of_sums(row @ samples.table), **samples.ranked.of_weights(row[None])}
        assert {name: float(np.ravel(value)[0]) for name, value in found.items()} == pytest.approx(wanted, abs=1e-9)


def test_findings_of_drawn_studies_are_those_of_the_studies_themselves() -> None:
    references = ["Cardiomegaly. Small effusion.", "Lungs are clear.", "Displaced rib fracture.", "Edema."]
    hypotheses = ["Cardiomegaly. No effusion.", "Small effusion.", "Possible rib fracture.", "Edema and atelectasis."]
    samples = sample_findings(references, hypotheses)
    assert samples.values() == pytest.approx(score_findings(references, hypotheses))
    for weights in np.random.default_rng(0).multinomial(4, np.full(4, 1 / 4), 3):
        taken = [at for at, times in enumerate(weights) for _ in range(times)]
        wanted = score_findings([references[at] for at in taken], [hypotheses[at] for at in taken])
        found = {name: float(value) for name, value in samples.of_sums(weights @ samples.table).items()}
        assert found == pytest.approx(wanted)


def test_patients_are_drawn_with_all_studies() -> None:
    told = [{"patient": name} for name in ("a", "b", "a", "", "", 7)]
    groups, by = patients_of(told)
    assert by == "patients" and groups[0] == groups[2] and len(set(groups)) == 5
    assert patients_of([{}, {"patient": ""}])[1] == "studies"
    values = np.repeat([1.0, 0.0], 50)
    alone = np.arange(100)
    widths = []
    for together in (alone, alone // 10):
        (own,) = drawn({"score": sample_means({"x": values})}, together)["score"].values()
        low, high = interval(own)
        widths.append(high - low)
    assert widths[1] > 2 * widths[0], "ten equal studies of a patient say no more than one"


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """The share of right answers among 100: 95 % of 250 experiments, within what so many can tell."""
    random_, held, groups = np.random.default_rng(5), 0, np.arange(100)
    for _ in range(250):
        sample = sample_means({"right": random_.binomial(1, 0.4, 100)})
        low, high = interval(drawn({"score": sample}, groups, 250)["score"]["right"])
        held += low <= 0.4 <= high
    assert 0.90 <= held / 250 <= 0.98


def test_p_values_are_uniform_without_a_difference_and_small_with_one() -> None:
    random_, groups, found = np.random.default_rng(2), np.repeat(np.arange(20), 2), []
    for _ in range(300):
        both = [sample_means({"x": random_.normal(size=20).repeat(2)}) for _ in range(2)]
        found.append(p_of_swaps([both[0]], [both[1]], groups, 199)["x"])
    shares = [np.mean(np.array(found) <= level) for level in (0.05, 0.25, 0.5, 0.75)]
    assert np.abs(np.array(shares) - [0.05, 0.25, 0.5, 0.75]).max() < 0.09 and shares[0] < 0.1
    one = sample_means({"x": random_.normal(size=40)})
    better = sample_means({"x": one.table[:, 1] + 1})
    assert p_of_swaps([better], [one], groups, 199)["x"] == 1 / 200
    assert p_of_swaps([one], [one], groups, 199)["x"] == 1


def test_ranks_are_swapped_by_study() -> None:
    lines = label_lines()
    names, groups = ("Edema", "Nodule", "Fracture"), patients_of(lines)[0]
    perfect = [
        line | {"extra": {"probabilities": {name: float(value == 1) for name, value in line["labels"].items()}}}
        for line in lines
    ]
    good, drawn_at_random = (sample_labels(own, "absent", names) for own in (perfect, lines))
    p = p_of_swaps([good], [drawn_at_random], groups, 300)
    assert p["auroc"] < 0.01 and p["average_precision"] < 0.01 and p["f1"] == 1.0


def test_corrections_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02]) and holm([]) == []
    assert half_width([0.3, 0.4, 0.5]) == pytest.approx(4.302653 * 0.1 / 3**0.5) and half_width([0.3]) is None


def test_differences_are_of_the_same_draws() -> None:
    """Two systems that differ by a constant on every study differ by it in every draw."""
    values = np.random.default_rng(0).normal(size=50)
    both = {"score": sample_means({"x": values}), "floor": sample_means({"x": values - 0.25})}
    told = bootstrap(both, np.arange(50), "studies")
    assert told["above_floor"]["x"] == [0.25, 0.25] and told["intervals"]["x"][0] < values.mean()
    assert told["bootstrap"] == {"by": "studies", "drawn": 50, "draws": 1000, "level": 0.95, "seed": 0}


def test_intervals_stand_beside_the_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    said, wanted, path = texts(0), texts(1), tmp_path / "predictions.jsonl"
    said[:15] = wanted[:15]

    def write(patients: bool, studies: int = 30) -> dict:
        for name, own in (("predictions", said), ("shuffled", said[1:] + said[:1])):
            lines = [
                {"id": str(at), "prediction": own[at], "reference": wanted[at]}
                | ({"patient": f"p{at // 3}"} if patients else {})
                for at in range(studies)
            ]
            path.with_name(f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        context = {"cleaning": "raw", "floor": {"full-text": said[20]}}
        path.with_name("context.json").write_text(json.dumps(context))
        return evaluate(path, ["full-text"])

    scores = write(patients=True)
    result = scores["protocols"]["full-text"]
    assert result["bootstrap"]["by"] == "patients" and result["bootstrap"]["drawn"] == 10
    assert set(result["intervals"]) == {name for name, value in result["score"].items() if value is not None}
    for metric, (low, high) in result["intervals"].items():
        assert low <= result["score"][metric] <= high
    assert result["above_floor"]["bleu1"][0] > 0 < result["above_shuffled"]["bleu1"][0]
    console = Console(width=160, record=True, file=(tmp_path / "table").open("w"))
    console.print(scores_table(scores, scores))
    low, high = result["intervals"]["bleu1"]
    shown = console.export_text()
    assert f"{result['score']['bleu1']:.3f} ({low:.3f}-{high:.3f})" in shown
    assert "1,000 draws of 10 patients" in shown and "nearest film's report" in shown
    by_study = write(patients=False)
    assert by_study["protocols"]["full-text"]["bootstrap"]["by"] == "studies"
    alone = write(patients=True, studies=2)["protocols"]["full-text"]
    assert "intervals" not in alone and "one" in alone["unavailable"]["intervals"]


def test_the_copied_report_of_the_same_split_and_shards_stands_beside(tmp_path: Path) -> None:
    written = tmp_path / "mine" / "predictions" / "test" / "step-9"
    written.mkdir(parents=True)
    Run(name="mine", root=str(tmp_path)).save(tmp_path / "mine" / "run.json")
    (written / "context.json").write_text(json.dumps({"split": "test", "shards": "f1"}))
    assert nearest_beside(written / "predictions.jsonl") is None
    for name, split, shards in (("a", "val", "f1"), ("b", "test", "f2"), ("c", "test", "f1"), ("d", "test", None)):
        copied = tmp_path / name / "predictions" / split / "nearest-00"
        copied.mkdir(parents=True)
        told = json.dumps({"predictions": {"shards": shards}, "protocols": {name: {}}})
        (copied / "scores.json").write_text(told if shards else "{")
    found = nearest_beside(written / "predictions.jsonl")
    assert found is not None and found["protocols"] == {"c": {}}
