"""Seeded augmentation of training films: crop, flip, rotation, brightness and contrast."""

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from shards.films.limits import Film

AUGMENT = 0x41554D454E54
"""Half of Philox's key; the other half is the run's seed. No other draw of a run has it."""
WORDS = 6
"""Drawn for every film, used or not, so that switching one change on or off leaves the others as they are."""


class Augment(BaseModel):
    """Random changes of a training film; every one is off by default.

    What is drawn is a function of (seed, position in the run's sequence of studies, view) alone: the same film is seen
    after a restart and for any number of workers, micro-batch or block size. Films of a study are drawn independently.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    resize_px: int | None = Field(default=None, ge=16)
    """The film is brought to a square of this side, pixels, and a square of the encoder's side is cut out at random
    (R2Gen: 256, cut to 224). None: it is brought to the encoder's side, nothing is cut."""
    flip: float = Field(default=0.0, ge=0, le=1)
    """Probability of a horizontal flip. It swaps left and right: the heart changes sides, and so would a report."""
    rotate: float = Field(default=0.0, ge=0, le=180)
    """Largest angle of a rotation about the centre, degrees, either way; corners that are laid bare are black."""
    brightness: float = Field(default=0.0, ge=0, lt=1)
    """Grey values are multiplied by a factor from 1 - brightness to 1 + brightness."""
    contrast: float = Field(default=0.0, ge=0, lt=1)
    """Distances from the film's mean grey value are multiplied by a factor from 1 - contrast to 1 + contrast."""

    def apply(self, film: Film, size: int, seed: int, position: int, view: int) -> Film:
        """A square film [S, S], S >= size, as it is seen at `position`: uint8 [size, size].

        Rotated, cut, flipped, then brightness and contrast by one table of grey values.

        Args:
            position: of the study in the run's infinite sequence (`shards.stream.order.Block.position`).
            view: of the film in its study.
        """
        key = seed % 2**64 | AUGMENT << 64
        words = np.random.Philox(key=key, counter=[0, view, position, 0]).random_raw(WORDS)
        across, down, flip, angle, brightness, contrast = ((words >> np.uint64(11)) * 2.0**-53).tolist()  # in [0, 1)
        if self.rotate:
            picture = Image.fromarray(film).rotate((2 * angle - 1) * self.rotate, Image.Resampling.BICUBIC, fillcolor=0)
            film = np.asarray(picture)
        room = len(film) - size + 1
        left, top = int(across * room), int(down * room)
        film = film[top : top + size, left : left + size]
        if flip < self.flip:
            film = film[:, ::-1]
        if self.brightness or self.contrast:
            levels = np.arange(256) * (1 + (2 * brightness - 1) * self.brightness)
            mean = np.bincount(film.ravel(), minlength=256) @ levels / film.size
            levels = mean + (levels - mean) * (1 + (2 * contrast - 1) * self.contrast)
            film = np.clip(np.rint(levels), 0, 255).astype(np.uint8)[film]
        return film


OFF = Augment()
"""Films as they are."""
