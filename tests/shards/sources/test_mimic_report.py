"""Reports of MIMIC-CXR: every odd form of a header, and both places where reports lie."""

import os
import zipfile
from pathlib import Path

import pytest

from shards.clean import clean
from shards.errors import DataError
from shards.sources.mimic_cxr.report import MAX_REPORT_BYTES, find_reports, has_any, parse_report, read_report
from shards.study import BadStudy

RULE = " " + "_" * 78
FINAL = " " * 33 + "FINAL REPORT"
NAME = "p90/p90000032/s90414267.txt"
TEXT = f"{FINAL}\n FINDINGS:  Lungs are clear.\n"


def report(*lines: str, top: str = FINAL) -> dict[str, str]:
    return parse_report("\n".join([top, *(f" {line}" for line in lines)]))


def test_the_usual_report() -> None:
    sections = report(
        "EXAMINATION:  CHEST (PA AND LAT)",
        "",
        "INDICATION:  ___-year-old with cough  // eval for pneumonia",
        "",
        "TECHNIQUE:  Chest PA and lateral",
        "",
        "COMPARISON:  ___",
        "",
        "FINDINGS: ",
        "",
        "The lungs are clear of ___.  No effusion",
        "or pneumothorax.",
        "",
        "Bones are intact.",
        "",
        "IMPRESSION: ",
        "",
        "Normal.",
        "",
        "RECOMMENDATION(S):  None.",
        "NOTIFICATION:  Dr. ___ at 9:14 AM: told by ___.",
    )
    assert sections == {
        "examination": "CHEST (PA AND LAT)",
        "indication": "___-year-old with cough  // eval for pneumonia",
        "technique": "Chest PA and lateral",
        "comparison": "___",
        "findings": "The lungs are clear of ___.  No effusion\nor pneumothorax.\n\nBones are intact.",
        "impression": "Normal.",
        "recommendation": "None.",
        "notification": "Dr. ___ at 9:14 AM: told by ___.",
    }


def test_cleaning_gives_the_same_words_with_and_without_the_blanks_of_the_file() -> None:
    lines = [" The lungs are clear.  No effusion", " or pneumothorax.", " ", " Bones are intact."]
    stripped = report("FINDINGS:", *(line[1:] for line in lines))["findings"]
    assert clean("r2gen-2020-mimic", stripped) == clean("r2gen-2020-mimic", "\n".join(lines).strip())


@pytest.mark.parametrize(
    ("header", "section"),
    [
        ("FINDINGS", "findings"),
        ("FINDING", "findings"),
        ("TECHNIQUE AND FINDINGS", "findings"),
        ("CONCLUSION", "impression"),
        ("IMPRESSIONS", "impression"),
        ("REASON FOR EXAMINATION", "indication"),
        ("CLINICAL INDICATION", "indication"),
        ("CLINICAL HISTORY", "history"),
        ("CLINICAL INFORMATION & QUESTIONS TO BE ANSWERED", "history"),
        ("COMPARISON (MRN ___)", "comparison"),
        ("REFERENCE EXAM", "comparison"),
        ("TYPE OF EXAMINATION", "examination"),
        ("STUDY", "examination"),
        ("RECOMMENDATIONS", "recommendation"),
        ("FINDINGS AND IMPRESSION", "findings and impression"),
        ("IMPRESSION AND FINDINGS", "findings and impression"),
        ("FINDINGS/IMPRESSION", "findings and impression"),
        ("FINIDNGS", "findings"),
        ("FINDOINGS", "findings"),
        ("MPRESSION", "impression"),
        ("IMPRESSIO___", "impression"),
        ("]IMPRESSION", "impression"),
        ("CONLCUSION", "impression"),
        ("COMPARRISON", "comparison"),
        ("PROVISIONAL FINDINGS IMPRESSION (PFI)", "preliminary"),
    ],
)
@pytest.mark.parametrize("between", [":  ", ":", " : ", ":\n"])
def test_header_names_and_misspellings(header: str, section: str, between: str) -> None:
    assert report(f"{header}{between}1. Drawn text.") == {section: "1. Drawn text."}


@pytest.mark.parametrize(
    "line", ["NOTE: limited.", "LUNGS: clear.", "STUDY LIMITATION: none.", "COMPRESSION: none.", "AT 12:30 seen."]
)
def test_other_capitals_with_a_colon_are_text(line: str) -> None:
    assert report("FINDINGS:  Clear.", line, "IMPRESSION: ok.") == {"findings": f"Clear.\n{line}", "impression": "ok."}


@pytest.mark.parametrize(
    ("lines", "findings"),
    [
        (("Indication: cough", "and fever", "Findings: Clear."), "Clear."),
        (("Indication: cough", "", "findings: Clear."), "Clear."),
        (("Findings: Clear", "Indication: cough"), "Clear"),
        (("FINDINGS", "Clear."), "Clear."),
        (("FINDINGS:  As in the prior", "Findings: nothing new."), "As in the prior\nFindings: nothing new."),
        (("FINDINGS:  Two", "findings: a nodule, a scar."), "Two\nfindings: a nodule, a scar."),
        (("FINDINGS:  Clear. Impression: none given here.",), "Clear. Impression: none given here."),
        (("FINDINGS:  NO ACUTE FINDINGS.", "NO ACUTE IMPRESSION"), "NO ACUTE FINDINGS.\nNO ACUTE IMPRESSION"),
    ],
)
def test_headers_without_capitals_and_colons_inside_text(lines: tuple[str, ...], findings: str) -> None:
    sections = report(*lines)
    assert sections["findings"] == findings
    assert "impression" not in sections


def test_headers_that_repeat_are_joined_in_order() -> None:
    sections = report("FINDINGS:  One.", "IMPRESSION: A.", "FINDINGS:  Two.", "FINDINGS:", "IMPRESSION: B.")
    assert sections == {"findings": "One.\nTwo.", "impression": "A.\nB."}


def test_what_follows_the_name_of_a_film_is_findings_unless_they_have_a_header() -> None:
    film = "PA AND LATERAL VIEWS OF THE CHEST:"
    assert report("HISTORY: Pain.", f"{film}  Lungs are clear.")["findings"] == "Lungs are clear."
    titled = report("CHEST, PA LATERAL:", "", "INDICATION: Pain.", "FINDINGS: Clear.")
    assert titled == {"indication": "Pain.", "findings": "Clear."}
    both = report(f"{film} Drawn on a good day.", "FINDINGS: Clear.", "CHEST: Small.", "IMPRESSION: Fine.")
    assert both == {"examination": "Drawn on a good day.", "findings": "Clear.\nCHEST: Small.", "impression": "Fine."}
    assert "findings" not in report("PORTABLE CHEST:  ___", "IMPRESSION: Fine.")


def test_wet_reads_before_the_final_report_are_never_findings() -> None:
    wet = "\n".join([" WET READ: ___ ___ ___ 9:14 AM", "  FINDINGS: early.", " IMPRESSION: early.", RULE])
    version = " WET READ VERSION #1 ___ ___ ___ 9:34 PM\n  INDICATION: early."
    sections = report("FINDINGS:  Late.", top=f"{wet}\n{version}\n{FINAL}")
    assert sections["findings"] == "Late."
    assert set(sections) == {"wet read", "findings"}
    assert sections["wet read"].count("early") == 3
    assert parse_report(wet.rsplit("\n", 1)[0]).keys() == {"wet read"}
    assert parse_report(f"{wet}\n HISTORY: Pain.\n FINDINGS: Late.")["findings"] == "Late."
    assert (
        report("WET READ: ___ 9:14 AM", "FINDINGS: early.", "HISTORY: Pain.", "FINDINGS: Late.")["findings"] == "Late."
    )


def test_addenda_stay_apart() -> None:
    addendum = f"{' ' * 33}FINAL ADDENDUM\n ADDENDUM:  Seen again.\n FINDINGS:  Other.\n{RULE}\n{FINAL}"
    sections = report("FINDINGS:  Clear.", top=addendum)
    assert sections == {"addendum": "Seen again.\nFINDINGS:  Other.", "findings": "Clear."}
    after = report("FINDINGS: Clear.", "IMPRESSION: Fine.", "ADDENDUM", "COMPARISON: ___.", "FINDINGS: Other.")
    assert (after["findings"], after["addendum"]) == ("Clear.", "COMPARISON: ___.\nFINDINGS: Other.")
    first = report("ADDENDUM:  Dr. ___ was told.", "INDICATION: Pain.", "FINDINGS: Clear.")
    assert first == {"addendum": "Dr. ___ was told.", "indication": "Pain.", "findings": "Clear."}


def test_text_without_headers_is_body_and_no_findings() -> None:
    assert report("In comparison with ___, the lungs", "", "are clear.") == {
        "body": "In comparison with ___, the lungs\n\nare clear."
    }
    assert parse_report("Lungs are clear.") == {"body": "Lungs are clear."}
    assert report("COMPARISON:  ___.", "", "Lungs are clear.") == {"comparison": "___.\n\nLungs are clear."}
    assert report("FINDINGS:", "", "___", "IMPRESSION:  ")["findings"] == "___"


@pytest.mark.parametrize("text", ["", "\n \n", FINAL, f"{FINAL}\n FINDINGS:\n IMPRESSION: \n", RULE, "\ufeff"])
def test_nothing_is_nothing(text: str) -> None:
    assert parse_report(text) == {}


def test_line_ends_do_not_matter() -> None:
    lines = [FINAL, " FINDINGS:  One", " two.", " IMPRESSION:", " Three."]
    expected = {"findings": "One\ntwo.", "impression": "Three."}
    assert [parse_report(end.join(lines)) for end in ("\n", "\r\n", "\r")] == [expected] * 3
    assert parse_report("FINAL REPORT FINDINGS: One\n two.\n IMPRESSION: Three.") == expected


def write_store(root: Path, kind: str, content: dict[str, bytes]) -> Path:
    if kind == "zip":
        with zipfile.ZipFile(root / "reports.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in content.items():
                archive.writestr(f"files/{name}", data)
        return root / "reports.zip"
    for name, data in content.items():
        path = root / ("files" if kind == "files" else "") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


@pytest.mark.parametrize("kind", ["zip", "files", "direct"])
def test_both_stores(tmp_path: Path, kind: str) -> None:
    other = NAME.replace("267", "268")
    big = NAME.replace("267", "269")
    content = {NAME: b"\xef\xbb\xbfcaf\xc3\xa9", other: b"caf\xe9", big: b"x" * (MAX_REPORT_BYTES + 1)}
    store = write_store(tmp_path, kind, content)
    assert find_reports(tmp_path / "raw", store) == store
    assert [read_report(store, name) for name in (NAME, other)] == ["café", "café"]
    assert has_any(store, ["p90/none.txt", NAME])
    assert not has_any(store, ["p90/none.txt"])
    with pytest.raises(BadStudy, match="report is too large: .*s90414269.txt has more than 100,000 bytes"):
        read_report(store, big)
    with pytest.raises(BadStudy, match="report is missing: p90/none.txt"):
        read_report(store, "p90/none.txt")


def test_a_zip_that_changes_is_opened_again(tmp_path: Path) -> None:
    store = write_store(tmp_path, "zip", {NAME: b"one"})
    assert read_report(store, NAME) == "one"
    write_store(tmp_path, "zip", {NAME: b"two"})
    os.utime(store, ns=(1, 1))
    assert read_report(store, NAME) == "two"


def test_a_damaged_member_is_one_bad_study(tmp_path: Path) -> None:
    store = write_store(tmp_path, "zip", {NAME: TEXT.encode() * 20, NAME.replace("p90/", "p91/"): b"whole"})
    data = bytearray(store.read_bytes())
    at = data.index(b"s90414267.txt") + len(b"s90414267.txt") + 4
    data[at : at + 8] = b"\xff" * 8
    store.write_bytes(data)
    with pytest.raises(BadStudy, match="report cannot be read"):
        read_report(store, NAME)
    assert read_report(store, NAME.replace("p90/", "p91/")) == "whole"


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_is_packed_otherwise_than_the_owner_packs_is_one_bad_study(tmp_path: Path, packing: int) -> None:
    """These unpack all that a few bytes stand for, and have errors of their own."""
    with zipfile.ZipFile(tmp_path / "reports.zip", "w", packing) as archive:
        archive.writestr(f"files/{NAME}", TEXT)
    with pytest.raises(BadStudy, match="report cannot be read"):
        read_report(tmp_path / "reports.zip", NAME)


@pytest.mark.parametrize(("at", "byte"), [(6, 0xFF), (8, 0x01), (8, 0x20), (9, 0x08), (10, 0x63), (46, 0xFF)])
def test_a_damaged_table_of_contents_is_refused_or_costs_its_study(tmp_path: Path, at: int, byte: int) -> None:
    store = write_store(tmp_path, "zip", {NAME: TEXT.encode(), NAME.replace("p90/", "p91/"): b"whole"})
    data = bytearray(store.read_bytes())
    first = data.index(b"PK\x01\x02")
    data[first + at] = byte
    data[first + 46] |= 0x80  # with the bit of byte 9, a name that is no UTF-8
    store.write_bytes(data)
    with pytest.raises(DataError) as caught:
        has_any(store, [NAME])
        read_report(store, NAME)
    assert isinstance(caught.value, BadStudy) or "p90" not in str(caught.value)


def test_a_pipe_is_no_store(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "mimic-cxr-reports.zip")
    assert find_reports(tmp_path, None) == tmp_path


def test_a_report_may_not_lie_outside_the_store(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", "files", {NAME.replace("267", "268"): b"inside"})
    (tmp_path / "secret.txt").write_text("outside")
    (store / "files" / NAME).symlink_to(tmp_path / "secret.txt")
    with pytest.raises(BadStudy, match="path leaves the data root"):
        read_report(store, NAME)


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not there: name the directory above p10/"):
        find_reports(tmp_path, tmp_path / "none")
    store = write_store(tmp_path, "zip", {NAME: b"text"})
    store.write_bytes(store.read_bytes()[:-30])
    with pytest.raises(DataError, match="is no zip .*fetch it again"):
        find_reports(tmp_path, store)
    store.rename(tmp_path / "mimic-cxr-reports.zip")
    with pytest.raises(DataError, match="cannot be opened"):
        has_any(find_reports(tmp_path, None), [NAME])
