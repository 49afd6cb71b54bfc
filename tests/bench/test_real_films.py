"""Figures of bench.real_films: a run that knows the films is told from one that does not."""

import numpy as np
import pytest

from bench.mesh import write_published
from bench.real_films import compared, findings_in
from r2kg.graph.build.published import read_published
from r2kg.graph.levels import sample_levels
from shards.errors import DataError

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


MESH = """head,relation,tail,count
Opacity,located_in,lung,9
Lung,has_attribute,hypoinflation,7
Opacity,has_side,left,5
lung,has_attribute,opacity,2
"""


def test_triples_of_mesh_become_a_graph(tmp_path):
    (tmp_path / "mesh.csv").write_text(MESH)
    notes = write_published(tmp_path / "mesh.csv", tmp_path / "kg.csv")
    assert notes == {
        "located_in as located_at": 1, "has_attribute as modify": 2, "has_side as modify": 1,
        "rows joined with others": 1,
    }  # fmt: skip
    graph = read_published(tmp_path / "kg.csv", tmp_path / "graph", "public")
    assert graph.manifest.origin == "table" and len(sample_levels(graph, thresholds=(7,))[0].node) == 3
    said = zip(graph.named_triples(), graph.triples["count"].to_pylist(), strict=True)
    wanted = {("opacity", "located_at", "lung"): 11, ("hypoinflation", "modify", "lung"): 7}
    wanted[("left", "modify", "opacity")] = 5
    assert dict(said) == wanted, "two rows on one pair are one, as the commoner says"


@pytest.mark.parametrize("row", ["Opacity,near,lung,9", "Opacity,located_in,lung,many", "Opacity,located_in"])
def test_a_row_that_is_no_triple_is_named(tmp_path, row):
    (tmp_path / "mesh.csv").write_text(MESH + row + "\n")
    with pytest.raises(DataError, match=r"mesh.csv line 6 is no triple .*relations are located_in, has_attribute"):
        write_published(tmp_path / "mesh.csv", tmp_path / "kg.csv")
