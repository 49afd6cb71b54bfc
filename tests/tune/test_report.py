"""A sweep's table: intervals, what is lacking, and names that are hostile to each of the three forms."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from r2kg.config.protocol import protocol_named
from shards.errors import DataError
from tune.plan import NOTE
from tune.report import write_table
from tune.rows import Row, Table

HOSTILE = "<script>alert(1)</script> | a_b & 50% $x$ \\input{x}"
TABLE = Table(
    name="small",
    shows="whether <b>it</b> works",
    recipes=("r2gengpt.tiny", "r2gengpt.tiny"),
    rows=(Row("sure", paper=(0.31, 0.2)), Row(HOSTILE, paper=(0.9, 0.2)), Row("one"), Row("lost"), Row("not asked")),
    metrics=("bleu4", "nosuch"),
    others={"Published": (0.25, float("nan"))},
)


def write_sweep(root: Path, scores: dict[str, list[float | str]], tiny: bool = False, **setting: object) -> Path:
    """A sweep's files without its training: row → BLEU-4 of each seed, or why there is none."""
    lines = []
    for at, (row, values) in enumerate(scores.items()):
        for seed, value in enumerate(values):
            home = root / f"run-{at}-{seed}"
            (home / "predictions").mkdir(parents=True)
            lines.append({"row": row, "seed": seed, "run": home.name, "decoding": {}, "protocol": "full-text"})
            if value == "":
                continue
            note = {"hash": "h", "shards": "s", "scores": {}, "errors": {"": value}}
            if isinstance(value, float):
                note |= {"scores": {"{}": "predictions/scores.json"}, "errors": {}}
                own = {"score": {"bleu4": value}, "floor": {"bleu4": 0.1}, "intervals": {"bleu4": [0.2, 0.4]}}
                (home / "predictions" / "scores.json").write_text(json.dumps({"protocols": {"full-text": own}}))
            (home / NOTE).write_text(json.dumps(note))
    (root / "small").mkdir()
    plan = {"table": "small", "tiny": tiny, "setting": setting, "trials": lines}
    (root / "small" / "sweep.json").write_text(json.dumps(plan))
    return root / "small"


class Cells(HTMLParser):
    """The text of every cell, and every tag."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_data(self, data: str) -> None:
        if self.rows and data.strip():
            self.rows[-1].append(data)


SCORES: dict[str, list[float | str]] = {
    "sure": [0.30, 0.32, 0.34],
    HOSTILE: [0.30, 0.32, "DataError: <img src=x>"],
    "one": [0.3],
    "lost": [""],
}


def test_every_row_says_what_came_out_or_why_nothing_did(tmp_path):
    written = write_table(TABLE, write_sweep(tmp_path, SCORES), track=False)
    markdown = written.markdown.splitlines()
    assert "| sure | 0.310 | 0.320 ± 0.050 (3 seeds) | yes | 0.100 |" in markdown  # t(2) 4.303 × 0.02 / √3
    assert any(
        "| 0.900 | 0.310 ± 0.127 (2 seeds), 1 failed or missing | too few seeds | 0.100 |" in line for line in markdown
    )
    assert "| one |  | 0.300 (0.200–0.400 over studies) (1 seed) |  | 0.100 |" in markdown
    assert (
        "| lost |  | failed or missing |  |  |" in markdown
        and "| Published | 0.250 | not trained here |  |  |" in markdown
    )
    assert "| sure | 0.200 | not available |  |  |" in markdown and "not asked" not in written.markdown
    assert written.lacking == (HOSTILE, "lost") and "seed 0: not trained, or not to the end" in written.markdown
    assert written.files[3].read_bytes().startswith(b"\x89PNG") and all(path.is_file() for path in written.files)


def test_hostile_names_stay_text_in_every_form(tmp_path):
    written = write_table(TABLE, write_sweep(tmp_path, SCORES), track=False)
    markdown, page, latex = (path.read_text() for path in written.files[:3])
    assert not {"<script", "<img src=x", "<b>"} & {tag for tag in ("<script", "<img src=x", "<b>") if tag in markdown}
    assert {line.replace(r"\|", "").count("|") for line in markdown.splitlines() if line.startswith("|")} == {6}
    parsed = Cells()
    parsed.feed(page)
    assert "script" not in parsed.tags and "b" not in parsed.tags and page.count("<img") == 1
    assert any(row[0] == HOSTILE for row in parsed.rows if row), "the name is there, as text"
    assert r"\textbackslash{}input\{x\}" in latex and r"50\%" in latex and r"\$x\$" in latex and r"a\_b" in latex
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 2


def test_a_tiny_table_compares_nothing_with_the_paper(tmp_path):
    written = write_table(TABLE, write_sweep(tmp_path, {"sure": [0.30, 0.32]}, tiny=True), track=False)
    assert "| sure | 0.310 | 0.310 ± 0.127 (2 seeds) | other films | 0.100 |" in written.markdown
    assert "drawn films" in written.markdown and not written.lacking


@pytest.mark.parametrize(
    ("recipe", "own", "setting", "verdict"),
    [
        ("iu", {}, {"source": "iu_xray", "changes": {"data.shards": "iu", "train.workers": 4}}, "yes"),
        ("iu", {}, {"source": "iu_xray", "changes": {"data.sides.triples": "iu/side/rg"}}, "yes"),
        ("iu", {}, {"source": "iu_xray", "changes": {"train.epochs": 1}}, "other settings"),
        ("iu", {"train.epochs": 1}, {"source": "iu_xray", "changes": {}}, "other settings"),
        ("mimic_cxr", {}, {"source": "iu_xray", "changes": {}}, "other films"),
    ],
)
def test_a_page_says_what_it_is_of_and_holds_the_papers_figures_against_the_papers_runs_alone(
    tmp_path, recipe, own, setting, verdict
):
    table = replace(TABLE, recipes=(f"cknet.{recipe}", "cknet.tiny"), changes=own)
    setting |= {"shards": "0123456789abcdef"}
    written = write_table(table, write_sweep(tmp_path, {"sure": [0.30, 0.32, 0.34]}, **setting), track=False)
    assert f"| sure | 0.310 | 0.320 ± 0.050 (3 seeds) | {verdict} | 0.100 |" in written.markdown
    for path in written.files[:3]:
        text = path.read_text().replace("\\", "").replace("&#34;", '"')
        assert "iu_xray, shards 0123456789ab." in text and protocol_named("full-text").hash[:8] in text
        assert ("train.epochs=1" in text) == (verdict == "other settings") and "train.workers" not in text


def test_damaged_or_missing_files_are_told(tmp_path):
    with pytest.raises(DataError, match="no sweep at .*run `r2kg sweep small` first"):
        write_table(TABLE, tmp_path / "small", track=False)
    where = write_sweep(tmp_path, {"sure": [0.3]})
    (tmp_path / "run-0-0" / "predictions" / "scores.json").write_text('{"protocols": {"full-text": {"score": 3}}}')
    with pytest.raises(DataError, match=r"scores.json has no scores under full-text .*run the sweep again"):
        write_table(TABLE, where, track=False)
    note = {"hash": "h", "shards": "s", "scores": {"{}": "../../outside.json"}, "errors": {}}
    (tmp_path / "run-0-0" / NOTE).write_text(json.dumps(note))
    (tmp_path.parent / "outside.json").write_text("{}")
    assert "failed or missing" in write_table(TABLE, where, track=False).markdown, "nothing is read out of the run"
