"""The rule labeler: which of CheXpert's 14 observations a report states, by a lexicon and ConText. Offline, no weights.

It is `LABELER` and nobody else's labeler: its labels are not those of CheXpert or CheXbert, and its scores are not
theirs. A value is 1 present, 0 denied, -1 uncertain, None not mentioned. What several sentences say of an observation
is put together as CheXpert's labeler does (Irvin et al., AAAI 2019): present before uncertain before denied. Hence:

* A heart or mediastinum is enlarged when a word of size is said of it. "Borderline" is enlarged and so is "normal to
  mildly enlarged", "upper limits of normal" is not. An enlarged cardiomediastinal silhouette is Cardiomegaly and
  Enlarged Cardiomediastinum.
* What is likely or probable is present; what may be, is possible, less likely, suggested, asked about ("pneumonia?") or
  not excluded is uncertain. What has partly or nearly resolved is present.
* Vascular congestion is no Edema: a degree short of it, which reports set against it ("congestion without edema").
  CheXpert's phrases for Edema have it. Blunting of a costophrenic angle is none of the 14: it is among CheXpert's
  phrases for neither Pleural Effusion nor Pleural Other. Both speak against No Finding.
* Lung Opacity is raised by Lung Lesion, Edema, Consolidation, Pneumonia and Atelectasis, its children in CheXpert.
* No Finding is 1 when no other observation but Support Devices, and no other disorder of the lexicon, is present or
  uncertain, else 0. A text without a word of the lexicon says nothing: all None.

Not read are sections on history and indication, up to the next heading or blank line, and the sentence behind the
headings of comparison, technique and examination.
"""

import re
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from r2kg.graph.extract.context import COMMAS, SEEN, VERBS, Cue, longest, scope
from r2kg.scoring.metrics import check_pairs
from r2kg.scoring.metrics.labeler_words import CLOSING, NEWS, OF_FILM, OF_PATIENT, UP_TO, cues, terms
from shards.study import FINDINGS, Label

VERSION = 1
"""Raise it with every change of a label: scores of different versions do not compare."""
LABELER = f"rule-labeler {VERSION}"
NOT_MENTIONED = -2
"""None in an array of labels."""
FIVE = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
"""The observations of finding_f1_5: the five that CheXpert's competition scored."""
CHILDREN = ("Lung Lesion", "Edema", "Consolidation", "Pneumonia", "Atelectasis")
LONGEST = 120
"""Words that are read as one sentence; a longer one is read in parts."""
REACH = 14
"""Words between a structure and a word on its size."""
WORD = re.compile(r"[a-z0-9]+(?:\.\d+)?|[^\sa-z0-9]")
HYPHEN, OR = re.compile(r"(?<=\w)[-_](?=\w)"), re.compile(r"\band ?/ ?or\b|/")
AGAINST = ("versus", "vs")
TURNED = ("resolved", "suspected")
"""Cues of what stands before them that speak of what follows where nothing does: "resolved effusion"."""
DEVICE = ("Support Devices",)
END = re.compile(r"(?:[.!?](?!\d)|\n\s*\n)\s*")
ASKED_BEFORE, ASKED = re.compile(r"(?:^|[.:,(\n])\s{0,2}\?\s?(?=\w)|(?<!\w)\?(?=\w)"), re.compile(r"\s?\?")
"""Question marks before what they doubt, "?pneumonia", and behind it."""
BLANK_LINE = re.compile(r"(?<=\S)\s*\n\s*\n\s*")
HEADING = re.compile(r"(?:^|(?<=[.?!\n]))\s{0,3}([a-z][a-z ]{2,40}?) ?:")
RANK = {0: 1, -1: 2, 1: 3}
"""What is said later of an observation replaces what ranks lower."""
SAID: dict[int, Label] = {1: 1, 0: 0, -1: -1, NOT_MENTIONED: None}


class Term(NamedTuple):
    """A phrase at tokens [start, end) of a sentence."""

    start: int
    end: int
    what: str
    observations: Sequence[str]


def label_report(text: str) -> dict[str, Label]:
    """Observation → 1 present, 0 denied, -1 uncertain, None not mentioned, in the order of `shards.study.FINDINGS`."""
    return dict(zip(FINDINGS, (SAID[value] for value in _labels(text)), strict=True))


def label_reports(texts: Sequence[str]) -> NDArray[np.int8]:
    """Labels int8 [n, 14] of reports, as `label_report` but `NOT_MENTIONED` for None. Equal texts are read once."""
    return np.array([_labels(text) for text in texts], np.int8).reshape(-1, len(FINDINGS))


def finding_counts(references: Sequence[str], hypotheses: Sequence[str]) -> NDArray[np.int64]:
    """What precision, recall and F1 are made of, int64 [n, 14, 3]: for every study and observation 1 or 0 for both,
    said (by the hypothesis) and wanted (by the reference). Uncertain and not mentioned count as absent.

    Sum over studies, and over observations for micro scores. Raises `ValueError` for no pairs or unequal numbers.
    """
    check_pairs(references, hypotheses)
    said, wanted = label_reports(hypotheses) == 1, label_reports(references) == 1
    return np.stack((said & wanted, said, wanted), axis=-1).astype(np.int64)


def scores_of(counts: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Finding scores by the names of `FINDING_METRICS`, [...] each, from sums of `finding_counts` over studies.

    Args:
        counts: int64 [..., 14, 3].

    F1, precision and recall of nothing are 0. The macro F1 is the mean over the observations that a reference has, so
    that systems beside the same references are scored on the same ones.
    """
    both, said, wanted = np.moveaxis(counts.sum(-2), -1, 0)
    five = counts[..., [FINDINGS.index(name) for name in FIVE], :].sum(-2)
    used = counts[..., 2] > 0
    by_observation = 2 * counts[..., 0] / np.maximum(1, counts[..., 1:].sum(-1))
    return {
        "finding_f1": 2 * both / np.maximum(1, said + wanted),
        "finding_f1_macro": (by_observation * used).sum(-1) / np.maximum(1, used.sum(-1)),
        "finding_f1_5": 2 * five[..., 0] / np.maximum(1, five[..., 1:].sum(-1)),
        "finding_precision": both / np.maximum(1, said),
        "finding_recall": both / np.maximum(1, wanted),
    }


def score_findings(references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, float]:
    """`scores_of` the `finding_counts` of texts. Raises `ValueError` for no pairs or unequal numbers."""
    return {name: float(value) for name, value in scores_of(finding_counts(references, hypotheses).sum(0)).items()}


@lru_cache(maxsize=16_384)
def _labels(text: str) -> tuple[int, ...]:
    """Labels of a report in the order of `FINDINGS`, `NOT_MENTIONED` for None."""
    values, other, read = dict.fromkeys(FINDINGS, NOT_MENTIONED), False, False
    for sentence in sentences(text):
        said, disorder, speaks = _said(sentence)
        read, other = read or speaks, other or disorder
        for name, value in said:
            if RANK[value] > RANK.get(values[name], 0):
                values[name] = value
    raised = [values[name] for name in (*CHILDREN, "Lung Opacity") if values[name] in (1, -1)]
    if raised:
        values["Lung Opacity"] = max(raised)
    if read:
        found = other or any(values[name] in (1, -1) for name in FINDINGS[1:] if name != "Support Devices")
        values["No Finding"] = 0 if found else 1
    return tuple(values.values())


def sentences(text: str) -> Iterator[str]:
    """Every sentence that speaks of the film: lower case, words and signs between blanks, at most `LONGEST`."""
    lower = re.sub(r"\bvs\.", "vs", _plain(text))
    lower = ASKED.sub(" questioned .", ASKED_BEFORE.sub(lambda mark: mark[0].replace("?", " query "), lower))
    headings = [*HEADING.finditer(lower)]
    kept, begin = list[str](), 0
    for heading, following in zip_longest(headings, headings[1:]):
        name = " ".join(heading[1].split())
        if name not in (*OF_PATIENT, *OF_FILM) or heading.start() < begin:
            continue
        kept.append(lower[begin : heading.start()])
        section = following is not None and name in OF_PATIENT
        stop = (BLANK_LINE if section else END).search(lower, heading.end())
        ends = [following.start()] if following else []
        begin = min([*ends, stop.end() if stop else len(lower)])
    kept.append(lower[begin:])
    for part in (part for piece in kept for part in END.split(piece)):
        words = WORD.findall(part)
        if any(word.isalpha() for word in words):
            yield from (" ".join(words[at : at + LONGEST]) for at in range(0, len(words), LONGEST))


def _plain(text: str) -> str:
    """Lower case, without hyphens, "or" for a stroke: as sentences and phrases are compared."""
    return HYPHEN.sub(" ", OR.sub(" or ", text.lower()))


@lru_cache(maxsize=32_768)
def _said(sentence: str) -> tuple[tuple[tuple[str, int], ...], bool, bool]:
    """What one of `sentences` says: pairs of observation and 1, 0 or -1; whether it states a disorder that is no
    observation; whether it has any word of the lexicon."""
    words = tuple(sentence.split())
    told = longest([Cue(start, end, *known) for start, end, known in _matches(words, "cues")])
    spans = _terms_in(words, told)
    void = {at for cue in told if cue.category in ("history", "family") for at in scope(cue, words, told)}
    certain = _certainties(spans, words, told)
    said, other = list[tuple[str, int]](), False
    for number, term in enumerate(spans):
        if term.start in void:
            continue
        value = certain.get(term.start, 1)
        if term.what == "finding":
            said += [(observation, value) for observation in term.observations]
        elif term.what == "other":
            other = other or value != 0
        elif term.observations and (attribute := _attribute(number, spans, words)):
            value = certain.get(attribute.start, certain.get(term.start, 1))
            if attribute.what == "healthy":
                said += [(observation, 0) for observation in term.observations if value]
            elif term.what != "lung":
                said += [(observation, value) for observation in term.observations]
    return tuple(said), other, bool(spans)


def _certainties(spans: Sequence[Term], words: tuple[str, ...], told: Sequence[Cue]) -> dict[int, int]:
    """Position of a word → -1 or 0 where it stands under doubt or denial; denial goes before doubt."""
    values = dict[int, int]()
    if "than" in words and "more likely" in " ".join(words[: words.index("than")]):
        values |= dict.fromkeys(range(words.index("than"), len(words)), -1)  # "more likely atelectasis than pneumonia"
    for category, value in (("uncertain", -1), ("negated", 0)):
        for cue in (cue for cue in told if cue.category == category):
            first = words[cue.start]
            cue = _turned(cue, spans, words)
            others = [other for other in told if other.end != cue.start or words[other.start] != ":"]
            places = _narrowed(cue, scope(cue, words, others if cue.backward else told), spans, words)
            if first.startswith("differential"):  # a list that only the sentence ends
                places = range(cue.end, len(words))
            values |= dict.fromkeys(places, value)
            if first in AGAINST:
                values |= {span.start: value for span in spans if span.end <= cue.start and cue.start - span.end <= 3}
    return values


def _turned(cue: Cue, spans: Sequence[Term], words: Sequence[str]) -> Cue:
    """The cue, the other way round where what it speaks of can only stand there: "difficult to exclude pneumonia",
    "pneumonia less likely", "pneumothorax absent"."""
    phrase, following = words[cue.start : cue.end], words[cue.end : cue.end + 1]
    before = [span for span in spans if span.end <= cue.start]
    findings = [span.start > cue.start for span in spans if span.what == "finding"]
    if cue.backward:
        it = words[cue.start - 1] in (",", "it") or (phrase[0] == "is" and words[cue.start - 1] == "it")
        excludes = (phrase[-1] == "exclude" or phrase[-2:] == ("rule", "out")) and (all(findings) or it)
        return cue._replace(backward=not (excludes or (phrase[0] in TURNED and not before)))
    answers = (words[cue.start - 1 : cue.start] == (":",) and cue.category == "uncertain") or phrase[0] == "less"
    closes = len(phrase) == 1 and phrase[0] in CLOSING and following in ((), (",",), (";",))
    return cue._replace(backward=closes or (answers and (not any(findings) or following == ("than",))))


def _narrowed(cue: Cue, places: range, spans: Sequence[Term], words: tuple[str, ...]) -> Sequence[int]:
    """The part of a cue's scope that a reader of radiographs gives it.

    What is removed is a device, if one is named. What stands behind a comma is less likely or doubted alone ("effusion,
    pneumonia not excluded"), and so is what a further heading of a line is answered with ("heart: large, edema: none").
    """
    inside = [span for span in spans if span.start in places]
    devices = [span.start for span in inside if span.observations == DEVICE]
    if devices and any(word.startswith("remov") for word in words[cue.start : cue.end]):
        return devices
    if not cue.backward:
        read, marks = words[: places.stop], (*COMMAS, "with")
        end = next((at for at in places if words[at] in marks and _ends(at, cue, inside, read)), None)
        return places if end is None else range(places.start, end)
    near = max((at for at in places if words[at] in (*COMMAS, "with")), default=-1)
    if near < 0:
        return places
    answers = words[cue.start - 1] in (":", "-") and ":" in words[: places.start]
    alone = cue.category == "uncertain" and words[near] == "," and {"or", "and"}.isdisjoint(words[near : cue.start])
    alone = alone and any(span.start > near and span.what == "finding" for span in inside)
    return range(near + 1, places.stop) if alone or answers or words[cue.start] == "less" else places


def _ends(at: int, cue: Cue, inside: Sequence[Term], words: tuple[str, ...]) -> bool:
    """Whether a list under denial or doubt ends at the comma, "and" or "with" of position `at`: behind a finding, where
    news begin ("no pneumothorax, increasing effusion") or a device follows, before what a verb in the singular says of
    one finding alone ("and cardiomegaly is stable"), and, if it is denied, at "with" and a finding.

    `inside` are the terms in the scope of `cue`, `words` those of the sentence up to its end.
    """
    named = [span for span in inside if span.end <= at and span.what in ("finding", "other")]
    following = next((span for span in inside if span.start > at), None)
    if not named or not following:
        return False
    if words[at] == "with":
        return cue.category == "negated" and following.what == "finding" and bool(following.observations)
    rest = words[at + 1 :]
    if "or" in rest or "nor" in rest:
        return False
    verb = next((n for n, word in enumerate(rest) if word in VERBS), len(rest))
    of_one = rest[verb : verb + 1] in (("is",), ("has",), ("remains",), ("appears",))
    seen = rest[verb + 1 : verb + 2]
    listed = seen and seen[0] in SEEN and (seen[0] != "present" or "," in words[cue.end : at])
    of_device = following.observations == DEVICE and named[0].observations != DEVICE
    return rest[0] in NEWS or of_device or (of_one and not listed)


def _attribute(number: int, spans: Sequence[Term], words: Sequence[str]) -> Term | None:
    """The word of size or health that is said of the structure `spans[number]`: right before it, or behind it with
    nothing between that it could rather belong to."""
    own = spans[number]
    before = spans[number - 1] if number else None
    if before and before.what in ("big", "healthy") and set(words[before.end : own.start]) <= {"of", "the", "overall"}:
        return before
    for at in range(number + 1, len(spans)):
        term = spans[at]
        between = words[own.end : term.start]
        if len(between) > REACH or ";" in between:
            return None
        if term.what in ("big", "healthy"):
            following = spans[at + 1] if at + 1 < len(spans) else term
            gap = words[term.end : following.start]
            divided = following.what not in ("anatomy", "finding", "other") or {",", "with", "of"} & {*gap}
            if not divided and (gap in ((), ("the",)) or ("," in between and VERBS.isdisjoint(gap))):
                return None  # "a stable heart, moderately enlarged and tortuous aorta"
            if term.what == "healthy" and following.what == "big" and {"to", "or"} & {*gap} and {*gap} <= UP_TO:
                return following  # "normal to mildly enlarged"
            if following.observations and not gap and {",", "with"} & {*between}:
                return None  # "a stable silhouette with borderline heart size"
            return term
        if term.what in ("finding", "other") or not VERBS.isdisjoint(between):
            return None
    return None


def _terms_in(words: tuple[str, ...], told: Sequence[Cue]) -> list[Term]:
    """Terms in their order; longer ones first, and none that is a part of a cue."""
    kept, taken = list[Term](), set[int]()
    inside = [range(cue.start, cue.end) for cue in told]
    for start, end, (what, observations) in sorted(_matches(words, "terms"), key=lambda m: (m[0] - m[1], m[0])):
        if taken.isdisjoint(range(start, end)) and not any(start in cue and end - 1 in cue for cue in inside):
            taken.update(range(start, end))
            kept.append(Term(start, end, what, observations))
    return sorted(kept)


def _matches(words: tuple[str, ...], which: str) -> list[tuple[int, int, tuple]]:
    """Every phrase of a table in a sentence: start, end and what the table says."""
    table, lengths = _table(which)
    return [
        (at, at + length, table[phrase])
        for at, word in enumerate(words)
        for length in lengths.get(word, ())
        if at + length <= len(words) and (phrase := words[at : at + length]) in table
    ]


@cache
def _table(which: str) -> tuple[dict[tuple[str, ...], tuple], dict[str, tuple[int, ...]]]:
    """(words of a phrase → what it is, first word → numbers of words of its phrases)."""
    phrases = terms() if which == "terms" else cues()
    table = {tuple(WORD.findall(_plain(phrase))): known for phrase, known in phrases.items()}
    lengths: dict[str, set[int]] = {}
    for phrase in table:
        lengths.setdefault(phrase[0], set()).add(len(phrase))
    return table, {word: tuple(sorted(found)) for word, found in lengths.items()}
