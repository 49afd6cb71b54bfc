"""From shards to a graph: what is annotated, how names become nodes, what a graph says of where it came from."""

import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from r2kg.graph.artefact import FILE, load_graph, read_graph_manifest
from r2kg.graph.build.reports import Said, Sifting, Statement, alike, build_graph, integrated, read_merge, refuse_leak
from r2kg.graph.card import card_lines, coverage, draw
from r2kg.graph.extract.annotate import NOT_ASKED, write_annotations
from r2kg.graph.extract.evaluate import evaluate_extractor
from r2kg.graph.extract.rules import Rules
from r2kg.graph.levels import witnesses
from r2kg.graph.schema import Annotation
from shards.errors import ConfigError, DataError
from shards.sources.iu_xray.source import IuXray
from shards.stream.index import Index, read_studies
from shards.tars.format import read_manifest
from shards.tars.kinds import read_side
from shards.tars.shards import write_shards

KINDS = {"heart": "anatomy", "large": "concept", "small": "concept", "effusion": "disorder", "base": "anatomy"}


def statement(head: str, relation: str, tail: str, certainty: str = "present", study: str = "s1") -> Statement:
    return Statement(head, relation, tail, certainty, study, 0, 3, 9, "by hand")  # type: ignore[arg-type]


def said(*statements: Statement) -> Said:
    names = Counter((name, KINDS[name], s.certainty) for s in statements for name in (s.head, s.tail))
    return Said(names, list(statements))


def graph_of(tables: dict) -> list[tuple]:
    names = tables["nodes"]["name"].to_pylist()
    return [(names[t["head"]], t["relation"], names[t["tail"]], t["count"]) for t in tables["triples"].to_pylist()]


def test_most_statements_decide_how_two_nodes_are_joined_and_all_of_them_count():
    ways = [statement("large", "modify", "effusion")] * 3 + [statement("effusion", "modify", "large")]
    ways += [statement("large", "located_at", "effusion", "absent")]
    tables, notes = integrated(said(*ways), Sifting())
    assert graph_of(tables) == [("large", "modify", "effusion", 5)]
    assert notes == {"statements the other way round": 1, "statements of a rarer relation": 1}
    (triple,) = tables["triples"].to_pylist()
    assert (triple["present"], triple["absent"], triple["uncertain"]) == (4, 1, 0)
    assert tables["provenance"].num_rows == 5


def test_rare_nodes_and_triples_self_loops_and_other_certainties_go_and_are_counted():
    ways = [statement("large", "modify", "effusion")] * 3 + [statement("small", "modify", "effusion")]
    ways += [statement("effusion", "located_at", "effusion"), statement("effusion", "located_at", "base", "absent")]
    tables, notes = integrated(said(*ways), Sifting(min_count=2, certainty=("present",)))
    assert graph_of(tables) == [("large", "modify", "effusion", 3)] and tables["nodes"].num_rows == 2
    assert notes == {
        "nodes below min_count": 1, "statements on nodes that were dropped": 2, "self-loops": 1,
    }  # fmt: skip
    tables, notes = integrated(said(*ways), Sifting(min_triple_count=3, self_loops=True))
    assert graph_of(tables) == [("large", "modify", "effusion", 3)] and notes == {"triples below min_triple_count": 3}


def test_merged_names_are_one_node_that_remembers_them():
    ways = [statement("large", "modify", "effusion"), statement("small", "modify", "effusion")]
    tables, _ = integrated(said(*ways), Sifting(merge={"small": "large"}))
    assert graph_of(tables) == [("large", "modify", "effusion", 2)]
    assert {node["name"]: node["aliases"] for node in tables["nodes"].to_pylist()} == {
        "effusion": [],
        "large": ["small"],
    }


def test_a_table_of_names_that_mean_the_same_is_read(tmp_path):
    path = tmp_path / "merge.csv"
    path.write_text("name,node,cui\nBig,large,C1\neffusions,effusion,C2\n")
    assert read_merge(path) == {"big": "large"}, "the lexicon knows the other already"
    path.write_text("name,node\nbig,large\nbig,small\n")
    with pytest.raises(DataError, match="line 3 is malformed: its name is merged into another node by a line above"):
        read_merge(path)
    path.write_text("name,node\nbig,large\nlarge,huge\n")
    with pytest.raises(DataError, match="1 nodes are merged into others themselves"):
        read_merge(path)


@pytest.mark.parametrize(
    ("name", "node"),
    [
        ("Effusions", "pleural effusion"), ("pleuraleffusion", "pleural effusion"), ("mildblunting", "mild blunting"),
        ("foratelectasis", "foratelectasis"), ("enlarged  heart", "cardiomegaly"), ("xyz", "xyz"),
        ("lungbases", "base"),
    ],
)  # fmt: skip
def test_spellings_become_one_name_and_glued_words_come_apart(name, node):
    assert alike(name) == node


def test_nothing_left_is_an_error_that_says_what_was_dropped():
    with pytest.raises(
        DataError, match="nothing to make a graph of: 0 nodes and no triple are left .*'nodes below min"
    ):
        integrated(said(statement("large", "modify", "effusion")), Sifting(min_count=5))


@pytest.fixture(scope="module")
def graph_place(phantom_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("graph")
    write_annotations(phantom_shards, place / "said", Rules())
    build_graph(phantom_shards, place / "said", place / "graph")
    return place


def test_training_reports_alone_are_annotated(phantom_shards, graph_place):
    side, counts = read_side(graph_place / "said"), read_manifest(phantom_shards).splits
    assert side.description["splits"] == ["train"] and side.description["extractor"] == "rules"
    assert side.without == {NOT_ASKED: counts["val"].studies + counts["test"].studies}


def test_the_studies_behind_a_node_do_not_deny_it(graph_place):
    graph = load_graph(graph_place / "graph")
    rows = [graph.provenance[name].to_pylist() for name in ("triple", "study", "certainty")]
    said = {(triple, study) for triple, study, certainty in zip(*rows, strict=True) if certainty != "absent"}
    ends = list(zip(*(graph.triples[name].to_pylist() for name in ("head", "tail")), strict=True))
    behind = witnesses(graph)
    assert any(behind) and len(behind) == len(graph.names)
    for node, studies in enumerate(behind):
        own = [triple for triple, pair in enumerate(ends) if node in pair]
        assert all(any((triple, study) in said for triple in own) for study in studies)
        assert bool(studies) == any(triple in own for triple, _ in said)


def test_a_graph_knows_where_each_of_its_triples_was_said(phantom_shards, graph_place):
    graph = load_graph(graph_place / "graph")
    reports = {study.key: study.report for study in read_studies(phantom_shards, "train")}
    triples, counts = graph.named_triples(), Counter(graph.provenance["triple"].to_pylist())
    assert [counts[at] for at in range(len(triples))] == graph.triples["count"].to_pylist()
    assert graph.triples["count"].to_pylist() == sorted(graph.triples["count"].to_pylist(), reverse=True)
    (rules, checked) = (Rules(), 0)
    for row in graph.provenance.to_pylist()[::7]:
        words = reports[row["study"]][row["start"] : row["end"]]
        again = rules.annotate([words])[0]
        checked += triples[row["triple"]] in again.triples()
    assert checked > 0.9 * len(graph.provenance.to_pylist()[::7]), "what is cut out of a report says the same"
    assert graph.manifest.parent == read_manifest(phantom_shards).fingerprint and graph.manifest.licence == "synthetic"


def test_what_means_the_same_is_told_by_the_graph_without(phantom_shards, graph_place, tmp_path):
    whole = load_graph(graph_place / "graph")
    merged = build_graph(
        phantom_shards, graph_place / "said", tmp_path / "merged", Sifting(merge={"moderate": "severe"}),
        synonyms=lambda graph: {"severe": "large"} if "severe" in graph.names else {},
    )  # fmt: skip
    assert {"moderate", "severe"} <= {*whole.names} and not {"moderate", "severe"} & {*merged.names}
    (large,) = [node for node in merged.nodes.to_pylist() if node["name"] == "large"]
    assert large["aliases"] == ["moderate", "severe"] and merged.manifest.warnings["names merged into others"] == 2


def test_the_same_reports_make_the_same_graph(phantom_shards, graph_place, tmp_path):
    again = build_graph(phantom_shards, graph_place / "said", tmp_path / "again")
    assert again.manifest.fingerprint == read_graph_manifest(graph_place / "graph").fingerprint


def test_a_triple_that_only_tested_reports_support_is_refused_by_name(phantom_shards, graph_place, tmp_path):
    train = [key.decode() for key in Index.open(phantom_shards, "train").keys]
    refuse_leak(load_graph(graph_place / "graph"), train)
    write_annotations(phantom_shards, tmp_path / "all", Rules(), splits=("train", "val", "test"))
    assert (
        build_graph(phantom_shards, tmp_path / "all", tmp_path / "clean").manifest.tables
        == read_graph_manifest(graph_place / "graph").tables
    ), "annotations of other splits are not looked at"
    forced = build_graph(phantom_shards, tmp_path / "all", tmp_path / "forced", force=True)
    assert forced.manifest.description["splits"] == ["train", "val", "test"]
    only = set(forced.named_triples()) - set(load_graph(graph_place / "graph").named_triples())
    assert only, "drawn reports of other splits say something new"
    with pytest.raises(
        DataError, match=r"studies outside the training split \(no training report says '(.*)'\)"
    ) as told:
        refuse_leak(forced, train)
    assert any(" ".join(triple) in str(told.value) for triple in only)


def test_annotations_that_do_not_fit_are_refused(phantom_shards, graph_place, tmp_path, drawn_iu):
    write_annotations(phantom_shards, tmp_path / "val", Rules(), splits=("val",))
    with pytest.raises(DataError, match="annotates val: a graph is made of train"):
        build_graph(phantom_shards, tmp_path / "val", tmp_path / "graph")
    with pytest.raises(ConfigError, match="holds something else: a graph needs a place of its own"):
        build_graph(phantom_shards, graph_place / "said", phantom_shards)
    with pytest.raises(DataError, match="no studies of other"):
        write_annotations(phantom_shards, tmp_path / "none", Rules(), splits=("other",))


class Nothing(Rules):
    def annotate(self, reports):
        return [Annotation() for _ in reports]


def test_reports_that_say_nothing_make_no_graph(phantom_shards, tmp_path):
    write_annotations(phantom_shards, tmp_path / "said", Nothing())
    with pytest.raises(DataError, match="nothing to make a graph of"):
        build_graph(phantom_shards, tmp_path / "said", tmp_path / "graph")


@pytest.mark.parametrize("table", ["nodes", "triples", "provenance"])
def test_a_changed_table_is_refused(graph_place, tmp_path, table):
    copy = tmp_path / "graph"
    copy.mkdir()
    for file in (graph_place / "graph").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    load_graph(copy)
    rows = pq.read_table(copy / f"{table}.parquet")
    pq.write_table(rows.slice(1), copy / f"{table}.parquet")
    with pytest.raises(DataError, match=f"{table}.parquet is not what graph.json says"):
        load_graph(copy)
    (copy / f"{table}.parquet").unlink()
    with pytest.raises(DataError, match=f"{table}.parquet"):
        load_graph(copy)


def test_a_graph_that_was_edited_is_refused(graph_place, tmp_path):
    text = json.loads((graph_place / "graph" / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps(text | {"licence": "public"}))
    with pytest.raises(DataError, match="was changed after it was written"):
        load_graph(tmp_path)
    with pytest.raises(DataError, match="no graph at .*make it with `r2kg graph build SHARDS`"):
        load_graph(tmp_path / "nowhere")


def test_the_card_says_what_is_there_and_what_is_known_of_other_splits(phantom_shards, graph_place, tmp_path):
    graph = load_graph(graph_place / "graph")
    lines = card_lines(graph)
    assert lines[0].startswith(f"{graph.nodes.num_rows:,} nodes, {graph.triples.num_rows:,} triples")
    assert lines[1].startswith("from reports by rules of train; fingerprint")
    shares = coverage(graph, phantom_shards, "test")
    assert 0.8 < shares["entities"] <= 1.0 and 0.5 < shares["triples"] <= 1.0
    picture = draw(graph, tmp_path / "graph.svg").read_text()
    assert "<svg" in picture and picture.count("<use") > graph.nodes.num_rows // 2


def test_rules_reach_what_was_asked_of_them(phantom_shards):
    found = evaluate_extractor(phantom_shards, Rules(), "train")
    assert found.entities.f1 >= 0.97 and found.triples.f1 >= 0.93
    assert found.reports == read_manifest(phantom_shards).splits["train"].studies


def test_what_reports_of_patients_say_is_known_to_nobody(drawn_iu, tmp_path):
    write_shards(IuXray(raw=drawn_iu()), tmp_path / "iu", size=64)
    with pytest.raises(DataError, match="are of iu_xray: what their reports say is known of drawn films only"):
        evaluate_extractor(tmp_path / "iu", Rules())
