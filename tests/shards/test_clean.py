"""Every oddity of the 2020 cleanings, on sentences of our own: published numbers depend on them."""

import json
import os
import pickle
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.clean import CLEANINGS, VERSIONS, clean, clean_again, vocabulary
from shards.errors import ConfigError

IU, MIMIC = "r2gen-2020-iu", "r2gen-2020-mimic"


@pytest.mark.parametrize(
    ("written", "cleaned"),
    [
        ("The lungs are clear. No effusion.", "the lungs are clear . no effusion ."),
        ("Lungs clear.. Heart normal....", "lungs clear . heart normal ."),
        ("1. Clear lungs. 2. Normal heart. 3. No effusion.", "clear lungs . normal heart . no effusion ."),
        ("Clear lungs 2. Normal heart 5. Old fracture.", "clear lungs . normal heart . old fracture ."),
        ("Clear lungs. 6. Old fracture.", "clear lungs . 6 . old fracture ."),
        ("Wedging of T11. The heart is large.", "wedging of t1the heart is large ."),
        ("Findings\n2. Normal heart.", "findings\n2 . normal heart ."),
        ("A 3.5 cm mass", "a 35 cm mass ."),
        ('PA/lat views of the patient\'s "chest" \\ x-ray', "palat views of the patients chest  x-ray ."),
        ("Is it <large>? (yes); see [3], @home = {no}: 50%", "is it large yes see 3 home  no 50 ."),
        ("Clear. . Normal.", "clear .  . normal ."),
        ("Clear. Normal .", "clear . normal  ."),
        ("XXXX opacity", "xxxx opacity ."),
        ("", " ."),
        ("  ", " ."),
    ],
)
def test_iu_rules(written: str, cleaned: str) -> None:
    assert clean(IU, written) == cleaned


@pytest.mark.parametrize(
    ("written", "cleaned"),
    [
        ("Clear lungs.\nNo effusion.\n2. Normal heart.", "clear lungs . no effusion . normal heart ."),
        ("Seen by Dr. ______ today.", "seen by dr .  today ."),
        ("Clear      lungs.  No      effusion.", "clear lungs . no effusion ."),
        ("Clear" + "." * 200 + " Normal.", "clear . normal ."),
        ("", " ."),
    ],
)
def test_mimic_rules(written: str, cleaned: str) -> None:
    assert clean(MIMIC, written) == cleaned


def test_mimic_collapses_more_periods_than_iu() -> None:
    """Halved three times, nine periods are still two, and `1.. ` is no list number; MIMIC halves eight times."""
    eight, nine, many = ("1" + "." * count + " Clear." for count in (8, 9, 257))
    assert clean(IU, eight) == clean(MIMIC, eight) == clean(MIMIC, nine) == "clear ."
    assert clean(IU, nine) == clean(MIMIC, many) == "1 . clear ."


def test_mimic_collapses_only_so_many_underscores_and_blanks() -> None:
    assert clean(MIMIC, "a" + " " * 64 + "b") == "a b ."
    assert clean(MIMIC, "a" + " " * 65 + "b") == "a  b ."
    assert clean(IU, "a  b") == "a  b ."
    assert clean(MIMIC, "a" + "_" * 129 + "b") == "ab ."


@pytest.mark.parametrize("name", [IU, MIMIC])
def test_characters_that_survive(name: str) -> None:
    kept = {c for c in string.printable.lower() if c not in string.whitespace and clean(name, f"a{c}a") == f"a{c}a ."}
    assert kept == set("#$-`|~" + string.digits + string.ascii_lowercase)


def test_raw_changes_nothing() -> None:
    assert clean("raw", " 1. The PA/lat.. view\n") == " 1. The PA/lat.. view\n"


def test_unknown_cleaning_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'r2gen'.*raw, r2gen-2020-iu, r2gen-2020-mimic"):
        clean("r2gen", "text")


def test_every_cleaning_has_a_version_and_travels_to_workers() -> None:
    assert VERSIONS.keys() == CLEANINGS.keys()
    assert pickle.loads(pickle.dumps(CLEANINGS))[IU]("Clear.") == "clear ."


@given(st.text(alphabet=string.printable, max_size=80), st.sampled_from([IU, MIMIC]))
def test_cleaning_again_keeps_the_words_of_a_clean_report(written: str, name: str) -> None:
    cleaned = clean(name, written)
    assert clean_again(name, cleaned).split() == cleaned.split()


def test_cleaning_again_leaves_no_two_blanks() -> None:
    assert clean_again(IU, "the lungs are clear . no effusion .") == "the lungs are clear . no effusion ."
    assert clean_again(IU, "The lungs are clear. No effusion.") == "the lungs are clear . no effusion ."
    assert clean_again("raw", "As written .") == "As written ."


def test_vocabulary_is_sorted_frequent_words_and_unknown() -> None:
    reports = ["the heart is large .", "the heart is normal .", "the lungs are clear ."]
    assert vocabulary(reports, 2) == (".", "<unk>", "heart", "is", "the")
    assert vocabulary(reports, 3) == (".", "<unk>", "the")
    assert vocabulary([], 3) == ("<unk>",)


@pytest.mark.skipif("R2KG_REAL_DATA" not in os.environ, reason="R2KG_REAL_DATA is not set: no real reports to clean")
def test_real_reports_are_cleaned_to_lone_periods_and_stay_so() -> None:
    annotation = json.loads((Path(os.environ["R2KG_REAL_DATA"]) / "iu_xray/annotation.json").read_text())
    reports = [row["report"] for rows in annotation.values() for row in rows]
    cleaned = [clean(IU, report) for report in reports]
    assert all(report == report.lower() and report.endswith(" .") for report in cleaned)
    assert not any("." in word and word != "." for report in cleaned for word in report.split())
    assert [clean_again(IU, report).split() for report in cleaned] == [report.split() for report in cleaned]
