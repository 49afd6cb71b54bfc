"""Figures of bench.real_films: a run that knows the films is told from one that does not."""

import numpy as np
import pytest

from bench.real_films import compared, findings_in

SAYS = (
    "the heart is enlarged . there is a left pleural effusion .",
    "the lungs are clear . no pneumothorax or effusion is seen .",
    "there is a calcified granuloma in the right upper lobe . the heart is normal in size .",
    "possible atelectasis at the left base . no effusion .",
)


def lines_of(texts: list[str]) -> list[dict]:
    return [{"id": str(at), "prediction": text, "reference": SAYS[at % 4]} for at, text in enumerate(texts)]


def test_a_finding_is_what_is_present_or_uncertain():
    found = findings_in(SAYS)
    assert "pleural effusion" in found[0] and not found[1] and found[3] == {"atelectasis"}


def test_what_knows_the_films_stands_above_both_controls():
    knows, blind = lines_of([SAYS[at % 4] for at in range(40)]), lines_of([SAYS[(at + 1) % 4] for at in range(40)])
    told = compared(knows, blind, SAYS[0], "r2gen-2020-iu")
    (macro,) = [values for metric, values in told.items() if "macro" in metric]
    for values in (told["finding F1, micro"], macro, told["CIDEr-D"]):
        assert values["ours"] == pytest.approx(10 if values is told["CIDEr-D"] else 1)
        assert values["above shuffled"][0] > 0 and values["above floor"][0] > 0
    assert told["finding F1, micro"]["shuffled"] == 0 and told["finding F1, micro"]["floor"] > 0
    assert told["findings a report"]["ours"] == told["findings a report"]["references"]


def test_what_does_not_know_them_does_not():
    mixed = np.random.default_rng(0).permutation(40)
    blind, other = lines_of([SAYS[at % 4] for at in mixed]), lines_of([SAYS[at % 4] for at in mixed[::-1]])
    low, high = compared(blind, other, SAYS[0], "r2gen-2020-iu")["finding F1, micro"]["above shuffled"]
    assert low <= 0 <= high
