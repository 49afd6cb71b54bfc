"""What every adapter of r2kg.modules.beams.Decoder must pass; its own tests call this."""

from collections.abc import Callable
from typing import Any

import torch

from r2kg.modules.beams import Decoder


@torch.no_grad()
def check_cached_equals_uncached(
    decoder: Decoder, batch: Any, uncached: Callable[[int, list[int]], torch.Tensor], tolerance: float = 1e-4
) -> None:
    """Logits read with a cache are those of a reading from scratch, wherever `reorder` put a row.

    The cache is repeated, moved, thinned out and stepped through with other tokens in every row. Give a batch whose
    rows differ in content and, where the decoder takes padding, in length.

    Args:
        batch: at least 3 rows, as the decoder's `first` reads them.
        uncached: (row, written) → logits [words] of the token after `written` in that row of the batch, without a cache
            and without the other rows: a full forward pass, or `first` on the longer prefix.
        tolerance: relative, and absolute in logits.
    """

    def compare(logits: torch.Tensor, held: list[tuple[int, list[int]]]) -> None:
        wanted = torch.stack([uncached(row, written) for row, written in held])
        torch.testing.assert_close(logits, wanted, rtol=tolerance, atol=tolerance)

    logits, cache = decoder.first(batch)
    begun, rows, words = logits.clone(), *logits.shape
    assert rows >= 3, "a batch of fewer rows cannot show that a row went astray"
    assert torch.pdist(begun.float()).min() > 10 * tolerance, "rows that are alike cannot show that one went astray"
    held: list[tuple[int, list[int]]] = [(row, []) for row in range(rows)]
    compare(logits, held)
    reorders = [
        list(range(rows)),
        [row for row in range(rows) for _ in range(3)],  # a beam search begins so
        [*range(3 * rows)][::-1],
        [2, 2, 0, *range(3 * rows - 3)],  # some continued twice, some not at all
        [4, 1, 0],
        [2, 0, 1, 1],
    ]
    draw = torch.Generator().manual_seed(0)
    for parents in reorders:
        device = logits.device
        cache = decoder.reorder(cache, torch.tensor(parents, device=device))
        tokens = torch.randint(words, (len(parents),), generator=draw)
        logits, cache = decoder.step(tokens.to(device), cache)
        held = [
            (held[parent][0], [*held[parent][1], token]) for parent, token in zip(parents, tokens.tolist(), strict=True)
        ]
        compare(logits, held)
    torch.testing.assert_close(decoder.first(batch)[0], begun, msg="the batch was changed by what read it")
