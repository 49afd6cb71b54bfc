"""Sides: what is written beside shards belongs to the right study, changes no film, and is refused beside others."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset

from shards.errors import ConfigError, DataError
from shards.graphs.subgraph import Vocabulary, unpack
from shards.graphs.write import StudyGraphs, write_subgraphs
from shards.sources.phantom.source import Phantom
from shards.stream.blocks import read_batches, read_block, stream_blocks
from shards.stream.index import Index, numbered_studies, open_splits
from shards.stream.order import sequential_blocks
from shards.stream.side import Side
from shards.tars.format import read_manifest, write_manifest, write_sealed
from shards.tars.kinds import FILE, KINDS, Kind, read_side, without_member
from shards.tars.place import names_in, place, sha256_of, write_atomic
from shards.tars.report import side_lines
from shards.tars.shards import write_shards
from shards.tars.sides import plan_side, write_side, write_side_tar
from shards.tars.verify import faults_of
from shards.tars.write import Made

pytestmark = pytest.mark.usefixtures("ray_session")
SIZE = 32


def stamps(root: Path) -> dict[str, tuple[str, int]]:
    """Name → sha256 and time of change of every file directly in a directory."""
    return {path.name: (sha256_of(path), path.stat().st_mtime_ns) for path in sorted(root.iterdir()) if path.is_file()}


def said(side: Path | str, data: bytes) -> set[tuple[str, str, str]]:
    """The triples that a packed subgraph says, by name."""
    words, graph = read_side(side).description, unpack(data)
    names = [words["nodes"][node] for node in graph.node]
    edges = zip(*graph.edge_index.tolist(), graph.edge_type.tolist(), strict=True)
    return {(names[head], words["relations"][kind], names[tail]) for head, tail, kind in edges}


@pytest.fixture(scope="module")
def graphs(phantom_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Subgraphs of the records' own triples."""
    out = tmp_path_factory.mktemp("side") / "graphs"
    write_subgraphs(phantom_shards, out)
    return out


@pytest.fixture
def copied(graphs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(graphs, tmp_path / "copied"))


def digests(root: Path) -> dict[str, str]:
    return {name: digest for name, (digest, _) in stamps(root).items()}


def own_triples(root: Path, name: str) -> dict[int, set]:
    return {row: set(study.triples) for row, study in numbered_studies(Index.open(root, name))}


def test_subgraphs_say_what_the_records_say(phantom_shards: Path, graphs: Path) -> None:
    side, manifest = read_side(graphs), read_manifest(phantom_shards)
    training = own_triples(phantom_shards, "train")
    names = {name for triples in training.values() for head, _, tail in triples for name in (head, tail)}
    assert side.description["nodes"] == sorted(names), "validation and test reports add no names"
    assert (side.parent, side.description["origin"]) == (manifest.fingerprint, "report")
    held = 0
    for name in manifest.splits:
        opened = Side.open(graphs, Index.open(phantom_shards, name), manifest, "subgraphs")
        for row, triples in own_triples(phantom_shards, name).items():
            data = opened.read(row)
            known = {(h, r, t) for h, r, t in triples if {h, t} <= names and r in side.description["relations"]}
            assert (set() if data is None else said(graphs, data)) == known
            held += data is not None
    assert sum(shard.held for shard in side.shards) == held > 30
    assert sum(side.without.values()) == 60 - held == len(list(without_member(graphs, side)))
    counted = [line.split() for line in side_lines(side)[:3]]
    assert [sum(int(words[at]) for words in counted) for at in (1, 3, 6)] == [60, held, 60 - held]


def test_plain_webdataset_reads_shards_and_side_by_the_same_keys(phantom_shards: Path, graphs: Path) -> None:
    shard = read_manifest(phantom_shards).shards[0].name
    keys = [sample["__key__"] for sample in webdataset.WebDataset(str(phantom_shards / shard), shardshuffle=False)]
    beside = {s["__key__"]: s["kg.safetensors"] for s in webdataset.WebDataset(str(graphs / shard), shardshuffle=False)}
    assert list(beside) == [key for key in keys if key in beside] and len(beside) > 5
    assert all(isinstance(unpack(data).node, np.ndarray) for data in beside.values())


def test_films_are_never_touched_and_a_second_side_keeps_the_first(phantom_shards: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(phantom_shards, tmp_path / "shards"))
    before, file = stamps(root), tmp_path / "t.jsonl"
    file.write_text(json.dumps({"id": "phantom-00003", "triples": [["a", "is", "b"]]}) + "\n")
    write_subgraphs(root, root / "side" / "own")
    first, content = stamps(root / "side" / "own"), digests(root / "side" / "own")
    write_subgraphs(root, root / "side" / "file", triples=file)
    write_subgraphs(root, root / "side" / "own")
    assert stamps(root) == before
    again = stamps(root / "side" / "own")
    assert digests(root / "side" / "own") == content
    assert all(again[name] == first[name] for name in first if name != FILE), "whole tars are kept"
    assert not list((root / "side" / "own").glob(".*"))


def test_bytes_do_not_depend_on_who_writes_beside_whom(phantom_shards: Path, graphs: Path, tmp_path: Path) -> None:
    manifest, side = read_manifest(phantom_shards), read_side(graphs)
    indices = open_splits(phantom_shards, manifest)
    words = Vocabulary(tuple(side.description["nodes"]), tuple(side.description["relations"]))
    for job in reversed(plan_side(indices, "subgraphs", side.description)):
        write_side_tar(tmp_path, job, indices[job.split], StudyGraphs(words, None, None, "fail"))
    assert digests(tmp_path) | {FILE: sha256_of(graphs / FILE)} == digests(graphs)


def test_a_broken_writer_is_resumed(phantom_shards: Path, copied: Path) -> None:
    before, content = stamps(copied), digests(copied)
    (copied / FILE).unlink()
    (copied / ".writing-side").touch()
    (copied / ".train-00001.tar.9.tmp").write_bytes(b"half")
    (copied / "train-00001.tar").write_bytes((copied / "train-00001.tar").read_bytes()[:-512])
    (copied / "train-00002.index.json").unlink()
    write_subgraphs(phantom_shards, copied)
    after = stamps(copied)
    assert digests(copied) == content
    written = {name for name in after if name.endswith(".tar") and after[name] != before[name]}
    assert written == {"train-00001.tar", "train-00002.tar"}


def rows_of(root: Path, side: Path | str, name: str = "train", on_bad: str = "fail") -> dict[str, np.ndarray]:
    index = Index.open(root, name)
    opened = Side.open(side, index, read_manifest(root), "subgraphs", on_bad)
    return read_block(
        index, sequential_blocks(len(index), 1, len(index))[0], SIZE, 2, on_bad, sides={"subgraphs": opened}
    )


def test_the_stream_gives_every_study_its_own_subgraph(phantom_shards: Path, graphs: Path) -> None:
    index, wanted = Index.open(phantom_shards, "train"), own_triples(phantom_shards, "train")
    stream = stream_blocks(
        phantom_shards, "train", sequential_blocks(len(index), 1, 7, 14), SIZE, 1, sides={"subgraphs": graphs}
    )
    seen = 0
    for rows in read_batches(stream, 7):
        assert rows["images"].shape[1:] == (1, SIZE, SIZE)
        for row, data, valid in zip(rows["index"], rows["subgraph"], rows["valid"], strict=True):
            assert isinstance(data, bytes) and said(graphs, data) == (wanted[row] if valid else set())
            seen += valid
    assert seen == len(index)
    plain = read_block(index, sequential_blocks(7, 1, 7)[0], SIZE, 1)
    assert "subgraph" not in plain and "features" not in plain


def test_a_side_of_other_shards_is_refused_with_both_names_and_the_way_out(graphs: Path, tmp_path: Path) -> None:
    other = write_shards(Phantom(studies=12, size=64, seed=5), tmp_path, size=64)
    wanted = f"fingerprint {read_side(graphs).parent[:12]}, the shards given have {other.fingerprint[:12]}.*other films"
    with pytest.raises(DataError, match=rf"{wanted}.*`r2kg subgraphs SHARDS`"):
        rows_of(tmp_path, graphs)
    with pytest.raises(DataError, match=wanted):
        stream_blocks(tmp_path, "train", [], SIZE, 1, sides={"subgraphs": graphs})


def test_a_side_of_another_kind_or_none_is_refused(phantom_shards: Path, graphs: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds subgraphs, not features: write features with `r2kg features"):
        stream_blocks(phantom_shards, "train", [], SIZE, 1, sides={"features": graphs})
    with pytest.raises(DataError, match=r"no side at .*side.json is missing there"):
        stream_blocks(phantom_shards, "train", [], SIZE, 1, sides={"subgraphs": tmp_path})


def other_keys(copied: Path) -> None:
    path, side = copied / "train-00000.index.json", read_side(copied)
    content = json.loads(path.read_text())
    content["studies"][0], content["studies"][1] = content["studies"][1], content["studies"][0]
    path.write_text(json.dumps(content))
    tars = [
        tar.model_copy(update={"index": sha256_of(path)} if tar.name in path.name.replace("index.json", "tar") else {})
        for tar in side.shards
    ]
    write_sealed(copied / FILE, side.model_copy(update={"shards": tuple(tars)}))


def test_studies_in_another_order_are_refused_whatever_the_policy(phantom_shards: Path, copied: Path) -> None:
    other_keys(copied)
    for on_bad in ("skip", "fail"):
        with pytest.raises(DataError, match=r"train-00000.tar lists other studies, or in another order"):
            rows_of(phantom_shards, copied, on_bad=on_bad)


def edited(copied: Path) -> None:
    path = copied / FILE
    path.write_text(path.read_text().replace('"origin": "report"', '"origin": "graph"'))


def unlisted(copied: Path) -> None:
    side = read_side(copied)
    write_sealed(place(copied) / FILE, side.model_copy(update={"shards": side.shards[1:]}))


def shapeless(copied: Path) -> None:
    side = read_side(copied)
    write_sealed(place(copied) / FILE, side.model_copy(update={"description": {"nodes": -3, "relations": "x"}}))


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (edited, "was changed after it was written"),
        (unlisted, "lists other tars than its shards"),
        (shapeless, "tells no usable nodes, relations"),
        (lambda copied: (copied / FILE).write_text("{"), "side.json is not JSON"),
    ],
)
def test_a_side_json_that_cannot_be_is_refused(
    phantom_shards: Path, copied: Path, damage: Callable, cause: str
) -> None:
    damage(copied)
    with pytest.raises(DataError, match=cause):
        rows_of(phantom_shards, copied)


def missing_tar(copied: Path) -> None:
    (copied / "train-00001.tar").unlink()


def torn_index(copied: Path) -> None:
    path = copied / "train-00001.index.json"
    path.write_bytes(path.read_bytes()[:-30])


def wild_index(copied: Path) -> None:
    path = copied / "train-00001.index.json"
    content = json.loads(path.read_text())
    content["studies"][2]["members"] = {"kg.safetensors": [10**12, 10**12, 0]}
    path.write_text(json.dumps(content))


def short_tar(copied: Path) -> None:
    os.truncate(copied / "train-00001.tar", 600)


def other_bytes(copied: Path) -> None:
    path = copied / "train-00001.tar"
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize(
    ("damage", "cause", "fault"),
    [
        (missing_tar, "train-00001.tar cannot be read", "train-00001.tar is missing"),
        (torn_index, "index .*train-00001.index.json cannot be used: it is torn", "cannot be used: it is torn"),
        (wild_index, "train-00001.index.json cannot be used: it is torn or was changed", "was changed"),
        (short_tar, "train-00001.tar breaks off", "has 600 bytes, the manifest says"),
        (other_bytes, "are not those that were written .checksum", "has sha256"),
    ],
)
def test_damage_costs_the_studies_of_its_tar_by_name(
    phantom_shards: Path, graphs: Path, copied: Path, damage: Callable, cause: str, fault: str
) -> None:
    damage(copied)
    rows, whole = rows_of(phantom_shards, copied, on_bad="skip"), rows_of(phantom_shards, graphs)
    index = Index.open(phantom_shards, "train")
    lost = np.flatnonzero((index.tar == 1) & ((whole["subgraph"] != b"") | (damage in (torn_index, wild_index))))
    assert (np.flatnonzero(~rows["valid"]).tolist() == lost.tolist() and len(lost) > 8) or damage is short_tar
    bad = np.flatnonzero(~rows["valid"])
    assert len(bad) and set(index.tar[bad]) == {1}
    for row in bad:
        assert rows["bad"][row].startswith(f"{index.keys[row].decode()}: ") and not rows["images"][row].any()
    with pytest.raises(DataError, match=cause):
        rows_of(phantom_shards, copied, on_bad="fail")
    [told] = faults_of(copied, read_side(copied).shards)
    assert fault in told and faults_of(graphs, read_side(graphs).shards) == []


def test_hostile_subgraphs_become_bad_rows(phantom_shards: Path, tmp_path: Path) -> None:
    manifest = read_manifest(phantom_shards)
    indices = open_splits(phantom_shards, manifest)
    made = [Made({"kg.safetensors": b"PK\x03\x04 nothing"}), Made(cause="no triples")]
    description = {"nodes": ["a"], "relations": ["r"], "origin": "report"}

    def build() -> Callable:
        return lambda index, rows, given: (made[row % 2] for row in rows)

    write_side(phantom_shards, tmp_path / "bad", "subgraphs", manifest, indices, description, build)
    rows = rows_of(phantom_shards, tmp_path / "bad", on_bad="skip")
    assert rows["valid"].tolist() == [row % 2 == 1 for row in range(len(rows["valid"]))]
    assert "not a subgraph" in rows["bad"][0]


def test_object_storage_holds_and_streams_the_same_side(s3: str, phantom_shards: Path, graphs: Path) -> None:
    for name in names_in(phantom_shards):
        write_atomic(place(s3) / name, (phantom_shards / name).read_bytes())
    where = place(s3) / "side" / "graphs"
    assert write_subgraphs(s3, where).fingerprint == read_side(graphs).fingerprint
    assert set(names_in(where)) == set(names_in(graphs)) and faults_of(where, read_side(where).shards) == []
    here, there = rows_of(phantom_shards, graphs), rows_of(s3, str(where))
    assert (
        here["subgraph"].tolist() == there["subgraph"].tolist() and here["record"].tolist() == there["record"].tolist()
    )
    (where / "train-00001.tar").unlink()
    lost = rows_of(s3, str(where), on_bad="skip")
    assert "train-00001.tar cannot be read" in lost["bad"][~lost["valid"]][0]


def test_another_manifest_is_another_parent(phantom_shards: Path, graphs: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(phantom_shards, tmp_path / "shards"))
    write_manifest(root, read_manifest(root).model_copy(update={"notes": ("looked at twice",)}))
    with pytest.raises(DataError, match="belong to shards of fingerprint"):
        rows_of(root, graphs)


def test_a_side_never_takes_the_place_of_unfinished_shards(phantom_shards: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(phantom_shards, tmp_path / "killed"))
    (out / "manifest.json").unlink()
    (out / ".writing").touch()
    before = stamps(out)
    with pytest.raises(ConfigError, match="holds archives that are no side"):
        write_subgraphs(phantom_shards, out)
    assert stamps(out) == before


def test_hostile_descriptions_are_refused(copied: Path) -> None:
    content = json.loads((copied / FILE).read_text())
    deep: dict = {}
    content["description"]["more"] = deep
    for _ in range(400):
        deep["more"] = deep = {}
    (copied / FILE).write_text(json.dumps(content))
    with pytest.raises(DataError, match="side.json"):
        read_side(copied)


def test_a_new_kind_is_an_entry_and_a_job(
    phantom_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KINDS, "notes", Kind(suffix="note", extent=("longest",), column="note", how="`r2kg notes`"))
    manifest = read_manifest(phantom_shards)
    indices = open_splits(phantom_shards, manifest)

    def build() -> Callable:
        return lambda index, rows, given: (Made({"note": b"row %d" % row}) for row in rows)

    write_side(phantom_shards, tmp_path / "notes", "notes", manifest, indices, {"longest": 7}, build)
    opened = Side.open(tmp_path / "notes", indices["val"], manifest, "notes")
    rows = read_block(indices["val"], sequential_blocks(6, 1, 6)[0], SIZE, 2, "fail", {"notes": opened})
    assert rows["note"].tolist() == [b"row %d" % row for row in range(6)] and rows["images"].any()
