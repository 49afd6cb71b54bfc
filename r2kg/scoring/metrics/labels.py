"""Which findings a study has: whether the named ones are right, and whether probabilities rank the studies.

An answer is the names of the findings that are present, joined by ", ". A prediction line may give probabilities
beside it, `{"extra": {"probabilities": {label: 0..1}}}`: AUROC and average precision are of them, precision, recall
and F1 of the names. What is so is the line's `labels`: 1 present, 0 absent, -1 uncertain, null not mentioned.
Scores are fractions.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from r2kg.config.protocol import METRICS
from shards.errors import DataError

RANKED = ("auroc", "average_precision")
"""Metrics of probabilities; the others are of names."""
AGREED = ("precision", "recall", "f1")
VALUES = (1, 0, -1, None)
MOST = 1_000
"""Labels that are scored: there is a table of all studies with all labels."""


class LabelScores(NamedTuple):
    """What `score_labels` found."""

    values: dict[str, float | None]
    """Scores by the names of `METRICS["labels"]`."""
    by_label: dict[str, dict[str, float | None]]
    """Label → positives and negatives (studies it is scored on) and its own `RANKED` and `AGREED` scores."""
    unavailable: dict[str, str]
    """Why a score is None or a label is in no mean: by the metric's name, or "label NAME"."""


def names_text(labels: Mapping[str, int | None]) -> str:
    """The names of the labels that are 1, in their order, joined by ", "; "" where there is none.

    Raises:
        DataError: a label's name holds a comma or blanks that would be lost, so that it could not be read back.
    """
    _refuse_names(list(labels))
    return ", ".join(name for name, value in labels.items() if value == 1)


def names_in(text: str) -> set[str]:
    """The names in an answer, with single blanks, as they are written: case counts."""
    return {" ".join(name.split()) for name in text.split(",")} - {""}


def score_labels(lines: Sequence[Mapping[str, Any]], uncertain: str, labels: Sequence[str] = ()) -> LabelScores:
    """How well prediction lines name and rank the labels of their studies.

    auroc, average_precision, precision, recall and f1 are means over the labels that some of their studies have and
    some have not; the others are in no mean, and named in `unavailable`. `_pooled` ones count over all labels and
    studies together. Precision where nothing is named is 0.

    Args:
        lines: of predictions.jsonl, each with id, prediction and labels.
        uncertain: "absent": labels that are uncertain or not mentioned count as 0; "left_out": such a study is not
            among those that the label is scored on.
        labels: those to score; none: those that the lines give probabilities for or, without any, all of the studies.

    Raises:
        DataError: labels of a study that are no labels; probabilities that some lines or labels lack, or that are no
            numbers in 0..1. The study's id is named, and no text of it.
    """
    probabilities = _probabilities(lines, labels)
    true = [_labels_of(line) for line in lines]
    in_studies = dict.fromkeys(name for study in true for name in study)
    labels = tuple(labels or probabilities or in_studies)
    if not 0 < len(labels) <= MOST:
        raise DataError(
            f"the studies have {len(labels):,} labels and 1 to {MOST:,} can be scored: write shards of a dataset with "
            "labels of findings, and generate the predictions again"
        )
    _refuse_names(labels)
    present, counts, named, ranks = tables_of(lines, labels, uncertain)
    by_label, unavailable = dict[str, dict[str, float | None]](), dict[str, str]()
    for column, label in enumerate(labels):
        kept = counts[:, column]
        truth = present[kept, column]
        positives, negatives = int(truth.sum()), int((~truth).sum())
        by_label[label] = {"positives": positives, "negatives": negatives, **dict.fromkeys((*RANKED, *AGREED))}
        if positives and negatives:
            own = None if ranks is None else ranks[kept, column]
            by_label[label] |= _scores(truth, named[kept, column], own)
        else:
            have = f"all {positives} studies have it" if positives else f"none of {negatives} studies has it"
            unavailable[f"label {label}"] = f"{have}, so it is in no mean over labels"
    if unscored := [name for name in in_studies if name not in by_label]:
        unavailable["labels"] = f"the system does not know the labels {_some(unscored)}: they are not scored"
    values: dict[str, float | None] = dict.fromkeys(METRICS["labels"])
    meant = [scores for label, scores in by_label.items() if f"label {label}" not in unavailable]
    for metric in (*RANKED, *AGREED):
        found = [value for scores in meant if (value := scores[metric]) is not None]
        values[metric] = sum(found) / len(found) if found else None
        if not meant:
            unavailable[metric] = "there is no label that some studies have and some have not"
        elif not found:
            unavailable[metric] = "the predictions have no probabilities to rank studies by"
    if present[counts].any():
        pooled = _scores(present[counts], named[counts])
        values |= {f"{metric}_pooled": value for metric, value in pooled.items()}
    else:
        unavailable |= {f"{metric}_pooled": "no study has any of the labels" for metric in AGREED}
    return LabelScores(values, by_label, unavailable)


def score_naming(lines: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Facts of the predictions as answers: mean numbers of names, and the share of names that are no study's label."""
    answers = [names_in(line["prediction"]) for line in lines]
    known = {name for line in lines for name in (*_labels_of(line), *_given(line))}
    names = sum(len(answer) for answer in answers)
    return {
        "mean_labels_prediction": names / len(lines),
        "mean_labels_reference": sum(len(names_in(line["reference"])) for line in lines) / len(lines),
        "unknown_share": sum(len(answer - known) for answer in answers) / names if names else None,
    }


def unlabelled(lines: Sequence[Mapping[str, Any]]) -> int:
    """Studies of which no label says anything: under uncertain="absent" they count as studies without any finding."""
    return sum(all(value is None for value in _labels_of(line).values()) for line in lines)


def tables_of(
    lines: Sequence[Mapping[str, Any]], labels: Sequence[str], uncertain: str
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_], NDArray[np.float64] | None]:
    """Whether a study has a label, whether it is scored on it, whether its answer names it, and the probability that
    is given to it, [n, L] each; no probabilities (None) where no line has any.

    Raises:
        DataError: labels that are none; probabilities that some lines or labels lack, or that are no numbers in 0..1.
    """
    probabilities = _probabilities(lines, labels)
    answers = [names_in(line["prediction"]) for line in lines]
    given = [[_labels_of(line).get(name) for name in labels] for line in lines]
    present = np.array([[value == 1 for value in row] for row in given])
    counts = np.array([[uncertain == "absent" or value in (0, 1) for value in row] for row in given])
    named = np.array([[name in answer for name in labels] for answer in answers])
    ranks = np.stack([probabilities[name] for name in labels], axis=1) if probabilities else None
    return present, counts, named, ranks


def _scores(
    truth: NDArray[np.bool_], named: NDArray[np.bool_], ranks: NDArray[np.float64] | None = None
) -> dict[str, float]:
    """`AGREED` of what is so and what is named, [n] each, and of probabilities, [n], `RANKED`."""
    from sklearn import metrics  # a second, for which scores of texts need not wait

    agreed = metrics.precision_recall_fscore_support(truth, named, average="binary", zero_division=0.0)
    scores = {metric: float(value) for metric, value in zip(AGREED, agreed, strict=False)}
    if ranks is not None:
        scores["auroc"] = float(metrics.roc_auc_score(truth, ranks))
        scores["average_precision"] = float(metrics.average_precision_score(truth, ranks))
    return scores


def _labels_of(line: Mapping[str, Any]) -> dict[str, int | None]:
    labels = line.get("labels")
    if not isinstance(labels, dict) or any(value not in VALUES for value in labels.values()):
        raise DataError(
            f"study {line['id'][:80]!r} has no labels to compare with: give it labels, a name for each, that are 1, 0, "
            "-1 or null, or generate the predictions again"
        )
    return labels


def _given(line: Mapping[str, Any]) -> dict[str, Any]:
    """The probabilities of a line as they are; {} where it has none. DataError when they are no dict."""
    extra = line.get("extra") or {}
    given = extra.get("probabilities", {}) if isinstance(extra, dict) else extra
    if not isinstance(given, dict):
        raise DataError(
            f"study {line['id'][:80]!r} has probabilities that are no object of labels and numbers: generate "
            "the predictions again"
        )
    return given


def _probabilities(lines: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Label → probability of every line, [n]; {} where no line has any. Labels are `labels` or the first line's."""
    given = [_given(line) for line in lines]
    if not any(given):
        return {}
    wanted = dict.fromkeys(labels or tuple(next(own for own in given if own)))
    for line, probabilities in zip(lines, given, strict=True):
        study = f"study {line['id'][:80]!r}"
        again = "generate the predictions again with one model for all studies"
        if lacking := [name for name in wanted if name not in probabilities]:
            raise DataError(f"{study} has no probability of {_some(lacking)}, which other studies have: {again}")
        if strange := [name for name in probabilities if name not in wanted]:
            raise DataError(f"{study} has a probability of {_some(strange)}, which other studies have not: {again}")
        wrong = [
            name
            for name, value in probabilities.items()
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1
        ]
        if wrong:
            raise DataError(f"{study} has no number from 0 to 1 as probability of {_some(wrong)}: {again}")
    return {name: np.array([probabilities[name] for probabilities in given], np.float64) for name in wanted}


def _refuse_names(labels: Sequence[str]) -> None:
    if wrong := [name for name in labels if names_in(name) != {name}]:
        raise DataError(
            f"{', '.join(repr(name[:80]) for name in wrong[:3])} cannot be named in an answer, whose names stand "
            "between commas: give labels names without commas, double blanks or blanks at their ends"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(name[:80] for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
