"""The GCN classifier: what a report says of the graph's findings, the paper's sizes, what is trained, what is not
there."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from jobs.graph import NAME
from r2kg.config.parts import Data, Decoding
from r2kg.config.run import Run
from r2kg.graph.build.findings import write_findings
from r2kg.graph.build.keywords import FINDINGS
from r2kg.graph.extract.annotate import write_annotations
from r2kg.graph.extract.rules import Rules
from r2kg.graph.schema import pack
from r2kg.modules.config import Vision
from r2kg.modules.gnn import FindingConvolution, edge_weights
from r2kg.recipes import find_recipe
from r2kg.systems.contract import build_model, modules_of, to_bf16
from r2kg.systems.gcn.config import GcnConfig
from r2kg.systems.gcn.graph import artefact, read_findings
from r2kg.systems.gcn.model import COLUMN, Gcn
from r2kg.systems.gcn.targets import chexpert_nodes, names_of, targets
from r2kg.training.artefacts import prepared
from shards.errors import ConfigError, DataError
from shards.tars.format import read_manifest

SIDE, WIDTH = 64, 6
KEYWORDS = tuple(finding.keywords for finding in FINDINGS)
NAMES = tuple(words[0] for words in KEYWORDS)
STANDS_FOR = names_of(KEYWORDS)
REPORTS = ("There is a small pleural effusion. The heart is enlarged.", "Lungs are clear. No effusion.", "")


def said(report: str, uncertain="present") -> dict[str, float]:
    """Finding → target, of those that are not 0."""
    found = targets(Rules().annotate([report])[0], NAMES, STANDS_FOR, 20, uncertain)
    return {name: value for name, value in zip(NAMES, found, strict=False) if value != 0}


@pytest.mark.parametrize(
    ("report", "findings"),
    [
        ("Lungs are clear. Heart size is normal. No pleural effusion or pneumothorax.", ["normal"]),
        ("There is a small left pleural effusion.", ["pleural effusion"]),
        ("The heart is enlarged.", ["cardiomegaly"]),
        ("Enlarged cardiac silhouette.", ["cardiomegaly"]),
        ("The heart is not enlarged.", ["normal"]),
        ("Displaced rib fractures. Edema is present.", ["fractures bone", "pulmonary edema"]),
        ("Patchy infiltrate in the right base.", ["pneumonia"]),
        ("Pleural thickening and a scar at the left apex.", ["thickening", "cicatrix"]),
        ("Low lung volumes.", ["hypoinflation"]),
        ("Hiatal hernia.", ["hernia hiatal"]),
        ("A pacemaker is in the left chest wall. PICC line in place.", ["catheters indwelling"]),
        ("Endotracheal tube.", ["catheters indwelling"]),
        ("Elevation of the right hemidiaphragm.", ["others"]),
        ("Subcutaneous emphysema.", ["others"]),  # no emphysema of the lung
        ("Pericardial effusion.", ["others"]),
        ("Osteophytes of the spine.", []),  # an auxiliary finding: not normal, and none that is learned
        ("Degenerative changes of the spine.", ["scoliosis"]),
        ("", ["normal"]),
    ],
)
def test_what_a_report_says_of_the_findings(report, findings):
    assert said(report) == dict.fromkeys(findings, 1.0)


def test_what_is_not_sure_is_learned_as_is_asked_for():
    doubt, both = "There may be a pneumothorax.", "There may be edema. Edema is present. Possible pneumothorax."
    assert said(doubt) == {"pneumothorax": 1} and said(doubt, "absent") == {"normal": 1}
    left_out = said(doubt, "left_out")
    assert left_out.keys() == {"pneumothorax", "normal"} and all(value != value for value in left_out.values())
    assert said(both, "absent") == {"pulmonary edema": 1}
    assert said(both, "left_out")["pulmonary edema"] == 1 and "normal" not in said(both, "left_out")


def test_keywords_stand_for_the_lexicons_names_and_for_themselves():
    by_name = dict(zip(NAMES, STANDS_FOR, strict=True))
    assert by_name["normal"] == by_name["others"] == ()
    assert "fracture" in by_name["fractures bone"] and "trauma" in by_name["injury"]
    assert by_name["chest pain"] == ("chest pain",)  # the lexicon knows the chest alone
    assert by_name["malignant neoplastic disease"] == ("malignant neoplastic disease",)
    of = dict(zip(("Edema", "Consolidation", "Pneumonia", "Support Devices", "No Finding"), range(5), strict=True))
    nodes = chexpert_nodes(tuple(of), NAMES, STANDS_FOR, 20)
    assert [[NAMES[node] for node in own] for own in nodes] == [
        ["pulmonary edema"], ["pneumonia"], ["pneumonia"], ["catheters indwelling"], ["normal"],
    ]  # fmt: skip
    assert chexpert_nodes(("Enlarged Cardiomediastinum",), NAMES, STANDS_FOR, 20) == ([],)


@pytest.fixture(scope="module")
def graph(phantom_shards, tmp_path_factory) -> Path:
    """What a run makes of the twenty findings and their organs."""
    place, manifest = tmp_path_factory.mktemp("findings"), read_manifest(phantom_shards)
    write_findings(phantom_shards, place / "graph", "sentkg20")
    made = artefact(str(place / "graph"), Run(name="x", model=GcnConfig()), manifest, "model.graph.at")
    (place / "made").mkdir()
    made.make(place / "made")
    return place / "made"


def small(made: Path, **changes) -> Gcn:
    torch.manual_seed(0)
    vision = Vision(name="test_vit", weights="random", image_px=SIDE, merge="separate")
    given = {"at": str(made)} | changes.pop("graph", {})
    return build_model(GcnConfig(**{"vision": vision, "graph": given, "width": WIDTH, "dropout": 0.0} | changes))


def rows(valid=(True, True, True), **changes) -> dict:
    rng, column = np.random.default_rng(0), np.empty(3, object)
    packed = [pack(annotation) for annotation in Rules().annotate(REPORTS[:2])]
    column[:] = [data if ok else b"" for data, ok in zip([*packed, b""], valid, strict=True)]
    return {
        "images": rng.integers(0, 256, (3, 2, SIDE, SIDE), dtype=np.uint8),
        "view_mask": np.array([[True, True], [True, False], [True, True]]) & np.array(valid)[:, None],
        "valid": np.array(valid),
        "record": np.full(3, "", object),
        COLUMN: column,
    } | changes


def test_edges_are_normalised_as_the_papers_say():
    """By hand, of a root over two joined findings and one alone: D_f^-½ A D_b^-½, and of A + I D_f on both sides."""
    whole = torch.tensor([[0.0, 1, 1, 1], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    edges = whole.nonzero().T
    for loops in (False, True):
        matrix = whole + torch.eye(4) * loops
        ahead = matrix.sum(1).clamp(min=1e-9) ** -0.5
        behind = ahead if loops else matrix.sum(0).clamp(min=1e-9) ** -0.5
        found, (index, weight) = torch.zeros(4, 4), edge_weights(edges, 4, loops)
        found[index[0], index[1]] = weight
        torch.testing.assert_close(found, ahead[:, None] * matrix * behind)
        assert found.isfinite().all()
    torch.manual_seed(0)
    layer, x = FindingConvolution(8, 0.0).eval(), torch.randn(2, 4, 8)
    index, weight = edge_weights(edges, 4)
    dense = torch.zeros(4, 4)
    dense[index[0], index[1]] = weight
    parts = (layer.own(x), dense @ layer.ahead.lin(x), dense.T @ layer.behind.lin(x))
    heard = torch.cat([norm(part).relu() for norm, part in zip(layer.norms, parts, strict=True)], -1)
    torch.testing.assert_close(layer(x, index, weight), (x + layer.norm(layer.joined(heard))).relu())


def test_paper_size():
    """DenseNet-121 of 1024 channels, 40 maps, three layers of 3 D²/4 + 3 D²/4 weights and their norms, 512, 20."""
    with torch.device("meta"):
        model = build_model(find_recipe("gcn.iu").model)
    sizes = {name: sum(p.numel() for p in those) for name, those in modules_of(model).items()}
    layer = 2 * 3 * 1024 * 256 + 3 * 2 * 256 + 2 * 1024
    wanted = {"attention": 40 * 1024, "layers": 3 * layer, "states": 1025 * 512, "head": 513 * 20}
    assert sizes == wanted | {"vision": 6_953_856} and (model.vision.width, model.vision.patches) == (1024, 256)
    assert set(model.trainable()) == {*GcnConfig.trains} == set(sizes)


def test_the_loss_is_cross_entropy_over_studies_and_every_module_learns(graph):
    model = small(graph)
    batch = model.collate(rows())
    (term,) = model.loss(batch).values()
    wanted = F.binary_cross_entropy_with_logits(model.logits(batch)[:2], batch["target"][:2], reduction="sum")
    torch.testing.assert_close(term.sum, wanted)  # nobody has looked at the third report
    assert term.count == 2 == model.counts(batch)["labels"] and model.cut(["{}"]) == [False]
    names = model.findings.names
    there = [[names[node] for node in row.nonzero().flatten()] for row in batch["target"][:2]]
    assert there == [["cardiomegaly", "pleural effusion"], ["normal"]]
    term.sum.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_what_is_not_there_changes_nothing(graph):
    model = small(graph).eval()
    first = model.logits(model.collate(rows()))
    other = rows()
    other["images"][1, 1] = 255 - other["images"][1, 1]  # a view that is not there
    torch.testing.assert_close(model.logits(model.collate(other)), first)
    alone = rows()
    one = {name: column[1:2, :1] if column.ndim > 1 else column[1:2] for name, column in alone.items()}
    torch.testing.assert_close(model.logits(model.collate(one)), first[1:2])
    batch, short = model.collate(rows((True, False, False))), model.collate(rows())
    only = model.loss(batch)["labels"]
    wrong = F.binary_cross_entropy_with_logits(first[:1], short["target"][:1], reduction="sum")
    torch.testing.assert_close(only.sum, wrong)
    assert only.count == 1
    nothing = model.loss(model.collate(rows((False, False, False))))["labels"]
    assert nothing.count == 0 and float(nothing.sum.detach()) == 0


def test_findings_are_told_by_chexperts_names_and_by_their_own(graph):
    model = small(graph, threshold=0.4).eval()
    shown = rows()
    shown.pop(COLUMN)  # in generation targets are not there
    batch = model.collate(shown)
    assert batch["target"].isnan().all()
    for written, row in zip(model.generate(batch, Decoding()), model.logits(batch).sigmoid().tolist(), strict=True):
        told = written.extra["probabilities"]
        assert [*written.extra["findings"].values()] == pytest.approx(row, abs=1e-6) and len(row) == 20
        assert tuple(told) == model.config.labels and written.tokens == sum(p >= 0.4 for p in told.values())
        assert told["Pneumothorax"] == pytest.approx(row[6], abs=1e-6) and told["Consolidation"] == told["Pneumonia"]
        assert told["Lung Opacity"] == max(told[name] for name in ("Lung Opacity", "Edema", "Lung Lesion"))
        json.dumps(written.extra)


def test_node_states_are_those_that_findings_are_read_from(graph):
    model = small(graph).eval()
    films = torch.tensor(rows()["images"][1, :1])
    whole = model.states_of(model.vision.encode(films))
    torch.testing.assert_close(model.node_states(films), whole[:, 1:])
    read = model.head(whole.mean(1))
    torch.testing.assert_close(read, model.logits(model.collate(rows()))[1:2])
    assert model.node_states(films).shape == (1, 20, WIDTH)
    looped = small(graph, graph={"self_loops": True}).eval()
    assert not torch.allclose(looped.node_states(films), model.node_states(films))
    to_bf16(model)
    assert torch.corrcoef(torch.stack([model.node_states(films).flatten(), whole[:, 1:].flatten()]))[0, 1] > 0.95


def test_what_cannot_be_is_refused(graph, tmp_path):
    with pytest.raises(ConfigError, match="model.graph.at is empty"):
        build_model(GcnConfig())
    with pytest.raises(DataError, match="no finding graph of a run at"):
        small(tmp_path)
    for changes, words in (
        ({"labels": ("Edema", "Edema")}, "must name each finding once"),
        ({"labels": ("Pleural Other",)}, "must name each finding once, of No Finding"),
        ({"vision": Vision(name="test_vit")}, "the nodes are read off every film alone"),
    ):
        with pytest.raises(ValueError, match=words):
            GcnConfig(**changes)
    found = read_findings(graph)
    assert found.edges().shape == (2, 20 + 2 * 26) and found.supervised == 20
    assert found._replace(both_ways=True).edges().shape == (2, 2 * 20 + 2 * 26)  # as kg40's: 906 of forty
    inputs = GcnConfig().inputs(Data(views=2))
    assert inputs.training_sides == ("annotations",) and not inputs.sides and not inputs.text
    inputs.refuse_answers("labels")


def test_annotations_that_do_not_speak_of_what_is_read_are_refused(phantom_shards, tmp_path):
    manifest, train_alone = read_manifest(phantom_shards), tmp_path / "said"
    run = find_recipe("gcn.tiny").change({"data.shards": str(phantom_shards), "root": str(tmp_path)})
    assert run.sides == {
        "annotations": f"{phantom_shards}/side/{NAME.format('rules')}"
    }  # where `r2kg graph annotate` writes
    with pytest.raises(DataError, match="no side at .*r2kg graph annotate"):
        prepared(run, manifest)
    write_annotations(phantom_shards, train_alone, Rules())
    run = run.change({"data.sides": {"annotations": str(train_alone)}})
    with pytest.raises(DataError, match="say nothing of val, .*--split train --split val"):
        prepared(run, manifest)
    with pytest.raises(DataError, match="no graph at"):
        prepared(run.change({"train.validation_studies": 0}), manifest)
