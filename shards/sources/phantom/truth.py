"""What a phantom report says, as an extractor of entities and relations should find it: exact, sentence by sentence.

The guideline. Names are singular and lower case; of several spellings one is taken (heart for heart size and cardiac
silhouette, normal for unremarkable). A disorder, device or procedure is named without its place, an anatomy with its
side and level (left base); adjectives and what is said of change (unchanged, new) are concepts that modify. Entities of
a denied or hedged statement are absent or uncertain, but for the anatomy, which is there; a disease that is suggested
is uncertain. What is neither finding, place, device, procedure nor a word on one is no entity.
"""

from functools import cache
from typing import NamedTuple

from shards.sources.phantom.anatomy import Finding
from shards.sources.phantom.report import parts_of, sentence_of, suggested, triples_of
from shards.sources.phantom.words import AGAIN, CERTAIN, DENIED, GONE, NORMAL, UNCERTAIN, WORDS


class Truth(NamedTuple):
    """What a report says."""

    entities: frozenset[tuple[str, str, str]]
    """(name, kind, certainty)"""
    triples: frozenset[tuple[str, str, str]]
    """(head, relation, tail)"""


FIXED = {
    "Normal heart size.": "normal modify heart",
    "The heart is not enlarged.": "-enlarged modify heart",
    "Unremarkable cardiac silhouette.": "normal modify heart",
    "Heart size is within normal limits.": "normal modify heart",
    "The cardiac contour is smooth and of expected width.": "smooth modify heart",
    "Cardiothoracic ratio lies below one half.": "cardiothoracic ratio",
    "Normal mediastinum.": "normal modify mediastinum",
    "Mediastinal contours are unremarkable.": "normal modify mediastinum",
    "The mediastinum is not widened.": "-widened modify mediastinum",
    "Mediastinal and hilar structures have a regular appearance.": "normal modify mediastinum; normal modify hilum",
    "The trachea is midline and the aortic knob sharply outlined.": "midline modify trachea; aortic knob",
    "Lungs are clear.": "clear modify lung",
    "Both lungs appear clear.": "clear modify both lungs",
    "No opacity in either lung.": "-opacity located_at both lungs",
    "The lungs are well aerated and free of airspace disease.": (
        "aerated modify lung; -airspace disease located_at lung"
    ),
    "Pulmonary parenchyma shows neither infiltrate nor opacity.": (
        "-infiltrate located_at lung; -opacity located_at lung"
    ),
    "Lung volumes are adequate without acute abnormality.": "adequate modify lung volume; -acute modify -abnormality",
    "No pleural effusion or pneumothorax.": "-pleural effusion; -pneumothorax",
    "Neither pneumothorax nor pleural effusion.": "-pneumothorax; -pleural effusion",
    "Pleural effusion and pneumothorax are absent.": "-pleural effusion; -pneumothorax",
    "There is no evidence of pneumothorax or pleural effusion.": "-pneumothorax; -pleural effusion",
    "Costophrenic angles are sharp, without pleural effusion or pneumothorax.": (
        "sharp modify costophrenic angle; -pleural effusion; -pneumothorax"
    ),
    "The pleural spaces are dry and negative for pneumothorax.": (
        "dry modify pleural space; -pneumothorax located_at pleural space"
    ),
    "No rib fracture.": "-fracture located_at rib",
    "Bones are intact without fracture.": "intact modify bone; -fracture",
    "Osseous structures show no fracture.": "-fracture located_at bone",
    "The visualized skeleton is grossly unremarkable, fracture is not seen.": "normal modify bone; -fracture",
    "Ribs, clavicles and vertebral bodies preserve their cortical margins.": "rib; clavicle; vertebral body",
    "The left cardiac border is rounded.": "rounded modify left heart border",
    "The cardiothoracic ratio exceeds one half.": "cardiothoracic ratio",
    "The transverse diameter of the heart has grown beyond its expected range.": "heart",
    "The paratracheal stripe is thickened.": "thickened modify paratracheal stripe",
    "Vascular pedicle appears broad on this projection.": "broad modify vascular pedicle",
    "It contains an air-fluid level.": "air-fluid level",
    "A retrocardiac sac with gas is outlined.": "retrocardiac region; gas",
    "The diaphragms are flattened.": "flattened modify diaphragm",
    "Increased lucency and wide intercostal spaces accompany it.": (
        "increased modify lucency; wide modify intercostal space"
    ),
    "The retrosternal airspace is enlarged.": "enlarged modify retrosternal space",
    "Perihilar haze is present.": "haze located_at perihilar region",
    "Vascular markings are indistinct and cephalized.": (
        "indistinct modify vascular marking; cephalized modify vascular marking"
    ),
    "Interstitial prominence extends from the hila.": "interstitial modify prominence; prominence located_at hilum",
    "Its margins are ill-defined.": "ill-defined",
    "The patchy density obscures underlying vessels.": "patchy modify density; vessel",
    "Bands run parallel above the diaphragm.": "band located_at diaphragm",
    "This subsegmental volume loss is platelike.": "subsegmental modify volume loss; platelike modify volume loss",
    "It is round and well circumscribed.": "round; well circumscribed",
    "Follow-up with computed tomography is recommended.": "computed tomography",
    "This is a benign sequela requiring no further evaluation.": "benign modify sequela",
    "Its density equals that of bone.": "density; bone",
    "The costophrenic angle is blunted.": "blunted modify costophrenic angle",
    "Fluid climbs laterally as a meniscus.": "fluid; meniscus",
    "Part of the hemidiaphragm is obscured.": "obscured modify hemidiaphragm",
    "A visceral line is visible without mediastinal shift.": "visceral pleural line; -shift located_at mediastinum",
    "No signs of tension.": "-tension",
    "Peripheral markings are lacking beyond the collapsed margin.": "peripheral modify vascular marking; collapsed",
    "Eventration or phrenic palsy could explain it.": "?eventration; ?phrenic palsy",
    "The opposite dome keeps its usual level.": "",
    "The ends are offset by several millimeters.": "",
    "Callus has not formed, in keeping with recent trauma.": "-callus; recent modify trauma",
    "Degenerative spurring cannot be assessed in detail.": "?degenerative modify ?osteophyte",
    "The curvature is centered at midthoracic level.": "curvature",
    "Its lead projects over the right ventricle.": "lead located_at right ventricle",
    "The generator and electrode are in satisfactory position.": (
        "satisfactory modify generator; satisfactory modify electrode"
    ),
    "The wire is continuous, without kink or discontinuity.": "continuous modify wire; -kink; -discontinuity",
    "Its tip projects over the superior vena cava.": "tip located_at superior vena cava",
    "The catheter terminates near the cavoatrial junction.": "catheter located_at cavoatrial junction",
    "The jugular approach shows no complication.": "jugular vein; -complication",
    "No acute change otherwise.": "",
    "Remainder of the examination is stable.": "stable",
    "Otherwise similar to the comparison film obtained some months ago.": "similar",
    "Technique differs slightly from yesterday, allowing for rotation and inspiration.": "",
}
"""Sentence → what it says: triples and bare entities, divided by semicolons; - before what is absent, ? uncertain."""
CHANGES = ("unchanged", "", "increased", "decreased", "new", "persistent")
"""What each phrasing of AGAIN says of the finding; the last says similar as well."""
KINDS = {
    "anatomy": (
        *("heart", "mediastinum", "upper mediastinum", "hilum", "trachea", "aortic knob", "lung", "both lungs", "bone"),
        *("costophrenic angle", "pleural space", "clavicle", "vertebral body", "left heart border", "diaphragm", "rib"),
        *("paratracheal stripe", "vascular pedicle", "retrocardiac region", "intercostal space", "retrosternal space"),
        *("perihilar region", "vascular marking", "vessel", "hemidiaphragm", "visceral pleural line", "jugular vein"),
        *("right ventricle", "superior vena cava", "cavoatrial junction", "lung volume"),
    ),
    "disorder": (
        *("opacity", "airspace disease", "infiltrate", "abnormality", "pleural effusion", "pneumothorax", "fracture"),
        *("air-fluid level", "lucency", "haze", "prominence", "density", "band", "volume loss", "sequela", "fluid"),
        *("shift", "tension", "eventration", "phrenic palsy", "callus", "trauma", "osteophyte", "curvature"),
        *("complication", "kink", "discontinuity", "pneumonia", "emphysema", "heart failure", "consolidation"),
        *("widening",),
    ),
    "device": ("lead", "generator", "electrode", "wire", "tip", "catheter", "pacemaker", "central venous line"),
    "procedure": ("computed tomography",),
}
"""Kind → names; of a planted finding its own, everything else is a concept."""
SAID = {"-": "absent", "?": "uncertain"}


def kind_of(name: str) -> str:
    """Kind of an entity that phantom reports name."""
    known = {n: kind for kind, names in KINDS.items() for n in names}
    known |= {words.term: "disorder" for words in WORDS.values() if words.term not in KINDS["device"]}
    return known.get(name, "concept")


def truth_of(findings: tuple[Finding, ...], report: str) -> Truth:
    """What the report of a study says, of which these findings are planted.

    Raises:
        ValueError: a sentence that no phrasing of these findings makes.
    """
    known = dict(FIXED)
    for finding in findings:
        known |= _of_finding(finding, findings)
    known |= denials()
    entities, triples, rest = set[tuple[str, str, str]](), set[tuple[str, str, str]](), report
    longest_first = sorted(known, key=len, reverse=True)
    while rest:
        sentence = next((s for s in longest_first if rest.startswith(s)), "")
        if not sentence:
            raise ValueError(f"no phrasing of these findings is {rest[:80]!r}")
        rest = rest[len(sentence) :].lstrip()
        for statement in filter(None, known[sentence].split("; ")):
            relation = next((r for r in ("modify", "located_at", "suggestive_of") if f" {r} " in statement), "")
            ends = statement.split(f" {relation} ") if relation else [statement]
            named = [end.lstrip("-?") for end in ends]
            for end, name in zip(ends, named, strict=True):
                kind = kind_of(name) if name not in _anatomies(findings) else "anatomy"
                certainty = SAID.get(end[0], "present")
                if relation == "modify" and end is ends[0] and ends[1][0] in SAID:
                    certainty = SAID[ends[1][0]]
                entities.add((name, kind, certainty))
            if relation:
                triples.add((named[0], relation, named[1]))
    return Truth(frozenset(entities), frozenset(triples))


def _anatomies(findings: tuple[Finding, ...]) -> set[str]:
    return {tail for _, relation, tail in triples_of(findings) if relation == "located_at"}


def _of_finding(finding: Finding, findings: tuple[Finding, ...]) -> dict[str, str]:
    """Every sentence that may tell a finding, and those that may follow it → what it says."""
    words, (adjectives, _, anatomy) = WORDS[finding.name], parts_of(finding)
    sure, disease = "" if finding.grade else "?", suggested(finding, findings)
    says = [f"{sure}{adjective} modify {sure}{words.term}" for adjective in adjectives]
    says.append(f"{sure}{words.term} located_at {anatomy}" if anatomy else f"{sure}{words.term}")
    says += [f"{sure}{words.term} suggestive_of ?{disease}"] if disease else []
    told = {sentence_of(finding, findings, phrasing): "; ".join(says) for phrasing in (*CERTAIN, *UNCERTAIN)}
    for phrasing, change in zip(AGAIN, CHANGES, strict=True):
        more = [f"{change} modify {words.term}"] * bool(change) + ["similar"] * (change == "persistent")
        told[sentence_of(finding, findings, phrasing)] = "; ".join([*says, *more])
    return told


@cache
def denials() -> dict[str, str]:
    """Every sentence that denies what a phantom can have → what it says."""
    says = {
        "rib fracture": "-fracture located_at rib",
        "widening of the upper mediastinum": "-widening located_at upper mediastinum",
    }
    names = [name for normal in NORMAL.values() for name in normal.absent.values()]
    told: dict[str, str] = {}
    for a in names:
        A, mine = a[0].upper() + a[1:], says.get(a, f"-{a}")
        told |= {phrasing.format(a=a, A=A): mine for phrasing in (*GONE, *(one for one, _ in DENIED))}
        for b in names:
            both = f"{mine}; {says.get(b, f'-{b}')}"
            told |= {two.format(a=a, A=A, b=b): both for _, two in DENIED}
    return told
