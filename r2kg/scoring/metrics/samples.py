"""Scores of any drawn test set: what each study adds to the sums that every metric is a function of.

A test set in which a study counts w times has the sums Σ w · statistics. Thousands of such sets, drawn for an interval
or with the answers of two systems swapped, cost a product of matrices and no text is read again
(`r2kg.scoring.metrics.resample`).

What is not a sum of its own: the document frequencies of CIDEr-D stay those of all references that were scored, so
that a draw does not change what a word weighs; AUROC and average precision rank the drawn studies anew (`Ranked`).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from r2kg.scoring.metrics.labels import tables_of
from r2kg.scoring.metrics.meteor import Meteor, MeteorUnavailable, meteor_of
from r2kg.scoring.metrics.nlg import bleu_counts, bleu_of, cider_d, rouge_l
from r2kg.scoring.metrics.rule_labeler import finding_counts, scores_of
from r2kg.scoring.metrics.triples import KINDS, triple_counts

Floats = NDArray[np.float64]
AGREED = ("precision", "recall", "f1")


@dataclass(frozen=True)
class Ranked:
    """Probabilities beside what is so, for metrics of ranks; [n, L] each, by study and label."""

    truth: NDArray[np.bool_]
    counts: NDArray[np.bool_]
    """Whether the study is among those that the label is scored on."""
    probabilities: Floats

    def of_weights(self, weights: NDArray[Any]) -> dict[str, Floats]:
        """AUROC and average precision, [draws, n] → [draws]: means over the labels that both some and not all drawn
        studies have; nan where there is none. Studies of equal probability count as one step of the curve.
        """
        areas, precisions = [], []
        for truth, kept, own in zip(self.truth.T, self.counts.T, self.probabilities.T, strict=True):
            order = np.flatnonzero(kept)[np.argsort(-own[kept], kind="stable")]  # the highest first
            steps = np.flatnonzero(np.diff(own[order], prepend=np.inf))
            if not len(order):
                continue
            drawn = weights[:, order].astype(np.float64)
            have = np.add.reduceat(drawn * truth[order], steps, axis=1)  # [draws, steps]
            lack = np.add.reduceat(drawn * ~truth[order], steps, axis=1)
            found, wrong = np.cumsum(have, 1), np.cumsum(lack, 1)
            with np.errstate(divide="ignore", invalid="ignore"):  # a draw without either has no value
                areas.append((lack * (found - have / 2)).sum(1) / (found[:, -1] * wrong[:, -1]))
                of_drawn = have * found / np.maximum(found + wrong, 1)
                precisions.append(np.where(wrong[:, -1] > 0, of_drawn.sum(1) / found[:, -1], np.nan))
        return {"auroc": _mean_of_known(areas, weights), "average_precision": _mean_of_known(precisions, weights)}


@dataclass(frozen=True)
class Samples:
    """What n studies add to k sums, and the metrics as functions of these."""

    table: NDArray[Any]
    """[n, k]."""
    of_sums: Callable[[NDArray[Any]], Mapping[str, Floats]]
    """[..., k] → [...] by metric; nan where there is no value."""
    ranked: Ranked | None = None

    def values(self) -> dict[str, float]:
        """The scores of the studies as they are, each once."""
        found = dict(self.of_sums(self.table.sum(0)))
        if self.ranked:
            ranks = self.ranked.of_weights(np.ones((1, len(self.table))))
            found |= {name: value[0] for name, value in ranks.items()}
        return {name: float(value) for name, value in found.items()}


def joined(parts: Sequence[Samples]) -> Samples:
    """All metrics of several samples of the same studies."""
    ends = np.cumsum([part.table.shape[1] for part in parts])

    def of_sums(sums: NDArray[Any]) -> dict[str, Floats]:
        pieces = zip(parts, np.split(sums, ends[:-1], axis=-1), strict=True)
        return {name: value for part, piece in pieces for name, value in part.of_sums(piece).items()}

    ranked = next((part.ranked for part in parts if part.ranked), None)
    return Samples(np.concatenate([part.table for part in parts], axis=1), of_sums, ranked)


def sample_means(values: Mapping[str, NDArray[Any]]) -> Samples:
    """Metrics that are means over studies, from the value of each study, [n]."""
    columns = [np.ones(len(next(iter(values.values())))), *values.values()]

    def of_sums(sums: NDArray[Any]) -> dict[str, Floats]:
        return {name: sums[..., at] / sums[..., 0] for at, name in enumerate(values, start=1)}

    return Samples(np.stack(columns, axis=1), of_sums)


def sample_texts(
    references: Sequence[str], hypotheses: Sequence[str], meteor: Meteor | None = None
) -> tuple[Samples, dict[str, str]]:
    """BLEU, ROUGE-L, CIDEr-D and METEOR of reports, as `score_nlg` has them, and why one of them is lacking.

    Raises `ValueError` for no pairs or unequal numbers.
    """
    means = {"rouge_l": rouge_l(references, hypotheses), "cider_d": cider_d(references, hypotheses)}
    parts = [Samples(bleu_counts(references, hypotheses), bleu_of), sample_means(means)]
    try:
        with nullcontext(meteor) if meteor else Meteor() as program:
            counts = program.count(references, hypotheses)
    except MeteorUnavailable as reason:
        return joined(parts), {"meteor": str(reason)}
    return joined([*parts, Samples(counts, lambda sums: {"meteor": meteor_of(sums)})]), {}


def sample_reports(
    references: Sequence[str],
    hypotheses: Sequence[str],
    whole: Sequence[str],
    stated: Sequence[str],
    meteor: Meteor | None = None,
) -> tuple[Samples, dict[str, str]]:
    """All that reports are scored by: `sample_texts`, and `sample_findings` of `whole` references and of `stated`.

    A reference that is cut, or has <unk> for a rare word, states other findings than the report.
    """
    texts, reasons = sample_texts(references, hypotheses, meteor)
    return joined([texts, sample_findings(whole, stated)]), reasons


def sample_findings(references: Sequence[str], hypotheses: Sequence[str]) -> Samples:
    """Finding scores by the rule labeler, as `score_findings` has them."""
    counts = finding_counts(references, hypotheses)  # [n, 14, 3]

    def of_sums(sums: NDArray[Any]) -> dict[str, Floats]:
        return scores_of(sums.reshape(*sums.shape[:-1], *counts.shape[1:]))

    return Samples(counts.reshape(len(counts), -1), of_sums)


def sample_triples(references: Sequence[str], hypotheses: Sequence[str]) -> Samples:
    """Agreement of triples, entities and relations, BLEU and ROUGE-L, as `score_triples` has them."""
    counts = triple_counts(references, hypotheses)  # [n, 3, 3]
    by_study = _agreed(counts, 1.0)
    means = {f"{kind}_{name}": by_study[n][:, at] for at, kind in enumerate(KINDS) for n, name in enumerate(AGREED)}

    def pooled(sums: NDArray[Any]) -> dict[str, Floats]:
        found = _agreed(sums.reshape(*sums.shape[:-1], len(KINDS), 3), 1.0)
        return {
            f"{kind}_{name}_pooled": found[n][..., at] for at, kind in enumerate(KINDS) for n, name in enumerate(AGREED)
        }

    means["rouge_l"] = rouge_l(references, hypotheses)
    texts = Samples(bleu_counts(references, hypotheses), bleu_of)
    return joined([sample_means(means), Samples(counts.reshape(len(counts), -1), pooled), texts])


def sample_labels(lines: Sequence[Mapping[str, Any]], uncertain: str, labels: Sequence[str]) -> Samples:
    """Scores of named findings and of their probabilities, as `score_labels` has them, for the labels that it scored.

    A mean is over the labels that both some and not all of the drawn studies have.
    """
    present, counts, named, probabilities = tables_of(lines, labels, uncertain)
    table = np.stack([present & named & counts, named & counts, present & counts, counts], axis=-1)  # [n, L, 4]

    def of_sums(sums: NDArray[Any]) -> dict[str, Floats]:
        summed = sums.reshape(*sums.shape[:-1], len(labels), 4)
        meant = (summed[..., 2] > 0) & (summed[..., 2] < summed[..., 3])
        pooled, known = summed[..., :3].sum(-2), summed[..., 2].sum(-1) > 0
        found = dict[str, Floats]()
        with np.errstate(divide="ignore", invalid="ignore"):
            for name, own, all_of_them in zip(AGREED, _agreed(summed), _agreed(pooled), strict=True):
                found[name] = (own * meant).sum(-1) / np.where(meant.any(-1), meant.sum(-1), np.nan)
                found[f"{name}_pooled"] = np.where(known, all_of_them, np.nan)
        return found

    ranked = None if probabilities is None else Ranked(present, counts, probabilities)
    return Samples(table.reshape(len(lines), -1).astype(np.int64), of_sums, ranked)


def _agreed(counts: NDArray[Any], of_nothing: float = 0.0) -> tuple[Floats, Floats, Floats]:
    """Precision, recall and F1 of [..., 3 or more] counts: both, said, wanted; two empty sets have `of_nothing`."""
    both, said, wanted = np.moveaxis(counts[..., :3], -1, 0)
    nothing = (said == 0) & (wanted == 0)
    of_said, of_wanted = both / np.maximum(1, said), both / np.maximum(1, wanted)
    f1 = 2 * both / np.maximum(1, said + wanted)
    precision, recall, f1 = (np.where(nothing, of_nothing, value) for value in (of_said, of_wanted, f1))
    return precision, recall, f1


def _mean_of_known(values: Sequence[Floats], weights: NDArray[Any]) -> Floats:
    """Mean over labels of [draws] each, without those that have no value in a draw."""
    table = np.array(values or [np.full(len(weights), np.nan)])
    known = ~np.isnan(table)
    return np.where(known.any(0), np.nansum(table, 0) / np.maximum(1, known.sum(0)), np.nan)
