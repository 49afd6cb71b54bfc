"""A part of the graph from the film alone: what it finds, and that no report of the study itself reaches it."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from r2kg.config.needs import Inputs
from r2kg.graph.artefact import KnowledgeGraph, load_graph
from r2kg.graph.build import build_graph
from r2kg.graph.extract.annotate import write_annotations
from r2kg.graph.extract.rules import Rules
from r2kg.graph.film import (
    EVIDENCE,
    FilmGraphs,
    FilmSettings,
    Memory,
    patients_of,
    remember,
    vector_of,
    write_film_subgraphs,
)
from shards.errors import ConfigError, DataError
from shards.graphs.subgraph import unpack
from shards.sources.phantom.source import Phantom
from shards.stream.index import Index, open_splits
from shards.stream.side import Side
from shards.study import Study
from shards.tars.format import read_manifest
from shards.tars.kinds import read_side
from shards.tars.shards import write_shards
from shards.tars.sides import write_side
from shards.tars.write import Made

WIDTH = 24


def seen(study: Study) -> np.ndarray:
    """Features as of an encoder that sees what is planted, and noise: [1, 1, WIDTH]."""
    planted = [float(value or 0) for value in study.labels.values()]
    rng = np.random.default_rng(int(study.provenance["index"]))
    weights = np.random.default_rng(0).normal(size=(len(planted), WIDTH))
    return (np.array(planted) @ weights + 0.3 * rng.normal(size=WIDTH)).astype(np.float32).reshape(1, 1, WIDTH)


def encode(index: Index, rows: range, given: bytes) -> Iterator[Made]:
    for row in rows:
        study = Study.model_validate_json(index.record_of(row, index.read_record(row)))
        bits = (seen(study).view(np.uint32) >> 16).astype("<u2")
        yield Made({"features": bits.tobytes()})


def prepare(root: Path, out: Path) -> None:
    """Features, annotations and a graph of shards."""
    manifest = read_manifest(root)
    shape = {"views": 1, "patches": 1, "width": WIDTH}
    write_side(root, out / "features", "features", manifest, open_splits(root, manifest), shape, lambda: encode)
    write_annotations(root, out / "said", Rules())
    build_graph(root, out / "said", out / "graph")


def films(root: Path, out: Path, to: str = "films", **settings: int) -> Path:
    where = FilmSettings(**settings) if settings else None
    write_film_subgraphs(root, out / "graph", out / "features", out / "said", out / to, where)
    return out / to


@pytest.fixture(scope="module")
def drawn(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(shards, a place with features, annotations, a graph and film subgraphs)."""
    root, out = tmp_path_factory.mktemp("films"), tmp_path_factory.mktemp("of-films")
    write_shards(Phantom(studies=200, size=64, views=1), root, size=64, studies_per_shard=60)
    prepare(root, out)
    films(root, out)
    return root, out


Triples = set[tuple[str, str, str]]


def parts(root: Path, where: Path, split: str) -> dict[str, tuple[Triples, Triples]]:
    """Key → triples of a film's part of the graph, and those that were planted, by name."""
    index, side = Index.open(root, split), read_side(where)
    opened = Side.open(where, index, read_manifest(root), "film_subgraphs")
    names, relations = side.description["nodes"], side.description["relations"]
    found = {}
    for row in range(len(index)):
        study = Study.model_validate_json(index.record_of(row, index.read_record(row)))
        graph = unpack(opened.read(row), *side.extent)
        of = [names[node] for node in graph.node]
        triples = {(of[h], relations[r], of[t]) for (h, t), r in zip(graph.edge_index.T, graph.edge_type, strict=True)}
        found[study.key] = triples, set(study.triples)
    return found


def test_a_films_part_of_the_graph_holds_what_is_on_it(drawn):
    """Its own triples more often than another study's do: the vote follows the film."""
    root, out = drawn
    found = list(parts(root, out / "films", "test").values())
    own = [len(true & triples) / len(true) for triples, true in found if true]
    others = [len(true & found[(at + 7) % len(found)][0]) / len(true) for at, (_, true) in enumerate(found) if true]
    assert np.mean(own) > 0.6 and stats.ttest_rel(own, others).pvalue < 0.01, (np.mean(own), np.mean(others))


def test_what_tested_reports_say_changes_nothing(drawn, tmp_path):
    """Test and validation studies whose reports and labels were replaced by noise get the same part of the graph."""
    root, out = drawn

    class Noise(Phantom):
        def case(self, index):
            body, findings, report = super().case(index)
            split = self.listing().items[index].split
            return body, findings, report if split == "train" else "Zebra. No zebra. Large zebra in the left zebra."

    other, place = tmp_path / "shards", tmp_path / "of"
    write_shards(Noise(studies=200, size=64, views=1), other, size=64, studies_per_shard=60)
    prepare(other, place)
    again = films(other, place)
    for split in ("val", "test"):
        before, after = parts(root, out / "films", split), parts(other, again, split)
        assert {key: part for key, (part, _) in before.items()} == {key: part for key, (part, _) in after.items()}


def test_no_training_study_votes_for_itself_or_its_patient(drawn):
    root, out = drawn
    index, side = Index.open(root, "train"), read_side(out / "films")
    maker = maker_of(root, out)
    patients = maker.patients
    patients |= dict.fromkeys([k.decode() for k in index.keys[:3].tolist()], "shared")
    maker.memory = maker.memory._replace(patients=np.array([patients[k.decode()] for k in index.keys.tolist()]))
    for row in range(3):
        key = index.keys[row].decode()
        near = maker.nearest(maker_vector(maker, index, row), key, patients[key])
        assert len(near.row) == 16 and not {0, 1, 2} & {*near.row.tolist()}
        assert near.weight.sum() == pytest.approx(1) and (np.diff(near.weight) <= 0).all()
    assert side.without == {} and side.totals["nodes"] > 0


def maker_of(root: Path, out: Path) -> FilmGraphs:
    manifest = read_manifest(root)
    indices = open_splits(root, manifest)
    sides = {split: Side.open(out / "features", index, manifest, "features") for split, index in indices.items()}
    patients, graph = patients_of(root, manifest), load_graph(out / "graph")
    memory = remember(graph, indices["train"], sides["train"], out / "said", manifest, patients, FilmSettings())
    return FilmGraphs(memory, sides, patients, FilmSettings())


def maker_vector(maker: FilmGraphs, index: Index, row: int) -> np.ndarray:
    return vector_of(maker.films["train"], row, 1)


def test_evidence_names_neighbours_and_what_they_said(drawn):
    root, out = drawn
    index, graph = Index.open(root, "test"), load_graph(out / "graph")
    maker = maker_of(root, out)
    (made,) = list(maker(index, range(1), b""))
    evidence, part = json.loads(made.members[EVIDENCE]), unpack(made.members["film.safetensors"])
    train = {key.decode() for key in Index.open(root, "train").keys.tolist()}
    assert len(evidence["neighbours"]) == 16 and {key for key, _ in evidence["neighbours"]} <= train
    assert sum(weight for _, weight in evidence["neighbours"]) == pytest.approx(1, abs=0.01)
    votes = [vote for _, vote in evidence["triples"]]
    assert votes == sorted(votes, reverse=True) and 0 < votes[-1] <= votes[0] <= 1.001
    said = graph.named_triples()
    ends = {node for at, _ in evidence["triples"] for node in (said[at][0], said[at][2])}
    assert ends <= {graph.names[node] for node in part.node}


def graph_by_hand() -> Memory:
    """Four studies around a ring of six nodes and an island of two."""
    vectors = np.eye(4, 3, dtype=np.float32) + 0.01
    head, tail = np.array([0, 1, 2, 3, 4, 5, 6]), np.array([1, 2, 3, 4, 5, 0, 7])
    return Memory(
        vectors=vectors / np.linalg.norm(vectors, axis=1, keepdims=True), mean=np.zeros(3, np.float32),
        scale=np.ones(3, np.float32), patients=np.array(["a", "b", "c", ""]),
        keys=np.array([b"s0", b"s1", b"s2", b"s3"]),
        starts=np.array([0, 1, 2, 3, 3]), said=np.array([0, 3, 6], np.int32), head=head, tail=tail,
        relation=np.zeros(7, np.int64), often=np.ones(7, np.int64),
    )  # fmt: skip


def test_a_vote_spreads_along_the_graph_and_no_further_than_is_asked():
    maker = FilmGraphs(graph_by_hand(), {}, {}, FilmSettings(neighbours=1, nodes=4, triples=2))
    near = maker.nearest(np.array([1, 0, 0], np.float32), "new", "z")
    part, evidence = maker.part(near)
    assert part is not None and near.row.tolist() == [0] and evidence["triples"] == [[0, 1.0]]
    assert part.node.tolist() == [0, 1, 2, 5], "what was voted for, and what is next to it"
    assert len(part.edge_type) == 2 and [0, 1] in part.edge_index.T.tolist()
    island, _ = maker.part(maker.nearest(np.array([0, 0, 1], np.float32), "new", "z"))
    assert island is not None and island.node.tolist() == [6, 7]
    silent = maker.nearest(np.array([0.0, 0, 0], np.float32), "new", "a")
    assert 0 not in silent.row.tolist()
    assert FilmGraphs(graph_by_hand(), {}, {}, FilmSettings()).part(near._replace(row=np.array([3]))) == (None, {})


def test_a_model_that_writes_reports_may_be_shown_it():
    Inputs(sides=("film_subgraphs",)).refuse_answers("report")
    with pytest.raises(ConfigError, match="shown annotations, which are made from the report"):
        Inputs(sides=("annotations",)).refuse_answers("report")


def test_graphs_and_sides_that_do_not_fit_are_refused(drawn, tmp_path):
    _, out = drawn
    other = tmp_path / "shards"
    write_shards(Phantom(studies=20, size=64, views=1, seed=3), other, size=64)
    prepare(other, tmp_path)
    with pytest.raises(DataError, match="the graph at .* is of shards .*: their studies are not its training studies"):
        write_film_subgraphs(other, out / "graph", tmp_path / "features", tmp_path / "said", tmp_path / "films")
    with pytest.raises(DataError, match="belong to shards of fingerprint"):
        write_film_subgraphs(other, tmp_path / "graph", out / "features", tmp_path / "said", tmp_path / "films")
    write_annotations(other, tmp_path / "all", Rules(), splits=("train", "val", "test"))
    build_graph(other, tmp_path / "all", tmp_path / "leaking", force=True)
    with pytest.raises(DataError, match="statements in the graph are of studies outside the training split"):
        write_film_subgraphs(other, tmp_path / "leaking", tmp_path / "features", tmp_path / "all", tmp_path / "films")
    for wrong in ({"neighbours": 0}, {"temperature": 0}, {"damping": 1.0}):
        with pytest.raises(ConfigError, match="numbers from 1, a temperature above 0"):
            FilmSettings(**wrong)


def test_a_graph_without_triples_of_these_reports_is_told(drawn, tmp_path):
    root, out = drawn
    graph = load_graph(out / "graph")
    empty = KnowledgeGraph(graph.manifest, graph.nodes, graph.triples.slice(0, 0), graph.provenance.slice(0, 0))
    manifest = read_manifest(root)
    index = Index.open(root, "train")
    side = Side.open(out / "features", index, manifest, "features")
    with pytest.raises(DataError, match="no training study says a triple of the graph"):
        remember(empty, index, side, out / "said", manifest, patients_of(root, manifest), FilmSettings())
