"""The JSON beside CheXpert Plus: a benchmark's annotation with its own split, and the CheXbert labels."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2kg.config.protocol import protocol_named
from shards.errors import DataError
from shards.sources.annotation import Cursor
from shards.sources.chexpert_plus.labels import labels_of, read_labels
from shards.sources.chexpert_plus.source import ChexpertPlus
from shards.study import FINDINGS, BadStudy
from tests.shards.sources.chexpert_tree import ChexpertTree, write_chexpert_tree

SPLITS = {"train": [0, 1, 3, 4, 6], "val": [2, 7], "test": [9, 10]}
"""Rows, from 0; patient00002 and patient00004 are in train and val."""
VALUES = st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3))


@pytest.fixture
def tree(tmp_path: Path) -> ChexpertTree:
    return write_chexpert_tree(tmp_path / "raw")


def edited(tree: ChexpertTree, edit: Callable[[dict], object]) -> ChexpertPlus:
    """The source of an annotation after `edit`."""
    path = tree.write_annotation(SPLITS)
    listing = json.loads(path.read_text())
    edit(listing)
    path.write_text(json.dumps(listing))
    return ChexpertPlus(raw=tree.root, annotation=path)


def test_the_benchmarks_split_and_reports_are_used(tree: ChexpertTree) -> None:
    tree.rows[1]["section_findings"] = 'Größe \u2028 "normal", as drawn \\ here.'
    path = tree.write_annotation(SPLITS)
    tree.table.unlink()
    source = ChexpertPlus(raw=str(tree.root), annotation=str(path))
    listing = source.listing()
    items = listing.items
    assert [(item.split, item.payload["row"]) for item in items] == [
        (s, at) for s in SPLITS for at in range(len(SPLITS[s]))
    ]
    assert listing.notes == ["annotation.json: 2 of 5 patients are in more than one split"]
    assert listing.published is not None and listing.published.splits["val"].studies == 5780
    study, films = source.read(items[1])
    assert (study.id, study.patient) == ("patient00002_study1_view2_lateral", "patient00002")
    assert study.report == study.sections["findings"] == tree.rows[1]["section_findings"]
    assert [view.position for view in study.views] == ["lateral"]
    assert len(films) == 1
    assert study.labels == {name: tree.labels[1][name] for name in FINDINGS}
    # the benchmark's own code cleans by R2GenGPT's rule, which keeps < and colons; others of this dataset by R2Gen's
    assert (source.usual_cleaning, ChexpertPlus(raw=tree.root).usual_cleaning) == (
        "r2gengpt-2023-mimic",
        "r2gen-2020-mimic",
    )
    assert protocol_named(source.usual_cleaning).cleaning == source.usual_cleaning


@pytest.mark.parametrize("prefix", ["", "PNG/"])
def test_films_come_frontal_first_and_may_be_called_jpg(tree: ChexpertTree, prefix: str) -> None:
    folder = f"{prefix}train/patient00002/study1"
    films = [f"{folder}/view2_lateral.jpg", f"{folder}/view1_frontal.jpg"]
    source = edited(tree, lambda listing: listing["train"][0].update(image_path=films))
    study, _ = source.read(source.listing().items[0])
    assert [(view.position, view.file) for view in study.views] == [
        ("frontal", "train/patient00002/study1/view1_frontal.png"),
        ("lateral", "train/patient00002/study1/view2_lateral.png"),
    ]
    frontal = ChexpertPlus(raw=tree.root, annotation=source.annotation, views="frontal")
    listing = frontal.listing()
    assert [len(item.payload["films"]) for item in listing.items] == [1] * len(listing.items)
    assert {drop.reason for drop in listing.drops} == {"no frontal film"}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"id": "../../etc/x"}, "id is not a name"),
        ({"id": ""}, "id is not a name"),
        ({"id": "a" * 121}, "id is not a name"),
        ({"id": 7}, "id is not a name"),
        ({"id": "\udc00"}, "text is not Unicode"),
        ({"report": "The heart is \udc00."}, "text is not Unicode"),
        ({"report": None}, "report is not a string"),
        ({"image_path": ["train/patient00002/study1/view1_frontal.png"] * 101}, "too many films"),
        ({"report": ["The heart is normal."]}, "report is not a string"),
        ({"image_path": []}, "image_path is not a list of paths"),
        ({"image_path": "train/patient00002/study1/view1_frontal.png"}, "image_path is not a list of paths"),
        ({"image_path": ["../../../etc/hostname"]}, "path leaves the data root"),
        ({"image_path": ["/etc/hostname"]}, "path leaves the data root"),
        ({"image_path": ["train/patient00002/view1.png"]}, "path names no film of a study"),
        (
            {"image_path": [f"train/patient0000{n}/study1/view1_frontal.png" for n in (1, 2)]},
            "films of two patients",
        ),
    ],
)
def test_entries_that_cannot_be_used_are_dropped_by_place(tree: ChexpertTree, fields: dict, reason: str) -> None:
    source = edited(tree, lambda listing: listing["train"][2].update(fields))
    listing = source.listing()
    assert len(listing.items) == 8
    [drop] = listing.drops
    assert (drop.id, drop.reason, drop.split) == ("train[2]", reason, "train")
    assert "annotation.json train[2]" in drop.detail
    assert "heart" not in drop.detail


def test_one_id_for_several_films_is_told_apart_and_an_entry_given_twice_is_dropped(tree: ChexpertTree) -> None:
    def edit(listing: dict) -> None:
        for entry in listing["train"]:
            entry["id"] = entry["id"].rpartition("_")[0].rpartition("_")[0]
        listing["train"].append(listing["train"][3])
        listing["train"].append({**listing["train"][3], "id": "patient00003_study1", "image_path": FRONTAL})
        listing["train"].append(listing["train"][-1])
        listing["train"].append(7)

    listing = edited(tree, edit).listing()
    items = [item.id for item in listing.items]
    assert items.count("patient00003_study1") == 1
    assert items.count("patient00003_study1/train/patient00003/study1/view1_frontal") == 1
    assert [(drop.id, drop.reason) for drop in listing.drops] == [
        ("train[5]", "duplicate id"),
        ("train[7]", "duplicate id"),
        ("train[8]", "entry is not an object"),
    ]


FRONTAL = ["train/patient00003/study1/view1_frontal.png"]


def test_a_changed_annotation_is_noticed(tree: ChexpertTree) -> None:
    source = edited(tree, lambda listing: None)
    items = source.listing().items
    edited(tree, lambda listing: listing["train"][0].update(report="Another report."))
    with pytest.raises(BadStudy, match="report file changed: annotation.json is not what was listed"):
        source.read(items[4])


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b'{"train": [\n{"id": "patient1", "rep', r"line 2, byte 31 of 35: Unterminated string"),
        (b'{"train": [{}', "line 1, byte 13 of 13: Expecting , or ]"),
        (b"[]", "holds a list where an object is needed; missing keys: train, val, test"),
        (b'{"train": {}, "val": [], "test": []}', r"byte 10 of \d+: Expecting \["),
        (b'{"train": [], "val": [], "test": []} []', "Extra data"),
        (b'\xef\xbb\xbf{"train": []}', "missing keys: val, test; found: train"),
        (b'{"patient1_study1": {}}', "missing keys: train, val, test; found: 1 that are no plain names"),
        (b'{"train": ' + b"[" * 100_000, "RecursionError|Expecting"),
        (b"", "byte 0 of 0: Expecting {"),
    ],
)
def test_files_that_are_no_annotation_are_refused_with_the_place(tree: ChexpertTree, data: bytes, cause: str) -> None:
    path = tree.root / "annotation.json"
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"annotation.json.*({cause})") as caught:
        ChexpertPlus(raw=tree.root, annotation=path).listing()
    assert "patient1" not in str(caught.value)
    path.unlink()
    with pytest.raises(DataError, match="annotation.json is missing"):
        ChexpertPlus(raw=tree.root, annotation=path).listing()


@given(st.lists(VALUES), st.sampled_from([None, 1]), st.booleans())
def test_elements_lie_where_the_cursor_says(values: list, indent: int | None, ascii: bool) -> None:
    text = json.dumps(values, indent=indent, ensure_ascii=ascii)
    data = text.encode()
    cursor = Cursor(data.decode("latin-1"))
    assert [json.loads(data[at:end]) for at, end, _ in cursor.elements()] == values
    cursor.end()


def test_unused_annotation_and_unlabelled_films_are_noted(tree: ChexpertTree) -> None:
    tree.write_annotation(SPLITS)
    tree.labels.pop(0)
    tree.write()
    source = ChexpertPlus(raw=tree.root)
    items, _, notes, _ = source.listing()
    assert source.read(items[0])[0].labels == {}
    assert "1 of 9 studies have no labels in findings_fixed.json" in notes
    assert [note for note in notes if note.startswith("annotation.json is there and not used")]
    (tree.root / "chexbert_labels").rename(tree.root / "CheXpert_Labels")
    assert ChexpertPlus(raw=tree.root).listing().items == items
    (tree.root / "CheXpert_Labels" / "findings_fixed.json").unlink()
    none = ChexpertPlus(raw=tree.root, labels="none")
    assert none.read(none.listing().items[1])[0].labels == {}


def write_labels(path: Path, *changes: dict[str, Any]) -> str:
    """Label lines of films a, b, ..., all of them null but for the changes."""
    films = [{"path_to_image": f"train/{chr(97 + at)}.jpg", **dict.fromkeys(FINDINGS)} for at in range(len(changes))]
    text = "".join(json.dumps(film | change) + "\n" for film, change in zip(films, changes, strict=True))
    path.write_text(text)
    return text


@pytest.mark.parametrize("form", ["lines", "list", "mark"])
def test_labels_are_read_as_lines_or_as_a_list(tmp_path: Path, form: str) -> None:
    path = tmp_path / "labels.json"
    text = write_labels(path, {"Edema": 1.0, "Fracture": -1.0, "No Finding": 0}, {"Edema": float("nan")}, {"Edema": 1})
    if form == "list":
        path.write_text("[" + text.strip().replace("\n", ",\n") + "]")
    elif form == "mark":
        path.write_text("\n" + text.replace("\n", "\r\n\r\n"), encoding="utf-8-sig")
    found = read_labels(path, {"train/a", "train/b"})
    assert found.keys() == {"train/a", "train/b"}
    assert labels_of(found["train/a"]) == dict.fromkeys(FINDINGS) | {"Edema": 1, "Fracture": -1, "No Finding": 0}
    assert set(labels_of(found["train/b"]).values()) == {None}
    assert labels_of("") == {}


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (lambda text: text.replace("1.0", "2.0"), "line 2: Edema is 2.0; read are 1 present"),
        (lambda text: text.replace("1.0", "true"), "line 2: Edema is True"),
        (lambda text: text.replace("1.0", "90414267"), "line 2: Edema is another number"),
        (lambda text: "[" + "9" * 5_000 + "]", r"is not valid JSON \(ValueError\)"),
        (lambda text: "9" * 5_000, r"line 1 is no JSON object .*\(ValueError\)"),
        (lambda text: "\n" * 600_000 + text, "more than 500,000 records, blank lines counted"),
        (lambda text: text.replace("1.0", '"The heart is normal."'), "line 2: Edema is a str"),
        (lambda text: text.replace('"Pneumonia"', '"Pneumonias"', 1), "line 1: missing labels: Pneumonia; 15 names"),
        (lambda text: text.replace("path_to_image", "path", 1), "line 1: not an object with path_to_image"),
        (lambda text: "7\n" + text, "line 1: not an object"),
        (lambda text: text[:-40], r"line 2 is no JSON object .*column \d+.*labels=none does without"),
        (lambda text: text.replace("train/b", "train/a"), "line 2: its film has other labels on an earlier line"),
        (lambda text: text.replace("\n", ""), "line 1 is no JSON object"),
        (lambda text: "[" + text.strip().replace("\n", ",\n"), r"line 2, byte \d+ of \d+: Expecting , or \]"),
        (lambda text: "x" * 200_000, "line 1 is no JSON object of at most 100,000 bytes"),
    ],
)
def test_labels_that_cannot_be_read_are_refused_with_the_place(
    tmp_path: Path, damage: Callable[[str], str], cause: str
) -> None:
    path = tmp_path / "labels.json"
    path.write_text(damage(write_labels(path, {}, {"Edema": 1.0})))
    with pytest.raises(DataError, match=rf"labels.json.*{cause}") as caught:
        read_labels(path, {"train/a", "train/b"})
    assert "heart" not in str(caught.value)
