"""IU X-Ray in R2Gen's layout: drawn directories always, the real ones where R2KG_REAL_DATA names them."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from shards.errors import DataError
from shards.films.raw import open_film
from shards.sources.iu_xray.source import IuXray
from shards.study import BadStudy

Draw = Callable[..., Path]
REAL = Path(os.environ["R2KG_REAL_DATA"]) if "R2KG_REAL_DATA" in os.environ else None
needs_real = pytest.mark.skipif(REAL is None, reason="R2KG_REAL_DATA names no directory of real test data")


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
        ({"report": 10**400}, "report is not a string"),
        ({"image_path": ["CXR0_IM-0000/0.png"] * 101}, "too many films"),
        ({"image_path": ["a/" * 200_000]}, "path leaves the data root"),
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
        (b'{"train": [\n{"id": "a", "rep', "is not valid JSON at line 2, byte 24 of 28: Unterminated string"),
        (b"[]", "holds a list where an object is needed; missing keys: train, val, test"),
        (b'{"train": []}', "missing keys: val, test; found: train"),
        (b'{"train": {}, "val": [], "test": []}', r"line 1, byte 10 of 36: Expecting \["),
        (b'{"train": [], "val": [], "test": [1]}', r"split 'train' is empty \(train 0, val 0, test 1\)"),
        (b"\xff\xfe{", r"line 1, byte 0 of 3: Expecting \{"),
        (b'{"train": [{"id": "' + b"a" * 1_000_000 + b'"}]}', "a value of more than 1,000,000 bytes"),
        (b'{"train": [], "train": []}', "has the key 'train' twice"),
        (b'{"trian": [], "secret one": []' + b', "x": []' * 200 + b"}", "has a key twice, or more than 100 keys"),
        (b'{"train": [' + b"1," * 50_000 + b"1]}", "has more than 50,000 entries"),
        (b'{"train": [' + b"9" * 5_000 + b"]}", r"is not valid JSON \(ValueError\)"),
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


def test_half_a_surrogate_pair_is_dropped_before_it_meets_a_file(drawn_iu: Draw) -> None:
    root = drawn_iu(edit=lambda listing: listing["train"][1].update(report="The heart is \ud83d normal."))
    listing = IuXray(raw=root).listing()
    assert len(listing.items) == 5
    assert [(drop.id, drop.reason) for drop in listing.drops] == [("CXR1_IM-0001", "text is not Unicode")]


def test_a_value_longer_than_the_pieces_it_is_read_in_is_whole(drawn_iu: Draw) -> None:
    reports = ["The heart is normal. " * times for times in (180, 195, 200, 3_200, 20_000)]
    root = drawn_iu(
        train=5, edit=lambda listing: [e.update(report=r) for e, r in zip(listing["train"], reports, strict=True)]
    )
    source = IuXray(raw=root)
    assert [source.read(item)[0].report for item in source.listing().items[:5]] == reports


def test_a_film_that_became_a_link_out_since_it_was_listed_is_not_read(drawn_iu: Draw, tmp_path: Path) -> None:
    source = IuXray(raw=drawn_iu())
    item = source.listing().items[0]
    film = source.raw / "images" / item.payload["image_path"][1]
    film.rename(tmp_path / "outside.png")
    film.symlink_to(tmp_path / "outside.png")
    with pytest.raises(BadStudy, match=f"path leaves the data root: .*{film.name}"):
        source.read(item)


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
