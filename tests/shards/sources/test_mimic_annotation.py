"""R2Gen's annotation.json for MIMIC-CXR, drawn: samples, reports and splits are its own."""

import json
from pathlib import Path

import pytest

from shards.errors import DataError
from shards.sources.mimic_cxr.source import MimicCxr
from shards.study import BadStudy
from tests.shards.sources.mimic_tree import MimicTree, shard, write_annotation, write_mimic_tree


@pytest.fixture
def tree(tmp_path: Path) -> MimicTree:
    return write_mimic_tree(tmp_path / "raw", gz=False)


def test_r2gens_annotation_decides_samples_reports_and_splits(tree: MimicTree, tmp_path: Path) -> None:
    path = tmp_path / "annotation.json"
    listing = write_annotation(tree, path)
    moved = listing["val"].pop()
    listing["train"] = [moved | {"report": "Moved by hand. Café."}, *listing["train"][2:]]
    path.write_text(json.dumps(listing, ensure_ascii=False))
    source = MimicCxr(raw=tree.root, per="image", annotation=str(path))
    studies, drops = shard(source, tmp_path / "out")
    assert not drops and len(studies) == len(tree.dicoms) - 2
    [first] = [study for study in studies if study.id == moved["id"]]
    assert (first.report, first.split) == ("Moved by hand. Café.", "train")
    assert first.provenance == {"source": "mimic_cxr", "file": "annotation.json", "row": "0"}
    what = f"1 of {len(studies)} films are in another split, 0 are not in the table"
    assert source.listing().notes[0].startswith(f"annotation.json and mimic-cxr-2.0.0-split.csv: {what}")


def test_r2gens_form_needs_no_tables(tree: MimicTree, tmp_path: Path) -> None:
    path = tree.root / "annotation.json"
    write_annotation(tree, path)
    for name in ("split", "metadata", "chexpert", "negbio"):
        tree.table(name).unlink()
    (tree.root / "files").rename(tree.root / "images")
    source = MimicCxr(raw=tree.root, per="image", annotation=path, labels="none")
    studies, _ = shard(source, tmp_path / "out")
    assert studies[0].views[0].file.startswith("images/p9")
    assert source.listing().notes[0] == "no split table: the splits of annotation.json were compared with nothing"
    items = source.listing().items
    path.write_text(path.read_text().replace("heart", "hart"))
    with pytest.raises(BadStudy, match="report file changed"):
        source.read(next(item for item in items if "span" in item.payload))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"id": "../x"}, "id is not an id"),
        ({"study_id": True}, "id is not an id"),
        ({"subject_id": "9/../../9"}, "id is not an id"),
        ({"report": None}, "report is not a string"),
        ({"report": "The heart is \udc00."}, "text is not Unicode"),
        ({"image_path": "a.jpg"}, "image_path is not the film"),
        ({"image_path": ["../../../etc/hostname"]}, "image_path is not the film"),
        ({"image_path": []}, "image_path is not the film"),
    ],
)
def test_entries_that_cannot_be_used_are_dropped(tree: MimicTree, tmp_path: Path, fields: dict, reason: str) -> None:
    path = tmp_path / "annotation.json"
    listing = write_annotation(tree, path)
    listing["train"][1] |= fields
    listing["train"].append(listing["train"][0])
    path.write_text(json.dumps(listing))
    source = MimicCxr(raw=tree.root, per="image", annotation=path)
    _, drops = shard(source, tmp_path / "out")
    assert drops == {reason: 1, "duplicate id": 1}
    assert source.listing().drops[0].id == "train[1]"


@pytest.mark.parametrize("data", [b"[]", b'{"train": []}', b'{"train": [{', b""])
def test_annotations_that_are_none_are_refused(tree: MimicTree, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "annotation.json").write_bytes(data)
    with pytest.raises(DataError, match=r"annotation.json"):
        MimicCxr(raw=tree.root, per="image", annotation=tmp_path / "annotation.json").listing()
    with pytest.raises(DataError, match="is no file"):
        MimicCxr(raw=tree.root, per="image", annotation=tmp_path / "none.json").listing()
