"""Every oddity of the 2020 cleanings, on sentences of our own, since published numbers depend on them; and clean-1."""

import json
import os
import pickle
import re
import string
import unicodedata
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
        ("Rib 21. Old fracture.", "rib 2old fracture ."),
        ('" Clear lungs ". Heart ( large ). Clear.', "clear lungs . heart  large  . clear ."),
        ("Clear.No effusion.", "clearno effusion ."),
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
        ("Comparison: ___ and __.\n\n\nClear.", "comparison  and  . clear ."),
        ("1. Clear.\n\n2. Normal.", "clear . normal ."),
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


@pytest.mark.parametrize(
    ("written", "cleaned"),
    [
        ("The lungs are clear. No effusion.", "the lungs are clear . no effusion ."),
        ("Clear.No effusion", "clear . no effusion ."),
        ("Clear.. . Heart normal....", "clear . heart normal ."),
        ("A 3.5 cm mass, .5 cm rim.", "a 3.5 cm mass .5 cm rim ."),
        ("1,000 mL at 10:30, that is: a lot", "1,000 ml at 10:30 that is a lot ."),
        ("1. Clear lungs. 2. Normal heart. 10. No effusion.", "clear lungs . normal heart . no effusion ."),
        ("1) Clear lungs\n 2) Normal heart\n(3) Pacer", "clear lungs . normal heart . pacer ."),
        ("1.Clear lungs\n2.5 cm mass", "clear lungs 2.5 cm mass ."),
        ("IMPRESSION: 1. Clear. 2. Normal", "impression . clear . normal ."),
        ("- Clear lungs\n* Normal heart • Pacer", "clear lungs . normal heart . pacer ."),
        ("Wedging of T11. The heart is large.", "wedging of t11 . the heart is large ."),
        ("Grade 2. Rib 7) of 12. No more", "grade 2 . rib 7 of 12 . no more ."),
        ("Grade: 1. Stable 100. Heart", "grade 1 . stable 100 . heart ."),
        ("PA/lat views on 10/12", "pa / lat views on 10 / 12 ."),
        ("X-ray follow-up - left-sided, T12-L1", "x-ray follow-up - left-sided t12-l1 ."),
        ("50% narrowing, 1+ oedema & fluid", "50% narrowing 1+ oedema and fluid ."),
        ("? pneumonia (<5 mm, >2 cm)?", "? pneumonia < 5 mm > 2 cm ? ."),
        ("XXXX-year-old, ___-year-old, [**Hospital 1**] and a__b", "xxxx-year-old xxxx-year-old xxxx and a xxxx b ."),
        ("Seen by Dr. ____ at 5 p.m. today, e.g. CT", "seen by dr xxxx at 5 pm today eg ct ."),
        ("The patient\u2019s \u201cheart\u201d \u2013 large\u2014clear", "the patient's heart - large - clear ."),
        ("\uff11\uff12 \u00bd \u00d7 2\u2026 \ufb01brosis caf\u00e9", "12 1 / 2 x 2 . fibrosis café ."),
        ("Cle\u00adar\u200b\x00 lun\x07gs\r\nno\teffusion\u2028now", "clear lungs no effusion now ."),
        ("1.", "1 ."),
        ("a_b #3 @ *", "a b 3 ."),
        (" .?!-/ \n", ""),
        ("____", ""),
        ("", ""),
    ],
)
def test_clean_1_rules(written: str, cleaned: str) -> None:
    assert clean("clean-1", written) == cleaned
    assert clean("clean-1", cleaned) == cleaned


PIECES = (
    *("a", "T", "1", "12", "123", ".", "..", ",", " ", "\n", "-", "--", "_", "___", "XXXX", "(", ")", "1. ", "2) "),
    *(":", "'", "/", "%", "+", "?", "<", "e.g.", "Dr.", "IMPRESSION", "\u2022", "* ", "- ", "[**", "**]", "é"),
    *("\u0301", "\u2014"),
)


@given(st.text(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=16).map("".join))
def test_clean_1_is_tidy_loses_no_text_and_cleans_to_itself(written: str) -> None:
    cleaned = clean("clean-1", written)
    assert clean("clean-1", cleaned) == clean_again("clean-1", cleaned) == cleaned
    assert bool(cleaned) == any(c.isalnum() for c in unicodedata.normalize("NFKC", written))
    assert cleaned == " ".join(cleaned.split())
    assert all(any(c.isalnum() for c in sentence) for sentence in re.split(r" \.(?= |$)", cleaned)[:-1])
    assert not cleaned or cleaned.endswith(" .")


@pytest.mark.parametrize(
    "piece", [".", "_", " ", "-", "x", "1. ", "a.", "(1", "[**", "'", "\n", "\u2022", "e\u0301\u0316", "\u200b", ",1"]
)
def test_clean_1_takes_a_long_run_of_anything(piece: str) -> None:
    """Work that grew with the square of the length would take many minutes here."""
    cleaned = clean("clean-1", "Clear. " + piece * (300_000 // len(piece)) + " Normal.")
    assert cleaned.startswith("clear")
    assert cleaned.endswith("normal .")


def test_clean_1_again_keeps_a_number_that_ends_the_text() -> None:
    assert clean_again("clean-1", "clear . grade 2 .") == "clear . grade 2 ."
    assert clean_again("clean-1", "Clear. Grade 2.") == "clear . grade 2 ."


@pytest.mark.skipif("R2KG_REAL_DATA" not in os.environ, reason="R2KG_REAL_DATA is not set: no real reports to clean")
def test_real_reports_are_cleaned_to_lone_periods_and_stay_so() -> None:
    annotation = json.loads((Path(os.environ["R2KG_REAL_DATA"]) / "iu_xray/annotation.json").read_text())
    reports = [row["report"] for rows in annotation.values() for row in rows]
    cleaned = [clean(IU, report) for report in reports]
    assert all(report == report.lower() and report.endswith(" .") for report in cleaned)
    assert not any("." in word and word != "." for report in cleaned for word in report.split())
    assert [clean_again(IU, report).split() for report in cleaned] == [report.split() for report in cleaned]
    ours = [clean("clean-1", report) for report in reports]
    assert [clean("clean-1", report) for report in ours] == ours
    assert sum("xxxx" in report for report in ours) == sum("xxxx" in report.lower() for report in reports)
    assert all(ours)


def test_r2gengpt_2023_keeps_colons_apart_and_comparisons() -> None:
    report = "FINDINGS: Nodule <5 mm; stable.\n2. PA/lat view @ 10:30.. No change..."
    assert clean("r2gengpt-2023-mimic", report) == "findings : nodule <5 mm stable . palat view @ 10 :30 . no change ."
    assert clean("r2gen-2020-mimic", report) == "findings nodule 5 mm stable . palat view  1030 . no change ."
    once = clean("r2gengpt-2023-mimic", "Clear. No effusion.")
    assert clean_again("r2gengpt-2023-mimic", once) == once == clean("r2gen-2020-mimic", "Clear. No effusion.")
