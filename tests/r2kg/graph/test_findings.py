"""The finding graph: as it was published, by its rule of training reports alone, and who takes it."""

import json
import os
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from jobs.graph import findings
from r2kg.graph.artefact import FILE, KnowledgeGraph, load_graph, read_graph_manifest, save_graph
from r2kg.graph.build.findings import (
    EVIDENCE,
    SIZES,
    UNREAD,
    adjacency,
    count,
    joined,
    keywords_of,
    load_finding_graph,
    supervised,
    text_of,
    write_findings,
)
from r2kg.graph.build.keywords import FINDINGS, SUPERVISED, published_pairs
from r2kg.graph.build.reports import build_graph, load_training_graph
from r2kg.graph.card import card_lines, coverage, draw
from r2kg.graph.extract.annotate import write_annotations
from r2kg.graph.extract.rules import Rules
from r2kg.graph.film.write import write_film_subgraphs
from r2kg.graph.levels import sample_levels
from r2kg.recipes import find_recipe
from r2kg.systems.r2genkg.graph import artefact
from shards.errors import ConfigError, DataError
from shards.sources.iu_xray.source import IuXray
from shards.sources.iu_xray.xml import read_xml
from shards.stream.index import read_studies
from shards.study import Study
from shards.tars.format import read_manifest
from shards.tars.shards import write_shards

REAL = pytest.mark.skipif("R2KG_REAL_DATA" not in os.environ, reason="R2KG_REAL_DATA is not set: no published matrices")
KEYWORDS = [finding.keywords for finding in FINDINGS]
NAMES = [own[0] for own in KEYWORDS]


def published(name: str) -> Path:
    return Path(os.environ["R2KG_REAL_DATA"]) / "finding_graph" / name


@pytest.fixture(scope="module")
def graphs(phantom_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, KnowledgeGraph]:
    """Every kind, made of drawn shards where it is made of any."""
    root = tmp_path_factory.mktemp("findings")
    return {kind: write_findings(phantom_shards, root / kind, kind) for kind in SIZES}


def edges(graph: KnowledgeGraph, relation: str = "co_occurs") -> set[tuple[str, str]]:
    return {(head, tail) for head, kind, tail in graph.named_triples() if kind == relation}


@REAL
@pytest.mark.parametrize(
    ("kind", "file"),
    [("kg40-lineage", "openi_matrix_40nodes_binary.txt"), ("kg30-code", "auxillary_openi_matrix_30nodes.txt")],
)
def test_the_published_kinds_are_the_published_matrices_without_their_root(graphs, kind, file):
    lines = published(file).read_text().splitlines()
    matrix = np.array([[float(cell) for cell in line.replace(",", " ").split()] for line in lines])
    assert (matrix[0, 1:] == 1).all(), "the root is joined to all"
    assert np.array_equal(adjacency(graphs[kind]), matrix[1:, 1:])


@REAL
def test_the_keywords_are_the_published_ones(graphs):
    listed = [
        tuple(line.split(" / ")) for line in published("openi_40keywords.txt").read_text().splitlines() if line.strip()
    ]
    assert list(keywords_of(graphs["kg40-lineage"])) == list(keywords_of(graphs["kg40-train"])) == listed
    thirty = [tuple(line.split(" / ")) for line in published("openi_30keywords.txt").read_text().splitlines()]
    own = list(keywords_of(graphs["kg30-code"]))
    assert own == listed[:30] and [words for words in own if words != ("others",)] == thirty, (
        "node 20 of the thirty-node matrix has no line of keywords"
    )


def test_how_many_are_joined_is_as_it_was_counted(graphs):
    sizes = {kind: (len(edges(graph, "same_organ")), len(edges(graph))) for kind, graph in graphs.items()}
    assert sizes == sizes | {"kg40-lineage": (26, 387), "kg30-code": (26, 192), "sentkg20": (26, 0)}
    lineage, organs = adjacency(graphs["kg40-lineage"]), adjacency(graphs["sentkg20"])
    assert lineage.dtype == np.float32 and not lineage.diagonal().any() and np.array_equal(lineage, lineage.T)
    assert np.array_equal(lineage[:20, :20], organs) and np.flatnonzero(~lineage.any(0)).tolist() == [18, 19, 35]
    for kind, graph in graphs.items():
        assert graph.names == tuple(NAMES[: SIZES[kind]]) and supervised(graph) == SUPERVISED
    train = edges(graphs["kg40-train"])
    assert all(tail in NAMES[SUPERVISED:] for _, tail in train), "of the findings that are learned organs alone decide"


@REAL
def test_the_rule_finds_the_published_edges_in_the_reports_there_are():
    """3,134 of the 3,955 reports that the matrix was made of."""
    exams = read_xml(Path(os.environ["R2KG_REAL_DATA"]) / "iu_xray" / "NLMCXR_reports.tgz").exams
    studies = [
        Study(key=f"s{at}", id="", split="train", views=(), sections=exam.sections, report="", target="")
        for at, exam in enumerate(exams)
    ]
    counts = count(((study.key, text_of(study)) for study in studies), KEYWORDS)
    found, given = {(head + 1, tail + 1) for head, tail in joined(counts)[0]}, published_pairs(40)
    given = {(head + 1, tail + 1) for head, tail in given}
    assert counts.reports == 3134 and len(found) == 378
    assert found - given == {(8, 26)}, "the rule finds it, the matrix has it not; so it is with (19, 27) in all reports"
    assert given - found == {
        (12, 37), (13, 24), (16, 35), (18, 23), (18, 30), (21, 34), (26, 40), (27, 29), (27, 39), (31, 38),
    }, "the other reports alone say these"  # fmt: skip
    held, of_all = counts.together.diagonal(), np.array([finding.reports for finding in FINDINGS])
    assert (held <= of_all).all() and (of_all <= held + 3955 - 3134).all()
    assert abs(held.sum() / of_all.sum() - 3134 / 3955) < 0.01


def planted(draw: Callable, out: Path, split: str) -> Path:
    """Shards whose reports hold asthma in an indication and a hernia in findings, in one split alone."""

    def edit(listing: dict) -> None:
        listing[split][0] |= {"indication": "Known   Asthma.", "report": "A small HERNIATION is seen."}

    raw = draw(train=4, val=1, test=2, edit=edit)
    write_shards(IuXray(raw=raw), out, size=64, studies_per_shard=2)
    return out


def test_what_training_reports_hold_together_is_joined(ray_session, drawn_iu, tmp_path):
    graph = write_findings(planted(drawn_iu, tmp_path / "iu", "train"), tmp_path / "graph")
    assert edges(graph) == {("hernia hiatal", "asthma")}, "across sections, also within a word"
    held = dict(zip(graph.names, graph.nodes["count"].to_pylist(), strict=True))
    assert held["normal"] == 3 and held["asthma"] == held["hernia hiatal"] == 1
    told = graph.manifest
    assert told.origin == "findings" and told.parent == read_manifest(tmp_path / "iu").fingerprint
    assert (told.description["reports"], told.description["splits"], told.licence) == (4, ["train"], "cc-by-nc-nd-4.0")
    assert told.warnings == {"reports without comparison and indication, which the rule reads too": 3}
    (row,) = graph.provenance.to_pylist()
    (study,) = [study for study in read_studies(tmp_path / "iu", "train") if study.sections.get("indication")]
    assert text_of(study)[row["start"] : row["end"]] == "asthma. a small hernia"
    assert row["study"] == study.key and row["rule"] == "hernia + asthma"
    assert row["sentence"] is row["certainty"] is None, "nobody asked"


@pytest.mark.parametrize("split", ["val", "test"])
def test_what_other_splits_hold_joins_nothing(ray_session, drawn_iu, tmp_path, split):
    graph = write_findings(planted(drawn_iu, tmp_path / "iu", split), tmp_path / "graph")
    assert not edges(graph) and len(edges(graph, "same_organ")) == 26
    held = dict(zip(graph.names, graph.nodes["count"].to_pylist(), strict=True))
    assert held["normal"] == 4 and sum(held.values()) == 4 and not graph.provenance.num_rows


def test_a_target_section_of_another_name_is_read(phantom_shards):
    study = next(iter(read_studies(phantom_shards, "train")))
    other = study.model_copy(update={"sections": {"history": "asthma"}, "report": "A\n HERNIA."})
    notes = Counter[str]()
    assert text_of(other, notes) == "a hernia." and list(notes.values()) == [1, 1]
    both = study.model_copy(update={"sections": {"impression": "B", "comparison": "None", "findings": "A"}})
    assert text_of(both) == "none a b"


TEXTS = ["asthma and fibrosis"] * 3 + ["asthma and vomiting"] + ["fibrosis"] * 2 + ["clear"] * 4
ASTHMA, VOMITING, FIBROSIS = (NAMES.index(name) for name in ("asthma", "vomiting", "fibrosis"))


def test_limits_take_edges_and_are_counted():
    counts = count([(f"s{at}", text) for at, text in enumerate(TEXTS)], KEYWORDS)
    assert joined(counts) == ({(ASTHMA, FIBROSIS), (ASTHMA, VOMITING)}, {})
    assert joined(counts, min_count=2) == ({(ASTHMA, FIBROSIS)}, {"edges below min_count": 1})
    weak = np.log(0.3 / (0.4 * 0.5)) / -np.log(0.3)  # 0.337; vomiting never is without asthma: ln 2.5 / ln 10 = 0.398
    assert joined(counts, min_npmi=weak + 0.01) == ({(ASTHMA, VOMITING)}, {"edges below min_npmi": 1})
    assert len(joined(counts, min_npmi=weak - 0.01)[0]) == 2 and not joined(counts, min_npmi=0.4)[0]
    always = count([("s0", "asthma and fibrosis")] * 2, KEYWORDS)
    assert joined(always, min_npmi=1)[0] == {(ASTHMA, FIBROSIS)}


def test_limits_reach_the_graph_and_it_tells_them(phantom_shards, graphs, tmp_path):
    whole, counts = graphs["kg40-train"], graphs["kg40-train"].triples
    often = sorted(
        n for n, kind in zip(counts["count"].to_pylist(), counts["relation"].to_pylist(), strict=True)
        if kind == "co_occurs"
    )  # fmt: skip
    least = often[len(often) // 2] + 1
    fewer = write_findings(phantom_shards, tmp_path / "fewer", min_count=least)
    assert edges(fewer) < edges(whole) and edges(fewer, "same_organ") == edges(whole, "same_organ")
    assert fewer.manifest.warnings["edges below min_count"] == len(edges(whole)) - len(edges(fewer))
    assert fewer.manifest.description["min_count"] == least and fewer.manifest.description["min_npmi"] is None
    assert fewer.manifest.fingerprint != whole.manifest.fingerprint
    told = write_findings(phantom_shards, tmp_path / "npmi", min_npmi=1)
    assert edges(told) == {("granuloma", "calcification")}, "drawn granulomas are calcified, and nothing else is"
    assert told.manifest.description["min_npmi"] == 1


def test_the_graph_counts_reports_and_names_some_of_each_edge(phantom_shards, graphs, tmp_path):
    graph, texts = graphs["kg40-train"], {s.key: text_of(s) for s in read_studies(phantom_shards, "train")}
    holds = np.array([[any(word in text for word in own) for own in KEYWORDS] for text in texts.values()], np.int64)
    together = holds.T @ holds
    assert graph.nodes["count"].to_pylist() == together.diagonal().tolist()
    triples, named = graph.triples.to_pylist(), Counter(graph.provenance["triple"].to_pylist())
    assert {(t["head"], t["tail"]) for t in triples if t["relation"] == "co_occurs"} == {
        (head, tail) for head, tail in np.argwhere(np.triu(together, 1)).tolist() if tail >= SUPERVISED
    }
    for at, triple in enumerate(triples):
        assert triple["count"] == together[triple["head"], triple["tail"]] and triple["present"] is None
        assert named[at] == (min(triple["count"], EVIDENCE) if triple["relation"] == "co_occurs" else 0)
    for row in graph.provenance.to_pylist():
        first, last = sorted(row["rule"].split(" + "), key=texts[row["study"]].find)
        cut = texts[row["study"]][row["start"] : row["end"]]
        assert cut.startswith(first) and cut.endswith(last)
    again = write_findings(phantom_shards, tmp_path / "again")
    assert again.manifest == graph.manifest, "the same reports make the same graph"
    assert load_finding_graph(tmp_path / "again", read_manifest(phantom_shards)).triples.equals(graph.triples)


def test_an_edge_names_no_more_reports_than_it_says():
    counts = count([(f"s{at}", "asthma, fibrosis") for at in range(EVIDENCE + 5)], KEYWORDS)
    assert counts.together[ASTHMA, FIBROSIS] == EVIDENCE + 5
    assert [one.study for one in counts.evidence] == [f"s{at}" for at in range(EVIDENCE)]


def test_a_record_that_cannot_be_read_is_counted(ray_session, drawn_iu, tmp_path):
    root = planted(drawn_iu, tmp_path / "iu", "train")
    before = write_findings(root, tmp_path / "before").manifest.description["reports"]
    shard = next(shard for shard in read_manifest(root).shards if shard.split == "train")
    data = bytearray((root / shard.name).read_bytes())
    at = data.index(b'"report"')
    data[at : at + 8] = b'"rep0rt"'
    (root / shard.name).write_bytes(data)
    told = write_findings(root, tmp_path / "after").manifest
    assert told.description["reports"] == before - 1 and told.warnings[UNREAD] == 1


def test_where_a_graph_comes_from_decides_who_takes_it(phantom_shards, graphs, drawn_iu, tmp_path):
    manifest = read_manifest(phantom_shards)
    write_annotations(phantom_shards, tmp_path / "said", Rules())
    build_graph(phantom_shards, tmp_path / "said", tmp_path / "reports")
    with pytest.raises(
        DataError, match=r"is made from reports, and a finding graph is needed: .*graph findings SHARDS"
    ):
        load_finding_graph(tmp_path / "reports", manifest)
    write_findings(phantom_shards, tmp_path / "train")
    write_findings(phantom_shards, tmp_path / "lineage", "kg40-lineage")
    others = read_manifest(planted(drawn_iu, tmp_path / "iu", "train"))
    with pytest.raises(
        DataError, match=f"is of shards {manifest.fingerprint[:12]}, these have {others.fingerprint[:12]}"
    ):
        load_finding_graph(tmp_path / "train", others)
    assert load_finding_graph(tmp_path / "train", None).names == load_finding_graph(tmp_path / "lineage", others).names
    with pytest.raises(DataError, match=r"is a finding graph \(kg40-lineage\): .*Build a graph with `r2kg graph build"):
        load_training_graph(tmp_path / "lineage", phantom_shards, manifest)
    change = {"data.shards": str(phantom_shards), "model.graph.place": str(tmp_path / "train")}
    run = find_recipe("r2genkg.tiny").change(change)
    with pytest.raises(DataError, match=r"is a finding graph \(kg40-train\)"):
        artefact(run.model.graph, "", run, manifest, "")
    with pytest.raises(DataError, match="is a finding graph"):
        write_film_subgraphs(phantom_shards, tmp_path / "train", "nowhere", tmp_path / "said", tmp_path / "films")
    with pytest.raises(ConfigError, match="a finding graph has no levels"):
        sample_levels(graphs["kg40-lineage"], [20])


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (
            {"kind": "kg50"},
            "unknown kind 'kg50' of finding graph: one of kg40-train, kg40-lineage, kg30-code, sentkg20",
        ),
        ({"kind": "kg30-code", "min_count": 2}, "kg30-code is as it was published"),
        ({"kind": "sentkg20", "min_npmi": 0.0}, "sentkg20 is as it was published"),
        ({"min_count": 0}, "min_count=0"),
        ({"min_npmi": float("nan")}, "min_npmi=nan"),
        ({"min_npmi": 1.5}, "min_npmi=1.5"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(phantom_shards, tmp_path, asked, told):
    with pytest.raises(ConfigError, match=told):
        write_findings(phantom_shards, tmp_path / "graph", **asked)
    assert not (tmp_path / "graph").exists()


def test_a_graph_needs_a_place_of_its_own(phantom_shards):
    with pytest.raises(ConfigError, match=r"holds something else \(drops.jsonl\): a graph needs a place of its own"):
        write_findings(phantom_shards, phantom_shards)


def test_a_graph_made_otherwise_is_not_written_over(phantom_shards, graphs, tmp_path, monkeypatch, capsys):
    kept = write_findings(phantom_shards, tmp_path, "kg40-lineage").manifest
    assert write_findings(phantom_shards, tmp_path, "kg40-lineage").manifest == kept
    told = r"holds a graph that was made otherwise \(kind was kg40-lineage, is now sentkg20, .*\): say --replace"
    with pytest.raises(ConfigError, match=told):
        write_findings(phantom_shards, tmp_path, "sentkg20")
    monkeypatch.setattr("r2kg.graph.build.findings.counts_of", partial(pytest.fail, "no report is to be read"))
    with pytest.raises(ConfigError, match="kind was kg40-lineage, is now kg40-train"):
        write_findings(phantom_shards, tmp_path)
    mine = graphs["kg40-train"]
    tables = {name: getattr(mine, name) for name in ("nodes", "triples", "provenance")}
    save_graph(tmp_path / "train", mine.manifest, tables)
    assert write_findings(phantom_shards, tmp_path / "train").manifest == mine.manifest
    assert "is made already" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"made otherwise \(min_count was 1, is now 2\)"):
        write_findings(phantom_shards, tmp_path / "train", min_count=2)
    assert read_graph_manifest(tmp_path) == kept
    assert write_findings(phantom_shards, tmp_path, "sentkg20", replace=True).nodes.num_rows == 20


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"supervised": 21}, "supervised is '21', which is no number of its 20 findings"),
        ({"supervised": True}, "supervised is 'True'"),
        ({"groups": {"heart": ["cardiomegaly"]}}, "its groups do not name every finding once"),
        ({"groups": None}, "its groups do not name every finding once"),
    ],
)
def test_a_finding_graph_that_contradicts_itself_is_refused(graphs, tmp_path, changes, told):
    graph = graphs["sentkg20"]
    description = graph.manifest.description | changes
    tables = {name: getattr(graph, name) for name in ("nodes", "triples", "provenance")}
    with pytest.raises(DataError, match=told):
        save_graph(tmp_path / "graph", graph.manifest.model_copy(update={"description": description}), tables)


def test_edges_and_relations_are_those_of_the_origin(graphs, tmp_path):
    graph = graphs["sentkg20"]
    tables = {name: getattr(graph, name) for name in ("nodes", "triples", "provenance")}
    with pytest.raises(DataError, match="unknown relations \\['same_organ'\\]"):
        save_graph(tmp_path / "graph", graph.manifest.model_copy(update={"origin": "reports"}), tables)
    turned = graph.triples.rename_columns(["tail", "relation", "head", *graph.triples.column_names[3:]])
    with pytest.raises(DataError, match="stands twice, or not from the smaller row to the larger one"):
        save_graph(tmp_path / "graph", graph.manifest, tables | {"triples": turned})


def test_the_card_says_what_it_was_made_of_and_is_drawn(phantom_shards, graphs, tmp_path):
    lines = card_lines(graphs["kg40-lineage"])
    assert lines[0] == "40 nodes, 413 triples; public" and lines[1].startswith("from findings by kg40-lineage; ")
    made = "made of: all 3,955 reports of IU X-Ray, test reports included, and not these shards' training split alone"
    assert made in lines and not any("statements" in line or "said once" in line for line in lines)
    assert "co_occurs: one report holds keywords of both, denied or not; min_count 1, min_npmi None" in lines
    own = card_lines(graphs["kg40-train"])
    studies = read_manifest(phantom_shards).splits["train"].studies
    assert f"made of: {studies:,} reports of the training split" in own and "groups: no organ 2, heart 1" in "".join(
        own
    )
    assert "made of: no reports: findings of one organ are joined" in card_lines(graphs["sentkg20"])
    assert coverage(graphs["kg40-train"], phantom_shards, "val").keys() == {"entities"}
    picture = draw(graphs["kg40-lineage"], tmp_path / "graph.svg").read_text()
    assert all(f"<!-- {name} (" in picture for name in NAMES), "every finding has its label"
    assert "<!-- mediastinum -->" in picture and "<!-- same_organ -->" in picture


def test_the_verb_writes_it_beside_the_shards(phantom_shards, tmp_path, capsys):
    findings(str(phantom_shards), kind="kg30-code", out=str(tmp_path / "graph"))
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "30 nodes, 218 triples; public" and printed[-1] == str(tmp_path / "graph")
    assert json.loads((tmp_path / "graph" / FILE).read_text())["description"]["kind"] == "kg30-code"
    assert load_graph(tmp_path / "graph").manifest.parent == ""
