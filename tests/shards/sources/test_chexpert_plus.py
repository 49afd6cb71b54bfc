"""CheXpert Plus on drawn directories: which studies are listed, read, dropped, refused, and what of them is shown."""

import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.errors import ConfigError, DataError
from shards.films.raw import open_film
from shards.sources import open_source
from shards.sources.chexpert_plus.source import ChexpertPlus
from shards.sources.split import hash_split, refuse_listing
from shards.study import FINDINGS, BadStudy, Drop, Study
from shards.tars.shards import CONTROLS_REMOVED, Settings, plan_shards, recipe_of, write_shard
from tests.shards.sources.chexpert_tree import COLUMNS, CSV, HISTORY, ChexpertTree, write_chexpert_tree

REPEATED = 1
"""Row, from 0, of the lateral film of patient00002/study1; the frontal one follows."""


@pytest.fixture
def tree(tmp_path: Path) -> ChexpertTree:
    return write_chexpert_tree(tmp_path / "raw")


def shard(source: ChexpertPlus, out: Path) -> tuple[list[Study], list[Drop], dict[str, tuple[str, ...]]]:
    """The writer's own steps in this process: studies as stored, drops, warnings; given = used + dropped."""
    items, listed_drops, _, _ = source.listing()
    refuse_listing(source.name, items)
    out.mkdir(parents=True)
    settings = Settings(out=str(out), cleaning=source.cleaning, size=64, quality=95, on_bad="skip")
    studies, drops, warnings = [], [*listed_drops], {}
    for job in plan_shards(items, 4, recipe_of(source, settings)):
        index = write_shard(pickle.loads(pickle.dumps(source)), settings, job)
        data = (out / job.name).read_bytes()
        spans = [entry.members["json"] for entry in index.studies]
        studies += [Study.model_validate_json(data[at : at + size]) for at, size, _ in spans]
        drops += index.drops
        warnings |= index.warnings
    assert len(studies) + len(drops) == len(items) + len(listed_drops)
    return studies, drops, warnings


def reports(source: ChexpertPlus) -> dict[str, str]:
    """Study → report, of everything that is listed."""
    return {item.id: source.read(item)[0].report for item in source.listing().items}


def test_studies_are_listed_and_read(tree: ChexpertTree) -> None:
    source = open_source("chexpert_plus", raw=str(tree.root))
    items, drops, _, _ = source.listing()
    assert [item.id for item in items] == tree.studies
    assert drops == []
    assert pickle.loads(pickle.dumps(source)).listing() == source.listing()
    assert [item.split for item in items] == [hash_split(item.patient) for item in items]
    study, films = source.read(items[1])
    assert (study.id, study.key, study.patient) == ("patient00002/study1", "patient00002-study1", "patient00002")
    assert [view.position for view in study.views] == ["frontal", "lateral"]
    assert study.views[0].file == "train/patient00002/study1/view1_frontal.png"
    for view, film in zip(study.views, films, strict=True):
        assert (film == open_film(tree.root / "PNG" / view.file)).all()
    row = tree.rows[REPEATED]
    assert study.report == study.sections["findings"] == row["section_findings"]
    assert study.sections["clinical_history"] == HISTORY
    assert study.sections.keys() == {"narrative", "clinical_history", "findings", "impression"}
    assert list(study.labels) == list(FINDINGS)
    assert study.labels == {name: tree.labels[REPEATED][name] for name in FINDINGS}


def test_listing_holds_no_text(tree: ChexpertTree) -> None:
    tree.rows[0]["section_findings"] = ""
    tree.write()
    tree.write_annotation({"train": [1, 2, 3]})
    for source in (ChexpertPlus(raw=tree.root), ChexpertPlus(raw=tree.root, annotation=tree.root / "annotation.json")):
        listing = source.listing()
        held = repr(listing) + repr(pickle.dumps(source))
        assert "patient00002" in held
        assert not [sentence for sentence in tree.sentences if sentence in held]
        assert "coughing" not in held
        assert not [note for note in listing.notes if "patient0" in note]


def test_shards_hold_what_is_not_dropped(tree: ChexpertTree, tmp_path: Path) -> None:
    tree.rows[0]["section_findings"] = " \n"
    tree.rows[3]["section_findings"] = "..."
    tree.rows[5]["section_findings"] = "The heart\x00 is normal."
    tree.write()
    (tree.root / "PNG/train/patient00004/study1/view1_frontal.png").unlink()
    film = tree.root / "PNG/train/patient00004/study2/view2_lateral.png"
    film.write_bytes(film.read_bytes()[:-200])
    studies, drops, warnings = shard(ChexpertPlus(raw=tree.root), tmp_path / "out")
    assert {drop.id: (drop.reason, drop.file) for drop in drops} == {
        "patient00001/study1": ("no findings section", ""),
        "patient00002/study2": ("empty report", ""),
        "patient00004/study1": ("film is missing", "train/patient00004/study1/view1_frontal.png"),
        "patient00004/study2": ("image does not decode", "train/patient00004/study2/view2_lateral.png"),
    }
    assert len(studies) == len(tree.studies) - 4
    assert warnings == {CONTROLS_REMOVED: ("patient00003/study1",)}
    assert all(study.target.endswith(".") and study.target == study.target.lower() for study in studies)


def test_a_studys_report_is_that_of_its_first_film_that_has_one(tree: ChexpertTree) -> None:
    lateral, frontal = tree.rows[REPEATED : REPEATED + 2]
    frontal["section_findings"], lateral["section_findings"] = "", "Of the lateral film."
    tree.labels[REPEATED] |= dict.fromkeys(FINDINGS, -1)
    tree.rows[5]["section_findings"] = "Of the frontal film."
    tree.write()
    source = ChexpertPlus(raw=tree.root)
    found = reports(source)
    assert found["patient00002/study1"] == "Of the lateral film."
    assert found["patient00003/study1"] == "Of the frontal film."
    assert set(source.read(source.listing().items[1])[0].labels.values()) == {-1}
    assert [note for note in source.listing().notes if note.startswith("1 studies have films whose findings differ")]
    single = ChexpertPlus(raw=tree.root, per="image")
    found = reports(single)
    assert len(found) == len(tree.rows) - 1
    assert found["patient00003/study1/view1_frontal"] == "Of the frontal film."
    assert found["patient00003/study1/view2_lateral"] == tree.rows[4]["section_findings"]
    assert [drop.id for drop in single.listing().drops] == ["patient00002/study1/view1_frontal"]


def test_other_section_and_views(tree: ChexpertTree) -> None:
    for row in tree.rows:
        row["section_findings"] = ""
    tree.rows[0]["frontal_lateral"] = "Lateral"
    tree.write()
    source = ChexpertPlus(raw=tree.root, section="impression", views="frontal", labels="report")
    items, drops, notes, _ = source.listing()
    assert [(drop.id, drop.reason) for drop in drops] == [("patient00001/study1", "no frontal film")]
    study, films = source.read(items[0])
    assert study.report.startswith('\n1. "Drawn"')
    assert len(films) == len(study.views) == 1
    assert "Labels were read from the report, the target is the impression" in notes


def test_official_split(tree: ChexpertTree) -> None:
    tree.rows[0]["split"] = "held out"
    tree.rows[REPEATED]["split"] = "valid"
    tree.write()
    items, drops, notes, _ = ChexpertPlus(raw=tree.root, split="official").listing()
    splits = {item.id: item.split for item in items}
    assert Counter(splits.values()) == {"train": 5, "val": 2}
    assert {study for study, split in splits.items() if split == "val"} == {f"patient00006/study{n}" for n in (1, 2)}
    assert {drop.id: drop.reason for drop in drops} == {
        "patient00001/study1": "unknown split",
        "patient00002/study1": "study in two splits",
    }
    assert [note for note in notes if "no test" in note]


@pytest.mark.parametrize(
    ("cells", "reason", "name"),
    [
        ({"path_to_image": "../../etc/hostname"}, "path leaves the data root", "row 3"),
        ({"path_to_image": "/etc/hostname"}, "path leaves the data root", "row 3"),
        ({"path_to_image": "train/patient00002/study1/.."}, "path leaves the data root", "row 3"),
        ({"path_to_image": "train/patient00002/../view1.jpg"}, "path leaves the data root", "row 3"),
        ({"path_to_image": r"train\patient00002\study1\view1.jpg"}, "path leaves the data root", "row 3"),
        ({"path_to_image": "train/someone/study1/view1.jpg"}, "path names no film of a study", "row 3"),
        ({"path_to_image": ""}, "path names no film of a study", "row 3"),
        ({"path_to_image": "train/patient00002/study1/view2_lateral.jpg"}, "duplicate id", None),
        ({"deid_patient_id": "patient00003"}, "patients differ", "train/patient00002/study1/view1_frontal"),
    ],
)
def test_rows_that_describe_no_film_are_dropped_by_name(
    tree: ChexpertTree, cells: dict, reason: str, name: str | None
) -> None:
    tree.rows[REPEATED + 1] |= cells
    tree.write()
    items, [drop], _, _ = ChexpertPlus(raw=tree.root).listing()
    assert {item.id: len(item.payload["films"]) for item in items}["patient00002/study1"] == 1
    assert (drop.reason, drop.id) == (reason, name or "train/patient00002/study1/view2_lateral")
    assert "row 3" in drop.detail


def test_a_cell_that_is_no_path_is_not_quoted(tree: ChexpertTree) -> None:
    tree.rows[REPEATED]["path_to_image"] = tree.rows[REPEATED]["section_findings"]
    tree.write()
    drops = ChexpertPlus(raw=tree.root).listing().drops
    assert drops[0].reason == "path names no film of a study"
    assert not [sentence for sentence in tree.sentences if sentence in repr(drops)]


def test_films_outside_the_root_are_not_opened(tree: ChexpertTree, tmp_path: Path) -> None:
    film = tree.root / "PNG/train/patient00002/study1/view1_frontal.png"
    film.rename(tmp_path / "outside.png")
    film.symlink_to(tmp_path / "outside.png")
    source = ChexpertPlus(raw=tree.root)
    with pytest.raises(BadStudy, match="path leaves the data root.*view1_frontal.png"):
        source.read(source.listing().items[1])


def test_a_folder_of_films_may_be_a_link_and_films_may_be_jpg(tree: ChexpertTree, tmp_path: Path) -> None:
    (tree.root / "PNG").rename(tmp_path / "films")
    (tree.root / "PNG").symlink_to(tmp_path / "films")
    film = tmp_path / "films/train/patient00002/study1/view1_frontal.png"
    Image.open(film).save(film.with_suffix(".jpg"))
    film.unlink()
    source = ChexpertPlus(raw=tree.root)
    study, _ = source.read(source.listing().items[1])
    assert [Path(view.file).suffix for view in study.views] == [".jpg", ".png"]


def remove(*names: str) -> Callable[[ChexpertTree], object]:
    return lambda tree: tree.write(columns=[name for name in COLUMNS if name not in names])


@pytest.mark.parametrize(
    ("damage", "error", "cause"),
    [
        (remove("section_findings", "split"), DataError, f"{CSV}: missing columns: split, section_findings; found: pa"),
        (lambda tree: tree.table.write_bytes(b""), DataError, f"{CSV} is empty: it must be CSV"),
        (lambda tree: tree.table.write_text("\n".join(tree.sentences)), DataError, "missing columns.*no plain names"),
        (lambda tree: tree.table.write_bytes(b'"path_to_image,split\n'), DataError, "holds no column names"),
        (lambda tree: tree.table.unlink(), DataError, r"df_chexpert_plus_\*.csv is missing"),
        (lambda tree: (tree.root / "df_chexpert_plus_250101.csv").touch(), ConfigError, f"{CSV}, df_chexpert_plus_25"),
        (lambda tree: (tree.root / "PNG").rename(tree.root / "png"), DataError, "none of PNG, PNG/PNG, PNGs, DICOM"),
        (lambda tree: (tree.root / "chexbert_labels").rename(tree.root / "l"), DataError, "missing. labels=none does"),
    ],
)
def test_directories_that_are_no_chexpert_plus_are_refused(
    tree: ChexpertTree, damage: Callable[[ChexpertTree], object], error: type[Exception], cause: str
) -> None:
    damage(tree)
    with pytest.raises(error, match=cause) as caught:
        ChexpertPlus(raw=tree.root).listing()
    assert not [text for text in (*tree.sentences, *tree.patients) if text in str(caught.value)]


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"split": "random"}, "split='random': Input should be 'hash' or 'official'"),
        ({"section": "report"}, "section='report': Input should be 'findings' or 'impression'"),
        ({"labels": "None"}, "labels='None'"),
        ({"films": "jpg"}, "films='jpg': Input should be 'auto', 'png' or 'dicom'"),
        ({"annotation": "annotation.json", "split": "official"}, "annotation decides"),
        ({"annotation": "annotation.json", "per": "image"}, "annotation decides"),
        ({"sections": "findings"}, "has no option sections"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path: Path, options: dict, cause: str) -> None:
    with pytest.raises(ConfigError, match=cause):
        open_source("chexpert_plus", raw=str(tmp_path), **options)


def test_dicom_films_are_found_by_their_own_column(tmp_path: Path) -> None:
    tree = write_chexpert_tree(tmp_path / "raw", patients=2, dicom=True)
    moved = "train/patient00001/study1/image9.dcm"
    (tree.root / "DICOM" / tree.rows[0]["path_to_dcm"]).rename(tree.root / "DICOM" / moved)
    tree.rows[0]["path_to_dcm"] = moved
    tree.write()
    source = ChexpertPlus(raw=tree.root)
    item = source.listing().items[0]
    assert item.payload["films"] == [moved]
    assert set(item.payload["labels"]) > {"."}
    with pytest.raises(DataError, match="missing columns: path_to_dcm"):
        remove("path_to_dcm")(tree)
        ChexpertPlus(raw=tree.root, films="dicom").listing()
    tree.write()
    try:
        open_film(tree.root / "DICOM" / moved)
    except DataError as error:
        pytest.skip(f"no DICOM reader here: {error}")
    _, films = source.read(item)
    drawn = write_chexpert_tree(tmp_path / "png", patients=2)
    png = open_film(drawn.root / "PNG/train/patient00001/study1/view1_frontal.png")
    assert np.corrcoef(films[0].ravel(), png.ravel())[0, 1] > 0.99
