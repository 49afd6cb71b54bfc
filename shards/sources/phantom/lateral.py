"""The lateral view of a phantom: the patient faces the left of the image, the spine is on the right."""

import numpy as np

from shards.sources.phantom.anatomy import Anatomy, Finding, altered
from shards.sources.phantom.film import FLUID, HEIGHTS, Canvas, Drawings, Pixels, arc, plant, soft, stripes


def draw_lateral(body: Anatomy, findings: tuple[Finding, ...], size: int) -> np.ndarray:
    """The film, uint8 [size, size]. Fractures, scoliosis and most pneumothoraces are not visible from the side."""
    return lateral(body, findings, size).expose()


def lateral(body: Anatomy, findings: tuple[Finding, ...], size: int) -> "Lateral":
    """The same, not yet exposed."""
    chest = Lateral(altered(body, findings), size)
    plant(chest, findings, INSIDE)
    chest.bones()
    return chest


class Lateral(Canvas):
    """Trunk, lung field and heart of the side view drawn; the masks are named as in the frontal view."""

    def __init__(self, body: Anatomy, size: int) -> None:
        super().__init__(body, size, view=1)
        b = body
        trunk = soft((b.depth + 0.09 - np.abs(self.x) - 0.12 * soft((0.14 - self.y) / 0.14)) / 0.02)
        self.a = trunk * (0.50 + 0.14 * soft((self.y - 0.55) / 0.3) + 0.02 * self.coarse)
        waist = b.depth * (0.82 + 0.18 * soft((self.y - 0.05) / 0.5))
        q = np.square((self.x + 0.01) / waist) + np.square((self.y - 0.52) / 0.45)
        self.cavity: Pixels = soft((1 - np.sqrt(q)) / 0.05)
        slope = (b.dome * 1.2 + 0.03) * np.square((self.x + 0.10) / 0.25)
        self.floors: list[Pixels] = [base + slope for base in b.bases]
        lung = (b.lung_density + 0.02) + (b.vessels * 0.5) * (self.cloud + self.coarse)
        high, low = (soft((floor - self.y) / 0.014) for floor in self.floors)
        self.inside: Pixels = self.cavity * np.maximum(high, low)
        # where only one of the two lungs is crossed, the other side's dome lies over it
        self.fill(self.inside, lung + 0.12 * (1 - np.minimum(high, low)))
        # hilum, heart, aortic arch, shoulders
        half = b.half_width * b.heart_ratio
        self.fill(self.blob(-0.09, 0.40, 0.07, 0.06) * self.inside, 0.36)
        heart = self.blob(-0.12, max(b.bases) - 0.55 * half, half * 0.80, half, edge=0.15) * self.cavity
        self.fill(heart, 0.58)
        self.field: Pixels = self.inside * (1 - heart)
        arch = soft((b.mediastinum - np.abs(self.x + 0.02)) / 0.02) * soft((0.42 - self.y) / 0.08)
        self.fill(0.6 * arch * self.inside, 0.50)
        self.fill(self.blob(0.0, 0.03, 0.22, 0.14, edge=0.5), 0.62)

    def bones(self) -> None:
        """Spine and ribs, over everything that lies inside the chest."""
        b = self.body
        column = soft((0.045 - np.abs(self.x - (b.depth - 0.08) + 0.25 * np.square(self.y - 0.5))) / 0.01)
        self.a += column * (0.10 + 0.08 * stripes(self.y / 0.06, 0.7))
        ribs = stripes((self.y - 0.35 * self.x) / b.rib_spacing, 0.4)
        self.a += (b.rib_contrast * 0.6) * ribs * self.cavity * soft((0.8 - self.y) / 0.15)


def _lung(chest: Lateral, f: Finding) -> None:
    """What whitens the lungs: a focal finding lies in its zone, whichever the side."""
    x, y = 0.05 + 0.06 * f.across, HEIGHTS.get(f.zone, 0) + 0.025 * f.along
    match f.name:
        case "Edema":
            centre = chest.blob(-0.05, 0.45, 0.25, 0.28, edge=1.0)
            chest.a += chest.field * ((0.05 + 0.08 * f.severity) + (0.08 + 0.15 * f.severity) * centre)
        case "Consolidation":
            r = 0.075 + 0.055 * f.severity
            q = np.square((chest.x - x) / r) + np.square((chest.y - y) / r) + 0.22 * chest.cloud
            chest.fill(0.85 * soft((1.25 - q) / 0.8) * chest.inside, 0.32 if f.grade == 0 else 0.5)
        case "Atelectasis":
            for k in range(1 + f.grade):
                line = chest.body.bases[f.side == "left"] - 0.02 - 0.034 * k + (0.25 * f.along) * chest.x
                band = soft(1.7 - np.abs(chest.y - line) / 0.007) * soft((0.12 - np.abs(chest.x - 0.12)) / 0.03)
                chest.a += 0.22 * band * chest.inside
        case "Lung Lesion":
            r = 0.028 + 0.026 * f.severity
            chest.a += (0.15 if f.grade == 0 else 0.30) * chest.blob(x, y, r, r)
        case "Granuloma":
            r = 0.015 + 0.006 * f.severity
            chest.a += 0.65 * chest.blob(x, y, r, r)


def _pleura(chest: Lateral, f: Finding) -> None:
    """Air below the apex; fluid over the domes, higher behind than in front."""
    if f.name == "Pneumothorax":
        chest.a -= 0.10 * chest.inside * soft((0.16 + 0.10 * f.severity - chest.y) / 0.02)
        return
    right, left = chest.body.bases
    base = {"right": right, "left": left}.get(f.side, max(right, left))
    height = 0.055 + 0.25 * f.severity
    surface = (base + 0.10) - height * (0.5 + soft((chest.x + 0.05) / chest.body.depth))
    below = chest.floors[0 if f.side == "right" else 1] + 0.035
    fluid = soft((chest.y - surface) / 0.022) * soft((below - chest.y) / 0.02)
    chest.fill(fluid * chest.cavity, FLUID + 0.04)


def _hernia(chest: Lateral, f: Finding) -> None:
    """A sac behind the heart with air above its fluid."""
    r, y = 0.055 + 0.035 * f.severity, max(chest.body.bases) - 0.035
    chest.fill(chest.blob(0.10, y, r, r, edge=0.2), 0.72)
    air = chest.blob(0.10, y, r * 0.8, r * 0.75, edge=0.2) * soft((y + 0.1 * r - chest.y) / 0.006)
    chest.fill(air, 0.20)


def _device(chest: Lateral, f: Finding) -> None:
    """Metal: a pacemaker before the chest with its lead, or a line from the neck."""
    if f.name == "Pacemaker":
        front = -chest.body.depth + 0.02
        chest.fill(chest.blob(front, 0.235 + 0.02 * f.along, 0.018, 0.045, edge=0.2), 1.15)
        lead = arc((front, 0.20), (0.02, 0.05), (0.06, 0.45), (-0.12, 0.66))
        chest.fill(chest.curve(lead, 0.010), 1.0)
    else:
        line = arc((0.02, -0.02), (-0.04, 0.20), (-0.03, 0.44 + 0.03 * f.along))
        chest.fill(chest.curve(line, 0.010), 0.95)


INSIDE: Drawings["Lateral"] = {
    "Edema": _lung,
    "Pneumothorax": _pleura,
    "Consolidation": _lung,
    "Atelectasis": _lung,
    "Lung Lesion": _lung,
    "Granuloma": _lung,
    "Hiatal Hernia": _hernia,
    "Pleural Effusion": _pleura,
    "Pacemaker": _device,
    "Central Line": _device,
}
