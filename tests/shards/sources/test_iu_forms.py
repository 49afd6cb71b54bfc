"""The raw forms of IU X-Ray agree: the same studies whichever is read, and what differs is told, counted and named."""

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.errors import ConfigError, DataError
from shards.sources import Item, open_source
from shards.sources.iu_xray.exam import FormName
from shards.sources.iu_xray.forms import why_different
from shards.sources.iu_xray.source import IuXray

SPLIT_OF = {1: "train", 2: "train", 3: "val", 4: "test"}
FORMS: tuple[FormName, ...] = ("annotation", "xml", "csv")
Texts = dict[int, str]


def film(path: Path, seed: int) -> None:
    """A drawn film, each seed another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    slope = np.add.outer(np.arange(64), (seed + 1) * np.arange(64)) % 256
    Image.fromarray(slope.astype(np.uint8)).save(path)


def write(path: Path, rows: list[list]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture
def drawn(tmp_path: Path) -> Callable[..., Path]:
    """Function (numbers in the XML, findings there, findings in Kaggle's form) → a directory in three forms.

    Examination n has two films, of which image 1001 is lateral and 2001 frontal, in R2Gen's folders with images.csv.
    """

    def draw(numbers: tuple[int, ...] = (1, 2, 3, 4), xml: Texts = {}, kaggle: Texts = {}) -> Path:  # noqa: B006
        annotation: dict[str, list] = {"train": [], "val": [], "test": []}
        images, projections = [["exam_id", "file", "view", "nlm_image_id"]], [["uid", "filename", "projection"]]
        reports = [["uid", "indication", "comparison", "findings", "impression"]]
        folder = tmp_path / "ecgen-radiology"
        folder.mkdir()
        for number in sorted({*numbers, *SPLIT_OF}):
            name, text = f"CXR{'1_1' if number == 1 else number}_IM-0{number}", f"Drawn film {number} is clear."
            parts = ["2001", "1001"]
            for at, part in enumerate(parts):
                images.append([name, f"{name}/{at}.png", ("Frontal", "Lateral")[at], f"{name}-{part}"])
                film(tmp_path / "images" / name / f"{at}.png", 2 * number + at)
            for part in reversed(parts):
                view = {"1001": "Lateral", "2001": "Frontal"}[part]
                projections.append([number, f"{number}_IM-0{number}-{part}.dcm.png", view])
            reports.append([number, "", "", kaggle.get(number, text), ""])
            if number in SPLIT_OF:
                files = [f"{name}/{at}.png" for at in range(2)]
                annotation[SPLIT_OF[number]].append({"id": name, "report": text, "image_path": files})
            if number in numbers:
                films = "".join(f'<parentImage id="{name}-{part}"/>' for part in reversed(parts))
                body = f'<AbstractText Label="FINDINGS">{xml.get(number, text)}</AbstractText>{films}'
                (folder / f"{number}.xml").write_text(f'<eCitation><uId id="CXR{number}"/>{body}</eCitation>')
        (tmp_path / "annotation.json").write_text(json.dumps(annotation))
        for file, rows in {"images": images, "indiana_projections": projections, "indiana_reports": reports}.items():
            write(tmp_path / f"{file}.csv", rows)
        return tmp_path

    return draw


def facts(source: IuXray, items: Sequence[Item]) -> list:
    """What must be the same in every form."""
    studies = [source.read(item) for item in items]
    return [
        (s.id, s.key, s.patient, s.split, s.report, s.sections["findings"], s.views, [film.tobytes() for film in films])
        for s, films in studies
    ]


def test_every_form_gives_the_same_studies(drawn: Callable[..., Path]) -> None:
    root = drawn()
    sources = [IuXray(raw=root, form=form) for form in FORMS]
    listings = [source.listing() for source in sources]
    studies = [facts(source, listing.items) for source, listing in zip(sources, listings, strict=True)]
    assert len(studies[0]) == 4
    assert studies[0] == studies[1] == studies[2]
    assert [view.position for view in studies[0][0][6]] == ["frontal", "lateral"]
    for listing in listings:
        assert listing.drops == []
        assert listing.published and listing.published.splits["train"].studies == 2069
        notes = [note.partition(": ")[2] for note in listing.notes[1:]]
        assert notes == ["4 studies in both, only in the first 0, only in the second 0"] * 2


def test_studies_outside_the_split_are_dropped_by_name(drawn: Callable[..., Path]) -> None:
    listing = IuXray(raw=drawn(numbers=(1, 2, 3, 4, 5)), form="xml").listing()
    assert len(listing.items) == 4
    assert [(drop.id, drop.reason) for drop in listing.drops] == [("CXR5_IM-05", "not in the R2Gen split")]


def test_an_examination_in_two_splits_of_the_annotation_is_refused(drawn: Callable[..., Path]) -> None:
    root = drawn()
    annotation = json.loads((root / "annotation.json").read_text())
    annotation["test"].append(annotation["train"][1])
    (root / "annotation.json").write_text(json.dumps(annotation))
    with pytest.raises(DataError, match=r"annotation.json.*two places: 'CXR2_IM-02' in train and 'CXR2_IM-02' in test"):
        IuXray(raw=root, form="xml").listing()


@pytest.mark.parametrize("form", FORMS)
def test_hash_and_train_do_not_need_the_annotation(drawn: Callable[..., Path], form: FormName) -> None:
    root = drawn(numbers=tuple(range(1, 31)))
    hashed, train = (IuXray(raw=root, form=form, split=split).listing() for split in ("hash", "train"))
    again = {item.id: item.split for item in IuXray(raw=root, form="csv", split="hash").listing().items}
    splits = {item.id: item.split for item in hashed.items}
    assert splits == {name: again[name] for name in splits}
    assert hashed.published is None and "not R2Gen's" in hashed.notes[0]
    assert {item.split for item in train.items} == {"train"}
    if form != "annotation":
        assert set(splits.values()) == {"train", "val", "test"}
        (root / "annotation.json").unlink()
        assert {item.id: item.split for item in IuXray(raw=root, form=form).listing().items} == splits


def test_what_differs_between_forms_is_told_without_text(drawn: Callable[..., Path]) -> None:
    xml = {1: "Drawn film 1  is clear. ", 2: "Other words.", 3: "Drawn &amp;amp; film"}
    source = IuXray(raw=drawn(numbers=(1, 2, 3), xml=xml, kaggle={3: "Drawn & film", 4: "#NAME?"}), form="xml")
    every = source.listing().notes
    notes = [note.partition(": ")[2] for note in every[1:]]
    assert notes[0] == "3 studies in both, only in the first 0, only in the second 1 (CXR4_IM-04)"
    words, blanks = "other words 2 (CXR2_IM-02, CXR3_IM-03)", "white space 1 (CXR1_1_IM-01)"
    assert notes[1] == f"another text of findings in 3 studies: {words}; {blanks}"
    causes = ["character entities 1 (CXR3_IM-03)", "other words 1 (CXR2_IM-02)", blanks]
    assert notes[3] == f"another text of findings in 3 studies: {'; '.join(causes)}"
    assert not re.search(r"Drawn|Other words", " ".join(every))
    silent = IuXray(raw=source.raw, form="xml", crosscheck=False).listing()
    assert silent.items and len(silent.notes) == 1


def test_films_that_differ_between_forms_are_told(drawn: Callable[..., Path]) -> None:
    root = drawn()
    path = root / "indiana_projections.csv"
    rows = list(csv.reader(path.open(newline="")))
    rows[3][1] = "2_IM-02-9.dcm.png"
    write(path, rows[:-1])
    annotation = json.loads((root / "annotation.json").read_text())
    annotation["train"][0]["views"] = ["Lateral", "Frontal"]
    (root / "annotation.json").write_text(json.dumps(annotation))
    listing = IuXray(raw=root, form="annotation").listing()
    assert listing.items[0].payload["image_path"] == ["CXR1_1_IM-01/1.png", "CXR1_1_IM-01/0.png"]
    [note] = [note for note in listing.notes if "csv: other films" in note]
    assert note.endswith(
        "in 3 studies: another position 1 (CXR1_1_IM-01); more films in the first 1 (CXR4_IM-04); "
        "other films of the same number 1 (CXR2_IM-02)"
    )


def test_views_that_two_tables_contradict_are_told(drawn: Callable[..., Path]) -> None:
    root = drawn()
    path = root / "indiana_projections.csv"
    path.write_text(path.read_text().replace("2_IM-02-2001.dcm.png,Frontal", "2_IM-02-2001.dcm.png,Lateral"))
    listing = IuXray(raw=root, form="xml").listing()
    assert listing.items[1].payload["views"] == ["lateral", "lateral"]
    assert listing.notes[1] == "images.csv: another view than in indiana_projections.csv, which counts: 2_IM-02-2001"


def test_a_broken_other_form_is_told_and_harms_nothing(drawn: Callable[..., Path]) -> None:
    root = drawn()
    (root / "indiana_reports.csv").write_text("uid\n1\n")
    (root / "images.csv").write_text("file,other\na,b\n")
    listing = IuXray(raw=root, form="annotation").listing()
    assert len(listing.items) == 4
    notes = " ".join(listing.notes)
    assert "indiana_reports.csv could not be compared" in notes and "images.csv is not used" in notes
    with pytest.raises(DataError, match=r"holds no films: .*images.csv is not used .*missing columns: nlm_image_id"):
        IuXray(raw=root, form="xml").listing()


@pytest.mark.parametrize(
    ("one", "other", "cause"),
    [
        ("a", "a", ""),
        ("a b", "a\n b ", "white space"),
        ("a &lt; b", "a < b", "character entities"),
        ("a\x00b", "ab", "control characters"),
        ('a "b"', "a b", "quotes"),
        ("a XXXX b", "a b", "XXXX masks"),
        ("A b", "a b", "letter case"),
        ('A &amp; "b"', "a & b", "several of these at once"),
        ("+PPD", "#NAME?", "a spreadsheet's error value"),
        ("a", " ", "one is empty"),
        ("a", "b", "other words"),
    ],
)
def test_causes_of_differing_texts(one: str, other: str, cause: str) -> None:
    assert why_different(one, other) == why_different(other, one) == cause


PLACES = {
    "images/CXR2_IM-02-{part}.png": "CXR2_IM-02-2001.png",
    "images/2_IM-02-{part}.dcm.jpg": "2_IM-02-2001.dcm.jpg",
    "images/images_normalized/2_IM-02-{part}.dcm.png": "images_normalized/2_IM-02-2001.dcm.png",
    "NLMCXR_png/CXR2_IM-02-{part}.png": "CXR2_IM-02-2001.png",
}


@pytest.mark.parametrize("at", range(len(PLACES)))
def test_films_are_taken_from_the_first_place_that_holds_all(drawn: Callable[..., Path], at: int) -> None:
    root = drawn()
    for place in list(PLACES)[at:]:
        for seed, part in enumerate(("2001", "1001")):
            film(root / place.format(part=part), 90 + seed)
    film(root / "images" / "CXR3_IM-03-1001.png", 99)
    source = IuXray(raw=root, form="csv")
    items = source.listing().items
    study, films = source.read(items[1])
    assert study.views[0].file == list(PLACES.values())[at]
    wanted = root / f"wanted{Path(study.views[0].file).suffix}"
    film(wanted, 90)
    assert (films[0] == np.asarray(Image.open(wanted))).all()
    assert source.read(items[2])[0].views[0].file == "CXR3_IM-03/0.png"


def test_films_behind_links_that_lead_out_are_refused(drawn: Callable[..., Path], tmp_path: Path) -> None:
    root = drawn()
    path = root / "images" / "CXR2_IM-02" / "0.png"
    path.unlink()
    path.symlink_to("/etc/hostname")
    for form in FORMS:
        listing = IuXray(raw=root, form=form).listing()
        assert len(listing.items) == 3
        assert [(drop.id, drop.reason, drop.file) for drop in listing.drops] == [
            ("CXR2_IM-02", "path leaves the data root", "CXR2_IM-02/0.png")
        ]


def test_raw_may_be_a_file_of_any_form(drawn: Callable[..., Path]) -> None:
    root = drawn()
    for name in ("annotation.json", "ecgen-radiology", "indiana_reports.csv"):
        source = open_source("iu_xray", raw=str(root / name), min_views="2", crosscheck="false")
        assert {item.payload["file"] for item in source.listing().items} == {name}
    with pytest.raises(ConfigError, match=r"annotation.json, which is the form 'annotation', not 'xml'"):
        IuXray(raw=root / "annotation.json", form="xml").listing()


def test_what_is_not_there_is_named_with_what_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"annotation.json is missing: .*found there: nothing"):
        IuXray(raw=tmp_path).listing()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"NLMCXR_reports.tgz is missing: .*form='xml'.*found there: notes.txt"):
        IuXray(raw=tmp_path, form="xml").listing()
    with pytest.raises(DataError, match=r"nowhere/annotation.json is missing: .*nowhere does not exist"):
        IuXray(raw=tmp_path / "nowhere").listing()
    with pytest.raises(DataError, match=r"gone.tgz is missing"):
        IuXray(raw=tmp_path / "gone.tgz").listing()


@pytest.mark.parametrize(
    "options", [{"form": "json"}, {"split": "random"}, {"section": "all"}, {"min_views": 0}, {"crosscheck": "maybe"}]
)
def test_choices_that_are_none_are_refused(tmp_path: Path, options: dict) -> None:
    with pytest.raises(ConfigError, match=rf"source 'iu_xray': {next(iter(options))}=.*: Input should be "):
        IuXray(raw=tmp_path, **options)


@pytest.mark.parametrize("form", FORMS)
def test_the_target_is_the_section_asked_for(drawn: Callable[..., Path], form: FormName) -> None:
    root = drawn()
    assert {item.payload["report"][:5] for item in IuXray(raw=root, form=form, section="findings").listing().items} == {
        "Drawn"
    }
    listing = IuXray(raw=root, form=form, section="impression").listing()
    if form == "csv":
        assert {item.payload["report"] for item in listing.items} == {""}
    else:
        assert listing.items == [] and Counter(drop.reason for drop in listing.drops) == {"section is missing": 4}
