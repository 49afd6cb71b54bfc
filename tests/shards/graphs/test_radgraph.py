"""RadGraph's files: both versions are read, flattened in order, and no report is quoted when they cannot be."""

import json
from pathlib import Path
from typing import Any

import pytest

from shards.errors import ConfigError, DataError
from shards.graphs import radgraph as module
from shards.graphs.radgraph import documents_in, flattened
from shards.graphs.triples import pack_triples, unpack_triples

TEXT = "No left Effusion . Clips . SECRET possible edema 3 mm"


def entity(tokens: str, label: str, first: int, last: int, *relations: list[str]) -> dict[str, Any]:
    return {"tokens": tokens, "label": label, "start_ix": first, "end_ix": last, "relations": [*relations]}


V1 = {
    "2": entity("Effusion", "OBS-DA", 2, 2, ["located_at", "1"], ["suggestive_of", "4"]),
    "1": entity("left", "ANAT-DP", 1, 1),
    "3": entity("Clips", "OBS-DP", 4, 4),
    "4": entity("edema", "OBS-U", 8, 8),
}
XL = {
    "1": entity("edema", "Observation::uncertain", 8, 8),
    "2": entity("3 mm", "Observation::measurement::definitely present", 9, 10, ["modify", "1"]),
}


def write(path: Path, documents: Any) -> Path:
    path.write_text(json.dumps(documents, indent=1))
    return path


def triples(path: Path, annotator: Any = "labeler_1", **options: bool) -> list[tuple]:
    said = [
        flattened([(one.tokens.lower(), one.certainty) for one in document.entities], document.relations, **options)
        for document in documents_in(path, annotator)
    ]
    return [triple for of in said for triple in of]


def test_relations_are_flattened_by_place_and_statuses_are_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "v1.json", {"p1/s2.txt": {"text": TEXT, "entities": V1, "data_split": "train"}})
    plain = [("effusion", "located_at", "left"), ("effusion", "suggestive_of", "edema")]
    assert triples(path) == plain
    stated = [*plain, ("effusion", "status", "absent"), ("edema", "status", "uncertain")]
    assert triples(path, status=True) == stated
    alone = ("clips", "status", "present")
    assert triples(path, isolated=True) == [*plain, alone]
    assert triples(path, status=True, isolated=True) == [*stated[:3], alone, stated[3]]
    assert list(unpack_triples(pack_triples(stated))) == stated


def test_a_name_that_is_denied_here_and_there_not_has_both_statuses() -> None:
    said = flattened([("edema", "absent"), ("left", "present"), ("edema", "present")], [(0, "x", 1), (2, "x", 1)], True)
    assert said == (("edema", "x", "left"), ("edema", "status", "absent"), ("edema", "status", "present"))


def test_labels_of_xl_are_known(tmp_path: Path) -> None:
    (document,) = documents_in(write(tmp_path / "xl.json", {"a": {"text": TEXT, "entities": XL}}))
    assert [(one.kind, one.certainty) for one in document.entities] == [
        ("observation", "uncertain"), ("measurement", "present"),
    ]  # fmt: skip
    assert document.relations == ((1, "modify", 0),)


def test_of_two_annotators_one_is_taken_or_both(tmp_path: Path) -> None:
    second = {"1": entity("Clips", "OBS-DP", 4, 4, ["located_at", "2"]), "2": entity("left", "ANAT-DP", 1, 1)}
    both = {"text": TEXT, "labeler_1": {"entities": V1}, "labeler_2": {"entities": second}}
    path = write(tmp_path / "test.json", {"a": both})
    assert triples(path, "labeler_2") == [("clips", "located_at", "left")]
    assert triples(path, "merge") == triples(path) + triples(path, "labeler_2")
    assert {document.number for document in documents_in(path, "merge")} == {1}
    with pytest.raises(DataError, match="neither entities nor those of anybody"):
        list(documents_in(write(path, {"a": {"text": TEXT}}), "merge"))


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_a_file_is_read_a_document_at_a_time_wherever_it_is_cut(tmp_path: Path, monkeypatch, chunk: int) -> None:
    documents = {f"s{n}": {"text": f"{TEXT} {n} é", "entities": V1 if n % 2 else {}} for n in range(3)}
    path = write(tmp_path / "many.json", documents)
    whole = list(documents_in(path))
    monkeypatch.setattr(module, "CHUNK", chunk)
    assert list(documents_in(path)) == whole
    assert [(one.number, one.name, one.text) for one in whole] == [
        (n + 1, f"s{n}", documents[f"s{n}"]["text"]) for n in range(3)
    ]


HOSTILE = [b"", b"   ", b"[1]", b"\xff", b"{", b'{"SECRET"', b'{"SECRET":', b'{"a": {"text": "SECRET"', b'{"a": 1}',
           b'{"a": {"text": "SECRET", "entities": {}}', b'{"a": {"text": "SECRET", "entities": {}}}{}',
           b'{"a": {"text": "SECRET", "entities": {}},}', b'{"a": {"text": "SECRET", "entities": {"SECRET": 1}}}',
           b"[" * 100_000, b'{"a": ' + b"[" * 100_000, b'{"a" "SECRET"}', b'{"a": ' + b"9" * 5000 + b"}",
           b'{SECRET: 1}']  # fmt: skip


@pytest.mark.parametrize("data", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_bytes_are_refused_and_not_quoted(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "file.json").write_bytes(data)
    with pytest.raises(DataError, match=r"file\.json.*no RadGraph that can be read") as caught:
        list(documents_in(tmp_path / "file.json"))
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"label": "OBS-SECRET"}, r"entities\.2\.label: .*it is none of ANAT-DP"),
        ({"relations": [["causes", "1"]]}, r"entities\.2\.relations\.0"),
        ({"relations": [["modify", "SECRET"]]}, "a relation to one whose name is no number, which is none"),
        ({"end_ix": -1}, "'2' has no words, or no place"),
        ({"start_ix": "SECRET"}, r"entities\.2\.start_ix"),
    ],
)
def test_entities_that_are_none_are_refused(tmp_path: Path, changes: dict, says: str) -> None:
    path = write(tmp_path / "a.json", {"SECRET": {"text": TEXT, "entities": V1 | {"2": V1["2"] | changes}}})
    with pytest.raises(DataError, match=f"document 1: .*{says}") as caught:
        list(documents_in(path))
    assert "SECRET" not in str(caught.value)


def test_members_longer_than_a_document_and_missing_files_are_refused(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(ConfigError, match=r"none\.json"):
        list(documents_in(tmp_path / "none.json"))
    monkeypatch.setattr(module, "MAX_DOCUMENT", 100)
    monkeypatch.setattr(module, "CHUNK", 50)
    with pytest.raises(DataError, match="larger than a report's can be"):
        list(documents_in(write(tmp_path / "a.json", {"a": {"text": "x" * 1000, "entities": {}}})))


def test_a_member_is_what_was_packed_and_nothing_else() -> None:
    said = [(" effusion ", "located_at", "left base"), ("effusion", "located_at", "left base"), ("a, b", "is", "c")]
    assert unpack_triples(pack_triples(said)) == (("effusion", "located_at", "left base"), ("a, b", "is", "c"))
    assert unpack_triples(pack_triples([])) == ()
    for bad in ([("", "is", "x")], [("x\n", "is", "\ud800")], [("-", "is", "x")], [("a." * 249, "is", "b")]):
        with pytest.raises(DataError, match="triples that cannot be"):
            pack_triples(bad)
    for data in (b"", b"{}", b"[1]", b'[["a","b"]]', b'[["a","b",1]]', b"\xff", b"[" * 100_000, b'[["a","b",""]]'):
        with pytest.raises(DataError, match="not readable"):
            unpack_triples(data)
