"""Tables of MIMIC-CXR-JPG that are broken, hostile or long: every row is used or named, none is quoted."""

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from shards.errors import DataError
from shards.sources import Item
from shards.sources.mimic_cxr.source import MimicCxr
from shards.study import FINDINGS
from tests.shards.sources.mimic_tree import MimicTree, shard, write_mimic_tree

DICOM = "01234567-89abcdef-01234567-89abcdef-01234567"


@pytest.fixture
def tree(tmp_path: Path) -> MimicTree:
    return write_mimic_tree(tmp_path / "raw", gz=False)


@pytest.mark.parametrize(
    ("row", "reason", "split"),
    [
        ("../../../../etc/passwd,99999999,99999999,train", "id is not an id", "train"),
        (f"{DICOM.upper()},99999999,99999999,train", "id is not an id", "train"),
        (f"{DICOM},9999/../9,99999999,train", "id is not an id", "train"),
        (f"{DICOM},99999999,٩٩٩٩٩٩٩٩,train", "id is not an id", "train"),
        (f"{DICOM},99999999,,train", "id is not an id", "train"),
        (f"{DICOM},99999999,99999999,training", "unknown split", ""),
        (f"{DICOM},99999999,99999999", "row is malformed", ""),
        (f'"{DICOM},99999999,99999999,train', "row is malformed", ""),
        ("There is a secret,finding,here,test", "id is not an id", "test"),
    ],
)
def test_rows_that_cannot_be_used_are_dropped_without_being_quoted(
    tree: MimicTree, tmp_path: Path, row: str, reason: str, split: str
) -> None:
    tree.edit("split", lambda rows: rows.insert(3, row))
    source = MimicCxr(raw=tree.root)
    studies, drops = shard(source, tmp_path / "out")
    assert (len(studies), drops) == (len(tree.written), {reason: 1})
    [drop] = source.listing().drops
    assert (drop.id, drop.split) == ("row 4", split)
    assert "mimic-cxr-2.0.0-split.csv row 4" in drop.detail
    assert "secret" not in drop.detail


def test_a_film_listed_twice_is_dropped_once(tree: MimicTree, tmp_path: Path) -> None:
    tree.edit("split", lambda rows: rows.append(rows[1]))
    source = MimicCxr(raw=tree.root)
    _, drops = shard(source, tmp_path / "out")
    assert drops == {"duplicate id": 1}


@pytest.mark.parametrize(("cell", "what"), [(3, "two splits, train and test"), (2, "two patients")])
def test_a_study_in_two_splits_or_of_two_patients_stops_the_listing(tree: MimicTree, cell: int, what: str) -> None:
    def other(rows: list[str]) -> None:
        cells = rows[2].split(",")
        cells[cell] = "test" if cell == 3 else "90000099"
        rows[2] = ",".join(cells)

    tree.edit("split", other)
    with pytest.raises(DataError, match=f"split.csv: rows 2 and 3 put one study into {what}") as caught:
        MimicCxr(raw=tree.root).listing()
    assert not tree.found_in(str(caught.value))


def test_labels_of_the_other_labeler_none_and_missing_ones(tree: MimicTree) -> None:
    tree.edit("negbio", lambda rows: rows.__setitem__(1, ",".join([*rows[1].split(",")[:2], *[""] * 14])))
    tree.edit("negbio", lambda rows: rows.pop(2))
    source = MimicCxr(raw=tree.root, labels="negbio")
    items, _, notes, _ = source.listing()
    assert source.read(items[0])[0].labels == dict.fromkeys(FINDINGS)
    assert source.read(items[1])[0].labels == {}
    assert "1 of 9 samples have no row in the negbio table" in notes
    tree.table("chexpert").unlink()
    plain = MimicCxr(raw=tree.root, labels="none")
    assert plain.read(plain.listing().items[0])[0].labels == {}
    with pytest.raises(DataError, match=r"no mimic-cxr-2.0.0-chexpert.csv.gz \(or .csv\); found: .*labels=none"):
        MimicCxr(raw=tree.root).listing()


def test_radiologists_labels_of_the_test_split_are_read_under_their_own_names(tree: MimicTree) -> None:
    with pytest.raises(
        DataError, match=r"no mimic-cxr-2.1.0-test-set-labeled.csv.gz \(or .csv\); found: .*labels=none"
    ):
        MimicCxr(raw=tree.root, labels="radiologists").listing()
    header = ["study_id", *("Airspace Opacity" if name == "Lung Opacity" else name for name in FINDINGS)]
    cells = ["1" if name == "Lung Opacity" else "0" if name == "Edema" else "" for name in FINDINGS]
    item = next(item for item in MimicCxr(raw=tree.root).listing().items if item.split == "test")
    path = tree.root / "mimic-cxr-2.1.0-test-set-labeled.csv"
    path.write_text("\n".join(",".join(row) for row in (header, [item.payload["study"], *cells])) + "\n")
    source = MimicCxr(raw=tree.root, labels="radiologists")
    labels = {one.id: source.read(one)[0].labels for one in source.listing().items}
    assert labels.pop(item.id) == dict.fromkeys(FINDINGS) | {"Lung Opacity": 1, "Edema": 0}
    assert not any(labels.values())


@pytest.mark.parametrize("cell", ["2.0", "yes", "nan"])
def test_a_label_that_is_none_drops_its_study(tree: MimicTree, tmp_path: Path, cell: str) -> None:
    tree.edit("chexpert", lambda rows: rows.__setitem__(3, re.sub(",[^,]*$", f",{cell}", rows[3])))
    tree.edit("chexpert", lambda rows: rows.append(re.sub(",[^,]*$", ",-1.0", rows[1])))
    source = MimicCxr(raw=tree.root)
    _, drops = shard(source, tmp_path / "out")
    assert drops == {"labels are unclear": 2}
    assert [drop.id for drop in source.listing().drops] == [tree.studies[0], tree.studies[2]]


def test_films_without_metadata_have_an_unknown_position(tree: MimicTree) -> None:
    tree.edit("metadata", lambda rows: rows.__delitem__(slice(1, 3)))
    source = MimicCxr(raw=tree.root)
    items, _, notes, _ = source.listing()
    assert items[0].payload["views"] == "uu"
    assert notes[0] == f"2 of {len(tree.dicoms)} films are not in the metadata table"


@pytest.mark.parametrize(
    ("name", "data", "cause"),
    [
        ("split", b"dicom_id,study_id,split\n", "missing columns: subject_id; found: dicom_id, study_id, split"),
        ("split", b"", "split.csv is empty"),
        ("split", f"{DICOM},99999999,99999999,train\n".encode(), "found: train, 3 that are no plain names"),
        ("split", b"\xff\xfe\x00d\x00i", "the first row holds no column names: .*It must be CSV in UTF-8"),
        ("split", b"dicom_id," + b"x" * 2_000_000, "no end within 2,000,000 bytes"),
        ("metadata", b"dicom_id,View\n", "metadata.csv: missing columns: ViewPosition"),
        ("chexpert", b"study_id,Edema\n", "chexpert.csv: missing columns: No Finding, "),
    ],
)
def test_tables_that_are_none_are_refused(tree: MimicTree, name: str, data: bytes, cause: str) -> None:
    tree.table(name).write_bytes(data)
    with pytest.raises(DataError, match=cause) as caught:
        MimicCxr(raw=tree.root).listing()
    assert DICOM not in str(caught.value) and "99999999" not in str(caught.value)


@pytest.mark.parametrize("name", ["split", "metadata", "chexpert"])
def test_a_row_that_is_no_utf8_refuses_its_table(tree: MimicTree, name: str) -> None:
    rows = tree.table(name).read_bytes().splitlines(keepends=True)
    tree.table(name).write_bytes(b"".join([*rows[:2], b"caf\xe9,99999999,99999999,train\n", *rows[2:]]))
    with pytest.raises(DataError, match=f"{name}.csv cannot be read from row 3 on: not UTF-8 at byte .*fetch the file"):
        MimicCxr(raw=tree.root).listing()


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-20], lambda data: b"no gzip", lambda data: data[:20] + b"x" * 60]
)
def test_broken_gzip_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    tree = write_mimic_tree(tmp_path / "raw")
    path = tree.root / "mimic-cxr-2.0.0-split.csv.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"split.csv.gz cannot be read after line \d+: .*fetch the file again"):
        MimicCxr(raw=tree.root).listing()


def test_byte_order_mark_quotes_and_windows_lines_are_accepted(tree: MimicTree) -> None:
    quoted = "\r\n".join(
        ",".join(f'"{cell}"' for cell in row.split(",")) for row in tree.table("split").read_text().splitlines()
    )
    tree.table("split").write_bytes(b"\xef\xbb\xbf" + quoted.encode() + b"\r\n\r\n")
    items, drops, _, _ = MimicCxr(raw=tree.root).listing()
    assert [item.id for item in items] == tree.studies and not drops


@pytest.mark.parametrize("missing", ["split", "metadata"])
def test_missing_tables_are_named(tree: MimicTree, missing: str) -> None:
    tree.table(missing).unlink()
    with pytest.raises(DataError, match=f"no mimic-cxr-2.0.0-{missing}.csv.gz .or .csv.; found: mimic-cxr-2.0.0-chexp"):
        MimicCxr(raw=tree.root).listing()


def test_a_long_listing_is_light(tree: MimicTree) -> None:
    rng = random.Random(0)
    rows = []
    for number in range(20_000):
        dicom = "-".join(f"{rng.getrandbits(32):08x}" for _ in range(5))
        rows.append((dicom, 91_000_000 + number // 2, 91_000_000 + number // 8, "train"))
    with open(tree.table("split"), "a") as file:
        file.writelines(",".join(map(str, row)) + "\n" for row in rows)
    items = MimicCxr(raw=tree.root).listing().items
    assert len(items) == 10_000 + len(tree.written)
    assert max(len(item.model_dump_json()) for item in items) < 500
    assert not any(set(item.payload) - {"table", "row", "study", "films", "views", "labels", "at"} for item in items)
    assert Item.model_validate_json(items[0].model_dump_json()) == items[0]
