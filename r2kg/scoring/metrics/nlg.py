"""BLEU, ROUGE-L, CIDEr-D and METEOR as the report-generation lineage computes them (COCO scorers, whitespace words).

One reference per study. Texts are compared as given: no tokenizer runs, lone periods are words. Scores are fractions,
except CIDEr-D (0..10). BLEU carries COCO's additive constants, which keep an order without any match from making it
exactly 0 (.00009 for a typical sentence; .03 for BLEU-4 when every hypothesis is shorter than four words).
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics.helpers import extract_all_word_ngrams
from scipy import sparse

from r2kg.scoring.metrics import check_pairs
from r2kg.scoring.metrics.meteor import Meteor, MeteorUnavailable

_ORDERS = 4
_TINY, _SMALL = 1e-15, 1e-9
_ROUGE_BETA = 1.2
_CIDER_SIGMA_WORDS = 6.0


def score_nlg(
    references: Sequence[str], hypotheses: Sequence[str], meteor: Meteor | None = None
) -> tuple[dict[str, float | None], dict[str, str]]:
    """Corpus scores by the names of `r2kg.config.protocol.TEXT_METRICS`, and for each that is None the reason.

    Pass an open `Meteor` to score several corpora with one Java process. Raises `ValueError` for no pairs or unequal
    numbers.
    """
    check_pairs(references, hypotheses)
    scores: dict[str, float | None] = {
        **bleu(references, hypotheses),
        "rouge_l": float(rouge_l(references, hypotheses).mean()),
        "cider_d": float(cider_d(references, hypotheses).mean()),
    }
    try:
        with nullcontext(meteor) if meteor else Meteor() as program:
            return {**scores, "meteor": program.score(references, hypotheses)[0]}, {}
    except MeteorUnavailable as reason:
        return {**scores, "meteor": None}, {"meteor": str(reason)}


def bleu(references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, float]:
    """Corpus BLEU-1..4 without smoothing but for COCO's constants, as `bleu1`..`bleu4`."""
    return {name: float(value) for name, value in bleu_of(bleu_counts(references, hypotheses).sum(0)).items()}


def bleu_counts(references: Sequence[str], hypotheses: Sequence[str]) -> NDArray[np.int64]:
    """What BLEU is made of, int64 [n, 10]: words of the hypothesis and of the reference, then for n-grams of 1..4 words
    those of the hypothesis that the reference has too, clipped, and those that it has in all.
    """
    check_pairs(references, hypotheses)
    counts = np.zeros((len(references), 2 + 2 * _ORDERS), np.int64)
    for row, reference, hypothesis in zip(counts, references, hypotheses, strict=True):
        wanted, row[1] = extract_all_word_ngrams(reference, 1, _ORDERS)
        said, row[0] = extract_all_word_ngrams(hypothesis, 1, _ORDERS)
        for ngram, count in said.items():
            if ngram in wanted:
                row[1 + len(ngram)] += min(count, wanted[ngram])
        row[2 + _ORDERS :] = np.maximum(0, row[0] - np.arange(_ORDERS))
    return counts


def bleu_of(sums: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """COCO's formula: geometric mean of precisions times the brevity penalty, from sums of `bleu_counts` over studies.

    [..., 10] → [...] for each of `bleu1`..`bleu4`.
    """
    words, reference_words = np.moveaxis(sums[..., :2], -1, 0)
    precisions = (sums[..., 2 : 2 + _ORDERS] + _TINY) / (sums[..., 2 + _ORDERS :] + _SMALL)
    brevity = np.exp(np.minimum(0.0, 1 - (reference_words + _SMALL) / (words + _TINY)))
    products = np.cumprod(precisions, -1)
    return {f"bleu{n}": brevity * products[..., n - 1] ** (1 / n) for n in range(1, _ORDERS + 1)}


class ConstantBleu:
    """BLEU of one text given to every study, for trying hundreds of texts against the same references.

    Equal to `bleu(references, [text] * len(references))`; the n-grams of the references are indexed once.
    """

    def __init__(self, references: Sequence[str]) -> None:
        self.studies, self.reference_words = len(references), 0
        self._counts: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for reference in references:
            ngrams, words = extract_all_word_ngrams(reference, 1, _ORDERS)
            self.reference_words += words
            for ngram, count in ngrams.items():
                self._counts[ngram].append(count)

    def score(self, text: str) -> dict[str, float]:
        """`bleu1`..`bleu4` of `text` as the hypothesis of every study."""
        ngrams, words = extract_all_word_ngrams(text, 1, _ORDERS)
        matches = [0] * _ORDERS
        for ngram, count in ngrams.items():
            matches[len(ngram) - 1] += sum(min(count, other) for other in self._counts.get(ngram, ()))
        totals = [self.studies * max(0, words - n) for n in range(_ORDERS)]
        sums = np.array([self.studies * words, self.reference_words, *matches, *totals])
        return {name: float(value) for name, value in bleu_of(sums).items()}


def rouge_l(references: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
    """ROUGE-L of each pair, [n]: longest common subsequence, recall weighing β² = 1.44 times precision.

    The corpus score is the mean. Equals COCO's: splitting is on one blank, so two in a row cost (`a b` against `a  b`
    gives .772), and two empty texts give 1.
    """
    check_pairs(references, hypotheses)
    shares = []
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        said, wanted = hypothesis.split(" "), reference.split(" ")
        common = common_words(said, wanted)
        shares.append((common / len(said), common / len(wanted)))
    precision, recall = np.array(shares).T  # [n] each
    weighed = recall + _ROUGE_BETA**2 * precision
    return np.where(weighed > 0, (1 + _ROUGE_BETA**2) * precision * recall / np.where(weighed > 0, weighed, 1), 0.0)


def common_words(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence.

    A row of the usual table is one number here, a bit for every place of `one` (Hyyrö 2004, "Bit-parallel LCS-length
    computation revisited"): long texts take no table, whose size is the product of the lengths.
    """
    places: dict[str, int] = defaultdict(int)
    for place, word in enumerate(one):
        places[word] |= 1 << place
    ones = row = (1 << len(one)) - 1
    for word in other:
        matched = row & places.get(word, 0)
        row = (row + matched | row - matched) & ones
    return len(one) - row.bit_count()


def cider_d(references: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
    """CIDEr-D of each pair, [n], 0..10, with document frequencies from the references (what pycocoevalcap calls CIDEr).

    n-grams 1..4, clipped, σ = 6 words on the difference of lengths. The corpus score is the mean. One pair alone
    gives 0: every n-gram of its reference is in all documents.
    """
    check_pairs(references, hypotheses)
    texts = zip(references, hypotheses, strict=True)
    bigrams = np.array([[max(0, len(text.split()) - 1) for text in pair] for pair in texts], dtype=float)  # [n, 2]
    penalty = np.exp(-((bigrams[:, 1] - bigrams[:, 0]) ** 2) / (2 * _CIDER_SIGMA_WORDS**2))
    similarity = np.mean([_similarity(references, hypotheses, n) for n in range(1, _ORDERS + 1)], axis=0)
    return 10.0 * penalty * similarity


def _similarity(references: Sequence[str], hypotheses: Sequence[str], n: int) -> np.ndarray:
    """Clipped cosine of the tf-idf vectors of order `n`, [pairs]; 0 where a side has no weight."""
    columns: dict[tuple[str, ...], int] = {}
    entries = []
    for texts in (references, hypotheses):
        values, rows, cols = [], [], []
        for row, text in enumerate(texts):
            words = text.split()
            for ngram, count in Counter(zip(*(words[i:] for i in range(n)), strict=False)).items():
                values.append(float(count))
                rows.append(row)
                cols.append(columns.setdefault(ngram, len(columns)))
        entries.append((values, (rows, cols)))
    shape = (len(references), max(1, len(columns)))
    counts_r, counts_h = (sparse.csr_matrix(side, shape=shape) for side in entries)  # [pairs, n-grams]
    documents = np.bincount(counts_r.indices, minlength=shape[1])
    idf = sparse.diags(np.log(shape[0]) - np.log(np.maximum(1, documents)))
    reference, hypothesis = counts_r @ idf, counts_h @ idf
    shared = np.asarray(hypothesis.minimum(reference).multiply(reference).sum(axis=1)).ravel()
    norms = np.prod([np.sqrt(np.asarray(m.multiply(m).sum(axis=1)).ravel()) for m in (hypothesis, reference)], axis=0)
    return np.divide(shared, norms, out=np.zeros_like(norms), where=norms > 0)
