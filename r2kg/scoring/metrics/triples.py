"""How many triples are right, whatever their order, beside BLEU and ROUGE-L on the string that lists them.

A triple is what `shards.graphs.text` reads: lower case, punctuation apart. Compared are sets, of one study each:
`triple` whole triples, `entity` the names of heads and tails, `relation` each name with a relation it has and its end
of it, so that a pair that is joined wrongly counts by half. Scores are fractions.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from r2kg.scoring.metrics import check_pairs
from r2kg.scoring.metrics.nlg import bleu, rouge_l
from shards.graphs.subgraph import Triple
from shards.graphs.text import triples_in

KINDS = ("triple", "entity", "relation")
"""Sets that are compared: the beginning of their metrics' names."""


def sets_of(triples: Sequence[Triple]) -> dict[str, set[Hashable]]:
    """The sets that are compared, by `KINDS`."""
    return {
        "triple": set(triples),
        "entity": {name for head, _, tail in triples for name in (head, tail)},
        "relation": {
            end for head, relation, tail in triples for end in ((head, relation, "head"), (tail, relation, "tail"))
        },
    }


def score_triples(references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, float | None]:
    """Scores by the names of `METRICS["triples"]`, over texts in the one form of a protocol.

    precision, recall and f1 are means over studies; `_pooled` ones count over all studies together. Two empty sets
    agree (1); of one empty set all three are 0. Raises `ValueError` for no pairs or unequal numbers.
    """
    counts = triple_counts(references, hypotheses)
    scores: dict[str, float | None] = {}
    for at, kind in enumerate(KINDS):
        by_study = [agreement(*count) for count in counts[:, at].tolist()]
        pooled = agreement(*counts[:, at].sum(0).tolist())
        for place, name in enumerate(("precision", "recall", "f1")):
            scores[f"{kind}_{name}"] = sum(study[place] for study in by_study) / len(by_study)
            scores[f"{kind}_{name}_pooled"] = pooled[place]
    return scores | bleu(references, hypotheses) | {"rouge_l": float(rouge_l(references, hypotheses).mean())}


def triple_counts(references: Sequence[str], hypotheses: Sequence[str]) -> NDArray[np.int64]:
    """Sizes of the sets of each study, int64 [n, 3, 3]: kind by kind what both sides have, what is said, what is so.

    Raises `ValueError` for no pairs or unequal numbers.
    """
    check_pairs(references, hypotheses)
    counts = np.zeros((len(references), len(KINDS), 3), np.int64)
    for row, reference, hypothesis in zip(counts, references, hypotheses, strict=True):
        given, said = sets_of(triples_in(reference).triples), sets_of(triples_in(hypothesis).triples)
        row[:] = [(len(given[kind] & said[kind]), len(said[kind]), len(given[kind])) for kind in KINDS]
    return counts


def agreement(both: int, said: int, given: int) -> tuple[float, float, float]:
    """Precision, recall and F1 of two sets, from the sizes of their intersection, of what is said and of what is so."""
    if not said and not given:
        return 1.0, 1.0, 1.0
    return both / max(1, said), both / max(1, given), 2 * both / (said + given)


def score_reading(lines: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Facts of the predictions as texts: pieces in all, those that are no triple, that repeat one, that broke off.

    `..._pieces` are counts, `..._share` parts of all pieces, 0..1, None where there is none.
    """
    readings = [triples_in(line["prediction"], line.get("truncated") is True) for line in lines]
    pieces = sum(reading.chunks for reading in readings)
    counts = {
        name: sum(getattr(reading, name) for reading in readings) for name in ("rejected", "repeated", "truncated")
    }
    return {
        "pieces": pieces,
        **{f"{name}_pieces": count for name, count in counts.items()},
        **{f"{name}_share": counts[name] / pieces if pieces else None for name in ("rejected", "repeated")},
        "mean_triples_prediction": sum(len(reading.triples) for reading in readings) / len(lines),
    }
