"""The real forms of IU X-Ray against each other: every difference is counted and has a cause."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from shards.clean import clean, vocabulary
from shards.sources import Item, Listing
from shards.sources.iu_xray.annotation import read_annotation
from shards.sources.iu_xray.exam import FormName
from shards.sources.iu_xray.kaggle import read_kaggle
from shards.sources.iu_xray.source import IuXray
from shards.sources.iu_xray.xml import read_xml

if "R2KG_REAL_DATA" not in os.environ:
    pytest.skip("R2KG_REAL_DATA names no directory of real test data", allow_module_level=True)
RAW = Path(os.environ["R2KG_REAL_DATA"]) / "iu_xray"
FORMS: tuple[FormName, ...] = ("annotation", "xml", "csv")
MISSING_IN_KAGGLE = {"CXR2084_IM-0715-1001": 4, "CXR2560_IM-1064": 4}
"""Examinations of which Kaggle, and so images.csv, lacks films that the XML lists → films in the XML."""


def listed(form: FormName, **options: Any) -> tuple[Listing, dict[str, Item]]:
    listing = IuXray(raw=RAW, form=form, **options).listing()
    return listing, {item.id: item for item in listing.items}


def films(item: Item) -> list[tuple[str, str]]:
    return list(zip(item.payload["views"], item.payload["image_path"], strict=True))


def test_every_form_gives_the_same_studies_in_the_annotated_split() -> None:
    (annotation, a), (xml, x), (kaggle, k) = (listed(form, crosscheck="off") for form in FORMS)
    assert Counter(item.split for item in a.values()) == {"train": 672, "val": 112, "test": 211}
    assert a.keys() == k.keys() == x.keys() | MISSING_IN_KAGGLE.keys()
    assert annotation.drops == []
    assert Counter(drop.reason for drop in xml.drops) == {"not in the R2Gen split": 2139, "film is missing": 2}
    assert Counter(drop.reason for drop in kaggle.drops) == {"not in the R2Gen split": 2056}
    assert {drop.id for drop in xml.drops if drop.reason == "film is missing"} == MISSING_IN_KAGGLE.keys()
    for other in (x, k):
        for name, item in other.items():
            mine = a[name]
            assert (item.split, item.patient) == (mine.split, mine.patient)
            assert item.payload["report"] == mine.payload["report"]
            first = [next(film for film in films(item) if film[0] == view) for view in ("frontal", "lateral")]
            assert films(mine) == first
    assert all(films(x[name]) == films(k[name]) for name in x)
    more = Counter(len(item.payload["image_path"]) for item in k.values())
    assert more == {2: 947, 3: 46, 4: 2}, "R2Gen lists the first frontal and the first lateral of 48 larger studies"


def test_the_whole_corpus_has_the_same_reports_in_xml_and_csv() -> None:
    (xml, x), (kaggle, k) = listed("xml", split="hash"), listed("csv", split="hash")
    assert (len(x), len(k)) == (1298, 1300)
    assert Counter(drop.reason for drop in xml.drops) == {"film is missing": 1753, "no film is listed": 83}
    assert Counter(drop.reason for drop in kaggle.drops) == {"film is missing": 1751}
    assert len(xml.drops) + len(x) == 3134 and len(kaggle.drops) + len(k) == 3051
    assert all(x[name].payload["report"] == k[name].payload["report"] for name in x)
    told = [note.partition("indiana_reports.csv: ")[2] for note in xml.notes if "against indiana" in note]
    assert [note.partition(" (")[0] for note in told] == [
        "3,051 studies in both, only in the first 83",
        "another text of indication in 2 studies: a spreadsheet's error value 2",
        "other films in 3 studies: more films in the first 3",
    ]


def test_ids_follow_r2gens_rule_but_for_twenty_outside_r2gen() -> None:
    """annotation_all.json and images.csv shorten four-part image ids of studies that R2Gen left out further."""
    rule = {exam.patient: exam.id for exam in read_xml(RAW / "NLMCXR_reports.tgz").exams}
    kaggle = {exam.patient: exam.id for exam in read_kaggle(RAW / "indiana_reports.csv").exams}
    assert len(kaggle) == 3051 and all(rule[number] == name for number, name in kaggle.items())
    every = {exam.patient: exam.id for exam in read_annotation(RAW / "annotation_all.json").exams}
    r2gen = {exam.patient: exam.id for exam in read_annotation(RAW / "annotation.json").exams}
    assert all(rule[number] == name for number, name in r2gen.items())
    exceptions = {number for number, name in every.items() if rule[number] != name}
    assert len(exceptions) == 20 and not exceptions & r2gen.keys()
    assert {item.patient: name for name, item in listed("csv", split="hash")[1].items()} == every


def test_vocabulary_of_the_training_reports_and_references_that_are_cut() -> None:
    """On all 2,069 training reports it has 760 words; here a third of them is at hand."""
    _, items = listed("annotation")
    cleaned: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for item in items.values():
        cleaned[item.split].append(clean("r2gen-2020-iu", item.payload["report"]))
    assert len(vocabulary(cleaned["train"], 3)) == 487
    assert len({word for report in cleaned["train"] for word in report.split()}) == 986
    cut = {split: sum(len(report.split()) > 59 for report in reports) for split, reports in cleaned.items()}
    assert cut == {"train": 67, "val": 6, "test": 10}
