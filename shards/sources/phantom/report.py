"""The findings report of a phantom, its labels and its triples: three renderings of the same findings, hence exact.

A report goes through the organs in a fixed order. An organ without findings gets its normal statement, otherwise one
sentence per finding takes that statement's place. Every fact is phrased in one of three ways, one of them dominant.
Normal statements are short and abnormal ones long, so BLEU is earned by reading the films and not by a constant report.
"""

from typing import NamedTuple

import numpy as np

from shards.sources.phantom.anatomy import PLANTINGS, Finding
from shards.study import FINDINGS, Label

DOMINANT = (0.64, 0.18, 0.18)
"""Share of each of the three phrasings of a fact."""
OWN = tuple(name for name in PLANTINGS if name not in FINDINGS)
OPACITIES = ("Lung Lesion", "Edema", "Consolidation", "Atelectasis")
"""The findings that CheXpert's hierarchy places below Lung Opacity."""


class Normal(NamedTuple):
    """What is said of an organ without findings, and which labels that denies."""

    phrasings: tuple[str, str, str]
    denies: tuple[str, ...]


class Words(NamedTuple):
    """How a finding is named. `{side}` and `{zone}` are filled in; bilateral findings use `both` as their place."""

    term: str
    degrees: tuple[str, str, str, str]
    """Adjective per grade; grade 0 is only ever used in an uncertain sentence."""
    place: str = ""
    """Preposition, article and anatomy: "at the | left base". What follows the bar is the tail of `located_at`."""
    article: str = ""
    modifier: str = ""
    """A second adjective, the same at every grade."""
    both: str = ""


SIZES, DEGREES = ("subtle", "small", "moderate", "large"), ("subtle", "mild", "moderate", "severe")
NORMAL: dict[str, Normal] = {
    "heart": Normal(
        ("Normal heart size.", "The heart is not enlarged.", "Unremarkable cardiac silhouette."), ("Cardiomegaly",)
    ),
    "mediastinum": Normal(
        ("Normal mediastinum.", "Mediastinal contours are unremarkable.", "The mediastinum is not widened."),
        ("Enlarged Cardiomediastinum",),
    ),
    "lungs": Normal(("Lungs are clear.", "Both lungs appear clear.", "No opacity in either lung."), ("Lung Opacity",)),
    "pleura": Normal(
        (
            "No pleural effusion or pneumothorax.",
            "Neither pneumothorax nor pleural effusion.",
            "Pleural effusion and pneumothorax are absent.",
        ),
        ("Pleural Effusion", "Pneumothorax"),
    ),
    "bones": Normal(
        ("No rib fracture.", "Bones are intact without fracture.", "Osseous structures show no fracture."),
        ("Fracture",),
    ),
}
WORDS: dict[str, Words] = {
    "Cardiomegaly": Words("cardiomegaly", ("borderline", "mild", "moderate", "severe")),
    "Enlarged Cardiomediastinum": Words("widening", DEGREES, "of the upper |mediastinum"),
    "Hiatal Hernia": Words("hiatal hernia", SIZES, "behind the |heart", "a"),
    "Hyperinflation": Words("hyperinflation", DEGREES, "of |both lungs"),
    "Edema": Words("pulmonary edema", DEGREES, "throughout |both lungs"),
    "Consolidation": Words("consolidation", SIZES, "in the |{side} {zone} zone", "a"),
    "Atelectasis": Words("atelectasis", DEGREES, "at the |{side} base", modifier="linear"),
    "Lung Lesion": Words("nodule", SIZES, "in the |{side} {zone} zone", "a"),
    "Granuloma": Words("granuloma", ("", "", "", ""), "in the |{side} {zone} zone", "a", modifier="calcified"),
    "Pleural Effusion": Words("pleural effusion", SIZES, "at the |{side} base", "a", both="at |both bases"),
    "Pneumothorax": Words("pneumothorax", SIZES, "at the |{side} apex", "a"),
    "Elevated Hemidiaphragm": Words("elevation", DEGREES, "of the |{side} hemidiaphragm"),
    "Fracture": Words("fracture", ("", "", "", ""), "of a |{side} {zone} rib", "a", modifier="displaced"),
    "Scoliosis": Words("scoliosis", DEGREES, "of the |thoracic spine", modifier="{side} convex"),
    "Pacemaker": Words("pacemaker", ("", "", "", ""), "in the |{side} chest wall", "a"),
    "Central Line": Words("central venous line", ("", "", "", ""), "from the |{side} neck", "a"),
}
CERTAIN = ("There is {what} {place}{why}.", "{What} {place} is seen{why}.", "The films show {what} {place}{why}.")
UNCERTAIN = (
    "There may be {what} {place}{why}.",
    "{What} {place} is possible{why}.",
    "Questionable {bare} {place}{why}.",
)


def suggested(finding: Finding, findings: tuple[Finding, ...]) -> str:
    """The disease that a finding points at, decided by what the films show; empty when there is none."""
    if finding.name == "Consolidation" and finding.grade >= 2:
        return "pneumonia"
    if finding.name == "Hyperinflation" and finding.grade == 3:
        return "emphysema"
    enlarged = any(other.name == "Cardiomegaly" and other.grade > 0 for other in findings)
    return "heart failure" if finding.name == "Edema" and finding.grade > 0 and enlarged else ""


def _parts(finding: Finding) -> tuple[list[str], str, str]:
    """(adjectives, preposition with article, anatomy) of a finding."""
    words = WORDS[finding.name]
    place = words.both if finding.side == "bilateral" else words.place
    preposition, _, anatomy = place.format(side=finding.side, zone=finding.zone).partition("|")
    adjectives = [words.degrees[finding.grade], words.modifier.format(side=finding.side)]
    return [a for a in adjectives if a], preposition, anatomy


def _sentence(finding: Finding, findings: tuple[Finding, ...], phrasing: int) -> str:
    words, (adjectives, preposition, anatomy) = WORDS[finding.name], _parts(finding)
    bare = " ".join([*adjectives, words.term])
    what = f"{words.article} {bare}" if words.article and finding.side != "bilateral" else bare
    disease = suggested(finding, findings)
    template = (UNCERTAIN if finding.grade == 0 else CERTAIN)[phrasing]
    text = template.format(
        what=what,
        What=what[0].upper() + what[1:],
        bare=bare,
        place=preposition + anatomy,
        why=f" suggestive of {disease}" if disease else "",
    )
    return text.replace(" .", ".").replace("  ", " ")


def write_report(findings: tuple[Finding, ...], rng: np.random.Generator) -> str:
    """Sentences organ by organ; `rng` chooses the phrasing of each and nothing else."""
    sentences = []
    for organ in (*NORMAL, "devices"):
        here = [f for f in findings if PLANTINGS[f.name].organ == organ]
        sentences += [_sentence(f, findings, int(rng.choice(3, p=DOMINANT))) for f in here]
        if not here and organ in NORMAL:
            sentences.append(NORMAL[organ].phrasings[int(rng.choice(3, p=DOMINANT))])
    return " ".join(sentences)


def labels_of(findings: tuple[Finding, ...]) -> dict[str, Label]:
    """1 present, 0 denied by the report, -1 uncertain, None not mentioned, for CheXpert's names and the phantom's own.

    Its children raise Lung Opacity and every device raises Support Devices; as in CheXpert, No Finding allows devices.
    """
    labels: dict[str, Label] = dict.fromkeys((*FINDINGS, *OWN))
    organs = {PLANTINGS[f.name].organ for f in findings}
    for organ, normal in NORMAL.items():
        labels.update(dict.fromkeys(normal.denies, 0) if organ not in organs else {})
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
        term, (adjectives, _, anatomy) = WORDS[finding.name].term, _parts(finding)
        triples += [(adjective, "modify", term) for adjective in adjectives]
        if anatomy:
            triples.append((term, "located_at", anatomy))
        if disease := suggested(finding, findings):
            triples.append((term, "suggestive_of", disease))
    return tuple(triples)
