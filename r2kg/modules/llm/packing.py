"""Studies of a micro-batch in rows that they share, so that a language model reads little padding.

Shapes: B studies of up to M tokens, R rows of C, D channels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

IGNORED = -100
"""Label of a position that is no target."""
MOST_PADDING = 0.1
"""Share of the places of shared rows that may be padding, where other rows have less."""


class Packed(NamedTuple):
    """Studies in rows that they share."""

    embeds: Tensor
    """[R, C, D]"""
    position: Tensor
    """int64 [R, C], from 0 in each study; 0 on padding."""
    target: Tensor
    """int64 [R, C], -100 where nothing is to be predicted."""
    there: Tensor
    """bool [R, C], False on padding."""


def shared_rows(lengths: Sequence[int], width: int, one: bool = False) -> list[list[int]] | None:
    """Which studies share a row of a language model, the longest first; None where each has a row of its own anyway.

    First fit into rows of one length, which is the one of least work among those with less padding than `MOST_PADDING`,
    or among all: a row of C tokens takes C(6D + C) of D channels (products with 12D² weights a layer, and with all
    tokens of the row). The same lengths give the same rows.

    Args:
        lengths: tokens of each study.
        one: all in one row, for kernels that skip what is not attended to.
    """
    order, longest = sorted(range(len(lengths)), key=lambda study: -lengths[study]), max(lengths, default=0)

    def cost(rows: int, tokens: int) -> tuple[bool, int]:
        return sum(lengths) < (1 - MOST_PADDING) * rows * tokens, rows * tokens * (6 * width + tokens)

    best, least = [[study] for study in range(len(lengths))], cost(len(lengths), longest)
    for capacity in [sum(lengths)] if one else [longest * eighths // 8 for eighths in range(8, 33)]:
        rows, left = list[list[int]](), list[int]()
        for study in order:
            at = next((at for at, room in enumerate(left) if room >= lengths[study]), len(rows))
            if at == len(rows):
                rows.append([])
                left.append(capacity)
            rows[at].append(study)
            left[at] -= lengths[study]
        tokens = capacity - min(left, default=0)
        if (price := cost(len(rows), tokens)) < least or one:
            best, least = rows, price
    return best if len(best) < len(lengths) else None


def pack(
    embeds: Tensor, there: Tensor, targets: Tensor, lengths: Sequence[int], rows: Sequence[Sequence[int]]
) -> Packed:
    """Lay the tokens that are there of the studies of each row one after the other; the rest is padding.

    Args:
        embeds: [B, M, D], there: bool [B, M], targets: int64 [B, M].
        lengths: tokens that are there of each study; `rows`: every study once.
    """
    studies = [study for row in rows for study in row]
    longest = max(1, *(sum(lengths[study] for study in row) for row in rows))
    begins = torch.tensor([
        number * longest + sum(lengths[study] for study in row[:at])
        for number, row in enumerate(rows)
        for at in range(len(row))
    ], device=embeds.device)  # fmt: skip
    order = torch.tensor(studies, device=embeds.device)
    ordered = there[order]
    study, column = ordered.nonzero(as_tuple=True)
    nth = (ordered.cumsum(1) - 1)[study, column]  # of the tokens of its study
    place, source = begins[study] + nth, order[study] * there.shape[1] + column
    size, shape = len(rows) * longest, (len(rows), longest)
    laid = embeds.new_zeros(size, embeds.shape[2]).index_copy(0, place, embeds.flatten(0, 1)[source])
    position = place.new_zeros(size).index_copy(0, place, nth)
    target = place.new_full((size,), IGNORED).index_copy(0, place, targets.flatten()[source])
    filled = torch.zeros(size, dtype=torch.bool, device=embeds.device).index_fill(0, place, True)
    return Packed(laid.view(*shape, -1), position.view(shape), target.view(shape), filled.view(shape))
