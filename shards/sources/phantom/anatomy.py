"""What a phantom patient is: the sampled body, and the findings planted in it. Nothing here draws or writes."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

SIDES, BOTH, ZONES = ("right", "left"), ("right", "left", "bilateral"), ("upper", "middle", "lower")
GRADES = (0.08, 0.35, 0.65, 1.0)
"""Centre of the severity of grade 0 (borderline, reported as uncertain), 1 (mild), 2 (moderate), 3 (severe)."""
NORMAL_FRACTION = 0.27
"""Share of studies with nothing planted."""
COUNTS = (0.14, 0.34, 0.33, 0.19)
"""Among the other studies: share with 1, 2, 3 and 4 findings."""


class Planting(NamedTuple):
    """How often and where one finding is planted."""

    weight: float
    organ: str
    """Heading of the report it belongs under; at most two findings of one organ are planted."""
    sides: tuple[str, ...] = ("",)
    zones: tuple[str, ...] = ("",)
    hedged: bool = False
    """May be borderline: drawn faintly, reported as possible, label -1."""
    partners: tuple[str, ...] = ()
    """Findings made three times as likely by this one: co-occurrence carries information, as it does in patients."""
    excludes: tuple[str, ...] = ()
    """Findings that would hide this one or contradict it; holds both ways."""


PLANTINGS: dict[str, Planting] = {
    "Cardiomegaly": Planting(26, "heart", hedged=True, partners=("Edema", "Pleural Effusion", "Pacemaker")),
    "Enlarged Cardiomediastinum": Planting(7, "mediastinum"),
    "Hiatal Hernia": Planting(7, "mediastinum"),
    "Hyperinflation": Planting(
        9, "lungs", partners=("Pneumothorax", "Granuloma"), excludes=("Cardiomegaly", "Edema", "Elevated Hemidiaphragm")
    ),
    "Edema": Planting(
        8,
        "lungs",
        hedged=True,
        partners=("Cardiomegaly", "Pleural Effusion"),
        excludes=("Consolidation", "Pneumothorax"),
    ),
    "Consolidation": Planting(14, "lungs", SIDES, ZONES, hedged=True),
    "Atelectasis": Planting(12, "lungs", SIDES, partners=("Elevated Hemidiaphragm",)),
    "Lung Lesion": Planting(11, "lungs", SIDES, ZONES, hedged=True),
    "Granuloma": Planting(8, "lungs", SIDES, ZONES),
    "Pleural Effusion": Planting(23, "pleura", BOTH, hedged=True, excludes=("Elevated Hemidiaphragm",)),
    "Pneumothorax": Planting(11, "pleura", SIDES, partners=("Fracture",)),
    "Elevated Hemidiaphragm": Planting(8, "pleura", SIDES),
    "Fracture": Planting(9, "bones", SIDES, ZONES, partners=("Pneumothorax",)),
    "Scoliosis": Planting(8, "bones", SIDES),
    "Pacemaker": Planting(7, "devices", SIDES, excludes=("Central Line",)),
    "Central Line": Planting(8, "devices", SIDES),
}
"""Everything that can be planted, in the order in which a report speaks of it."""


@dataclass(frozen=True)
class Finding:
    """One planted finding. `along` and `across` in [-1, 1] move it within its zone, so that no position is typical."""

    name: str
    side: str = ""
    zone: str = ""
    grade: int = 2
    severity: float = 0.65
    along: float = 0.0
    across: float = 0.0

    @property
    def sign(self) -> int:
        """Direction of x towards its side: 1 for the patient's left, else -1."""
        return 1 if self.side == "left" else -1


@dataclass(frozen=True)
class Anatomy:
    """A body and an exposure. Lengths are fractions of the film's side, x runs from -0.5 (patient's right) to 0.5."""

    half_width: float
    """Of the rib cage."""
    body: float
    """Half width of the trunk."""
    apex: float
    """y of the lung tops."""
    bases: tuple[float, float]
    """y of the right and left diaphragm domes."""
    dome: float
    heart_ratio: float
    """Cardiothoracic ratio: below 0.5 in health."""
    mediastinum: float
    """Half width of the upper mediastinum."""
    bend: float
    """Sideways excursion of the spine, towards the patient's left when positive."""
    rib_spacing: float
    rib_contrast: float
    lung_density: float
    vessels: float
    tilt: float
    """Rotation of the film, radians."""
    twist: float
    shift: tuple[float, float]
    depth: float
    """Half depth of the chest in the lateral film."""
    gain: float
    brightness: float
    """Mean of the film, in [0, 1]."""
    noise: float
    grain: int
    """Seed of textures and noise, so that the same body can be drawn with and without a finding."""


def study_rng(seed: int, index: int) -> np.random.Generator:
    """The one source of randomness of study `index`: independent of every other study and of how many there are."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index])))


def sample_anatomy(rng: np.random.Generator) -> Anatomy:
    """A healthy body and an exposure."""
    u = rng.uniform
    base = u(0.71, 0.78)
    return Anatomy(
        half_width=u(0.36, 0.42),
        body=u(0.46, 0.56),
        apex=u(0.08, 0.13),
        bases=(base, base + u(0.01, 0.03)),
        dome=u(0.05, 0.08),
        heart_ratio=u(0.40, 0.475),
        mediastinum=u(0.055, 0.07),
        bend=u(-0.006, 0.006),
        rib_spacing=u(0.078, 0.092),
        rib_contrast=u(0.05, 0.09),
        lung_density=u(0.16, 0.23),
        vessels=u(0.05, 0.09),
        tilt=u(-0.05, 0.05),
        twist=u(-0.015, 0.015),
        shift=(u(-0.02, 0.02), u(-0.02, 0.02)),
        depth=u(0.31, 0.36),
        gain=u(0.90, 1.10),
        brightness=u(0.41, 0.55),
        noise=u(0.008, 0.02),
        grain=int(rng.integers(2**62)),
    )


def sample_findings(rng: np.random.Generator) -> tuple[Finding, ...]:
    """Nothing (27 % of studies) or 1 to 4 compatible findings, in report order."""
    if rng.random() < NORMAL_FRACTION:
        return ()
    weights = {name: kind.weight for name, kind in PLANTINGS.items()}
    planted: list[str] = []
    for _ in range(int(rng.choice(4, p=COUNTS)) + 1):
        share = np.array(list(weights.values()), dtype=float)
        last = list(weights)[int(rng.choice(len(share), p=share / share.sum()))]
        planted.append(last)
        organs = [PLANTINGS[name].organ for name in planted]
        # what may still join: compatible with the latest, likelier beside a partner, of an organ that is not full
        weights = {
            name: weight * (3 if name in PLANTINGS[last].partners else 1)
            for name, weight in weights.items()
            if name != last
            and name not in PLANTINGS[last].excludes
            and last not in PLANTINGS[name].excludes
            and organs.count(PLANTINGS[name].organ) < 2
        }
    findings = []
    for name, kind in PLANTINGS.items():
        if name in planted:
            grade = int(rng.choice(4, p=(0.1, 0.28, 0.34, 0.28) if kind.hedged else (0, 0.3, 0.36, 0.34)))
            side, zone = str(rng.choice(kind.sides)), str(rng.choice(kind.zones))
            severity = GRADES[grade] + float(rng.uniform(-0.06, 0.06))
            along, across = (float(rng.uniform(-1, 1)) for _ in range(2))
            findings.append(Finding(name, side, zone, grade, severity, along, across))
    return tuple(findings)


def altered(body: Anatomy, findings: tuple[Finding, ...]) -> Anatomy:
    """The body with those findings that change its shape: heart, mediastinum, spine, diaphragm, inflation."""
    for finding in findings:
        s = finding.severity
        right, left = body.bases
        match finding.name:
            case "Cardiomegaly":
                body = replace(body, heart_ratio=0.505 + 0.20 * s)
            case "Enlarged Cardiomediastinum":
                body = replace(body, mediastinum=0.105 + 0.05 * s)
            case "Scoliosis":
                body = replace(body, bend=finding.sign * (0.03 + 0.04 * s))
            case "Elevated Hemidiaphragm":
                raised = 0.08 + 0.08 * s
                body = replace(body, bases=(right, left - raised) if finding.sign > 0 else (right - raised, left))
            case "Hyperinflation":
                lower, density = 0.05 + 0.06 * s, body.lung_density - 0.04 - 0.03 * s
                body = replace(
                    body,
                    bases=(right + lower, left + lower),
                    dome=0.015,
                    lung_density=density,
                    depth=body.depth + 0.05 * s,
                    heart_ratio=body.heart_ratio - 0.05,
                    rib_spacing=body.rib_spacing * 1.15,
                )
    return body
