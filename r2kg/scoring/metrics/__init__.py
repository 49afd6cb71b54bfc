"""Scores of texts and labels. Nothing here sees a model, an image or a path of the data."""

from collections.abc import Sequence


def check_pairs(references: Sequence[str], hypotheses: Sequence[str]) -> None:
    """Raises `ValueError` unless there is a hypothesis for every reference, and at least one of each."""
    if not references or len(references) != len(hypotheses):
        raise ValueError(
            f"{len(references)} references and {len(hypotheses)} hypotheses: give one or more of each, in pairs"
        )
