"""Sections as the dataset's owner cuts them, and what of our own cutting must not leak into the indication."""

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import ConfigError, DataError
from shards.sources.mimic_cxr.owner import COLUMNS, CONTAINED, FILM, MEANING, owner_sections
from shards.sources.mimic_cxr.report import parse_report
from shards.sources.mimic_cxr.source import UNLIKE, MimicCxr
from shards.study import BadStudy
from tests.shards.sources.mimic_tree import shard, write_mimic_tree

LINES = st.lists(st.sampled_from(["the heart is large .", "", "Comparison: none", "no: nothing", "___"]), max_size=4)
KNOWN = st.sampled_from(sorted(MEANING)).map(lambda header: (header.upper(), MEANING[header]))
CONTAINING = st.sampled_from(CONTAINED).map(lambda word: (f"SOME {word.upper()}", word))
OF_FILMS = st.sampled_from(FILM).map(
    lambda phrase: (f"UPRIGHT {phrase.upper()}".replace("UPRIGHT ", "THE "), "findings")
)
UNKNOWN = st.sampled_from(["NOTE", "LUNGS", "PLEASE (SEE)"]).map(lambda header: (header, header.lower()))


@given(st.lists(st.tuples(KNOWN | CONTAINING | OF_FILMS | UNKNOWN, LINES), min_size=1, max_size=6))
def test_sections_are_those_that_were_put_together(parts: list[tuple[tuple[str, str], list[str]]]) -> None:
    text, wanted = "FINAL REPORT", list[tuple[str, str]]()
    for (header, name), lines in parts:
        body = "begins here" + "".join(f"\n {line}" for line in lines)
        text += f"\n {header}: {body}"
        wanted.append((name, body))
    named = [name for name, _ in wanted]
    if not {"findings", "impression"} & set(named) and "\n \n" in wanted[-1][1]:
        name, body = wanted.pop()
        wanted += [(name, body.split("\n \n", 1)[0]), ("last_paragraph", body.split("\n \n", 1)[1])]
    expected = {"preamble": "FINAL REPORT"} | {name: body.strip() for name, body in wanted}
    assert owner_sections(text) == {name: body for name, body in expected.items() if body}


@pytest.mark.parametrize(
    ("text", "sections"),
    [
        ("no header at all", {"full report": "no header at all"}),
        (
            "x\n FINDINGS: one\n FINDINGS:  \n\n IMPRESSION: two",
            {"preamble": "x", "findings": "one", "impression": "two"},
        ),
        ("x\n FINDINGS: one\n FINDINGS: two", {"preamble": "x", "findings": "two"}),
        ("x\n FINDINGS AND IMPRESSION: one", {"preamble": "x", "impression": "one"}),
        ("x\n PORTABLE CHEST: one", {"preamble": "x", "findings": "one"}),
        (
            "x\n HISTORY: a\n \n clear.\n \n end.",
            {"preamble": "x", "history": "a", "last_paragraph": "clear.\n \n end."},
        ),
        (
            "x\n FINDINGS:\n IMPRESSION: in it\n HISTORY: a",
            {"preamble": "x", "findings": "IMPRESSION: in it", "history": "a"},
        ),
        (" FINDINGS: on the first line", {"full report": "FINDINGS: on the first line"}),
        ("x\nFINDINGS: no blank before it", {"full report": "x\nFINDINGS: no blank before it"}),
        ("x\n Findings: no capitals", {"full report": "x\n Findings: no capitals"}),
        ("x\n FINDINGS:no blank behind it", {"full report": "x\n FINDINGS:no blank behind it"}),
        ("x\n IMPRESSOIN: one\n REASON FOR EXAM: two", {"preamble": "x", "impression": "one", "indication": "two"}),
    ],
)
def test_the_owners_rules_one_by_one(text: str, sections: dict[str, str]) -> None:
    assert owner_sections(text) == sections


def test_headers_without_capitals_do_not_end_findings_in_capitals() -> None:
    for name in ("Comparison", "Technique", "Recommendation", "Indication", "Notification"):
        sections = parse_report(f"FINAL REPORT\n FINDINGS:\n \n Clear.\n \n {name}: none.\n \n Normal.")
        assert sections == {"findings": f"Clear.\n\n{name}: none.\n\nNormal."}
    sections = parse_report("FINAL REPORT\n FINDINGS:  Clear.\n \n Impression: Normal.")
    assert sections == {"findings": "Clear.", "impression": "Normal."}
    sections = parse_report("FINAL REPORT\n Findings: Clear.\n Comparison: none.\n Impression: Normal.")
    assert sections == {"findings": "Clear.", "comparison": "none.", "impression": "Normal."}


@pytest.mark.parametrize("header", ["INDICATION", "HISTORY", "CLINICAL HISTORY", "REASON FOR EXAM"])
def test_findings_dictated_below_an_indication_are_never_part_of_it(header: str) -> None:
    name = "history" if "HISTORY" in header else "indication"
    sections = parse_report(f"FINAL REPORT\n {header}:  Cough\n and fever.\n \n The lungs are clear.\n \n No effusion.")
    assert sections == {name: "Cough\nand fever.", "narrative": "The lungs are clear.\n\nNo effusion."}
    sections = parse_report(f"FINAL REPORT\n {header}:\n \n Cough.\n \n FINDINGS: Clear.")
    assert sections == {name: "Cough.", "findings": "Clear."}


def test_the_option_decides_and_the_receipt_counts_where_the_two_differ(tmp_path: Path) -> None:
    tree = write_mimic_tree(tmp_path / "raw")
    first, second = sorted((tree.root / "files").rglob("s*.txt"))[:2]
    first.write_text("FINAL REPORT\n FINDINGS: Early.\n \n IMPRESSION: x\n \n FINDINGS: Late.\n")
    second.write_text("FINAL REPORT\n FINDINGS: Same words.\n")
    for sections, report in (("ours", "Early.\n\nLate."), ("owner", "Late.")):
        source = MimicCxr(raw=tree.root, sections=sections)
        studies = {study.id: (study, source.remarks(study)) for study in shard(source, tmp_path / sections)[0]}
        study, remarks = studies[first.stem]
        assert (study.report, remarks) == (report, (UNLIKE,))
        study, remarks = studies[second.stem]
        assert (study.report, remarks) == ("Same words.", ())


def test_the_owners_table_is_read_in_place_of_the_reports(tmp_path: Path) -> None:
    tree = write_mimic_tree(tmp_path / "raw")
    path, rows = tmp_path / "mimic_cxr_sectioned.csv", {}
    for report in sorted((tree.root / "files").rglob("s*.txt")):
        sections = owner_sections(report.read_text())
        rows[report.stem] = [sections.get(name, "") for name in COLUMNS]
    usual, _ = shard(MimicCxr(raw=tree.root, sections="owner"), tmp_path / "usual")
    for report in (tree.root / "files").rglob("s*.txt"):
        report.unlink()
    without = usual[0].id

    def write(*more: str) -> None:
        with path.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["study", *COLUMNS])
            table.writerows([study, *rows[study.removesuffix(" ")]] for study in (*rows, *more) if study != without)

    write()
    source = MimicCxr(raw=tree.root, sectioned=path)
    studies, drops = shard(source, tmp_path / "table")
    assert [(one.id, one.report) for one in studies] == [(one.id, one.report) for one in usual if one.id != without]
    assert drops["not in the table of sections"] == 1 and all(set(one.sections) <= {*COLUMNS} for one in studies)
    items = source.listing().items
    path.write_bytes(path.read_bytes().replace(b"\r\ns", b"\r\nx", 1))
    with pytest.raises(DataError, match=r"row 1 on line 2: its study is not s and 8 digits"):
        source.listing()
    with pytest.raises(BadStudy, match="report file changed"):
        for item in items:
            source.read(item)
    write(f"{usual[1].id} ")
    with pytest.raises(DataError, match="is of a study that an earlier row has"):
        source.listing()
    with pytest.raises(ConfigError, match="each holds the texts of studies, so give one"):
        MimicCxr(raw=tree.root, sectioned=path, reports=tmp_path)
