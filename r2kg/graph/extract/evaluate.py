"""How well an extractor finds what reports say, where that is known exactly: on phantom reports."""

import time
from collections.abc import Iterator
from typing import NamedTuple

from r2kg.graph.schema import Extractor
from shards.errors import DataError
from shards.sources.phantom.source import Phantom
from shards.sources.phantom.truth import Truth, truth_of
from shards.stream.index import read_studies
from shards.tars.format import read_manifest
from shards.tars.place import Place


class Score(NamedTuple):
    """Micro-averaged over studies; what a study says twice counts once."""

    precision: float
    recall: float
    f1: float

    @classmethod
    def of(cls, hits: int, found: int, true: int) -> "Score":
        """From numbers of items; 0 where there is nothing to divide by."""
        precision, recall = hits / found if found else 0.0, hits / true if true else 0.0
        return cls(precision, recall, 2 * hits / (found + true) if found + true else 0.0)


class Evaluation(NamedTuple):
    """Of an extractor on the reports of a split."""

    reports: int
    entities: Score
    """(name, kind, certainty)"""
    triples: Score
    """(head, relation, tail)"""
    reports_per_s: float
    """By one process; the first report, which loads what is needed, apart."""


def evaluate_extractor(root: str | Place, extractor: Extractor, split: str = "val") -> Evaluation:
    """Compare what `extractor` finds in a split's reports with what was planted.

    Raises:
        DataError: shards of another source, whose truth nobody knows.
    """
    if (source := read_manifest(root).source) != "phantom":
        raise DataError(f"the shards at {root} are of {source}: what their reports say is known of drawn films only")
    truths, reports = zip(*known(root, split), strict=True)
    extractor.annotate(reports[:1])
    began = time.monotonic()
    annotations = extractor.annotate(reports)
    seconds = time.monotonic() - began
    scores = list[Score]()
    for true, found in (
        ([t.entities for t in truths], [{tuple(e[3:6]) for e in a.entities} for a in annotations]),
        ([t.triples for t in truths], [{*a.triples()} for a in annotations]),
    ):
        hits = sum(len(t & f) for t, f in zip(true, found, strict=True))
        scores.append(Score.of(hits, sum(map(len, found)), sum(map(len, true))))
    return Evaluation(len(reports), scores[0], scores[1], len(reports) / max(seconds, 1e-9))


def known(root: str | Place, split: str) -> Iterator[tuple[Truth, str]]:
    """(what the report says, the report) of the phantom studies of a split."""
    for study in read_studies(root, split):
        case = Phantom(seed=int(study.provenance["seed"])).case(int(study.provenance["index"]))
        if case[2] != study.report:
            raise DataError(f"study {study.key} was written by another version of the phantom: write the shards again")
        yield truth_of(case[1], study.report), study.report
