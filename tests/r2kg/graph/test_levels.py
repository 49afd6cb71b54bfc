"""Published tables with all that is odd in them, and the levels of a graph."""

import csv
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from r2kg.graph.artefact import KnowledgeGraph, load_graph
from r2kg.graph.build.published import COLUMNS, read_published
from r2kg.graph.build.reports import refuse_leak
from r2kg.graph.levels import ARRAYS, FILE, read_levels, sample_levels, write_levels
from shards.errors import ConfigError, DataError

SMALL, EFFUSION, BASE, BOTH = "C0700321", "C0032227", "C0225704", "C0700321C0032227"
ROWS = [
    (SMALL, EFFUSION, "small", "pleuraleffusion", "modify", 900),
    (EFFUSION, BASE, "effusion", "lung base", "located_at", 700),
    (BOTH, BASE, "small effusion", "base", "located_at", 800),
    (EFFUSION, EFFUSION, "effusion", "effusions", "modify", 300),
    ("xyz", SMALL, "xyz", "tiny", "modify", 90),
    ("foratelectasis", "C0004144", "foratelectasis", "atelectasis", "suggestive_of", 40),
    ("C0004145", "C0004144", "atelectasis", "atelectasis", "modify", 5),
]  # fmt: skip


def written(path: Path, rows: list[tuple], columns: tuple[str, ...] = COLUMNS) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


@pytest.fixture
def graph(tmp_path) -> KnowledgeGraph:
    return read_published(written(tmp_path / "kg.csv", ROWS), tmp_path / "graph", "stanford-aimi-rua")


def test_a_published_table_is_read_with_its_oddities(graph, tmp_path):
    nodes = {node["id"]: node for node in graph.nodes.to_pylist()}
    assert nodes[EFFUSION]["name"] == "pleural effusion" and nodes[EFFUSION]["kind"] == "disorder"
    assert nodes[EFFUSION]["aliases"] == ["effusion", "effusions", "pleuraleffusion"]
    assert nodes[BASE] | {"aliases": []} == nodes[BASE] | {
        "name": "base",
        "kind": "anatomy",
        "aliases": [],
        "count": 1500,
    }
    assert nodes["foratelectasis"]["kind"] == "concept" and nodes[SMALL]["name"] == "small"
    assert {nodes["C0004144"]["name"], nodes["C0004145"]["name"]} == {"atelectasis", "atelectasis (C0004145)"}
    assert graph.manifest.warnings == {
        "self-loops": 1, "names of several ids": 1, "composite ids": 1, "ids that are no CUI": 2,
    }  # fmt: skip
    assert graph.named_triples()[0] == ("small", "modify", "pleural effusion")
    again = load_graph(tmp_path / "graph")
    assert again.manifest.fingerprint == graph.manifest.fingerprint and again.manifest.origin == "table"
    refuse_leak(graph, [])  # it cannot be told, which `origin` says


BAD = {
    "line 2 is malformed: its type is none of modify, located_at, suggestive_of": ("a", "b", "x", "y", "near", 3),
    "line 2 is malformed: its count is no number of 1 or more": ("a", "b", "x", "y", "modify", 0),
    "line 2 is malformed: invalid literal": ("a", "b", "x", "y", "modify", "many"),
    "line 2 is malformed: an index is no name": ("", "b", "x", "y", "modify", 3),
}


@pytest.mark.parametrize("told", BAD)
def test_a_row_that_is_none_refuses_the_table(tmp_path, told):
    with pytest.raises(DataError, match=told):
        read_published(written(tmp_path / "kg.csv", [BAD[told]]), tmp_path / "graph", "public")
    assert not (tmp_path / "graph").exists()


def test_a_pair_that_stands_twice_and_a_column_that_is_missing_refuse_it_too(tmp_path):
    twice = [ROWS[0], (EFFUSION, SMALL, "effusion", "small", "modify", 2)]
    with pytest.raises(DataError, match="line 3 is malformed: its two nodes are joined by a line above"):
        read_published(written(tmp_path / "kg.csv", twice), tmp_path / "graph", "public")
    with pytest.raises(DataError, match="count"):
        read_published(written(tmp_path / "kg.csv", [], COLUMNS[:-1]), tmp_path / "graph", "public")
    with pytest.raises(ConfigError, match="unknown terms 'mine': one of synthetic, public"):
        read_published(written(tmp_path / "kg.csv", ROWS), tmp_path / "graph", "mine")
    with pytest.raises(DataError, match="it is empty"):
        read_published(written(tmp_path / "kg.csv", []), tmp_path / "graph", "public")


def test_levels_are_the_end_points_of_frequent_triples_without_composites(graph):
    levels = sample_levels(graph, thresholds=(90, 40, 700))
    names = [[graph.names[i] for i in level.node] for level in levels]
    assert [set(name) for name in names[:2]] == [{"pleural effusion", "base", "small"}, {*names[0], "xyz"}]
    assert [len(name) for name in names] == [3, 4, 6] and [level.threshold for level in levels] == [700, 90, 40]
    triples = [(names[1][h], names[1][t]) for h, t in levels[1].edge_index.T]
    assert ("pleural effusion", "pleural effusion") in triples and len(triples) == 4


def test_levels_are_nested_and_as_near_to_their_size_as_counts_allow(tmp_path):
    rng = np.random.default_rng(0)
    pairs = {tuple(sorted(rng.choice(300, 2, replace=False).tolist())) for _ in range(1500)}
    counts = sorted((int(1e6 / rank**1.2) + 1 for rank in range(1, len(pairs) + 1)), reverse=True)
    rows = [(f"n{a}", f"n{b}", f"n{a}", f"n{b}", "modify", c) for (a, b), c in zip(sorted(pairs), counts, strict=True)]
    graph = read_published(written(tmp_path / "kg.csv", rows), tmp_path / "graph", "public")
    levels = sample_levels(graph, sizes=(20, 50, 100, 200))
    for small, large in pairwise(levels):
        assert set(small.node) < set(large.node) and small.threshold > large.threshold
        ends = [{tuple(level.node[end]) for end in level.edge_index.T} for level in (small, large)]
        assert ends[0] < ends[1]
    for level, size in zip(levels[:3], (20, 50, 100), strict=False):
        assert abs(len(level.node) - size) <= 2 and level.edge_index.max() < len(level.node)
    whole = sample_levels(graph, sizes=(20,), edges="induced")[0]
    assert whole.edge_index.shape[1] >= levels[0].edge_index.shape[1] and (whole.node == levels[0].node).all()


def test_levels_are_read_as_they_were_written(graph, tmp_path):
    levels = sample_levels(graph, thresholds=(90, 700))
    features = np.random.default_rng(0).normal(size=(graph.nodes.num_rows, 5)).astype(np.float32)
    written = write_levels(graph, levels, features, tmp_path / "levels")
    read = read_levels(tmp_path / "levels")
    assert read.names == written.names == graph.names and read.graph == graph.manifest.fingerprint
    assert np.array_equal(read.features, features)
    for before, after in zip(levels, read.graphs, strict=True):
        assert np.array_equal(before.node, after.node) and np.array_equal(before.edge_type, after.edge_type)
        assert np.array_equal(before.edge_index, after.edge_index) and before.threshold == after.threshold


def test_levels_that_are_damaged_or_have_no_features_are_refused(graph, tmp_path):
    levels, features = sample_levels(graph, thresholds=(90,)), np.ones((graph.nodes.num_rows, 2), np.float32)
    with pytest.raises(ConfigError, match="features of 2 nodes for"):
        write_levels(graph, levels, features[:2], tmp_path / "levels")
    features[levels[0].node[1]] = np.nan
    with pytest.raises(DataError, match="the feature of node '.*' is not finite"):
        write_levels(graph, levels, features, tmp_path / "levels")
    write_levels(graph, levels, np.ones_like(features), tmp_path / "levels")
    told = json.loads((tmp_path / "levels" / FILE).read_text())
    for change in ({"names": told["names"][:-1]}, {"thresholds": [1, 2]}, {"thresholds": []}, {"names": 3}):
        (tmp_path / "levels" / FILE).write_text(json.dumps(told | change))
        with pytest.raises(DataError, match="no levels of a graph at .*: write them again"):
            read_levels(tmp_path / "levels")
    (tmp_path / "levels" / ARRAYS).write_bytes(b"torn")
    with pytest.raises(DataError, match="no levels of a graph"):
        read_levels(tmp_path / "levels")


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"sizes": (3, 900)}, "a level of 900 nodes is larger than the graph, in which 7 have a triple"),
        ({"thresholds": (10_000,)}, "no triple is said 10000 times, the most frequent 900"),
        ({"sizes": (3,), "thresholds": (5,)}, "by sizes or by thresholds: give one of the two"),
        ({}, "by sizes or by thresholds"),
        ({"sizes": (3, 3)}, r"two levels are the same: 3 \(count \d+\), 3"),
    ],
)
def test_levels_that_cannot_be_are_refused(graph, asked, told):
    with pytest.raises(ConfigError, match=told):
        sample_levels(graph, **asked)
