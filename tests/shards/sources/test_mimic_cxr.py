"""MIMIC-CXR in its owners' layout, drawn: films, tables and reports joined, and what does not fit."""

import json
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from shards.clean import clean
from shards.errors import ConfigError, DataError
from shards.films.raw import open_film
from shards.sources import open_source
from shards.sources.mimic_cxr.source import MimicCxr
from shards.study import BadStudy
from tests.shards.sources.mimic_tree import MimicTree, shard, write_annotation, write_mimic_tree

POSITIONS = {"PA": "frontal", "AP": "frontal", "": "unknown", "LATERAL": "lateral", "LL": "lateral"}


@pytest.fixture
def tree(tmp_path: Path) -> MimicTree:
    return write_mimic_tree(tmp_path / "raw", gz=False)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("gz", [False, True])
def test_every_study_is_joined_with_its_films_report_and_labels(tmp_path: Path, zipped: bool, gz: bool) -> None:
    tree = write_mimic_tree(tmp_path / "raw", seed=3, zipped=zipped, gz=gz)
    studies, drops = shard(MimicCxr(raw=tree.root), tmp_path / "out")
    assert not drops
    assert sorted(study.id for study in studies) == sorted(tree.studies)
    for written in tree.written:
        study = next(study for study in studies if study.id == written.study)
        assert (study.patient, study.split) == (written.patient, written.split.replace("validate", "val"))
        assert study.target == clean("r2gen-2020-mimic", written.findings)
        assert study.sections["impression"].startswith("Drawn study")
        assert study.labels == written.labels
        found = {Path(view.file).stem: view.position for view in study.views}
        assert found == {dicom: POSITIONS[view] for dicom, view in written.films}


def test_films_come_in_the_order_of_the_views(tree: MimicTree) -> None:
    source, order = MimicCxr(raw=tree.root), list(POSITIONS)[:4]
    three = next(number for number, written in enumerate(tree.written) if len(written.films) == 3)
    views = dict(tree.written[three].films)
    study, films = source.read(source.listing().items[three])
    assert [views[Path(view.file).stem] for view in study.views] == sorted(views.values(), key=order.index)
    for view, film in zip(study.views, films, strict=True):
        assert (film == open_film(tree.root / view.file)).all()
    tree.edit(
        "metadata", lambda rows: rows.__setitem__(slice(1, None), [row.replace("LATERAL", "AP") for row in rows[1:]])
    )
    assert source.read(source.listing().items[three])[0].views[1].position == "frontal"
    tree.edit(
        "metadata", lambda rows: rows.__setitem__(slice(1, None), [row.replace(",PA,", ",AP,") for row in rows[1:]])
    )
    first, second, _ = source.listing().items[three].payload["films"]
    assert first < second


def test_per_image_is_one_sample_per_film_with_the_report_repeated(tree: MimicTree, tmp_path: Path) -> None:
    studies, drops = shard(MimicCxr(raw=tree.root, per="image"), tmp_path / "out")
    assert not drops
    assert {study.id for study in studies} == set(tree.dicoms)
    assert all(len(study.views) == 1 and study.id in study.views[0].file for study in studies)
    assert len({study.report for study in studies}) == len({written.findings for written in tree.written})


def test_frontal_films_only(tree: MimicTree, tmp_path: Path) -> None:
    frontal = [dicom for written in tree.written for dicom, view in written.films if view in ("PA", "AP")]
    left_out = f"{len(tree.dicoms) - len(frontal)} of {len(tree.dicoms)} films are left out by views=frontal"
    images = MimicCxr(raw=tree.root, per="image", views="frontal")
    listing = images.listing()
    assert [item.id for item in listing.items] == frontal
    assert left_out in listing.notes and not listing.drops
    tree.edit("metadata", lambda rows: rows.__setitem__(1, rows[1].replace(",PA,", ",LAO,")))
    source = MimicCxr(raw=tree.root, views="frontal")
    studies, drops = shard(source, tmp_path / "out")
    assert drops == {"too few views": 1}
    assert source.listing().drops[0].id == tree.studies[0]
    assert all(view.position == "frontal" for study in studies for view in study.views)
    _, drops = shard(MimicCxr(raw=tree.root, min_views=2), tmp_path / "two")
    assert drops == {"too few views": sum(len(written.films) < 2 for written in tree.written)}


@pytest.mark.parametrize("section", ["findings", "impression", "findings+impression"])
def test_the_section_asked_for_is_the_target(tree: MimicTree, section: str) -> None:
    source = MimicCxr(raw=tree.root, section=section)
    study, _ = source.read(source.listing().items[0])
    assert study.report == "\n".join(study.sections[name] for name in section.split("+"))


OTHER = ", where the other sections= has one"


@pytest.mark.parametrize(
    ("text", "section", "reason", "detail"),
    [
        (" FINAL REPORT\n IMPRESSION: Secret.", "findings", "no findings section", "s9.*txt has impression"),
        (
            " FINAL REPORT\n FINDINGS:\n IMPRESSION: Secret.",
            "findings",
            f"no findings section{OTHER}",
            "has impression",
        ),
        (" FINAL REPORT\n FINDINGS: Secret.", "findings+impression", "no impression section", "has findings"),
        (" FINAL REPORT\n Secret.", "impression", "no impression section", "has body"),
        (" FINDINGS AND IMPRESSION: Secret.", "findings", "no findings section", "has findings and impression"),
        (
            " FINAL REPORT\n FINDINGS AND IMPRESSION: Secret.",
            "impression",
            f"no impression section{OTHER}",
            "has findings and impression",
        ),
        (" WET READ: ___\n FINDINGS: Secret.", "findings", f"no findings section{OTHER}", "has wet read"),
        ("", "findings", "empty report", "holds no text"),
        ("FINDINGS: secret" + "x" * 1_000_000, "findings", "report is too large", "more than 100,000 bytes"),
        (None, "findings", "report is missing", "is not below raw/"),
    ],
)
def test_reports_that_cannot_be_used(tree: MimicTree, text: str | None, section: str, reason: str, detail: str) -> None:
    source = MimicCxr(raw=tree.root, section=section)
    item = source.listing().items[1]
    path = tree.report_of(1)
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(BadStudy, match=detail) as caught:
        source.read(item)
    assert (caught.value.reason, caught.value.file) == (reason, f"{tree.written[1].folder}.txt")
    assert "secret" not in str(caught.value).lower()


def test_a_combined_section_serves_who_asks_for_both(tree: MimicTree) -> None:
    tree.report_of(0).write_text(" FINAL REPORT\n FINDINGS AND IMPRESSION:  Clear.\n")
    source = MimicCxr(raw=tree.root, section="findings+impression")
    assert source.read(source.listing().items[0])[0].report == "Clear."


def test_films_that_cannot_be_used_drop_their_study(tree: MimicTree, tmp_path: Path) -> None:
    first, second, third = (tree.root / "files" / written.folder for written in tree.written[:3])
    next(first.glob("*.jpg")).unlink()
    next(second.glob("*.jpg")).write_bytes(b"\xff\xd8\xff cut")
    outside = next(third.glob("*.jpg"))
    outside.rename(tmp_path / "outside.jpg")
    outside.symlink_to(tmp_path / "outside.jpg")
    studies, drops = shard(MimicCxr(raw=tree.root), tmp_path / "out")
    assert drops == {"film is missing": 1, "image does not decode": 1, "path leaves the data root": 1}
    assert len(studies) == len(tree.written) - 3


def as_dicom(path: Path) -> np.ndarray:
    """Put a DICOM film in place of a JPEG; returns its pixels."""
    film = open_film(path)
    path.unlink()
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPInstanceUID = ExplicitVRLittleEndian, generate_uid()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = *film.shape, 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.PixelData = film.tobytes()
    data.save_as(path.with_suffix(".dcm"), enforce_file_format=True)
    return film


def test_dicom_films_are_read_where_there_are_no_others_and_never_mixed(tree: MimicTree) -> None:
    paths = sorted((tree.root / "files").rglob("*.jpg"))
    films = {path.stem: as_dicom(path) for path in paths[1:]}
    source = MimicCxr(raw=tree.root)
    kinds = {tuple(item.payload["at"]) for item in source.listing().items}
    assert len(kinds) == 1
    films[paths[0].stem] = as_dicom(paths[0])
    items = source.listing().items
    assert {tuple(item.payload["at"]) for item in items} == {("files", ".dcm")}
    study, read = source.read(items[1])
    assert [Path(view.file).suffix for view in study.views] == [".dcm"] * len(read)
    for view, film in zip(study.views, read, strict=True):
        assert np.abs(film.astype(int) - films[Path(view.file).stem]).max() <= 1
    first = items[0]
    jpeg = first.model_copy(update={"payload": first.payload | {"at": ["files", ".jpg"]}})
    with pytest.raises(
        BadStudy, match=r"film is missing: no files/p.*\.jpg: this run reads \.jpg films below files, as are most"
    ):
        source.read(jpeg)


def test_missing_films_and_reports_are_named_while_listing(tree: MimicTree, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has neither files/ nor images/"):
        MimicCxr(raw=tmp_path).listing()
    for index in range(len(tree.written)):
        tree.report_of(index).unlink()
    with pytest.raises(DataError, match=r"raw has no report of any study listed.*say reports=DIRECTORY"):
        MimicCxr(raw=tree.root).listing()


def test_reports_may_lie_elsewhere(tree: MimicTree, tmp_path: Path) -> None:
    for written in tree.written:
        there = tmp_path / "notes" / f"{written.folder}.txt"
        there.parent.mkdir(parents=True, exist_ok=True)
        (tree.root / "files" / f"{written.folder}.txt").rename(there)
    source = open_source("mimic_cxr", raw=str(tree.root), reports=str(tmp_path / "notes"), min_views="1")
    assert source.read(source.listing().items[0])[0].report.split() == tree.written[0].findings.split()


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"per": "film"}, "per='film': .*'study' or 'image'"),
        ({"views": "lateral"}, "views='lateral': .*'all' or 'frontal'"),
        ({"section": "report"}, "section='report': .*'findings', 'impression' or 'findings.impression'"),
        ({"labels": "chexbert"}, "labels='chexbert': .*'chexpert', 'negbio', 'radiologists' or 'none'"),
        ({"min_views": 0}, "min_views=0: .*greater than or equal to 1"),
        ({"min_views": "two"}, "min_views='two'"),
        ({"view": "all"}, "no option view: its options are raw, reports, per, "),
        ({"per": "image", "min_views": 2}, "per=image, min_views=2: a sample of per=image has one film"),
        ({"annotation": "annotation.json"}, "add per=image"),
        ({"annotation": "a.json", "per": "image", "section": "impression"}, "and section=findings"),
    ],
)
def test_options_that_cannot_be(options: dict, cause: str) -> None:
    with pytest.raises(ConfigError, match=cause):
        MimicCxr(raw=Path("raw"), **options)


def test_published_counts_are_those_of_what_is_read(tree: MimicTree) -> None:
    official = MimicCxr(raw=tree.root).listing().published
    assert official is not None
    assert sum(count.images for count in official.splits.values()) == 377_110
    assert sum(count.studies for count in official.splits.values()) == 227_835
    assert sum(count.patients for count in official.splits.values()) == 65_379
    r2gen = MimicCxr(raw=tree.root, per="image").listing().published
    assert r2gen is not None and r2gen.splits["train"].studies == 270_790
    assert MimicCxr(raw=tree.root, per="image", views="frontal").listing().published == official


def test_notes_and_refusals_name_neither_patients_nor_sentences(tree: MimicTree, tmp_path: Path) -> None:
    write_annotation(tree, tmp_path / "annotation.json")
    for options in (
        {},
        {"per": "image", "views": "frontal"},
        {"per": "image", "annotation": tmp_path / "annotation.json"},
    ):
        source = MimicCxr(raw=tree.root, **options)
        items, _, notes, _ = source.listing()
        assert notes and not tree.found_in(" ".join(notes))
        report = source.read(items[0])[0].report
        assert tree.found_in(json.dumps(report).upper())
