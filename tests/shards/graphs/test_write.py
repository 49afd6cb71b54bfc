"""Subgraphs from triple files and graphs: joined to the right study, nothing lost in silence, no identifier shown."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import webdataset

from shards.errors import ConfigError, DataError
from shards.graphs.subgraph import unpack
from shards.graphs.write import UNKNOWN, write_subgraphs
from shards.privacy import Names
from shards.sources.phantom.source import Phantom
from shards.stream.index import Index
from shards.stream.side import Side
from shards.tars.format import read_manifest
from shards.tars.kinds import UNREAD, read_side, without_member
from shards.tars.place import sha256_of
from shards.tars.private import names_of
from shards.tars.shards import write_shards

pytestmark = pytest.mark.usefixtures("ray_session")


def said(side: Path | str, data: bytes) -> set[tuple[str, str, str]]:
    """The triples that a packed subgraph says, by name."""
    words, graph = read_side(side).description, unpack(data)
    names = [words["nodes"][node] for node in graph.node]
    edges = zip(*graph.edge_index.tolist(), graph.edge_type.tolist(), strict=True)
    return {(names[head], words["relations"][kind], names[tail]) for head, tail, kind in edges}


def films(root: Path) -> dict[str, tuple[str, int]]:
    """Name → sha256 and time of change of the shards' files."""
    return {path.name: (sha256_of(path), path.stat().st_mtime_ns) for path in root.iterdir() if path.is_file()}


def triple_csv(path: Path, rows: list[tuple[str, str, str, str]], name: str = "id") -> Path:
    path.write_text("\n".join([f"{name},head,relation,tail", *(",".join(row) for row in rows)]) + "\n")
    return path


def test_a_triple_file_is_joined_by_id_and_kept_readable(phantom_shards: Path, tmp_path: Path) -> None:
    train, test = (Index.open(phantom_shards, name) for name in ("train", "test"))
    one, two, three = (key.decode() for key in (*train.keys[[0, 20]], test.keys[0]))
    rows = [(two, "lung", "is", "clear"), ("nobody", "x", "is", "y"), (one, "heart", "is", "big")]
    rows += [("nobody", "a", "is", "b"), (two, "heart", "is", "clear"), (two, "lung", "is", "clear")]
    rows += [(three, "lung", "is", "new"), (three, "p", "q", "r")]
    file, out = triple_csv(tmp_path / "t.csv", rows), tmp_path / "side"
    side = write_subgraphs(phantom_shards, out, triples=file)
    assert side.warnings == {UNKNOWN: ("nobody",)}
    assert side.description["nodes"] == ["big", "clear", "heart", "lung"] and side.description["relations"] == ["is"]
    assert side.totals["triples"] == 5 == side.totals["edges"] + side.totals["triples with an unknown name"]
    assert (side.totals["entities"], side.totals["unknown entities"], side.totals["nodes"]) == (9, 3, 6)
    assert side.largest == {"edges": 2, "nodes": 3}
    opened = Side.open(out, train, read_manifest(phantom_shards), "subgraphs")
    assert said(out, opened.read(20)) == {("lung", "is", "clear"), ("heart", "is", "clear")}
    assert opened.read(1) is None and side.without == {"no triples": 57}
    tested = Side.open(out, test, read_manifest(phantom_shards), "subgraphs").read(0)
    assert said(out, tested) == set() and len(unpack(tested).node) == 1
    [sample] = webdataset.WebDataset(str(out / test.tars[0]), shardshuffle=False)
    assert json.loads(sample["kg.json"])["triples"] == [["lung", "is", "new"], ["p", "q", "r"]]


def test_a_graph_gives_each_study_the_part_between_its_entities(phantom_shards: Path, tmp_path: Path) -> None:
    key = Index.open(phantom_shards, "test").keys[2].decode()
    file = triple_csv(tmp_path / "t.csv", [(key, "lung", "x", "heart"), (key, "clip", "x", "big")], "key")
    content = {"nodes": ["heart", "lung", "big", "small"], "relations": ["is", "near"]}
    content["triples"] = [["lung", "near", "heart"], ["heart", "is", "big"], ["heart", "is", "small"]]
    (tmp_path / "g.json").write_text(json.dumps(content))
    out = tmp_path / "side"
    side = write_subgraphs(phantom_shards, out, triples=file, graph=tmp_path / "g.json")
    assert side.description["origin"] == "graph" and side.description["nodes"] == content["nodes"]
    assert side.description["use"].startswith("target or label only")
    data = Side.open(out, Index.open(phantom_shards, "test"), read_manifest(phantom_shards), "subgraphs").read(2)
    assert said(out, data) == {("lung", "near", "heart"), ("heart", "is", "big")}
    assert sum(shard.held for shard in side.shards) == 1


@pytest.fixture
def salted(phantom_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Shards whose terms are those of patients' films."""
    monkeypatch.setenv("R2KG_SALT", "0" * 32)
    monkeypatch.setattr(Phantom, "licence", "physionet-credentialed-1.5.0")
    write_shards(Phantom(studies=12, size=64), tmp_path / "salted", size=64)
    return tmp_path / "salted"


def test_owners_ids_find_salted_studies_and_are_shown_nowhere(
    salted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [f"phantom-{number:05d}" for number in range(12)]
    rows = [(name, "lung", "is", "clear") for name in [*ids, "stranger-1"]]
    out = salted / "side" / "graphs"
    side = write_subgraphs(salted, out, triples=triple_csv(tmp_path / "t.csv", rows))
    assert sum(shard.held for shard in side.shards) == 12
    assert side.warnings == {UNKNOWN: ("line 14",)} and side.licence == "physionet-credentialed-1.5.0"
    shown = b"".join(path.read_bytes() for path in out.iterdir())
    assert b"phantom-0" not in shown and b"stranger" not in shown
    names = names_of(read_manifest(salted))
    assert isinstance(names, Names) and names.key(ids[0]).encode() in shown
    shutil.rmtree(salted / "private")
    monkeypatch.setenv("R2KG_SALT", "1" * 32)
    with pytest.raises(DataError, match="without it the owner's identifiers cannot be turned"):
        write_subgraphs(salted, tmp_path / "again", triples=tmp_path / "t.csv")


def test_requests_that_cannot_be_are_refused(phantom_shards: Path, tmp_path: Path) -> None:
    before = films(phantom_shards)
    with pytest.raises(ConfigError, match="holds shards: a side needs a place of its own"):
        write_subgraphs(phantom_shards, phantom_shards)
    (tmp_path / "other.tar").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"archives that are no side \(other.tar\)"):
        write_subgraphs(phantom_shards, tmp_path)
    file = triple_csv(tmp_path / "t.csv", [("nobody", "a", "b", "c")])
    with pytest.raises(DataError, match=r"t.csv: no training study has a triple"):
        write_subgraphs(phantom_shards, tmp_path / "side", triples=file)
    assert films(phantom_shards) == before and not (tmp_path / "side").exists()


def test_records_without_triples_are_no_subgraphs(drawn_iu: Callable, tmp_path: Path) -> None:
    from shards.sources.iu_xray.source import IuXray

    write_shards(IuXray(raw=drawn_iu(train=4)), tmp_path / "out", size=64)
    with pytest.raises(DataError, match="records of these iu_xray shards: no training study has a triple.*--triples"):
        write_subgraphs(tmp_path / "out", tmp_path / "side")


def test_an_unreadable_record_has_no_subgraph_until_it_is_mended(phantom_shards: Path, tmp_path: Path) -> None:
    root, out = Path(shutil.copytree(phantom_shards, tmp_path / "damaged")), tmp_path / "side"
    whole = write_subgraphs(phantom_shards, tmp_path / "whole")
    entry = json.loads((root / "train-00000.index.json").read_text())["studies"][3]
    with (root / "train-00000.tar").open("r+b") as tar:
        tar.seek(entry["members"]["json"][0])
        tar.write(b"\0" * 20)
    side = write_subgraphs(root, out)
    assert side.without[UNREAD] == 1 and (entry["key"], UNREAD) in list(without_member(out, side))
    with pytest.raises(DataError, match=f"study {entry['key']}: its bytes in train-00000.tar are not those"):
        write_subgraphs(root, out, on_bad="fail")
    assert read_side(out) == side, "what was written before stays"
    shutil.copy(phantom_shards / "train-00000.tar", root)
    assert write_subgraphs(root, out) == whole
