"""Triples as data: what annotations, RadGraph, files and predictions say becomes a side, records, and a graph again."""

import json
import shutil
import stat
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from jobs.triples import main as write
from r2kg.graph.build.said import Said, add_triples
from r2kg.graph.build.triples import (
    AGAIN,
    NOT_LISTED,
    UNKNOWN,
    of_file,
    of_predictions,
    of_radgraph,
    write_listed_triples,
)
from r2kg.graph.extract.annotate import NOT_ASKED, labelled, write_annotations
from r2kg.graph.extract.rules import Rules
from shards.errors import ConfigError, DataError
from shards.graphs.text import triples_text
from shards.graphs.triples import unpack_triples
from shards.sources.phantom.source import Phantom
from shards.stream.index import Index, read_studies
from shards.stream.side import Side
from shards.tars.format import read_manifest
from shards.tars.kinds import read_side
from shards.tars.shards import write_shards

LEFT: dict[str, Any] = {"tokens": "Left", "label": "ANAT-DP", "start_ix": 0, "end_ix": 0, "relations": []}
ONE = {"1": LEFT, "2": {**LEFT, "tokens": "Edema", "label": "OBS-DP", "start_ix": 1, "end_ix": 1}}
ONE["2"]["relations"] = [["located_at", "1"]]
EDEMA = ("edema", "located_at", "left")


def radgraph(path: Path, *names: str, **more: Any) -> Path:
    path.write_text(json.dumps({name: {"text": "Left Edema", "entities": ONE} | more for name in names}))
    return path


def held(root: Path, where: Path, split: str) -> dict[str, tuple]:
    """Key → triples of the studies of a split that have a member."""
    index = Index.open(root, split)
    side = Side.open(where, index, read_manifest(root), "triples")
    members = {index.keys[row].decode(): side.read(row) for row in range(len(index))}
    return {key: unpack_triples(data) for key, data in members.items() if data is not None}


def prediction(study: Any, **more: Any) -> str:
    said = {"id": study.id, "key": study.key, "split": study.split, "prediction": triples_text(study.triples)}
    return json.dumps(said | {"reference": "none", "truncated": False} | more) + "\n"


def test_roles_and_statuses_tell_kinds_and_certainties() -> None:
    said = Said(Counter(), [])
    triples = [("zorb", "located_at", "blib"), ("slabby", "modify", "Zorb"), ("Effusion", "suggestive_of", "grok")]
    triples += [("zorb", "status", "absent"), ("alone", "status", "uncertain"), ("x", "next_to", "y"), triples[0]]
    assert add_triples(said, "s1", triples) == 1
    assert dict(said.mentions) == {
        ("zorb", "disorder", "absent"): 1, ("blib", "anatomy", "present"): 1, ("slabby", "concept", "present"): 1,
        ("pleural effusion", "disorder", "present"): 1, ("grok", "disorder", "present"): 1,
        ("alone", "disorder", "uncertain"): 1,
    }  # fmt: skip
    assert [(s.head, s.relation, s.tail, s.certainty) for s in said.statements] == [
        ("zorb", "located_at", "blib", "absent"), ("slabby", "modify", "zorb", "absent"),
        ("pleural effusion", "suggestive_of", "grok", "present"),
    ]  # fmt: skip
    assert {(s.study, s.sentence, s.start, s.end) for s in said.statements} == {("s1", None, None, None)}


def test_sources_that_cannot_be_are_refused_before_anything_is_written(phantom_shards: Path, tmp_path: Path) -> None:
    root, file = phantom_shards, tmp_path / "t.json"
    with pytest.raises(DataError, match=r"none of the 1 studies listed \(p1/s1\.txt\) is in the shards"):
        write_listed_triples(root, tmp_path / "out", of_radgraph([radgraph(file, "p1/s1.txt")], "labeler_1"))
    with pytest.raises(DataError, match="none of the 0 studies listed"):
        write_listed_triples(root, tmp_path / "out", of_radgraph([radgraph(file)], "merge"))
    study = next(read_studies(root, "train"))
    with pytest.raises(DataError, match="are of the task 'report': give those of a system that writes triples"):
        of_predictions(file, [json.loads(prediction(study))], {"task": "report"})
    with pytest.raises(DataError, match="say not one triple"):
        of_predictions(file, [json.loads(prediction(study, prediction="The lungs are clear."))], {})
    with pytest.raises(ConfigError, match="--radgraph and --predictions were given"):
        write(str(root), radgraph=[str(file)], predictions=file)
    with pytest.raises(ConfigError, match="--status and --isolated go with annotations or --radgraph"):
        write(str(root), predictions=file, status=True)
    with pytest.raises(ConfigError, match="no annotations below"):
        write(str(root))
    assert not (tmp_path / "out").exists()


def test_documents_are_matched_by_id_key_or_path_and_the_first_counts(phantom_shards: Path, tmp_path: Path) -> None:
    train, test = ([*read_studies(phantom_shards, split)] for split in ("train", "test"))
    first = radgraph(tmp_path / "a.json", f"p1/p12/{train[0].id}.txt", test[0].key, "nobody")
    other = ONE | {"2": ONE["2"] | {"tokens": "clip"}}
    second = radgraph(tmp_path / "b.json", train[0].id, train[1].id, entities=other)
    out = tmp_path / "side"
    side = write_listed_triples(phantom_shards, out, of_radgraph([first, second], "labeler_1"))
    clip = (("clip", "located_at", "left"),)
    assert held(phantom_shards, out, "train") == {train[0].key: (EDEMA,), train[1].key: clip}
    assert held(phantom_shards, out, "test") == {test[0].key: (EDEMA,)}
    assert side.warnings == {UNKNOWN: ("nobody",), AGAIN: (train[0].id,)} and side.without == {NOT_LISTED: 57}
    told = side.description
    assert told["origin"] == "radgraph" and told["splits"] == ["train", "test"] and told["annotator"] == "labeler_1"
    assert [file["name"] for file in told["files"]] == ["a.json", "b.json"]


def test_of_credentialed_data_no_id_is_told_and_records_are_the_owners(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Phantom, "licence", "physionet-credentialed-1.5.0")
    root, ids = tmp_path / "shards", [f"phantom-{number:05d}" for number in range(12)]
    write_shards(Phantom(studies=12, size=64), root, size=64)
    file, out, records = tmp_path / "a.json", tmp_path / "side", tmp_path / "records.jsonl"
    documents = [f"p1/p12/{name}.txt" for name in ids]
    write(str(root), radgraph=[str(radgraph(file, *documents, "p1/stranger.txt"))], jsonl=records, out=str(out))
    side = read_side(out)
    assert side.warnings == {UNKNOWN: ("a.json, document 13",)} and sum(tar.held for tar in side.shards) == 12
    assert set(held(root, out, "train").values()) == {(EDEMA,)} and stat.S_IMODE(records.stat().st_mode) == 0o600
    shown = b"".join(path.read_bytes() for path in (*out.iterdir(), records))
    assert b"phantom-0" not in shown and b"stranger" not in shown
    with pytest.raises(DataError, match=r"\(a\.json, document 1\)"):
        write_listed_triples(root, tmp_path / "no", of_radgraph([radgraph(file, "stranger")], "merge"))


@pytest.mark.slow
def test_annotations_are_flattened_and_told_as_records(phantom_shards: Path, tmp_path: Path, capsys) -> None:
    root = shutil.copytree(phantom_shards, tmp_path / "shards")
    write_annotations(root, root / "side" / "annotations-rules", Rules())
    write(str(root), jsonl=tmp_path / "r" / "records.jsonl")
    assert "No triples of val, test" in (printed := capsys.readouterr().out) and "45 records in" in printed
    where = root / "side" / "triples"
    said, side = held(root, where, "train"), read_side(where)
    keys = [study.key for study in read_studies(root, "train")]
    for key, (_, annotation) in zip(keys, labelled(root, root / "side" / "annotations-rules"), strict=True):
        assert set(said[key]) == set(annotation.triples())
    assert not held(root, where, "test") and side.without == {NOT_ASKED: 15}
    assert side.description["extractor"] == "rules" and side.description["splits"] == ["train"]
    lines = [json.loads(line) for line in (tmp_path / "r" / "records.jsonl").read_text().splitlines()]
    study = next(read_studies(root, "train"))
    assert lines[0].keys() == {"id", "split", "image_path", "instruction", "input", "output", "triplets", "source"}
    assert (lines[0]["id"], lines[0]["split"], lines[0]["input"]) == (study.id, "train", study.report)
    assert lines[0]["output"] == triples_text(map(tuple, lines[0]["triplets"])) and lines[0]["source"] == "annotations"
    assert lines[0]["image_path"][1].endswith(f".tar/{study.key}.1.jpg")
    write(str(root), status=True, isolated=True, out=str(tmp_path / "stated"))
    stated = held(root, tmp_path / "stated", "train")
    assert all(set(said[key]) <= set(stated[key]) for key in keys)
    assert {triple[2] for of in stated.values() for triple in of if triple[1] == "status"} >= {"absent", "uncertain"}
    other = write_shards(Phantom(studies=12, size=64, seed=7), tmp_path / "other", size=64)
    with pytest.raises(DataError, match=f"belong to shards of fingerprint .* have {other.fingerprint[:12]}"):
        Side.open(where, Index.open(tmp_path / "other", "train"), other, "triples")


def test_a_file_of_triples_is_taken_and_what_cannot_be_kept_is_counted(phantom_shards: Path, tmp_path: Path) -> None:
    train = [*read_studies(phantom_shards, "train")]
    file, long = tmp_path / "t.jsonl", [["a." * 249, "is", "b"]]
    rows = [{"id": train[0].id, "triples": [EDEMA]}, {"key": train[1].key, "triples": []},
            {"key": train[2].key, "triples": long}, {"id": train[0].id, "triples": [["a", "is", "b"]]}]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    side = write_listed_triples(phantom_shards, tmp_path / "side", of_file(file))
    assert held(phantom_shards, tmp_path / "side", "train") == {
        train[0].key: (EDEMA, ("a", "is", "b")),
        train[1].key: (),
    }
    assert side.totals == {"studies of no triple": 1, "triples": 2}
    assert side.without == {NOT_LISTED: 57, "triples that cannot be kept": 1}


def test_predictions_become_a_graph(phantom_shards: Path, tmp_path: Path, capsys) -> None:
    """What a system says of studies is a side, and of its training studies a graph."""
    from jobs.graph import build
    from r2kg.graph.artefact import load_graph

    root = shutil.copytree(phantom_shards, tmp_path / "shards")
    studies = [study for split in ("train", "test") for study in read_studies(root, split)]
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(prediction(study) for study in studies))
    (tmp_path / "context.json").write_text(json.dumps({"task": "triples", "run": "vlm", "checkpoint": "step-00000003"}))
    write(str(root), predictions=path)
    side = read_side(root / "side" / "triples")
    assert side.description["checkpoint"] == "step-00000003" and side.description["splits"] == ["train", "test"]
    known = {study.key: study.triples for study in studies}
    for split in ("train", "test"):
        for key, triples in held(root, root / "side" / "triples", split).items():
            assert triples_text(triples) == triples_text(known[key])
    build(str(root), triples=True)
    assert "nodes" in capsys.readouterr().out
    graph = load_graph(root / "graph")
    train = {study.key for study in studies if study.split == "train"}
    assert set(graph.provenance["study"].to_pylist()) <= train and set(graph.provenance["start"].to_pylist()) == {None}
    wanted = {triple for study in studies if study.split == "train" for triple in study.triples}
    shared = set(graph.named_triples()) & wanted
    assert len(shared) > 0.9 * graph.triples.num_rows
    assert graph.manifest.description["triples"] == side.fingerprint and not graph.manifest.annotations
    with pytest.raises(DataError, match="holds annotations|holds triples, not annotations"):
        build(str(root), annotations=str(root / "side" / "triples"), out=str(tmp_path / "g"))
