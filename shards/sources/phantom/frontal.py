"""The frontal (PA) view of a phantom: the patient's right is the left of the image."""

import numpy as np

from shards.sources.phantom.anatomy import Anatomy, Finding, altered
from shards.sources.phantom.film import FLUID, Canvas, Drawings, Field, arc, plant, soft

HEIGHTS = {"upper": 0.27, "middle": 0.44, "lower": 0.60}
"""y of the zones that reports speak of, in a lung of average height."""


def draw_frontal(body: Anatomy, findings: tuple[Finding, ...], size: int) -> np.ndarray:
    """The film, uint8 [size, size]. Findings apart, a body is always drawn identically, noise included."""
    chest = Frontal(altered(body, findings), size)
    plant(chest, findings, INSIDE)
    chest.bones()
    plant(chest, findings, OVER_BONES)
    return chest.expose()


class Frontal(Canvas):
    """Trunk, lungs and heart drawn; `u` is the distance from the midline, `d` its size.

    Masks: `cavity` is the rib cage, `inside` the lungs above the diaphragm, `field` the same without heart or aorta.
    """

    def __init__(self, body: Anatomy, size: int) -> None:
        super().__init__(body, size, view=0)
        self.cloud, self.coarse = self.texture(24), self.texture(7)
        self.u: Field = self.x - body.twist
        self.d: Field = np.abs(self.u)
        self.left: Field = self.u > 0
        self.spine: Field = self.u - body.bend * np.sin(np.pi * np.clip((self.y - 0.12) / 0.7, 0, 1))
        self._lungs()
        self._trunk()
        self._heart()

    def _lungs(self) -> None:
        b = self.body
        t = np.clip((self.y - b.apex) / 0.42, 0, 1)
        self.lateral: Field = b.half_width * (0.38 + 0.62 * np.sqrt(1 - np.square(1 - t)))
        base = np.where(self.left, np.float32(b.bases[1]), np.float32(b.bases[0]))
        self.floor: Field = base + (b.dome + 0.03) * np.square((self.d - 0.13) / 0.2)
        self.roof: Field = b.apex + 3 * np.square(self.d - 0.15)
        self.wall: Field = np.minimum(self.lateral - self.d, self.y - self.roof)
        self.cavity: Field = soft(self.wall / 0.014)
        self.inside: Field = self.cavity * soft((self.floor - self.y) / 0.014)

    def _trunk(self) -> None:
        b = self.body
        trunk = soft((0.15 + (b.body - 0.15) * soft((self.y - 0.01) / 0.13) - np.abs(self.x)) / 0.02)
        self.a = trunk * (0.50 + 0.12 * soft((self.y - 0.55) / 0.3) + 0.02 * self.coarse)
        self.theta: Field = np.arctan2(self.y - 0.43, self.d - 0.08)
        radius = np.sqrt(np.square(self.y - 0.43) + np.square(self.d - 0.08))
        self.hilum: Field = np.exp(-radius / 0.10)
        branch = np.square(np.cos(7 * self.theta + 2 * self.coarse + self.cloud))
        spread = np.minimum(self.hilum, 0.45)
        self.markings: Field = branch * (2.2 * spread + 0.15) + 0.35 * self.cloud
        lung = b.lung_density + b.vessels * self.markings + 0.10 * self.hilum
        self.fill(self.inside, lung)

    def _heart(self) -> None:
        b = self.body
        bulge = (b.mediastinum - 0.055) * soft((self.y - 0.10) / 0.14) * soft((0.66 - self.y) / 0.24)
        upper = soft((0.055 + bulge + 0.045 * soft((self.y - 0.36) / 0.2) - np.abs(self.spine)) / 0.018)
        upper *= soft((self.y - 0.03) / 0.08) * soft((0.85 - self.y) / 0.1)
        knob = self.blob(b.twist + b.mediastinum, 0.285, 0.030, 0.045) * self.inside
        half = b.half_width * b.heart_ratio
        tall = 0.75 * half + 0.05
        x, y = b.twist + 0.28 * half, max(b.bases) - 0.55 * tall
        # the long axis runs down to the patient's left
        lean = np.square((self.x - x - 0.3 * (self.y - y)) / (0.95 * half))
        heart = soft((1 - np.sqrt(lean + np.square((self.y - y) / tall))) / 0.13) * self.cavity
        for mask, density in ((upper, 0.58), (knob, 0.57), (heart, 0.62)):
            self.fill(mask, density)
        self.field: Field = self.inside * (1 - upper) * (1 - knob) * (1 - heart)
        trachea = soft((0.020 - np.abs(self.spine)) / 0.010) * soft((0.38 - self.y) / 0.05)
        self.a -= 0.12 * trachea * soft((self.y - 0.02) / 0.05)

    def bones(self) -> None:
        """Ribs, clavicles and spine, over everything that lies inside the chest."""
        b = self.body
        posterior = self.y - b.apex - 0.10 * self.d - 0.55 * np.square(self.d)
        anterior = self.y + 0.45 * self.d - 0.01
        cage = (
            soft((self.lateral + 0.015 - self.d) / 0.02)
            * soft((self.d - 0.05) / 0.02)
            * soft((self.y - self.roof + 0.03) / 0.03)
        )
        cage *= soft((0.86 - self.y) / 0.15)
        self.a += (
            cage * b.rib_contrast * (_stripes(posterior / b.rib_spacing) + 0.5 * _stripes(anterior / b.rib_spacing))
        )
        clavicle = soft(1.6 - np.abs(self.y - (b.apex + 0.09) + 0.22 * self.d) / 0.012)
        self.a += 0.12 * clavicle * soft((self.d - 0.035) / 0.02) * soft((0.37 - self.d) / 0.04)
        column = soft((0.040 - np.abs(self.spine)) / 0.010)
        self.a += column * (0.08 + 0.05 * _stripes(self.y / 0.055))


def _stripes(phase: Field) -> Field:
    """Bands of period 1, a little over a third of it wide."""
    return soft((0.46 - np.abs(phase - np.floor(phase) - 0.5) * 2) / 0.2)


def _sign(finding: Finding) -> int:
    return 1 if finding.side == "left" else -1


def _spot(chest: Frontal, finding: Finding) -> tuple[float, float]:
    """Centre of a focal finding: in the stated zone of the stated lung, clear of heart and chest wall."""
    d = {"upper": 0.20, "middle": 0.24, "lower": 0.27}[finding.zone] * chest.body.half_width / 0.39
    return chest.body.twist + _sign(finding) * (d + 0.02 * finding.across), HEIGHTS[
        finding.zone
    ] + 0.025 * finding.along


def _hemithorax(chest: Frontal, finding: Finding) -> Field:
    if finding.side == "bilateral":
        return np.ones_like(chest.u)
    return soft(_sign(finding) * chest.u / 0.01)


def _effusion(chest: Frontal, f: Finding) -> None:
    height = 0.055 + 0.25 * f.severity
    bottom = np.where(chest.left, np.float32(chest.body.bases[1]), np.float32(chest.body.bases[0])) + 0.06
    surface = bottom - height * (0.5 + 0.75 * np.square(chest.d / chest.body.half_width))
    fluid = soft((chest.y - surface) / 0.022)
    fluid *= chest.cavity * soft((chest.floor + 0.035 - chest.y) / 0.02)
    chest.fill(fluid * _hemithorax(chest, f), FLUID + 0.06)


def _pneumothorax(chest: Frontal, f: Finding) -> None:
    rim = 0.045 + 0.075 * f.severity
    wall = chest.wall + (0.6 * rim) * soft((chest.y - 0.35) / 0.4)
    side = _hemithorax(chest, f) * chest.field
    chest.fill(side * soft((rim - wall) / 0.008), 0.04)
    line = soft(1.8 - np.abs(wall - (rim + 0.004)) / 0.005)
    chest.a += side * (0.30 * line + (0.05 + 0.05 * f.severity) * soft((wall - rim) / 0.01))


def _consolidation(chest: Frontal, f: Finding) -> None:
    x, y = _spot(chest, f)
    r = 0.075 + 0.055 * f.severity
    q = np.square((chest.x - x) / (0.95 * r)) + np.square((chest.y - y) / r) + 0.22 * chest.cloud
    density = 0.34 if f.grade == 0 else 0.50 + 0.10 * f.severity
    chest.fill(0.92 * soft((1.25 - q) / 0.8) * chest.inside, density)


def _nodule(chest: Frontal, f: Finding) -> None:
    x, y = _spot(chest, f)
    r = 0.028 + 0.026 * f.severity
    chest.a += (0.18 if f.grade == 0 else 0.36) * chest.blob(x, y, r, r, edge=0.3) * chest.field


def _granuloma(chest: Frontal, f: Finding) -> None:
    x, y = _spot(chest, f)
    r = 0.015 + 0.006 * f.severity
    chest.a += 0.75 * chest.blob(x, y, r, r, edge=0.35)


def _edema(chest: Frontal, f: Finding) -> None:
    haze = (0.05 + 0.10 * f.severity) + (0.30 * f.severity + 0.08) * chest.hilum
    chest.a += chest.field * (haze + (0.10 * f.severity) * chest.markings)


def _atelectasis(chest: Frontal, f: Finding) -> None:
    base = chest.body.bases[f.side == "left"]
    x = chest.body.twist + _sign(f) * (0.22 + 0.02 * f.across)
    reach = soft((0.10 + 0.04 * f.severity - np.abs(chest.x - x)) / 0.05) * chest.field
    for k in range(1 + f.grade):
        y = base - 0.035 - 0.034 * k + (0.25 * f.along) * (chest.x - x)
        chest.a += 0.30 * reach * soft(1.7 - np.abs(chest.y - y) / 0.007)


def _hernia(chest: Frontal, f: Finding) -> None:
    r = 0.055 + 0.035 * f.severity
    x, y = chest.body.twist + 0.03 + 0.02 * f.across, max(chest.body.bases) - 0.035
    sac = chest.blob(x, y, r * 1.1, r, edge=0.2)
    chest.fill(sac, 0.78)
    chest.fill(
        chest.blob(x, y, r * 0.85, r * 0.78, edge=0.2) * soft((y + 0.1 * r - chest.y) / 0.006),
        0.20,
    )


def _fracture(chest: Frontal, f: Finding) -> None:
    x, y = _spot(chest, f)
    sign, gap, drop = _sign(f), 0.010, 0.010 + 0.008 * f.severity
    x += sign * 0.03
    chest.a -= 0.16 * chest.blob(x, y, 0.016, 0.030, edge=0.5)
    for way in (-1, 1):
        near, far = x + sign * way * gap, x + sign * way * (gap + 0.055)
        ends = np.array([(near, y + way * drop), (far, y + way * (drop + 0.012))])
        chest.a += 0.28 * chest.curve(ends, 0.020)


def _pacemaker(chest: Frontal, f: Finding) -> None:
    x, y = chest.body.twist + _sign(f) * (0.255 + 0.02 * f.across), 0.235 + 0.02 * f.along
    chest.fill(chest.blob(x, y, 0.052, 0.044, edge=0.15), 1.15)
    middle = chest.body.twist
    lead = arc((x, y - 0.03), (middle - 0.04, 0.16), (middle - 0.04, 0.16), (middle + 0.07, 0.66))
    chest.fill(chest.curve(lead, 0.010), 1.0)


def _central_line(chest: Frontal, f: Finding) -> None:
    sign, middle = _sign(f), chest.body.twist
    line = arc((middle + sign * 0.16, -0.02), (middle + sign * 0.085, 0.22), (middle - 0.03, 0.44 + 0.03 * f.along))
    chest.fill(chest.curve(line, 0.012), 0.98)


INSIDE: Drawings["Frontal"] = {
    "Edema": _edema,
    "Pneumothorax": _pneumothorax,
    "Consolidation": _consolidation,
    "Atelectasis": _atelectasis,
    "Lung Lesion": _nodule,
    "Hiatal Hernia": _hernia,
    "Pleural Effusion": _effusion,
}
OVER_BONES: Drawings["Frontal"] = {
    "Granuloma": _granuloma,
    "Fracture": _fracture,
    "Pacemaker": _pacemaker,
    "Central Line": _central_line,
}
