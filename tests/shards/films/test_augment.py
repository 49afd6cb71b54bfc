"""What is drawn for a film follows from seed, position and view, and from nothing else."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from shards.films.augment import OFF, Augment
from shards.stream.order import Block, plan

ALL = Augment(resize_px=24, flip=0.5, rotate=20, brightness=0.3, contrast=0.3)
RAMP = (np.add.outer(np.arange(24) * 7, np.arange(24) * 3) + 5).astype(np.uint8)
"""Grey values 5 to 235; no row, column or corner is another's mirror image."""


def test_off_is_the_film_itself() -> None:
    assert (OFF.apply(RAMP, 24, 3, 7, 1) == RAMP).all()


def test_each_change_does_what_it_says() -> None:
    assert (Augment(flip=1).apply(RAMP, 24, 0, 0, 0) == RAMP[:, ::-1]).all()
    flipped = [bool((Augment(flip=0.25).apply(RAMP, 24, 0, at, 0) != RAMP).any()) for at in range(400)]
    assert 70 <= sum(flipped) <= 130
    offsets = set()
    for at in range(300):
        cut = Augment(resize_px=24).apply(RAMP, 21, 0, at, 0).astype(int)
        found = [(y, x) for y in range(4) for x in range(4) if (RAMP[y : y + 21, x : x + 21] == cut).all()]
        assert len(found) == 1
        offsets.add(found[0])
    assert len(offsets) == 16  # all places of a 21 px square in one of 24, the corners too
    bright = [Augment(brightness=0.2).apply(RAMP, 24, 0, at, 0) / RAMP for at in range(200)]
    factors = [float(np.median(ratio)) for ratio in bright]
    assert 0.79 <= min(factors) < 0.85 and 1.15 < max(factors) <= 1.21
    for at in range(50):
        film = Augment(contrast=0.2).apply(RAMP, 24, 0, at, 0).astype(float)
        assert film.mean() == pytest.approx(RAMP.mean(), abs=1.0)
        assert 0.78 <= film.std() / RAMP.std() <= 1.22
    turned = Augment(rotate=10).apply(RAMP, 24, 0, 0, 0)
    assert (turned != RAMP).any() and abs(int(turned[12, 12]) - int(RAMP[12, 12])) < 12 and (turned == 0).any()


def test_one_change_switched_off_leaves_the_others_as_they_are() -> None:
    both, crop = Augment(resize_px=24, flip=1), Augment(resize_px=24)
    for at in range(20):
        assert (both.apply(RAMP, 20, 5, at, 0)[:, ::-1] == crop.apply(RAMP, 20, 5, at, 0)).all()


def test_seed_position_and_view_each_count() -> None:
    seen = [ALL.apply(RAMP, 20, *of).tobytes() for of in ((1, 2, 0), (2, 2, 0), (1, 3, 0), (1, 2, 1), (2, 1, 0))]
    assert len(set(seen)) == len(seen) and ALL.apply(RAMP, 20, 1, 2, 0).tobytes() == seen[0]
    flips = np.array([[bool(np.argmax(Augment(flip=0.5).apply(RAMP, 24, 0, at, v)[0]) == 0) for v in (0, 1)]
                      for at in range(400)])  # fmt: skip
    assert abs(np.corrcoef(flips.T)[0, 1]) < 0.15  # films of a study are flipped independently


def test_draws_are_pinned() -> None:
    """A change here changes the films of every run that is resumed after it."""
    cut = Augment(resize_px=24)
    assert [int(cut.apply(RAMP, 9, 42, at, view)[0, 0]) for at in (0, 1, 2**40) for view in (0, 1)] == [
        155, 78, 56, 54, 20, 100
    ]  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 40), seed=st.integers(0, 2**64 - 1), steps=st.integers(2, 8), cut=st.integers(1, 7),
       rows=st.lists(st.integers(1, 60), min_size=3, max_size=3))  # fmt: skip
def test_pixels_are_the_same_for_every_world_block_size_and_restart(n, seed, steps, cut, rows) -> None:
    films = np.random.default_rng(0).integers(0, 256, (n, 16, 16), dtype=np.uint8)
    augment, cut = Augment(resize_px=16, flip=0.5, brightness=0.2), min(cut, steps - 1)

    def seen(blocks: list[Block]) -> dict[int, bytes]:
        pairs = [pair for block in blocks for pair in zip(block.position.flat, block.index.flat, strict=True)]
        assert len({at for at, _ in pairs}) == len(pairs)
        return {int(at): augment.apply(films[study], 13, seed, int(at), 0).tobytes() for at, study in pairs}

    one, two, three = (
        plan(n, seed % 2**32, 0, steps, 6, world, size) for world, size in zip((1, 2, 3), rows, strict=True)
    )
    whole = seen(one)
    assert list(whole) == list(range(6 * steps)) and whole == seen(two) == seen(three)
    resumed = seen(plan(n, seed % 2**32, 6 * cut, steps - cut, 6, 2, rows[1]))
    assert resumed == {at: film for at, film in whole.items() if at >= 6 * cut}


@pytest.mark.parametrize("wrong", [{"flip": 1.5}, {"rotate": -1}, {"brightness": 1}, {"resize_px": 2}, {"crop": 3}])
def test_what_cannot_be_is_refused(wrong: dict) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Augment(**wrong)
