"""A study's triples as arrays: exact, the same bytes, refused when hostile, batched as PyG does."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save
from torch_geometric.data import Batch, Data

from shards.errors import ConfigError, DataError
from shards.graphs.subgraph import (
    EMPTY,
    Graph,
    Subgraph,
    Vocabulary,
    collate_disjoint,
    collate_padded,
    pack,
    subgraph_of,
    unpack,
)
from shards.graphs.triples import TripleFile, read_graph

WORDS = Vocabulary(("effusion", "heart", "left", "lung", "opacity"), ("located_at", "modify"))
TRIPLES = [("opacity", "located_at", "lung"), ("left", "modify", "effusion"), ("opacity", "located_at", "lung")]


def drawn(seed: int, nodes: int, edges: int) -> Subgraph:
    rng = np.random.default_rng(seed)
    index = rng.integers(0, max(nodes, 1), (2, edges if nodes else 0))
    return Subgraph(np.sort(rng.choice(50, nodes, replace=False)), index, rng.integers(0, 3, index.shape[1]))


def assert_equal(one: Subgraph, other: Subgraph) -> None:
    for left, right in zip(one, other, strict=True):
        assert left.dtype == right.dtype == np.int64 and np.array_equal(left, right)


def test_triples_become_the_graph_they_say() -> None:
    graph = subgraph_of(TRIPLES, WORDS)
    names = [WORDS.nodes[i] for i in graph.node]
    said = {
        (names[h], WORDS.relations[r], names[t]) for (h, t), r in zip(graph.edge_index.T, graph.edge_type, strict=True)
    }
    assert names == ["effusion", "left", "lung", "opacity"] and said == set(TRIPLES)
    assert graph.edge_index.shape == (2, 2), "a triple that is said twice is one edge"


def test_unknown_names_are_left_out_with_their_triples() -> None:
    strange = [("opacity", "located_at", "shoulder"), ("heart", "is", "left"), ("clip", "modify", "wire")]
    graph = subgraph_of(strange, WORDS)
    assert [WORDS.nodes[i] for i in graph.node] == ["heart", "left", "opacity"] and graph.edge_index.shape == (2, 0)
    assert subgraph_of(strange[2:], WORDS) is None and subgraph_of([], WORDS) is None


def test_the_part_of_a_graph_has_all_its_edges_and_no_others() -> None:
    edges = ((0, 1, 0), (1, 0, 1), (3, 3, 0), (4, 3, 0), (4, 2, 1))
    graph = Graph(WORDS, edges)
    part = graph.induced({0, 1, 3})
    back = {
        (*part.node[edge].tolist(), kind) for edge, kind in zip(part.edge_index.T, part.edge_type.tolist(), strict=True)
    }
    assert back == set(edges[:3]) and part.node.tolist() == [0, 1, 3]
    assert graph.induced(set()) is None


def test_the_same_graph_is_the_same_bytes_whenever_it_is_packed() -> None:
    data = pack(subgraph_of(TRIPLES, WORDS))
    assert pack(subgraph_of(TRIPLES[::-1], WORDS)) == data


@pytest.mark.parametrize(("nodes", "edges"), [(0, 0), (1, 0), (7, 12)])
def test_packing_loses_nothing_and_safetensors_reads_it(nodes: int, edges: int) -> None:
    graph = drawn(0, nodes, edges)
    data = pack(graph)
    assert_equal(unpack(data, 50, 3), graph)
    assert_equal(Subgraph(**load(data)), graph)
    assert unpack(b"") is EMPTY


GOOD = {"node": np.arange(3), "edge_index": np.zeros((2, 4), np.int64), "edge_type": np.zeros(4, np.int64)}


def claims(data: bytes, shape: str) -> bytes:
    """The same, saying that `node` is of another shape."""
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size].replace(b'"shape":[3]', f'"shape":[{shape}]'.encode())
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"no tensors", "not a subgraph"),
        (save(GOOD)[:-30], "not a subgraph"),
        (b"\xff" * 8 + save(GOOD)[8:], "not a subgraph"),
        (claims(save(GOOD), "1000000000000"), "not a subgraph"),
        (claims(save(GOOD), "-1"), "not a subgraph"),
        (save({"node": np.arange(3)}), "1 arrays of int64; node, edge_index, edge_type of int64 are needed"),
        (save(GOOD | {"more": np.arange(2)}), "4 arrays of int64; node"),
        (save(GOOD | {"node": np.zeros(3)}), "float64"),
        (save(GOOD | {"node": np.zeros((3, 1), np.int64)}), "shapes"),
        (save(GOOD | {"edge_type": np.zeros(5, np.int64)}), "shapes"),
        (save(GOOD | {"node": np.array([0, 1, 9])}), "node has values 0 to 9, outside 0 to 5"),
        (save(GOOD | {"node": np.array([0, 2, 1])}), "its nodes do not ascend"),
        (save(GOOD | {"edge_index": np.full((2, 4), 3)}), "edge_index has values 3 to 3"),
        (save(GOOD | {"edge_index": np.full((2, 4), -1)}), "edge_index has values -1"),
        (save(GOOD | {"edge_type": np.full(4, 2)}), "edge_type has values 2 to 2"),
    ],
)
def test_hostile_bytes_are_refused(data: bytes, cause: str) -> None:
    with pytest.raises(DataError, match=cause):
        unpack(data, 5, 2)


def test_no_message_quotes_what_a_subgraph_holds() -> None:
    words = {"secret words": np.arange(3)}
    heads = [b'{"node":{"dtype":"secret words","shape":[1],"data_offsets":[0,8]}}', b'{"node":"secret words"}']
    for data in [save(words), *(len(head).to_bytes(8, "little") + head + bytes(8) for head in heads)]:
        with pytest.raises(DataError, match="not a subgraph") as caught:
            unpack(data)
        assert "secret" not in str(caught.value)


def test_a_subgraph_of_a_million_arrays_is_refused_unread() -> None:
    head = b",".join(b'"%d":{"dtype":"I64","shape":[0],"data_offsets":[0,0]}' % n for n in range(100_000))
    with pytest.raises(DataError, match="a header of .* bytes; at most 10000 are read"):
        unpack(len(head + b"{}").to_bytes(8, "little") + b"{" + head + b"}")


def test_any_flipped_byte_is_refused_or_harmless() -> None:
    data, rng = save(GOOD), np.random.default_rng(0)
    for at in (*range(min(len(data), 300)), *rng.choice(len(data), 300)):
        changed = bytearray(data)
        changed[at] ^= int(rng.integers(1, 256))
        try:
            graph = unpack(bytes(changed), 5, 2)
        except DataError:
            continue
        assert len(graph.node) == 3 and graph.edge_index.max() < 3 and graph.edge_type.max() < 2


GRAPHS = [drawn(1, 4, 6), EMPTY, drawn(2, 1, 0), drawn(3, 9, 20)]


def test_disjoint_batches_are_those_of_pyg() -> None:
    ours = collate_disjoint(GRAPHS)
    items = [
        Data(x=torch.tensor(g.node), edge_index=torch.tensor(g.edge_index), edge_type=torch.tensor(g.edge_type))
        for g in GRAPHS
    ]
    theirs = Batch.from_data_list(items)
    for name, wanted in (("node", "x"), ("edge_index", "edge_index"), ("edge_type", "edge_type"), ("graph", "batch")):
        assert torch.equal(torch.tensor(ours[name]), getattr(theirs, wanted)), name
    assert {name: array.shape for name, array in collate_disjoint([]).items()} == {
        "node": (0,), "edge_index": (2, 0), "edge_type": (0,), "graph": (0,)
    }  # fmt: skip


@pytest.mark.parametrize("limits", [(None, None), (9, 20), (12, 31)])
def test_padded_batches_hold_every_graph_and_zeros(limits: tuple) -> None:
    padded = collate_padded(GRAPHS, *limits)
    n, e = limits[0] or 9, limits[1] or 20
    assert padded["node"].shape == (4, n) and padded["edge_index"].shape == (4, 2, e)
    for row, graph in enumerate(GRAPHS):
        there, edges = padded["node_mask"][row], padded["edge_mask"][row]
        assert there.sum() == len(graph.node) and edges.sum() == len(graph.edge_type)
        found = Subgraph(
            padded["node"][row][there], padded["edge_index"][row][:, edges], padded["edge_type"][row][edges]
        )
        assert_equal(found, graph)
        assert not padded["node"][row][~there].any() and not padded["edge_index"][row][:, ~edges].any()
    with pytest.raises(ConfigError, match="9 nodes or 20 edges, max_nodes=8 and max_edges=20"):
        collate_padded(GRAPHS, 8)


def test_triple_files_are_read_record_by_record_and_again_by_place(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_bytes(
        b'\xef\xbb\xbfid,head,relation,tail,note\r\na, lung ,is,"clear, both",x\r\n\r\nb,"two\nlines?",is,y,\r\n'
    )
    with pytest.raises(DataError, match="line 4 is malformed: head is no name"):
        list(TripleFile(table).statements())
    table.write_bytes(table.read_bytes().replace(b"two\nlines?", b"heart"))
    lines = tmp_path / "t.jsonl"
    lines.write_text('{"id": "a", "triples": [["lung", "is", "clear, both"]]}\n\n{"key": "b", "triples": []}')
    for path, by_key in ((table, [False, False]), (lines, [False, True])):
        file = TripleFile(path)
        entries = list(file.statements())
        assert [(e.study, e.by_key) for e in entries] == list(zip("ab", by_key, strict=True))
        assert entries[0].triples == (("lung", "is", "clear, both"),) and entries[1].line == (4 if path is table else 3)
        spans = [e.span for e in entries][::-1]
        assert list(file.read(spans)) == [e.triples for e in entries][::-1]
        path.write_bytes(path.read_bytes().replace(b"lung", b"long"))
        with pytest.raises(DataError, match=f"{path.name} is not what was listed"):
            list(file.read(spans))


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("t.csv", b"head,relation,tail\na,b,c\n", "names no study"),
        ("t.csv", b"id,head,tail\na,b,c\n", "missing columns: relation; found: id, head, tail"),
        ("t.csv", b"", "is empty"),
        ("t.csv", b"id,head,relation,tail\na,b,c,d\na,b,c\n", "line 3 is malformed: 3 cells where the header has 4"),
        ("t.csv", b"id,head,relation,tail\na,b,c,d\na,b,c,\n", "line 3 is malformed: tail is no name"),
        ("t.csv", b'id,head,relation,tail\na,b,"c,d\na,b,c,d\n', "begins on line 2"),
        ("t.csv", b"id,head,relation,tail\na,b,\xff,d\n", "line 2 at byte 22.*not UTF-8"),
        ("t.csv", b"id,head,relation,tail\na,b,c," + b"x" * 501, "line 2 is malformed: tail is no name.*501"),
        ("t.jsonl", b'{"id": "a", "triples": []}\n{"id": "a", "triples": [["a", "b"]]}', "line 2 is malformed"),
        ("t.jsonl", b'{"id": "a"}', "line 1 is malformed"),
        ("t.jsonl", b'{"triples": []}', "line 1 is malformed: key or id|line 1 is malformed: id is no name"),
        ("t.jsonl", b'{"id": "a", "triples": [["a", 1, "c"]]}', "line 1 is malformed: relation is no name"),
        ("t.jsonl", b'\n{"id": "a", "tri', "line 2 is malformed: not JSON"),
        ("t.jsonl", b"[" * 100_000, "line 1 is malformed"),
    ],
)
def test_malformed_lines_are_named_and_not_quoted(tmp_path: Path, name: str, content: bytes, cause: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=cause):
        list(TripleFile(tmp_path / name).statements())


def test_a_triple_file_that_changed_after_it_was_listed_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,head,relation,tail\na,lung,near,heart\n")
    file = TripleFile(path)
    [said] = file.statements()
    path.write_text("id,tail,relation,head\na,lung,near,heart\n")
    with pytest.raises(DataError, match="is not what was listed .its first row differs"):
        list(file.read([said.span]))
    path.unlink()
    with pytest.raises(DataError, match="is missing"):
        list(file.read([said.span]))
    lines = tmp_path / "t.jsonl"
    lines.write_text('{"id": "a", "triples": []}')
    file = TripleFile(lines)
    [said] = file.statements()
    lines.unlink()
    for read in (file.read([said.span]), file.statements()):
        with pytest.raises(DataError, match=r"t.jsonl cannot be read: No such file"):
            list(read)


def test_json_that_is_just_not_too_deep_where_it_is_listed_is_ours_to_refuse_in_a_worker(tmp_path: Path) -> None:
    path, deep = tmp_path / "t.jsonl", sys.getrecursionlimit() - 250
    path.write_text('{"id": "a", "triples": [], "more": ' + "[" * deep + "]" * deep + "}")
    file = TripleFile(path)
    [said] = file.statements()

    def lower(frames: int) -> list:
        return lower(frames - 1) if frames else list(file.read([said.span]))

    with pytest.raises(DataError, match="lists in lists too deep"):
        lower(240)


def test_graphs_and_lines_that_would_take_gigabytes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "g.json").write_bytes(b'{"nodes": [' + b"[]," * 2_000_000 + b"[]]}")
    with pytest.raises(DataError, match="names, objects and lists in JSON"):
        read_graph(tmp_path / "g.json")
    (tmp_path / "t.jsonl").write_bytes(b'{"id": "a", "triples": [' + b"[]," * 1_000_000 + b"[]]}")
    with pytest.raises(DataError, match="line 1 is malformed: .* names, objects and lists in JSON"):
        list(TripleFile(tmp_path / "t.jsonl").statements())


def test_what_is_no_triple_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="t.csv is missing"):
        TripleFile(tmp_path / "t.csv")
    with pytest.raises(ConfigError, match=r"give a .csv or a .jsonl"):
        TripleFile(tmp_path / "t.txt")


def test_graphs_are_read_from_both_forms(tmp_path: Path) -> None:
    (tmp_path / "g.csv").write_text("head,relation,tail,count\nlung,is,clear,9\nheart,is,big,2\nlung,is,clear,1\n")
    graph = read_graph(tmp_path / "g.csv")
    assert graph.vocabulary == Vocabulary(("big", "clear", "heart", "lung"), ("is",))
    assert graph.edges == ((3, 1, 0), (2, 0, 0))
    content = {"nodes": ["lung", "clear"], "relations": ["is"], "triples": [["lung", "is", "clear"]]}
    (tmp_path / "g.json").write_text(json.dumps(content))
    assert read_graph(tmp_path / "g.json") == Graph(Vocabulary(("lung", "clear"), ("is",)), ((0, 1, 0),))


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("g.json", '{"nodes": ["a"], "relations": ["r"]}', "no object with lists"),
        ("g.json", '{"nodes": ["a"], "relations": ["r"], "triples": [["a", "r", "b"]]}', r"triples\[0\] names what"),
        ("g.json", '{"nodes": ["a", "a"], "relations": ["r"], "triples": [["a", "r", "a"]]}', "listed twice"),
        ("g.json", '{"nodes": ["a"], "relations": ["r"], "triples": []}', "no triples"),
        ("g.json", '{"nodes": [', "line 1 is malformed"),
        ("g.csv", "head,tail\na,b\n", "missing columns: relation"),
        ("g.csv", "head,relation,tail\na,,b\n", "line 2 is malformed"),
    ],
)
def test_what_is_no_graph_is_refused(tmp_path: Path, name: str, content: str, cause: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=cause):
        read_graph(tmp_path / name)
