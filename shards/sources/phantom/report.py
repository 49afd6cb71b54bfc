"""The findings report of a phantom, its labels and its triples: three renderings of the same findings, hence exact.

A report goes through the organs in a fixed order. An organ without findings gets its normal statement; otherwise one
sentence per finding takes that statement's place, and what the organ could have and has not is denied after them. Every
fact is phrased in one of several ways, one of them dominant, so that BLEU is earned by reading the films and not by a
constant report. What text tools stumble over is there as in hospitals: negations beside findings and over lists, "no
change in", "has resolved", "cannot be excluded". A share of studies has an earlier film, with which some sentences
compare: no film tells that, so no system can learn it, and no label depends on it.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from shards.sources.phantom.anatomy import PLANTINGS, Finding
from shards.sources.phantom.words import AGAIN, ANEW, CERTAIN, DENIED, GONE, NORMAL, UNCERTAIN, WORDS
from shards.study import FINDINGS, Label

Phrasing = TypeVar("Phrasing")
RARER = 2.5
"""Exponent of Zipf's law by which phrasings are chosen: of six the first has 77 % of the choices, the last 1 %."""
SIGN, PRIOR, COMPARED, CLOSED = 0.15, 0.2, 0.3, 0.2
"""Share of findings with a further sign; of studies with an earlier film, and among them of facts that are compared
with it, and of reports that close with a word on it."""
OWN = tuple(name for name in PLANTINGS if name not in FINDINGS)
OPACITIES = ("Lung Lesion", "Edema", "Consolidation", "Atelectasis")
"""The findings that CheXpert's hierarchy places below Lung Opacity."""


def suggested(finding: Finding, findings: tuple[Finding, ...]) -> str:
    """The disease that a finding points at, decided by what the films show; empty when there is none."""
    if finding.name == "Consolidation" and finding.grade >= 2:
        return "pneumonia"
    if finding.name == "Hyperinflation" and finding.grade == 3:
        return "emphysema"
    enlarged = any(other.name == "Cardiomegaly" and other.grade > 0 for other in findings)
    return "heart failure" if finding.name == "Edema" and finding.grade > 0 and enlarged else ""


def parts_of(finding: Finding) -> tuple[list[str], str, str]:
    """(adjectives, preposition with article, anatomy) of a finding."""
    words = WORDS[finding.name]
    place = words.both if finding.side == "bilateral" else words.place
    preposition, _, anatomy = place.format(side=finding.side, zone=finding.zone).partition("|")
    adjectives = [words.degrees[finding.grade], words.modifier.format(side=finding.side)]
    return [a for a in adjectives if a], preposition, anatomy


def sentence_of(finding: Finding, findings: tuple[Finding, ...], phrasing: str) -> str:
    """What `phrasing`, one of CERTAIN, UNCERTAIN or AGAIN, makes of a finding among those of its study."""
    words, (adjectives, preposition, anatomy) = WORDS[finding.name], parts_of(finding)
    bare = " ".join([*adjectives, words.term])
    what = f"{words.article} {bare}" if words.article and finding.side != "bilateral" else bare
    disease = suggested(finding, findings)
    text = phrasing.format(
        what=what,
        What=what[0].upper() + what[1:],
        bare=bare,
        place=preposition + anatomy,
        why=f" suggestive of {disease}" if disease else "",
    )
    return text.replace(" .", ".").replace(" ,", ",").replace("  ", " ")


def pick(rng: np.random.Generator, phrasings: Sequence[Phrasing]) -> Phrasing:
    """One of the phrasings, the k-th with a chance in proportion to k ** -`RARER`."""
    chances = np.arange(1, len(phrasings) + 1) ** -RARER
    return phrasings[int(rng.choice(len(phrasings), p=chances / chances.sum()))]


def absent_of(organ: str, findings: tuple[Finding, ...]) -> list[str]:
    """The labels that are denied beside an organ's findings, in the order in which they are."""
    planted = {f.name for f in findings}
    return [name for name in NORMAL[organ].absent if name not in planted]


def write_report(findings: tuple[Finding, ...], rng: np.random.Generator) -> str:
    """Sentences organ by organ; `rng` chooses how facts are phrased, and an earlier film, and nothing else."""
    prior, sentences = bool(rng.random() < PRIOR), list[str]()
    for organ in (*NORMAL, "devices"):
        here = [f for f in findings if PLANTINGS[f.name].organ == organ]
        for finding in here:
            certain = AGAIN if prior and rng.random() < COMPARED else CERTAIN
            sentences.append(sentence_of(finding, findings, pick(rng, certain if finding.grade else UNCERTAIN)))
            if rng.random() < SIGN:
                sentences.append(pick(rng, WORDS[finding.name].signs))
        if organ in NORMAL:
            sentences.append(_denial(organ, findings, prior, rng) if here else pick(rng, NORMAL[organ].phrasings))
    if prior and rng.random() < CLOSED:
        sentences.append(pick(rng, ANEW))
    return " ".join(filter(None, sentences))


def _denial(organ: str, findings: tuple[Finding, ...], prior: bool, rng: np.random.Generator) -> str:
    """The sentence, or two, that denies what an organ with findings could have besides; "" where there is nothing."""
    names = [NORMAL[organ].absent[label] for label in absent_of(organ, findings)]
    said = []
    if names and prior and rng.random() < COMPARED:
        name = names.pop()
        said = [pick(rng, GONE).format(a=name, A=name[0].upper() + name[1:])]
    if names:
        a, b = names[0], names[-1]
        said.append(pick(rng, DENIED)[len(names) - 1].format(a=a, A=a[0].upper() + a[1:], b=b))
    return " ".join(said)


def labels_of(findings: tuple[Finding, ...]) -> dict[str, Label]:
    """1 present, 0 denied by the report, -1 uncertain, None not mentioned, for CheXpert's names and the phantom's own.

    Its children raise Lung Opacity and every device raises Support Devices; as in CheXpert, No Finding allows devices.
    """
    labels: dict[str, Label] = dict.fromkeys((*FINDINGS, *OWN))
    organs = {PLANTINGS[f.name].organ for f in findings}
    for organ, normal in NORMAL.items():
        labels.update(dict.fromkeys(normal.denies if organ not in organs else absent_of(organ, findings), 0))
    labels.update({f.name: -1 if f.grade == 0 else 1 for f in findings})
    opacities = [labels[f.name] for f in findings if f.name in OPACITIES]
    if opacities:
        labels["Lung Opacity"] = max(v for v in opacities if v is not None)
    if any(suggested(f, findings) == "pneumonia" for f in findings):
        labels["Pneumonia"] = -1
    if "devices" in organs:
        labels["Support Devices"] = 1
    labels["No Finding"] = 0 if organs - {"devices"} else 1
    return labels


def triples_of(findings: tuple[Finding, ...]) -> tuple[tuple[str, str, str], ...]:
    """(head, relation, tail) of every planted finding; each stands verbatim in the lower-case report."""
    triples: list[tuple[str, str, str]] = []
    for finding in findings:
        term, (adjectives, _, anatomy) = WORDS[finding.name].term, parts_of(finding)
        triples += [(adjective, "modify", term) for adjective in adjectives]
        if anatomy:
            triples.append((term, "located_at", anatomy))
        if disease := suggested(finding, findings):
            triples.append((term, "suggestive_of", disease))
    return tuple(triples)
