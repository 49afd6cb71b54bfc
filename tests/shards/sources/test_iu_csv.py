"""IU X-Ray as Kaggle's two CSV files: every row is used, dropped by name, or stops the reading."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.errors import ConfigError, DataError
from shards.sources.iu_xray import films as iu_films
from shards.sources.iu_xray.source import IuXray

REPORTS, PROJECTIONS = "indiana_reports.csv", "indiana_projections.csv"
COLUMNS = ("uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression")
Rows = list[list[str]]


def write(path: Path, rows: Rows) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def film(path: Path, seed: int) -> None:
    """A drawn film, each seed another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    slope = np.add.outer(np.arange(64), (seed + 1) * np.arange(64)) % 256
    Image.fromarray(slope.astype(np.uint8)).save(path)


@pytest.fixture
def kaggle(tmp_path: Path) -> Callable[..., Path]:
    """Function (edit of the rows of both files) → Kaggle's directory with examinations 1 to 4, lateral listed first."""

    def draw(edit: Callable[[Rows, Rows], object] = lambda reports, films: None) -> Path:
        reports = [list(COLUMNS)]
        films = [["uid", "filename", "projection"]]
        for uid in ("1", "2", "3", "4"):
            reports.append([uid, "Heart", "", "PA", "Cough", "None.", f'Drawn, film\n"{uid}" is clear.', "Normal."])
            for at, view in enumerate(("Lateral", "Frontal")):
                name = f"{uid}_IM-000{uid}-{2 - at}001.dcm.png"
                films.append([uid, name, view])
                film(tmp_path / "images" / "images_normalized" / name, 2 * int(uid) + at)
        edit(reports, films)
        write(tmp_path / REPORTS, reports)
        write(tmp_path / PROJECTIONS, films)
        return tmp_path

    return draw


def test_kaggle_rows_become_studies_frontal_first(kaggle: Callable[..., Path]) -> None:
    source = IuXray(raw=kaggle(), split="train")
    items, drops, _, published = source.listing()
    assert [item.id for item in items] == ["CXR1_1_IM-0001", "CXR2_IM-0002", "CXR3_IM-0003", "CXR4_IM-0004"]
    study, films = source.read(items[1])
    assert study.report == 'Drawn, film\n"2" is clear.'
    assert [view.position for view in study.views] == ["frontal", "lateral"]
    assert [view.file for view in study.views] == [f"images_normalized/2_IM-0002-{n}001.dcm.png" for n in (1, 2)]
    assert (study.sections["impression"], study.provenance["mesh"]) == ("Normal.", "Heart")
    assert (study.patient, study.provenance["row"]) == ("CXR2", "line 4")
    assert (films[0] != films[1]).any()
    assert (drops, published) == ([], None)


@pytest.mark.parametrize(
    ("edit", "identifier", "reason"),
    [
        (lambda reports, films: reports[2].pop(), "CXR2", "row has another number of cells"),
        (lambda reports, films: reports[2].append("more"), "CXR2", "row has another number of cells"),
        (lambda reports, films: films[3].pop(), "CXR2", "row has another number of cells"),
        (lambda reports, films: reports[2].__setitem__(0, "2.0"), f"{REPORTS} line 4", "id is not a name"),
        (lambda reports, films: reports.append(reports[2]), "CXR2_IM-0002", "duplicate id"),
        (lambda reports, films: reports.pop(2), "CXR2_IM-0002", "no report"),
        (lambda reports, films: films.append(films[3]), "CXR2", "film is listed twice"),
        (lambda reports, films: films[3].__setitem__(1, "1_IM-0001-1001.dcm.png"), "CXR2", "film of another"),
        (lambda reports, films: films[3].__setitem__(1, "2_IM-0002-7.dcm.png"), "CXR2_IM-0002", "film is missing"),
        (lambda reports, films: films[3].__setitem__(1, "../../../etc/hostname"), "CXR2_IM-0002", "film is missing"),
        (lambda reports, films: films.append(["x", "5_IM.png", "Frontal"]), f"{PROJECTIONS} line 10", "film of no"),
        (lambda reports, films: films.append(["9", "9_IM-0009-1.png", "Frontal"]), "CXR9_IM-0009", "no report"),
        (lambda reports, films: films.__delitem__(slice(3, 5)), "CXR2", "no film is listed"),
        (lambda reports, films: reports[2].__setitem__(6, "#NAME?"), "CXR2_IM-0002", "report is a placeholder"),
    ],
)
def test_kaggle_rows_that_cannot_be_used_are_dropped_by_name(
    kaggle: Callable[..., Path], edit: Callable[[Rows, Rows], object], identifier: str, reason: str
) -> None:
    listing = IuXray(raw=kaggle(edit), split="train").listing()
    used = {item.patient for item in listing.items}
    assert {"CXR1", "CXR3", "CXR4"} <= used
    dropped = {drop.id: drop.reason for drop in listing.drops}
    assert identifier in dropped and dropped[identifier].startswith(reason)
    assert ("CXR2" in used) == (reason in ("duplicate id", "film of no") or identifier.startswith("CXR9"))
    assert not any("Drawn" in drop.detail for drop in listing.drops)


@pytest.mark.parametrize("column", ["uid", "findings", "impression", "indication", "comparison"])
def test_kaggle_columns_that_are_missing_are_named(kaggle: Callable[..., Path], column: str) -> None:
    def edit(reports: Rows, films: Rows) -> None:
        at = COLUMNS.index(column)
        for row in reports:
            del row[at]

    found = ", ".join(name for name in COLUMNS if name != column)
    with pytest.raises(DataError, match=rf"{REPORTS}: missing columns: {column}; found: {found}"):
        IuXray(raw=kaggle(edit)).listing()


def test_kaggle_needs_both_files(kaggle: Callable[..., Path]) -> None:
    root = kaggle(lambda reports, films: films[0].__setitem__(2, "view"))
    with pytest.raises(DataError, match=rf"{PROJECTIONS}: missing columns: projection"):
        IuXray(raw=root).listing()
    (root / PROJECTIONS).unlink()
    with pytest.raises(DataError, match=rf"{PROJECTIONS} is missing"):
        IuXray(raw=root).listing()


def test_projections_of_other_words_are_told(kaggle: Callable[..., Path]) -> None:
    listing = IuXray(raw=kaggle(lambda reports, films: films[4].__setitem__(2, "AP")), split="train").listing()
    assert listing.items[1].payload["views"] == ["unknown", "lateral"]
    assert any("1 films are neither Frontal nor Lateral: '2_IM-0002-1001.dcm.png'" in note for note in listing.notes)


def test_two_sections_are_joined(kaggle: Callable[..., Path]) -> None:
    root = kaggle(lambda reports, films: reports[2].__setitem__(7, "  "))
    targets = [item.payload["report"] for item in IuXray(raw=root, section="findings+impression").listing().items]
    assert targets[:2] == ['Drawn, film\n"1" is clear. Normal.', 'Drawn, film\n"2" is clear.']


def test_a_split_that_is_not_there_is_refused(kaggle: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=r"split='annotation', but .*annotation.json is missing: choose auto or"):
        IuXray(raw=kaggle(), split="annotation").listing()


@pytest.mark.parametrize("name", [REPORTS, PROJECTIONS])
@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda data: data.splitlines(keepends=True)[0], "holds a header and no rows"),
        (lambda data: b"", "is empty"),
        (lambda data: data.replace(b",", b";"), r"missing columns: .* one name: the file is divided by semicolons"),
        (
            lambda data: data + b'5,"Drawn\n',
            r"row \d+, which begins on line \d+ at byte \d+, .*: the file ends inside it",
        ),
        (
            lambda data: data + b"5,\xe9,Drawn\n",
            r"row \d+, which begins on line \d+ at byte \d+, .*: not UTF-8 at byte",
        ),
    ],
)
def test_files_that_cannot_be_read_whole_are_refused(
    kaggle: Callable[..., Path], name: str, change: Callable[[bytes], bytes], cause: str
) -> None:
    root = kaggle()
    (root / name).write_bytes(change((root / name).read_bytes()))
    with pytest.raises(DataError, match=rf"{name}.*{cause}") as caught:
        IuXray(raw=root).listing()
    assert "Drawn" not in str(caught.value)


def test_files_that_are_too_large_are_refused(kaggle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iu_films, "MAX_TABLE_BYTES", 100)
    with pytest.raises(DataError, match=rf"{PROJECTIONS} has more than 100 bytes, unpacked"):
        IuXray(raw=kaggle()).listing()
