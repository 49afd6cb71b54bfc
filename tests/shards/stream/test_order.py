"""Which studies a step holds depends on (n, seed, step, global batch) alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import ConfigError
from shards.stream.order import Block, epoch_order, plan, sequential_blocks, step_indices

WORLDS = (1, 2, 3)
small = settings(max_examples=60, deadline=None)
studies = st.integers(1, 200)
seeds = st.integers(0, 2**32)
chunks = st.integers(1, 9)


def by_step(blocks: list[Block], world: int) -> dict[int, list[int]]:
    """Global step → its studies, rank by rank."""
    steps: dict[int, dict[int, list[int]]] = {}
    for block in blocks:
        for at, row in enumerate(block.index):
            steps.setdefault(block.step + at, {})[block.rank] = row.tolist()
    return {step: [i for rank in range(world) for i in ranks[rank]] for step, ranks in steps.items()}


@small
@given(n=studies, seed=seeds, epoch=st.integers(0, 5), chunk=chunks, window=st.integers(1, 5))
def test_every_epoch_holds_each_study_once(n: int, seed: int, epoch: int, chunk: int, window: int) -> None:
    order = epoch_order(n, seed, epoch, chunk, window)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n))


@small
@given(n=st.integers(50, 200), seed=seeds, chunk=chunks)
def test_epochs_and_seeds_differ(n: int, seed: int, chunk: int) -> None:
    first = epoch_order(n, seed, 0, chunk).tolist()
    assert first == epoch_order(n, seed, 0, chunk).tolist()
    assert first != epoch_order(n, seed, 1, chunk).tolist()
    assert first != epoch_order(n, seed + 1, 0, chunk).tolist()


@small
@given(seed=seeds)
def test_reads_stay_inside_a_window_of_chunks(seed: int) -> None:
    order = epoch_order(960, seed, 0, chunk=16, window=4)
    for at in range(0, 960, 64):
        chunk, counts = np.unique(order[at : at + 64] // 16, return_counts=True)
        assert len(chunk) == 4
        assert set(counts) == {16}


def test_order_is_pinned() -> None:
    """A change here changes every run that is resumed after it."""
    assert epoch_order(10, 0, 0, chunk=1).tolist() == [0, 8, 9, 3, 7, 5, 1, 2, 6, 4]
    assert epoch_order(10, 0, 0, chunk=2, window=2).tolist() == [7, 6, 0, 1, 2, 4, 3, 5, 9, 8]


@small
@given(n=studies, seed=seeds, start=st.integers(0, 500), count=st.integers(0, 300), chunk=chunks)
def test_positions_form_one_sequence_over_epochs(n: int, seed: int, start: int, count: int, chunk: int) -> None:
    whole = np.concatenate([epoch_order(n, seed, epoch, chunk) for epoch in range((start + count) // n + 1)])
    assert step_indices(n, seed, start, count, chunk).tolist() == whole[start : start + count].tolist()


@small
@given(n=studies, seed=seeds, first=st.integers(0, 20), steps=st.integers(0, 12), unit=st.integers(1, 4), chunk=chunks,
       rows=st.lists(st.integers(1, 100), min_size=3, max_size=3))  # fmt: skip
def test_steps_are_the_same_for_every_world_and_block_size(n, seed, first, steps, unit, chunk, rows) -> None:
    batch = 6 * unit
    plans = [
        by_step(plan(n, seed, first * batch, steps, batch, world, size, chunk), world)
        for world, size in zip(WORLDS, rows, strict=True)
    ]
    assert plans[0] == plans[1] == plans[2]
    assert list(plans[0]) == list(range(first, first + steps))
    assert all(len(studies) == batch for studies in plans[0].values())


@small
@given(n=studies, seed=seeds, steps=st.integers(2, 12), cut=st.integers(1, 11), world=st.sampled_from(WORLDS))
def test_resuming_on_another_world_gives_the_remaining_steps(
    n: int, seed: int, steps: int, cut: int, world: int
) -> None:
    cut = min(cut, steps - 1)
    whole = by_step(plan(n, seed, 0, steps, 6, 2, 20), 2)
    rest = by_step(plan(n, seed, cut * 6, steps - cut, 6, world, 7), world)
    assert rest == {step: studies for step, studies in whole.items() if step >= cut}


@small
@given(steps=st.integers(1, 20), world=st.sampled_from(WORLDS), rows=st.integers(1, 60))
def test_block_j_belongs_to_rank_j_mod_world_in_rounds_of_equal_rows(steps: int, world: int, rows: int) -> None:
    blocks = plan(50, 0, 0, steps, 12, world, rows)
    assert [block.rank for block in blocks] == [j % world for j in range(len(blocks))]
    for at in range(0, len(blocks), world):
        assert len({(block.step, block.index.shape) for block in blocks[at : at + world]}) == 1
    assert all(block.index.size <= rows or block.steps == 1 for block in blocks)


@small
@given(n=studies, world=st.sampled_from(WORLDS), micro=st.integers(1, 9), rows=st.integers(1, 60))
def test_sequential_blocks_visit_each_study_once_and_fill_all_ranks_alike(
    n: int, world: int, micro: int, rows: int
) -> None:
    steps = by_step(sequential_blocks(n, world, micro, rows), world)
    visited = [i for studies in steps.values() for i in studies]
    assert [i for i in visited if i >= 0] == list(range(n))
    assert len(visited) % (world * micro) == 0
    assert sum(i < 0 for i in visited) < world * micro


@small
@given(n=studies, seed=seeds, first=st.integers(0, 20), steps=st.integers(1, 8), world=st.sampled_from(WORLDS),
       rows=st.integers(1, 60))  # fmt: skip
def test_a_row_knows_its_position_in_the_sequence(n, seed, first, steps, world, rows) -> None:
    for block in plan(n, seed, 6 * first, steps, 6, world, rows):
        share = 6 // world
        for at, (positions, indices) in enumerate(zip(block.position, block.index, strict=True)):
            assert positions.tolist() == [(block.step + at) * 6 + block.rank * share + i for i in range(share)]
            assert indices.tolist() == [int(step_indices(n, seed, int(at), 1)[0]) for at in positions]


def test_sizes_that_cannot_be_are_refused_with_ones_that_can() -> None:
    with pytest.raises(ConfigError, match=r"global batch 96 cannot be split over 5 workers.*95 or 100.*1, 2, 3, 4, 6"):
        plan(10, 0, 0, 1, 96, 5, 8)
    with pytest.raises(ConfigError, match=r"seen 10 studies cannot go on with global batch 4"):
        plan(10, 0, 10, 1, 4, 2, 8)
    with pytest.raises(ConfigError, match="seed=-1"):
        epoch_order(3, -1, 0)
    with pytest.raises(ConfigError, match="0 studies"):
        sequential_blocks(0, 1, 1)
