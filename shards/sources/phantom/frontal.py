"""The frontal (PA) view of a phantom: the patient's right is the left of the image."""

import numpy as np

from shards.sources.phantom.anatomy import Anatomy, Finding, altered
from shards.sources.phantom.film import FLUID, HEIGHTS, Canvas, Drawings, Pixels, arc, plant, soft, stripes


def draw_frontal(body: Anatomy, findings: tuple[Finding, ...], size: int) -> np.ndarray:
    """The film, uint8 [size, size]. Findings and exposure apart, a body is always drawn alike, noise included."""
    return frontal(body, findings, size).expose()


def frontal(body: Anatomy, findings: tuple[Finding, ...], size: int) -> "Frontal":
    """The same, not yet exposed."""
    chest = Frontal(altered(body, findings), size)
    plant(chest, findings, INSIDE)
    chest.bones()
    plant(chest, findings, OVER_BONES)
    return chest


class Frontal(Canvas):
    """Trunk, lungs and heart drawn; `u` is the distance from the midline, `d` its size.

    Masks: `cavity` is the rib cage, `inside` the lungs above the diaphragm, `field` the same without heart or aorta.
    """

    def __init__(self, body: Anatomy, size: int) -> None:
        super().__init__(body, size, view=0)
        self.u: Pixels = self.x - body.twist
        self.d: Pixels = np.abs(self.u)
        self.spine: Pixels = self.u - body.bend * np.sin(np.pi * np.clip((self.y - 0.12) / 0.7, 0, 1))
        self._lungs()
        self._heart()

    def _lungs(self) -> None:
        """The trunk, and in it two lungs between `roof`, `wall` and the domes of the diaphragm at `bases`, `floor`."""
        b = self.body
        t = np.clip((self.y - b.apex) / 0.42, 0, 1)
        self.lateral: Pixels = b.half_width * (0.38 + 0.62 * np.sqrt(1 - np.square(1 - t)))
        self.bases: Pixels = np.where(self.u > 0, np.float32(b.bases[1]), np.float32(b.bases[0]))
        self.floor: Pixels = self.bases + (b.dome + 0.03) * np.square((self.d - 0.13) / 0.2)
        self.roof: Pixels = b.apex + 3 * np.square(self.d - 0.15)
        self.wall: Pixels = np.minimum(self.lateral - self.d, self.y - self.roof)
        self.cavity: Pixels = soft(self.wall / 0.014)
        self.inside: Pixels = self.cavity * soft((self.floor - self.y) / 0.014)
        trunk = soft((0.15 + (b.body - 0.15) * soft((self.y - 0.01) / 0.13) - np.abs(self.x)) / 0.02)
        self.a = trunk * (0.50 + 0.12 * soft((self.y - 0.55) / 0.3) + 0.02 * self.coarse)
        # vessels branch from the hilum and fade with the distance from it
        theta = np.arctan2(self.y - 0.43, self.d - 0.08)
        radius = np.sqrt(np.square(self.y - 0.43) + np.square(self.d - 0.08))
        self.hilum: Pixels = np.exp(-radius / 0.10)
        branch = np.square(np.cos(7 * theta + 2 * self.coarse + self.cloud))
        self.markings: Pixels = branch * (2.2 * np.minimum(self.hilum, 0.45) + 0.15) + 0.35 * self.cloud
        self.fill(self.inside, b.lung_density + b.vessels * self.markings + 0.10 * self.hilum)

    def _heart(self) -> None:
        """Upper mediastinum, aortic knob, heart and, dark in the middle, the trachea."""
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
        self.field: Pixels = self.inside * (1 - upper) * (1 - knob) * (1 - heart)
        trachea = soft((0.020 - np.abs(self.spine)) / 0.010) * soft((0.38 - self.y) / 0.05)
        self.a -= 0.12 * trachea * soft((self.y - 0.02) / 0.05)

    def bones(self) -> None:
        """Ribs, clavicles and spine, over everything that lies inside the chest."""
        b = self.body
        posterior = self.y - b.apex - 0.10 * self.d - 0.55 * np.square(self.d)
        anterior = self.y + 0.45 * self.d - 0.01
        cage = soft((self.lateral + 0.015 - self.d) / 0.02) * soft((self.d - 0.05) / 0.02)
        cage = cage * soft((self.y - self.roof + 0.03) / 0.03) * soft((0.86 - self.y) / 0.15)
        self.a += cage * b.rib_contrast * (stripes(posterior / b.rib_spacing) + 0.5 * stripes(anterior / b.rib_spacing))
        clavicle = soft(1.6 - np.abs(self.y - (b.apex + 0.09) + 0.22 * self.d) / 0.012)
        self.a += 0.12 * clavicle * soft((self.d - 0.035) / 0.02) * soft((0.37 - self.d) / 0.04)
        column = soft((0.040 - np.abs(self.spine)) / 0.010)
        self.a += column * (0.08 + 0.05 * stripes(self.y / 0.055))

    def spot(self, f: Finding) -> tuple[float, float]:
        """Centre of a focal finding: in the stated zone of the stated lung, clear of heart and chest wall."""
        d = {"upper": 0.20, "middle": 0.24, "lower": 0.27}[f.zone] * self.body.half_width / 0.39
        return self.body.twist + f.sign * (d + 0.02 * f.across), HEIGHTS[f.zone] + 0.025 * f.along


def _lung(chest: Frontal, f: Finding) -> None:
    """What whitens the lung itself: haze, clouds, lines above a dome, discs."""
    match f.name:
        case "Edema":
            haze = (0.05 + 0.10 * f.severity) + (0.30 * f.severity + 0.08) * chest.hilum
            chest.a += chest.field * (haze + (0.10 * f.severity) * chest.markings)
        case "Consolidation":
            (x, y), r = chest.spot(f), 0.075 + 0.055 * f.severity
            q = np.square((chest.x - x) / (0.95 * r)) + np.square((chest.y - y) / r) + 0.22 * chest.cloud
            density = 0.34 if f.grade == 0 else 0.50 + 0.10 * f.severity
            chest.fill(0.92 * soft((1.25 - q) / 0.8) * chest.inside, density)
        case "Atelectasis":
            across = chest.x - (chest.body.twist + f.sign * (0.22 + 0.02 * f.across))
            reach = soft((0.10 + 0.04 * f.severity - np.abs(across)) / 0.05) * chest.field
            for k in range(1 + f.grade):
                line = chest.body.bases[f.side == "left"] - 0.035 - 0.034 * k + (0.25 * f.along) * across
                chest.a += 0.30 * reach * soft(1.7 - np.abs(chest.y - line) / 0.007)
        case "Lung Lesion":
            (x, y), r = chest.spot(f), 0.028 + 0.026 * f.severity
            chest.a += (0.18 if f.grade == 0 else 0.36) * chest.blob(x, y, r, r, edge=0.3) * chest.field
        case "Granuloma":
            (x, y), r = chest.spot(f), 0.015 + 0.006 * f.severity
            chest.a += 0.75 * chest.blob(x, y, r, r, edge=0.35)


def _pleura(chest: Frontal, f: Finding) -> None:
    """Air along the wall, its edge a thin line; fluid over the diaphragm, higher towards the wall."""
    side = np.ones_like(chest.u) if f.side == "bilateral" else soft(f.sign * chest.u / 0.01)
    if f.name == "Pneumothorax":
        rim = 0.045 + 0.075 * f.severity
        wall = chest.wall + (0.6 * rim) * soft((chest.y - 0.35) / 0.4)
        side = side * chest.field
        chest.fill(side * soft((rim - wall) / 0.008), 0.04)
        line = soft(1.8 - np.abs(wall - (rim + 0.004)) / 0.005)
        chest.a += side * (0.30 * line + (0.05 + 0.05 * f.severity) * soft((wall - rim) / 0.01))
    else:
        height = 0.055 + 0.25 * f.severity
        surface = chest.bases + 0.06 - height * (0.5 + 0.75 * np.square(chest.d / chest.body.half_width))
        fluid = soft((chest.y - surface) / 0.022)
        fluid *= chest.cavity * soft((chest.floor + 0.035 - chest.y) / 0.02)
        chest.fill(fluid * side, FLUID + 0.06)


def _hernia(chest: Frontal, f: Finding) -> None:
    """A sac behind the heart with air above its fluid."""
    r = 0.055 + 0.035 * f.severity
    x, y = chest.body.twist + 0.03 + 0.02 * f.across, max(chest.body.bases) - 0.035
    chest.fill(chest.blob(x, y, r * 1.1, r, edge=0.2), 0.78)
    air = chest.blob(x, y, r * 0.85, r * 0.78, edge=0.2) * soft((y + 0.1 * r - chest.y) / 0.006)
    chest.fill(air, 0.20)


def _fracture(chest: Frontal, f: Finding) -> None:
    """A gap in a rib between two ends that are out of line."""
    x, y = chest.spot(f)
    gap, drop = 0.010, 0.010 + 0.008 * f.severity
    x += f.sign * 0.03
    chest.a -= 0.16 * chest.blob(x, y, 0.016, 0.030, edge=0.5)
    for way in (-1, 1):
        near, far = x + f.sign * way * gap, x + f.sign * way * (gap + 0.055)
        ends = np.array([(near, y + way * drop), (far, y + way * (drop + 0.012))])
        chest.a += 0.28 * chest.curve(ends, 0.020)


def _device(chest: Frontal, f: Finding) -> None:
    """Metal: a pacemaker with its lead into the heart, or a line from the neck to the same place."""
    middle = chest.body.twist
    if f.name == "Pacemaker":
        x, y = middle + f.sign * (0.255 + 0.02 * f.across), 0.235 + 0.02 * f.along
        chest.fill(chest.blob(x, y, 0.052, 0.044, edge=0.15), 1.15)
        lead = arc((x, y - 0.03), (middle - 0.04, 0.16), (middle - 0.04, 0.16), (middle + 0.07, 0.66))
        chest.fill(chest.curve(lead, 0.010), 1.0)
    else:
        neck, bend, tip = (middle + f.sign * 0.16, -0.02), (middle + f.sign * 0.085, 0.22), middle - 0.03
        chest.fill(chest.curve(arc(neck, bend, (tip, 0.44 + 0.03 * f.along)), 0.012), 0.98)


INSIDE: Drawings["Frontal"] = {
    "Edema": _lung,
    "Pneumothorax": _pleura,
    "Consolidation": _lung,
    "Atelectasis": _lung,
    "Lung Lesion": _lung,
    "Hiatal Hernia": _hernia,
    "Pleural Effusion": _pleura,
}
OVER_BONES: Drawings["Frontal"] = {
    "Granuloma": _lung,
    "Fracture": _fracture,
    "Pacemaker": _device,
    "Central Line": _device,
}
