"""The canvas of phantom films: coordinates, soft edges, textures, exposure. Frontal and lateral views draw on it.

Brightness is attenuation in [0, 1]: air 0, aerated lung about 0.2, soft tissue about 0.55, metal above 1. Arrays are
float32 [S, S].
"""

import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw

from shards.sources.phantom.anatomy import Anatomy, Finding

Pixels = np.ndarray
FLUID = 0.60
NOISE = (0.5, 1.5)
"""A view's noise, of the body's."""
EXPOSURES = 3
"""Rounds to find the offset: what is clipped moves the mean."""
HEIGHTS = {"upper": 0.27, "middle": 0.44, "lower": 0.60}
"""y of the zones that reports speak of, in a lung of average height."""


def soft(t: Pixels) -> Pixels:
    """0 below 0, 1 above 1, smooth between: the edge of every structure."""
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)


def stripes(phase: Pixels, width: float = 0.46) -> Pixels:
    """Bands of period 1 with soft edges, their full brightness over `width` - 0.2 of it."""
    return soft((width - np.abs(phase - np.floor(phase) - 0.5) * 2) / 0.2)


def arc(*controls: tuple[float, float]) -> np.ndarray:
    """Points [24, 2] of the Bézier curve through the first and last control point."""
    points, t = np.array(controls)[:, None], np.linspace(0, 1, 24)[:, None]
    while len(points) > 1:
        points = points[:-1] * (1 - t) + points[1:] * t
    return points[0]


class Canvas:
    """One film being drawn: attenuation `a`, tilted and shifted coordinates `x`, `y`, and its own stream of texture.

    `cloud` and `coarse` are textures of fine and of large patches.
    """

    def __init__(self, body: Anatomy, size: int, view: int) -> None:
        self.body, self.size = body, size
        self.rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([body.grain, view])))
        self.cos, self.sin = math.cos(body.tilt), math.sin(body.tilt)
        at = (np.arange(size, dtype=np.float32) + 0.5) / size
        gx, gy = np.meshgrid(at - 0.5, at)
        dx, dy = gx - body.shift[0], gy - (0.5 + body.shift[1])
        self.x: Pixels = self.cos * dx + self.sin * dy
        self.y: Pixels = self.cos * dy - self.sin * dx + 0.5
        self.a: Pixels = np.zeros((size, size), np.float32)
        self.cloud, self.coarse = self.texture(24), self.texture(7)

    def texture(self, cells: int) -> Pixels:
        """Smooth noise of unit variance at its nodes, `cells` nodes a side.

        The weights [S, cells] of smooth interpolation make it two small matrix products, ten times as fast as a spline
        zoom.
        """
        at = np.linspace(0, cells - 1, self.size, dtype=np.float32)
        weights = soft(1 - np.abs(at[:, None] - np.arange(cells, dtype=np.float32)[None]))
        return weights @ self.rng.standard_normal((cells, cells), dtype=np.float32) @ weights.T

    def fill(self, mask: Pixels, density: float | Pixels) -> None:
        """Replace what lies under `mask` (0 to 1) by tissue of the given density."""
        self.a += mask * (density - self.a)

    def blob(self, x: float, y: float, rx: float, ry: float, edge: float = 0.3) -> Pixels:
        """Mask of an ellipse whose rim fades over the fraction `edge` of its radius."""
        q = np.square((self.x - x) / rx) + np.square((self.y - y) / ry)
        return soft((1 - np.sqrt(q)) / edge)

    def curve(self, points: np.ndarray, width: float) -> Pixels:
        """Mask of a polyline [n, 2] of (x, y) in body coordinates, `width` as a fraction of the film."""
        x, y = points[:, 0], points[:, 1] - 0.5
        columns = self.cos * x - self.sin * y + self.body.shift[0] + 0.5
        rows = self.sin * x + self.cos * y + self.body.shift[1] + 0.5
        layer = Image.new("L", (self.size, self.size))
        line = [(float(c) * self.size, float(r) * self.size) for c, r in zip(columns, rows, strict=True)]
        ImageDraw.Draw(layer).line(line, fill=255, width=max(1, round(width * self.size)), joint="curve")
        return np.asarray(layer, np.float32) / 255

    def expose(self) -> np.ndarray:
        """Develop the film as uint8 [S, S]: gain and noise, and as bright on the whole as is drawn for the body.

        An automatic exposure: neither a film's mean nor, as each view has noise of its own strength, the size of its
        JPEG tells what is in it.
        """
        strength = self.body.noise * self.rng.uniform(*NOISE)
        film = self.a * self.body.gain + strength * self.rng.standard_normal(self.a.shape, dtype=np.float32)
        for _ in range(EXPOSURES):
            film += self.body.brightness - np.clip(film, 0, 1).mean()
        return (np.clip(film, 0, 1) * 255).astype(np.uint8)


Chest = TypeVar("Chest", bound=Canvas)
Drawings = dict[str, Callable[[Chest, Finding], None]]
"""Finding → what draws its organ's findings in one view, in the order of drawing."""


def plant(chest: Chest, findings: tuple[Finding, ...], drawings: Drawings[Chest]) -> None:
    """Draw the findings in the order of `drawings`, so that fluid lies over air whichever is reported first."""
    for name, draw in drawings.items():
        for finding in findings:
            if finding.name == name:
                draw(chest, finding)
