"""IU X-Ray in R2Gen's layout: drawn directories always, the real ones where R2KG_REAL_DATA names them."""

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.errors import DataError
from shards.films.raw import open_film
from shards.sources.iu_xray.source import IuXray
from shards.sources.tables import Table
from shards.stream.index import Index
from shards.study import Drop, Study
from shards.tars.fill import Settings, write_tar
from shards.tars.shard_index import Entry
from shards.tars.write import plan_tars, recipe_of, refuse_listing

Draw = Callable[..., Path]
REAL = Path(os.environ["R2KG_REAL_DATA"]) if "R2KG_REAL_DATA" in os.environ else None
needs_real = pytest.mark.skipif(REAL is None, reason="R2KG_REAL_DATA names no directory of real test data")
CASES = json.loads((REAL / "bad" / "cases.json").read_text()) if REAL else []
FOUND_WHILE_LISTING = {"report is not a string", "id is not a name"}
"""Reasons that `write_shards` itself raises under on_bad="fail", before any tar."""


def shard(
    source: IuXray, out: Path, on_bad: str = "skip"
) -> tuple[list[Entry], list[Drop], dict[str, tuple[str, ...]]]:
    """The writer's own steps in this process: studies, drops and warnings."""
    listing = source.listing()
    items = listing.items
    refuse_listing(source.name, items)
    out.mkdir(parents=True, exist_ok=True)
    settings = Settings(out=str(out), cleaning=source.cleaning, size=256, quality=95, on_bad=on_bad)
    indices = [write_tar(source, settings, job) for job in plan_tars(items, 512, recipe_of(source, settings))]
    studies = [entry for index in indices for entry in index.studies]
    warnings = {reason: ids for index in indices for reason, ids in index.warnings.items()}
    drops = [*listing.drops, *(drop for index in indices for drop in index.drops)]
    assert len(studies) + len(drops) == len(items) + len(listing.drops)
    return studies, drops, warnings


def test_drawn_studies_are_read(drawn_iu: Draw) -> None:
    def edit(listing: dict) -> None:
        listing["train"][0] |= {"views": ["Lateral", "Frontal"], "impression": "Normal.", "id": "CXR7_1_IM-0001"}

    source = IuXray(raw=drawn_iu(edit=edit))
    items = source.listing().items
    assert Counter(item.split for item in items) == {"train": 4, "val": 1, "test": 1}
    study, films = source.read(items[0])
    assert (study.key, study.patient, study.target) == ("cxr7_1_im-0001", "CXR7", "")
    assert [view.position for view in study.views] == ["frontal", "lateral"]
    assert [view.file for view in study.views] == ["CXR0_IM-0000/1.png", "CXR0_IM-0000/0.png"]
    assert study.sections["impression"] == "Normal."
    assert (films[0] == open_film(source.raw / "images" / study.views[0].file)).all()
    assert [view.position for view in source.read(items[1])[0].views] == ["unknown", "unknown"]


def test_the_file_itself_may_be_given(drawn_iu: Draw) -> None:
    root = drawn_iu()
    (root / "annotation.json").rename(root / "other.json")
    assert len(IuXray(raw=root / "other.json").listing().items) == 6
    with pytest.raises(DataError, match=r"annotation.json is missing: raw must be the directory"):
        IuXray(raw=root).listing()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"id": "../../etc/x"}, "id is not a name"),
        ({"id": ""}, "id is not a name"),
        ({"id": 5}, "id is not a name"),
        ({"id": "\ud83d"}, "text is not Unicode"),
        ({"report": ["text"]}, "report is not a string"),
        ({"image_path": ["../../../etc/hostname"]}, "path leaves the data root"),
        ({"image_path": ["/etc/hostname"]}, "path leaves the data root"),
        ({"image_path": ["CXR0_IM-0000/link.png"]}, "path leaves the data root"),
        ({"image_path": "CXR0_IM-0000/0.png"}, "image_path is not a list of paths"),
        ({"image_path": []}, "image_path is not a list of paths"),
        ({"image_path": ["CXR0_IM-0000/0.png"]}, "too few views"),
        ({"id": "CXR1_IM-0001"}, "duplicate id"),
    ],
)
def test_entries_that_cannot_be_used_are_dropped_by_name(drawn_iu: Draw, fields: dict, reason: str) -> None:
    root = drawn_iu(edit=lambda listing: listing["train"][2].update(fields))
    (root / "images" / "CXR0_IM-0000" / "link.png").symlink_to("/etc/hostname")
    source = IuXray(raw=root, min_views=2)
    listing = source.listing()
    assert len(listing.items) == 5
    [drop] = listing.drops
    assert (drop.reason, drop.split) == (reason, "train")
    assert "annotation.json train[2]" in drop.detail
    assert source.listing() == listing


def test_a_listing_without_its_images_is_refused(drawn_iu: Draw) -> None:
    root = drawn_iu()
    (root / "images").rename(root / "elsewhere")
    with pytest.raises(DataError, match="images with its films is not"):
        IuXray(raw=root).listing()


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b'{"train": [\n{"id": "a", "rep', "cannot be read: line 2, byte 24 of 28: Unterminated string"),
        (b"[]", r"cannot be read: line 1, byte 0 of 2: Expecting \{"),
        (b'{"train": []}', "missing keys: val, test; found: train"),
        (b'{"train": {}, "val": [], "test": []}', r"line 1, byte 10 of 36: Expecting \["),
        (b'{"train": [], "val": [], "test": [1]}', r"split 'train' is empty \(train 0, val 0, test 1\)"),
        (b"\xff\xfe{", r"line 1, byte 0 of 3: Expecting \{"),
    ],
)
def test_files_that_are_no_listing_are_refused(drawn_iu: Draw, data: bytes, cause: str) -> None:
    root = drawn_iu()
    (root / "annotation.json").write_bytes(data)
    with pytest.raises(DataError, match=rf"annotation.json.*{cause}"):
        IuXray(raw=root).listing()


@needs_real
def test_real_listing_has_the_known_counts() -> None:
    listing = IuXray(raw=REAL / "iu_xray").listing()
    assert Counter(item.split for item in listing.items) == {"train": 672, "val": 112, "test": 211}
    assert listing.drops == []


@needs_real
def test_real_awkward_studies_keep_all_views_frontal_first() -> None:
    source = IuXray(raw=REAL / "iu_xray" / "annotation_all.json")
    items, drops, _, _ = source.listing()
    assert len(items) + len(drops) == 893 + 137 + 270
    five = max(items, key=lambda item: len(item.payload["image_path"]))
    study, films = source.read(five)
    assert len(films) == len(study.views) >= 3
    positions = [view.position for view in study.views]
    assert positions == sorted(positions)


@needs_real
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"])
def test_real_bad_case(case: dict, tmp_path: Path) -> None:
    name, folder = case["case"], REAL / "bad" / case["case"]
    if case["entry"] == "shard.tar":
        check_tar(case, folder)
    elif case["entry"] == "reports.csv":
        check_table(case, folder / case["entry"])
    elif case["severity"] == "fail":
        with pytest.raises(DataError, match=case["entry"]):
            shard(IuXray(raw=folder), tmp_path)
    elif name == "20_duplicate_ids":
        with pytest.raises(DataError, match=rf"{case['bad_ids'][0]}.*train entry 3.*test entry 0"):
            shard(IuXray(raw=folder), tmp_path)
    else:
        check_listing(case, folder, tmp_path)


def check_tar(case: dict, folder: Path) -> None:
    """The good samples are whole with their views in place; every bad member is named."""
    index = Index.of_tars(folder, "train", ["shard.tar"])
    assert len(index) == case["good_samples"]
    named = " ".join(drop.id + drop.detail for drop in index.drops)
    assert len(index.drops) == len(case["bad_ids"])
    assert all(bad in named for bad in case["bad_ids"])
    whole = Index.of_tars(REAL / "bad" / "00_reference", "train", ["shard.tar"])
    for row in range(len(index)):
        assert index.record_of(row, index.read_record(row))
        assert index.keys[row] == whole.keys[row]
        assert index.read(row)[0] == whole.read(row)[0]


def check_table(case: dict, path: Path) -> None:
    """A table without its target names the columns it has; line feeds and quotes in a cell are text."""
    if case["severity"] == "fail":
        with pytest.raises(DataError, match=rf"{path.name}.*columns: findings; found: id, image, impression"):
            Table(path, ("id", "image", "findings"))
        return
    reports = [row.cells["findings"] for row in Table(path, ("id", "image", "findings")).rows()]
    assert [report.count("\n") for report in reports] == [0, 1, 0, 0]
    assert reports[1].endswith('"quoted, with comma"') and not any(report.startswith('"') for report in reports)
    assert [report.replace("\n", " ").removesuffix(' "quoted, with comma"') for report in reports] == [
        item.payload["report"] for item in IuXray(raw=REAL / "bad" / "00_reference").listing().items
    ]


def check_listing(case: dict, folder: Path, out: Path) -> None:
    """Good studies load; the bad one is read right or dropped by name with file and cause, and stops a strict run."""
    studies, drops, warnings = shard(IuXray(raw=folder), out / "skip")
    bad = case.get("bad_ids", [])
    assert len(studies) + len(drops) == 4
    assert [drop.id for drop in drops] == [identifier for identifier in bad if drops]
    assert len(studies) == case["good_samples"] or not drops
    if drops:
        assert [drop.file for drop in drops if drop.file.startswith("CXR")] == [
            file.removeprefix("images/") for file in case.get("bad_files", [])
        ]
        if drops[0].reason in FOUND_WHILE_LISTING:
            return
        with pytest.raises(DataError, match=f"{bad[0]}.*{drops[0].reason}"):
            shard(IuXray(raw=folder), out / "strict", on_bad="fail")
    elif case["case"] in ("03_png16", "05_alpha_png"):
        film = open_film(folder / case["bad_files"][0])
        assert np.corrcoef(film.ravel(), reference(film.shape).ravel())[0, 1] > 0.99
    elif case["case"] == "14_report_nul":
        assert warnings == {"control characters removed": tuple(bad)}
    elif case["case"] == "22_one_view_listed":
        assert [len(entry.members) - 1 for entry in studies] == [2, 2, 2, 1]
        _, drops, _ = shard(IuXray(raw=folder, min_views=2), out / "two")
        assert [(drop.id, drop.reason) for drop in drops] == [(bad[0], "too few views")]


def reference(shape: tuple[int, ...]) -> np.ndarray:
    """The same film from the case without faults, at the shape asked for."""
    folder = REAL / "bad" / "00_reference"
    film = open_film(folder / "images" / json.loads((folder / "case.json").read_text())["victim_id"] / "0.jpg")
    return np.asarray(Image.fromarray(film).resize(shape[::-1], Image.Resampling.BICUBIC))


@needs_real
def test_every_case_comes_in_by_an_entry_that_is_checked() -> None:
    assert {case["entry"] for case in CASES} == {"annotation.json", "reports.csv", "shard.tar"}


@needs_real
def test_real_study_keeps_its_record_through_a_shard(tmp_path: Path) -> None:
    studies, drops, _ = shard(IuXray(raw=REAL / "bad" / "24_annotation_bom_crlf"), tmp_path)
    assert (len(studies), drops) == (4, [])
    data = (tmp_path / "train-00000.tar").read_bytes()
    at, size = studies[0].members["json"]
    study = Study.model_validate_json(data[at : at + size])
    assert study.report and study.target and "\r" not in study.id


def test_half_a_surrogate_pair_is_dropped_before_it_meets_a_file(drawn_iu: Draw) -> None:
    root = drawn_iu(edit=lambda listing: listing["train"][1].update(report="The heart is \ud83d normal."))
    listing = IuXray(raw=root).listing()
    assert len(listing.items) == 5
    assert [(drop.id, drop.reason) for drop in listing.drops] == [("CXR1_IM-0001", "text is not Unicode")]


@pytest.mark.parametrize("report", ["nan", "None", " N/A", "<NA>", "#NAME?"])
def test_placeholders_are_no_reports(drawn_iu: Draw, report: str) -> None:
    listing = IuXray(raw=drawn_iu(edit=lambda listing: listing["train"][1].update(report=report))).listing()
    assert len(listing.items) == 5
    assert [(drop.id, drop.reason) for drop in listing.drops] == [("CXR1_IM-0001", "report is a placeholder")]


def test_an_id_in_two_splits_is_given_on_for_the_writer_to_refuse(drawn_iu: Draw) -> None:
    listing = IuXray(raw=drawn_iu(edit=lambda listing: listing["test"][0].update(id="CXR1_IM-0001"))).listing()
    assert [item.split for item in listing.items if item.id == "CXR1_IM-0001"] == ["train", "test"]
    assert listing.drops == []


def test_an_entry_that_is_not_utf8_costs_itself(drawn_iu: Draw) -> None:
    path = drawn_iu() / "annotation.json"
    path.write_bytes(path.read_bytes().replace(b"Film 1 is", b"Film \xe9 is"))
    listing = IuXray(raw=path).listing()
    assert len(listing.items) == 5
    assert [(drop.id, drop.reason, drop.split) for drop in listing.drops] == [
        ("train[1]", "entry is not UTF-8", "train")
    ]
