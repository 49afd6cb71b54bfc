"""Scores equal the COCO caption scorers': on a golden fixture, on real reports, and on random small corpora."""

import json
import os
import random
import shutil
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import _score_lcs

from r2kg.config.protocol import TEXT_METRICS
from r2kg.scoring.metrics.meteor import Meteor, MeteorUnavailable, meteor_of
from r2kg.scoring.metrics.nlg import ConstantBleu, bleu, cider_d, common_words, rouge_l, score_nlg
from r2kg.scoring.metrics.samples import sample_texts
from shards.clean import clean

REFERENCES = [
    "the heart is mildly enlarged . there is a small left pleural effusion . no pneumothorax .",
    "the lungs are clear . no pleural effusion or pneumothorax .",
    "stable cardiomegaly with mild interstitial edema . bilateral pleural effusions are present .",
    "no acute cardiopulmonary abnormality .",
]
HYPOTHESES = [
    "the heart is enlarged . small left pleural effusion is seen . there is no pneumothorax .",
    "the lungs are clear . there is no pneumothorax or pleural effusion .",
    "the heart size is normal . the lungs are clear . no effusion .",
    "no acute cardiopulmonary process .",
]
GOLDEN = {
    "bleu1": 0.673469,
    "bleu2": 0.504402,
    "bleu3": 0.382241,
    "bleu4": 0.259408,
    "rouge_l": 0.637466,
    "cider_d": 3.101099,
    "meteor": 0.302952,
}
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="METEOR 1.5 needs a Java runtime")
texts = st.lists(st.sampled_from(["a", "b", "c", "d", "."]), max_size=9).map(" ".join)
corpora = st.lists(st.tuples(texts, texts), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def meteor() -> Iterator[Meteor]:
    """One program for the whole file, started where numbers are written with a decimal comma."""
    with Meteor() as program:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=de -Duser.country=DE")
            program.score(["a"], ["a"])
        yield program


def coco(references: list[str], hypotheses: list[str]) -> tuple[list[float], np.ndarray, np.ndarray]:
    """BLEU-1..4 of the corpus, ROUGE-L and CIDEr of each pair, by pycocoevalcap."""
    bleu_module = pytest.importorskip("pycocoevalcap.bleu.bleu_scorer")
    from pycocoevalcap.cider.cider_scorer import CiderScorer
    from pycocoevalcap.rouge.rouge import Rouge

    scorer, cider = bleu_module.BleuScorer(n=4), CiderScorer()
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        scorer += (hypothesis, [reference])
        cider += (hypothesis, [reference])
    cider.document_frequency[("",)] = (
        0.0  # the scorer takes the largest frequency, and fails when every reference is empty
    )
    rouge = [Rouge().calc_score([h], [r]) for r, h in zip(references, hypotheses, strict=True)]
    return scorer.compute_score(option="closest")[0], np.array(rouge), cider.compute_score()[1]


@needs_java
def test_golden_fixture(meteor: Meteor) -> None:
    scores, unavailable = score_nlg(REFERENCES, HYPOTHESES, meteor)
    assert tuple(scores) == TEXT_METRICS
    assert scores == pytest.approx(GOLDEN, abs=1e-5)
    assert unavailable == {}


def test_golden_fixture_per_pair() -> None:
    assert rouge_l(REFERENCES, HYPOTHESES) == pytest.approx([0.764706, 0.761442, 0.223716, 0.8], abs=1e-5)
    assert cider_d(REFERENCES, HYPOTHESES) == pytest.approx([4.312978, 4.256004, 0.07362, 3.761793], abs=1e-5)
    fours = [bleu([r], [h])["bleu4"] for r, h in zip(REFERENCES, HYPOTHESES, strict=True)]
    assert fours == pytest.approx([0.338507, 0.372391, 0, 0.00009], abs=1e-5)


@needs_java
def test_golden_meteor_is_a_corpus_score_not_a_mean(meteor: Meteor) -> None:
    corpus, pairs = meteor.score(REFERENCES, HYPOTHESES)
    assert pairs == pytest.approx([0.439805, 0.461902, 0.039669, 0.347396], abs=1e-5)
    assert corpus == pytest.approx(GOLDEN["meteor"], abs=1e-5) != pytest.approx(pairs.mean(), abs=1e-2)


@needs_java
def test_sums_of_meteor_counts_give_its_scores(meteor: Meteor) -> None:
    references = [*REFERENCES, "no acute disease", "", "clear lungs"]
    hypotheses = [*HYPOTHESES, "no acute disease", "clear", ""]
    corpus, pairs = meteor.score(references, hypotheses)
    counts = meteor.count(references, hypotheses)
    assert meteor_of(counts.sum(0)) == pytest.approx(corpus, abs=1e-9)
    assert meteor_of(counts) == pytest.approx(pairs, abs=1e-9) and pairs[-3] == 1
    assert sample_texts(references, hypotheses, meteor)[0].values()["meteor"] == pytest.approx(corpus, abs=1e-9)


def test_meteor_survives_line_breaks_bars_and_empty_texts(meteor: Meteor) -> None:
    corpus, pairs = meteor.score(["the heart |||\nis large", "", "a", "é"], ["the heart is large", "a", "", "é"])
    assert pairs.tolist() == [1.0, 0.0, 0.0, 1.0]
    assert 0 < corpus < 1
    assert meteor.score(REFERENCES, HYPOTHESES)[0] == pytest.approx(GOLDEN["meteor"], abs=1e-5)


def test_meteor_without_java_is_none_with_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    scores, unavailable = score_nlg(REFERENCES, HYPOTHESES)
    assert scores["meteor"] is None
    assert "`java`" in unavailable["meteor"]
    assert scores["bleu4"] == pytest.approx(GOLDEN["bleu4"], abs=1e-5)


def test_meteor_that_stops_gives_what_it_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho 'not enough memory for the heap' >&2\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with Meteor() as program, pytest.raises(MeteorUnavailable, match="not enough memory"):
        program.score(REFERENCES, HYPOTHESES)


def test_meteor_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\nexec sleep 60\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with Meteor(timeout_seconds=0.3) as program, pytest.raises(MeteorUnavailable, match="too long"):
        program.score(REFERENCES, HYPOTHESES)


@given(st.lists(st.sampled_from("abcd"), max_size=80), st.lists(st.sampled_from("abcde"), max_size=80))
def test_common_words_are_those_of_the_table(one: list[str], other: list[str]) -> None:
    assert common_words(one, other) == round(_score_lcs(one, other).precision * len(other))


def test_long_texts_are_scored_in_seconds_and_without_a_table() -> None:
    """The table of these would have 1,600,000,000 cells."""
    words = np.random.default_rng(0).integers(0, 300, 40_000)
    text = " ".join(f"w{word}" for word in words)
    tracemalloc.start()
    scores = rouge_l([text, text], [text, text.replace("w7 ", "")])
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()
    assert scores[0] == 1 and 0.99 < scores[1] < 1


def test_two_blanks_hold_an_empty_word_for_rouge() -> None:
    assert rouge_l(["a  b"], ["a b"]) == pytest.approx([0.772], abs=1e-3)
    assert rouge_l(["a b"], ["a  b"])[0] != rouge_l(["a  b"], ["a b"])[0]


@pytest.mark.parametrize("hypothesis", ["", "x", "x y z", "x y z w v"])
def test_nothing_right_is_zero_everywhere(hypothesis: str) -> None:
    hypotheses = [hypothesis] * len(REFERENCES)
    assert max(bleu(REFERENCES, hypotheses).values()) < 1e-5
    assert rouge_l(REFERENCES, hypotheses).tolist() == cider_d(REFERENCES, hypotheses).tolist() == [0.0] * 4


def test_hypotheses_shorter_than_four_words_have_almost_no_bleu4() -> None:
    scores = bleu(["the heart is large"] * 2, ["the heart is"] * 2)
    assert scores["bleu3"] == pytest.approx(np.exp(1 - 4 / 3))
    assert 0 < scores["bleu4"] < 0.04


def test_cider_of_one_pair_is_zero_and_of_distinct_identical_pairs_ten() -> None:
    assert cider_d(["a b c d e"], ["a b c d e"]).tolist() == [0.0]
    assert cider_d(REFERENCES, REFERENCES) == pytest.approx([10.0] * 4)


@pytest.mark.parametrize("pairs", [([], []), (["a"], []), (["a"], ["a", "b"])])
def test_unequal_or_no_pairs_are_refused(pairs: tuple[list[str], list[str]]) -> None:
    with pytest.raises(ValueError, match="in pairs"):
        score_nlg(*pairs)


@settings(max_examples=150, deadline=None)
@given(corpora)
def test_random_corpora_equal_coco(pairs: list[tuple[str, str]]) -> None:
    references, hypotheses = (list(side) for side in zip(*pairs, strict=True))
    coco_bleu, coco_rouge, coco_cider = coco(references, hypotheses)
    assert rouge_l(references, hypotheses) == pytest.approx(coco_rouge, abs=1e-9)
    assert cider_d(references, hypotheses) == pytest.approx(coco_cider, abs=1e-9)
    assert list(bleu(references, hypotheses).values()) == pytest.approx(coco_bleu, abs=1e-9)


@settings(deadline=None)
@given(st.lists(texts, min_size=1, max_size=6), texts)
def test_constant_bleu_equals_bleu_of_the_repeated_text(references: list[str], text: str) -> None:
    assert ConstantBleu(references).score(text) == bleu(references, [text] * len(references))


@pytest.mark.skipif("R2KG_REAL_DATA" not in os.environ, reason="R2KG_REAL_DATA is not set: no real reports to score")
def test_real_reports_equal_coco() -> None:
    annotation = json.loads((Path(os.environ["R2KG_REAL_DATA"]) / "iu_xray/annotation.json").read_text())
    references = [clean("r2gen-2020-iu", row["report"]) for row in (annotation["val"] + annotation["test"])[:200]]
    hypotheses = random.Random(0).sample(references, len(references))
    coco_bleu, coco_rouge, coco_cider = coco(references, hypotheses)
    assert list(bleu(references, hypotheses).values()) == pytest.approx(coco_bleu, abs=1e-4)
    assert rouge_l(references, hypotheses) == pytest.approx(coco_rouge, abs=1e-4)
    assert cider_d(references, hypotheses) == pytest.approx(coco_cider, abs=1e-4)


@needs_java
@pytest.mark.skipif("R2KG_REAL_DATA" not in os.environ, reason="R2KG_REAL_DATA is not set: no real reports to score")
def test_real_reports_equal_coco_meteor(meteor: Meteor) -> None:
    wrapper = pytest.importorskip("pycocoevalcap.meteor.meteor").Meteor()
    annotation = json.loads((Path(os.environ["R2KG_REAL_DATA"]) / "iu_xray/annotation.json").read_text())
    references = [clean("r2gen-2020-iu", row["report"]) for row in annotation["test"][:200]]
    hypotheses = random.Random(0).sample(references, len(references))
    corpus, pairs = meteor.score(references, hypotheses)
    wanted = wrapper.compute_score(*({i: [text] for i, text in enumerate(side)} for side in (references, hypotheses)))
    assert corpus == pytest.approx(wanted[0], abs=1e-4)
    assert pairs == pytest.approx(wanted[1], abs=1e-4)
