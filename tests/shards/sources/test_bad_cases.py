"""Damaged copies of real IU X-Ray studies, each by the source that reads its form, under both policies."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.errors import DataError
from shards.films.raw import open_film
from shards.sources import Source
from shards.sources.forms.webdataset import WebDataset
from shards.sources.iu_xray.source import IuXray
from shards.sources.split import refuse_listing
from shards.study import Drop, Study
from shards.tars.format import Entry
from shards.tars.shards import Settings, plan_shards, recipe_of, write_shard, write_shards
from tests.shards.sources.test_own_source import own_source

REAL = Path(os.environ["R2KG_REAL_DATA"]) if "R2KG_REAL_DATA" in os.environ else None
BAD = REAL / "bad" if REAL else Path()
CASES = json.loads((BAD / "cases.json").read_text()) if REAL else []
pytestmark = pytest.mark.skipif(REAL is None, reason="R2KG_REAL_DATA names no directory of real test data")
CAUSES = {
    "20_duplicate_ids": "CXR220_IM-0811.*train entry 3.*test entry 0",
    "23_annotation_truncated": "not valid JSON at line",
    "25_annotation_wrong_shape": "missing keys: train, val, test",
    "26_csv_missing_columns": "missing columns: findings; found: id, image, impression",
    "35_empty_split": "split 'train' is empty",
}
"""What a case that stops the run must tell beside the file's name."""


def shard(
    source: Source, out: Path, on_bad: str = "skip"
) -> tuple[list[Entry], list[Drop], dict[str, tuple[str, ...]]]:
    """The writer's own steps in this process: studies, drops and warnings; given = used + dropped."""
    listing = source.listing()
    refuse_listing(source.name, listing.items)
    out.mkdir(parents=True, exist_ok=True)
    settings = Settings(out=str(out), cleaning=source.cleaning, size=256, quality=95, on_bad=on_bad)
    jobs = plan_shards(listing.items, 512, recipe_of(source, settings))
    indices = [write_shard(source, settings, job) for job in jobs]
    studies = [entry for index in indices for entry in index.studies]
    warnings = {reason: ids for index in indices for reason, ids in index.warnings.items()}
    drops = [*listing.drops, *(drop for index in indices for drop in index.drops)]
    assert len(studies) + len(drops) == len(listing.items) + len(listing.drops)
    return studies, drops, warnings


def source_of(case: str, entry: str, work: Path) -> Source:
    """The source that reads a case's form; an archive is reached under a name that tells its split."""
    folder = BAD / case
    if entry == "annotation.json":
        return IuXray(raw=folder)
    if entry == "reports.csv":
        return own_source(work / "code", raw=folder)
    raw = work / f"raw-{case}"
    raw.mkdir()
    (raw / "train-shard.tar").symlink_to(folder / "shard.tar")
    return WebDataset(raw=raw, licence="cc-by-nc-nd-4.0")


def test_every_case_comes_in_by_an_entry_that_is_checked() -> None:
    assert {case["entry"] for case in CASES} == {"annotation.json", "reports.csv", "shard.tar"}
    assert {case["case"] for case in CASES if case["severity"].startswith("fail")} == set(CAUSES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"])
def test_real_bad_case(case: dict, tmp_path: Path) -> None:
    source = source_of(case["case"], case["entry"], tmp_path)
    if (cause := CAUSES.get(case["case"])) is not None:
        named = "" if case["bad_ids"] else f"{case['entry']}.*"
        with pytest.raises(DataError, match=named + cause):
            shard(source, tmp_path / "skip")
        with pytest.raises(DataError, match=case["bad_ids"][0] if case["bad_ids"] else named + cause):
            write_shards(source, tmp_path / "strict", on_bad="fail")
        return
    studies, drops, warnings = shard(source, tmp_path / "skip")
    if drops:
        assert len(studies) == case["good_samples"]
        assert all(bad in drop.id + drop.detail for bad, drop in zip(case["bad_ids"], drops, strict=True))
        refuse_under_fail(source, tmp_path / "strict", drops[0])
    else:
        assert len(studies) == 4
        assert case["severity"] in ("ok", "ok_or_skip", "ok_or_fail") or case["case"] == "22_one_view_listed"
        assert shard(source, tmp_path / "strict", on_bad="fail") == (studies, drops, warnings)
    check = CHECKS.get(case["case"], check_tar if case["entry"] == "shard.tar" else check_films)
    check(case, source, studies, drops, warnings)


def refuse_under_fail(source: Source, out: Path, drop: Drop) -> None:
    """The strict policy stops at the first drop and names it, in the listing or in the first tar."""
    with pytest.raises(DataError) as error:
        if source.listing().drops:
            write_shards(source, out, on_bad="fail")
        else:
            shard(source, out, on_bad="fail")
    assert drop.id in str(error.value) and drop.reason in str(error.value)
    assert not list(out.glob("*.tar"))


def check_films(case: dict, source: Source, studies: list[Entry], drops: list[Drop], warnings: dict) -> None:
    """Where a film is at fault, the drop names it."""
    at_fault = [drop.file.removeprefix("images/") for drop in drops if drop.file.removeprefix("images/")[:3] == "CXR"]
    assert at_fault == [file.removeprefix("images/") for file in case.get("bad_files", [])]


def check_tar(case: dict, source: WebDataset, studies: list[Entry], drops: list[Drop], warnings: dict) -> None:
    """The good samples are those of the archive without faults, their views in place."""
    whole = source_of("00_reference", "shard.tar", source.raw.parent)
    items, wanted = source.listing().items, whole.listing().items
    assert len(items) == case["good_samples"] and len(wanted) == 4
    for item, reference in zip(items, wanted, strict=False):
        (study, films), (same, others) = source.read(item), whole.read(reference)
        assert (study.id, study.report) == (same.id, same.report)
        assert all(np.array_equal(film, other) for film, other in zip(films, others, strict=True))
    if case["case"] == "29_tar_truncated":
        assert "breaks off at byte" in drops[0].detail and "the 3 before it are" in drops[0].detail


def check_pixels(case: dict, source: Source, studies: list[Entry], drops: list[Drop], warnings: dict) -> None:
    """The film is the one of the case without faults."""
    film = open_film(BAD / case["case"] / case["bad_files"][0])
    folder = BAD / "00_reference"
    victim = json.loads((folder / "case.json").read_text())["victim_id"]
    wanted = Image.fromarray(open_film(folder / "images" / victim / "0.jpg"))
    wanted = wanted.resize(film.shape[::-1], Image.Resampling.BICUBIC)
    assert np.corrcoef(film.ravel(), np.asarray(wanted).ravel())[0, 1] > 0.99


def check_cells(case: dict, source: Source, studies: list[Entry], drops: list[Drop], warnings: dict) -> None:
    """A cell with a line feed, a comma and quotes is one report, word for word."""
    reports = [source.read(item)[0].report for item in source.listing().items]
    assert [report.count("\n") for report in reports] == [0, 1, 0, 0]
    assert reports[1].endswith('"quoted, with comma"') and not any(report.startswith('"') for report in reports)
    plain = [report.replace("\n", " ").removesuffix(' "quoted, with comma"') for report in reports]
    reference = IuXray(raw=BAD / "00_reference")
    assert plain == [reference.read(item)[0].report for item in reference.listing().items]


def check_controls(case: dict, source: Source, studies: list[Entry], drops: list[Drop], warnings: dict) -> None:
    """Control characters go with a warning that names the study."""
    assert warnings == {"control characters removed": tuple(case["bad_ids"])}


def check_views(case: dict, source: Source, studies: list[Entry], drops: list[Drop], warnings: dict) -> None:
    """A study of one film is kept with it, or dropped by name where two are asked for."""
    assert [len(entry.members) - 1 for entry in studies] == [2, 2, 2, 1]
    listing = IuXray(raw=BAD / case["case"], min_views=2).listing()
    assert [(drop.id, drop.reason) for drop in listing.drops] == [(case["bad_ids"][0], "too few views")]


CHECKS = {
    "03_png16": check_pixels,
    "05_alpha_png": check_pixels,
    "14_report_nul": check_controls,
    "22_one_view_listed": check_views,
    "28_csv_newline_in_cell": check_cells,
}


def test_real_study_keeps_its_record_through_a_shard(tmp_path: Path) -> None:
    studies, drops, _ = shard(IuXray(raw=BAD / "24_annotation_bom_crlf"), tmp_path)
    assert (len(studies), drops) == (4, [])
    data = (tmp_path / "train-00000.tar").read_bytes()
    at, size, _ = studies[0].members["json"]
    study = Study.model_validate_json(data[at : at + size])
    assert study.report and study.target and "\r" not in study.id
