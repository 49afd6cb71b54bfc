"""Facts that text metrics hide: does the system write one report for everyone, stop short, or write nothing?"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any


def score_health(lines: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Shares in 0..1 and mean lengths in words, over prediction lines as written (no protocol).

    `unique_share`: distinct predictions / studies; `commonest_share`: studies that get the commonest prediction /
    studies; `truncated_share`: generations stopped by the length limit, over the lines that say so, None when no line
    does. Predictions are compared after blanks are made single. Raises `ValueError` for no lines.
    """
    if not lines:
        raise ValueError("health needs at least one prediction line")
    predictions = [" ".join(line["prediction"].split()) for line in lines]
    counts = Counter(predictions)
    truncated = [bool(line["truncated"]) for line in lines if line.get("truncated") is not None]
    return {
        "unique_share": len(counts) / len(lines),
        "commonest_share": max(counts.values()) / len(lines),
        "empty_share": counts[""] / len(lines),
        "truncated_share": sum(truncated) / len(truncated) if truncated else None,
        "mean_words_prediction": sum(len(text.split()) for text in predictions) / len(lines),
        "mean_words_reference": sum(len(line["reference"].split()) for line in lines) / len(lines),
    }
