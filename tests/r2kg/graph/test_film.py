"""A part of the graph from the film alone: what it finds, and that no report of the study itself reaches it."""

import json
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from r2kg.config.needs import Inputs
from r2kg.graph.artefact import load_graph, save_graph
from r2kg.graph.build.reports import build_graph
from r2kg.graph.extract.annotate import labelled, write_annotations
from r2kg.graph.extract.rules import Rules
from r2kg.graph.film import FILMS, OTHERS
from r2kg.graph.film.memory import Memory, Neighbours, largest, remember
from r2kg.graph.film.write import EVIDENCE, FilmGraphs, FilmSettings, write_film_subgraphs
from shards.errors import ConfigError, DataError
from shards.graphs.subgraph import unpack
from shards.sources.phantom.source import Phantom
from shards.stream.blocks import read_block
from shards.stream.index import Index, open_splits
from shards.stream.order import Block
from shards.stream.side import Side
from shards.study import Study
from shards.tars.format import read_index, read_manifest
from shards.tars.kinds import only_side, read_side, without_member
from shards.tars.place import place
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
    maker = maker_of(root, out)
    assert read_side(out / "films").without == {} and read_side(out / "films").totals["nodes"] > 0
    alone = maker.nearest("train", range(len(maker.memory.keys)))
    assert not [row for row, near in enumerate(alone) if row in near.row]
    maker.memory.who["train"][:3] = 7  # of one patient
    maker.memory.who["test"][0] = 7
    for near in (*maker.nearest("train", range(3)), *maker.nearest("test", [0])):
        assert len(near.row) == 16 and not {0, 1, 2} & {*near.row.tolist()}
        assert near.weight.sum() == pytest.approx(1) and (np.diff(near.weight) <= 0).all()


def test_studies_of_one_patient_have_one_number_and_others_have_not(drawn):
    root, out = drawn
    memory, manifest = maker_of(root, out).memory, read_manifest(root)
    patients = dict[str, set[int]]()
    for split, index in open_splits(root, manifest).items():
        for number, name in enumerate(index.tars):
            tar = next(shard for shard in manifest.shards if shard.name == name)
            for row, entry in zip(index.rows_of(number), read_index(root, tar).studies, strict=True):
                patients.setdefault(entry.patient, set()).add(int(memory.who[split][row]))
    numbers = [number for of in patients.values() for number in of]
    assert "" not in patients and len(numbers) == len({*numbers}) == len(patients)


def maker_of(root: Path, out: Path, features: str = "features", portion: int = 64) -> FilmGraphs:
    manifest = read_manifest(root)
    indices = open_splits(root, manifest)
    films = {split: Side.open(out / features, index, manifest, "features") for split, index in indices.items()}
    reports = Side.open(out / "said", indices["train"], manifest, "annotations")
    memory = remember(root, manifest, indices, films, reports, load_graph(out / "graph"))
    return FilmGraphs(memory, FilmSettings(), portion)


def test_for_a_control_each_film_gets_anothers_part(drawn, tmp_path):
    """The part that the other study itself gets, but for what this one's patient would have said."""
    root, out = drawn
    write_film_subgraphs(root, out / "graph", out / "features", out / "said", tmp_path / "others", of_another=True)
    own_maker = maker_of(root, out)
    maker, manifest, read = FilmGraphs(own_maker.memory, FilmSettings(), of_another=True), read_manifest(root), {}
    for where, kind in ((out / "films", FILMS), (tmp_path / "others", OTHERS)):
        for split, index in open_splits(root, manifest).items():
            side = Side.open(where, index, manifest, kind)
            read[kind, split] = [bytes(side.read(row) or b"") for row in range(len(index))]
    for split, whose in maker.whose.items():
        assert sorted(whose.tolist()) == [*range(len(whose))] and (whose != np.arange(len(whose))).all()
        same = [read[OTHERS, split][row] == read[FILMS, split][other] for row, other in enumerate(whose.tolist())]
        assert all(same) if split != "train" else np.mean(same) > 0.5
    alone, beside = maker.nearest("train", [5])[0], maker.nearest("train", [5])[0].row[0]
    assert beside in alone.row and beside not in maker.nearest("train", [5], [int(beside)])[0].row


def test_where_anothers_films_are_shown_their_part_is_too(drawn):
    """Else what is written without looking would know what is on the film: the part was made of it."""
    root, out = drawn
    index, manifest, own = Index.open(root, "test"), read_manifest(root), np.array([[0, 1]])
    side = Side.open(out / "films", index, manifest, FILMS)
    rows = read_block(index, Block(0, 0, own, own, films=own[:, ::-1]), 64, 1, "fail", {FILMS: side})
    plain = read_block(index, Block(0, 0, own, own), 64, 1, "fail", {FILMS: side})
    column = side.entry.column
    assert [*rows[column]] == [*plain[column][::-1]] and rows[column][0] != plain[column][0]
    assert [*rows["record"]] == [*plain["record"]] and (rows["images"] == plain["images"][::-1]).all()


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


def memory_of(train: np.ndarray, new: np.ndarray, unread: tuple[int, ...] = ()) -> Memory:
    """Training studies with these vectors around a ring of six nodes and an island of two, and new studies."""
    head, tail = np.array([0, 1, 2, 3, 4, 5, 6]), np.array([1, 2, 3, 4, 5, 0, 7])
    vectors = {"train": train.astype(np.float32), "test": new.astype(np.float32)}
    for own in vectors.values():
        own /= np.linalg.norm(own, axis=1, keepdims=True)
    said = [[0], [3], [6]][: len(train)] + [[]] * max(0, len(train) - 3)
    return Memory(
        vectors=vectors, unread={"train": dict.fromkeys(unread, "torn"), "test": {}},
        who={"train": np.arange(len(train)), "test": np.full(len(new), len(train))},
        keys=np.array([f"s{row}".encode() for row in range(len(train))]),
        starts=np.cumsum([0, *map(len, said)]), said=np.array([at for of in said for at in of], np.int32),
        head=head, tail=tail, relation=np.zeros(7, np.int64), often=np.ones(7, np.int64),
    )  # fmt: skip


FOUR, THREE = np.eye(4, 3) + [[0.01]] * 4, np.eye(3)


def test_a_vote_spreads_along_the_graph_and_no_further_than_is_asked():
    maker = FilmGraphs(memory_of(FOUR, THREE), FilmSettings(neighbours=1, nodes=4, triples=2))
    near = maker.nearest("test", range(3))
    (part, evidence), _, (island, _) = maker.parts(near)
    assert part is not None and near[0].row.tolist() == [0] and evidence["triples"] == [[0, 1.0]]
    assert part.node.tolist() == [0, 1, 2, 5], "what was voted for, and what is next to it"
    assert len(part.edge_type) == 2 and [0, 1] in part.edge_index.T.tolist()
    assert island is not None and island.node.tolist() == [6, 7]
    silent, (again, _) = maker.parts([Neighbours(np.array([3]), np.ones(1)), near[0]])
    assert silent == (None, {}) and again is not None and again.node.tolist() == part.node.tolist()


def test_a_study_that_cannot_be_read_never_votes_and_one_that_says_nothing_may():
    """Zeros have a cosine of 0 to everything: nearer than what points the other way."""
    memory = memory_of(-FOUR, THREE[:1], unread=(0,))
    memory.vectors["train"][0] = 0
    maker = FilmGraphs(memory, FilmSettings(neighbours=4))
    (near,) = maker.nearest("test", [0])
    assert {*near.row.tolist()} == {1, 2, 3} and near.weight.sum() == pytest.approx(1)
    assert 3 in near.row and memory.starts[3] == memory.starts[4], "the one without triples takes its share"
    ((_, evidence),) = maker.parts([near])
    assert sum(vote for _, vote in evidence["triples"]) < 0.999
    memory.unread["train"].update(dict.fromkeys(range(4), "torn"))
    (none,) = maker.nearest("test", [0])
    assert len(none.row) == len(none.weight) == 0 and maker.parts([none]) == [(None, {})]


def test_the_search_is_exact_whatever_is_searched_for_at_once():
    """Beside all cosines in float64; many vectors are equal, or nearer to each other than float32 can tell."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(12, 96))
    train = base[rng.integers(12, size=900)] + rng.choice([0, 1e-7], (900, 1)) * rng.normal(size=(900, 96))
    memory = memory_of(train, rng.normal(size=(40, 96)) + base[rng.integers(12, size=40)], unread=(5, 6))
    memory.vectors["train"][[5, 6]] = 0
    together, one, odd = (
        [near for at in range(0, 40, size) for near in FilmGraphs(memory, FilmSettings()).nearest(
            "test", range(at, min(at + size, 40))
        )]
        for size in (40, 1, 7)
    )  # fmt: skip
    for row, (a, b, c) in enumerate(zip(together, one, odd, strict=True)):
        cosines = (memory.vectors["train"].astype(np.float64) * memory.vectors["test"][row].astype(np.float64)).sum(1)
        cosines[[5, 6]] = -2
        assert a.row.tolist() == np.lexsort((np.arange(900), -cosines))[:16].tolist()
        assert a.row.tolist() == b.row.tolist() == c.row.tolist()
        assert a.weight.tobytes() == b.weight.tobytes() == c.weight.tobytes()


def test_no_study_copies_what_is_known_of_all():
    rng = np.random.default_rng(0)
    maker = FilmGraphs(memory_of(rng.normal(size=(20_000, 256)), rng.normal(size=(4, 256))), FilmSettings())
    tracemalloc.start()
    maker.parts(maker.nearest("test", range(4)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < maker.memory.vectors["train"].nbytes / 4


@given(st.lists(st.integers(0, 5), max_size=30), st.integers(1, 40))
def test_the_largest_are_those_of_a_stable_sort(values, count):
    array = np.array(values, np.float64)
    assert largest(array, count).tolist() == np.argsort(-array, kind="stable")[:count].tolist()


def members(root: Path, where: Path) -> dict[str, tuple[bytes, bytes]]:
    """Key → a film's part of the graph and its evidence, as they are stored."""
    manifest, stored = read_manifest(root), {}
    for index in open_splits(root, manifest).values():
        side = Side.open(where, index, manifest, "film_subgraphs")
        for number, name in enumerate(index.tars):
            entries = read_index(where, next(tar for tar in read_side(where).shards if tar.name == name)).studies
            for row, entry in zip(index.rows_of(number), entries, strict=True):
                if EVIDENCE not in entry.members:
                    continue
                at, size, _ = entry.members[EVIDENCE]
                stored[entry.key] = bytes(side.read(row)), (where / name).read_bytes()[at : at + size]
    return stored


def test_tars_and_portions_of_another_size_change_no_byte(drawn, tmp_path):
    root, out = drawn
    stored = members(root, out / "films")
    other = tmp_path / "shards"
    write_shards(Phantom(studies=200, size=64, views=1), other, size=64, studies_per_shard=17)
    prepare(other, tmp_path)
    again = members(other, films(other, tmp_path))
    assert len(stored) == 200 and stored == again
    for portion in (1, 7, 64):
        index, maker = Index.open(root, "train"), maker_of(root, out, portion=portion)
        made = maker(index, range(40, 80), b"")
        for row, one in zip(range(40, 80), made, strict=True):
            part, evidence = stored[index.keys[row].decode()]
            assert (one.members["film.safetensors"], one.members[EVIDENCE]) == (part, evidence), (portion, row)


def test_features_and_annotations_on_object_storage_are_the_same(drawn, s3, tmp_path):
    root, out = drawn
    for name in ("features", "said"):
        for file in (out / name).iterdir():
            (place(s3) / name / file.name).write_bytes(file.read_bytes())
    write_film_subgraphs(root, out / "graph", f"{s3}/features", f"{s3}/said", tmp_path / "films")
    assert members(root, tmp_path / "films") == members(root, out / "films")
    here, there = list(labelled(root, out / "said")), list(labelled(root, f"{s3}/said"))
    assert here == there and len(here) == read_manifest(root).splits["train"].studies


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
    tables = {"nodes": graph.nodes, "triples": graph.triples, "provenance": graph.provenance}
    with pytest.raises(DataError, match=r"it is empty \(\d+ nodes, 0 triples\)"):
        save_graph(
            tmp_path / "empty",
            graph.manifest,
            {name: table.slice(0, 0) for name, table in tables.items()} | {"nodes": graph.nodes},
        )
    with pytest.raises(DataError, match=r"the graph at .*empty contradicts itself: it is empty"):
        write_film_subgraphs(root, tmp_path / "empty", out / "features", out / "said", tmp_path / "films")
    names = [f"zebra {number}" for number in range(len(graph.names))]
    strange = graph.nodes.set_column(graph.nodes.schema.get_field_index("name"), "name", [names])
    save_graph(tmp_path / "strange", graph.manifest, tables | {"nodes": strange})
    with pytest.raises(DataError, match="no training study says a triple of the graph, by the annotations at .*said"):
        write_film_subgraphs(root, tmp_path / "strange", out / "features", out / "said", tmp_path / "films")
    assert not (tmp_path / "films").exists()


def test_annotations_that_the_graph_was_not_built_of_are_refused(drawn, tmp_path):
    root, out = drawn

    class Others(Rules):
        name = "others"

    write_annotations(root, tmp_path / "said", Others())
    told = r"was built of annotations \w{12} \(rules\), those at .* are \w{12} \(others\)"
    with pytest.raises(DataError, match=told):
        write_film_subgraphs(root, out / "graph", out / "features", tmp_path / "said", tmp_path / "films")


def write_features(root: Path, where: Path, change: Callable[[str, int, np.ndarray], np.ndarray | None]) -> Path:
    """A side of features as `change` (split, row, bits) makes them; None for none."""

    def encode_otherwise(index: Index, rows: range, given: bytes) -> Iterator[Made]:
        for row, made in zip(rows, encode(index, rows, given), strict=True):
            bits = change(index.split, row, np.frombuffer(made.members["features"], "<u2").copy())
            yield Made(cause="not there") if bits is None else Made({"features": bits.tobytes()})

    manifest, shape = read_manifest(root), {"views": 1, "patches": 1, "width": WIDTH}
    write_side(root, where, "features", manifest, open_splits(root, manifest), shape, lambda: encode_otherwise)
    return where


def test_studies_without_features_are_named_and_are_nobodys_neighbours(drawn, tmp_path):
    root, out = drawn
    gaps = {("train", 3), ("train", 70), ("test", 1)}
    features = write_features(root, tmp_path / "some", lambda split, row, bits: None if (split, row) in gaps else bits)
    side = write_film_subgraphs(root, out / "graph", features, out / "said", tmp_path / "films")
    index = {split: Index.open(root, split) for split in ("train", "test")}
    without = dict(without_member(tmp_path / "films", side))
    assert side.without == {"cannot be read": 3}
    assert without.keys() == {index[split].keys[row].decode() for split, row in gaps}
    assert {*without.values()} == {"cannot be read: the side holds no features of it"}
    lost = {index["train"].keys[row].decode() for row in (3, 70)}
    stored = members(root, tmp_path / "films")
    assert len(stored) == 197 and not stored.keys() & without.keys()
    assert not lost & {key for _, evidence in stored.values() for key, _ in json.loads(evidence)["neighbours"]}


@pytest.mark.parametrize("value", [0x7FC0, 0x7F80])
def test_features_that_are_not_finite_are_an_error(drawn, tmp_path, value):
    root, out = drawn
    key = Index.open(root, "val").keys[2].decode()

    def broken(split: str, row: int, bits: np.ndarray) -> np.ndarray:
        bits[5] = value if (split, row) == ("val", 2) else bits[5]
        return bits

    features = write_features(root, tmp_path / "broken", broken)
    with pytest.raises(DataError, match=f"study {key}: its features at .*broken are not finite"):
        write_film_subgraphs(root, out / "graph", features, out / "said", tmp_path / "films")


def test_features_of_one_split_only_are_an_error(drawn, tmp_path):
    root, out = drawn
    for split, others in (("train", "val"), ("test", "train")):
        only = write_features(root, tmp_path / split, lambda of, row, bits, split=split: bits if of == split else None)
        with pytest.raises(
            DataError, match=rf"can be read of none of the \d+ studies of {others} \(the first: the side"
        ):
            write_film_subgraphs(root, out / "graph", only, out / "said", tmp_path / "films")


def test_the_command_finds_the_sides_or_says_which_are_missing(drawn, tmp_path):
    _, out = drawn
    (tmp_path / "side").mkdir()
    (tmp_path / "side" / "other").mkdir()
    with pytest.raises(ConfigError, match="no features below .*side: write them with `r2kg features .*or give --feat"):
        only_side(tmp_path, "features", "--features")
    shutil.copytree(out / "features", tmp_path / "side" / "features-a")
    shutil.copytree(out / "said", tmp_path / "side" / "annotations-rules")
    assert only_side(tmp_path, "features", "--features") == tmp_path / "side" / "features-a"
    shutil.copytree(out / "features", tmp_path / "side" / "features-b")
    with pytest.raises(
        ConfigError, match=r"2 sides of features below .*\(features-a, features-b\): say which with --f"
    ):
        only_side(tmp_path, "features", "--features")
    fingerprint = load_graph(out / "graph").manifest.annotations
    assert only_side(tmp_path, "annotations", "--annotations", fingerprint).name == "annotations-rules"
    with pytest.raises(ConfigError, match="no annotations of fingerprint 000000000000, which the graph was built of"):
        only_side(tmp_path, "annotations", "--annotations", "0" * 64)
