"""IU X-Ray as CSV: Kaggle's two files and the plain table. Every row is used, dropped by name, or stops the reading."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.errors import ConfigError, DataError
from shards.sources.iu_xray.source import IuXray
from shards.sources.iu_xray.table import read_table

REPORTS, PROJECTIONS, PLAIN = "indiana_reports.csv", "indiana_projections.csv", "reports.csv"
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


@pytest.fixture
def plain(tmp_path: Path) -> Callable[..., Path]:
    """Function (text of reports.csv) → a directory with it and the drawn films a.png, b.png, c.png."""

    def draw(text: str | bytes) -> Path:
        (tmp_path / PLAIN).write_bytes(text.encode() if isinstance(text, str) else text)
        for seed, name in enumerate("abc"):
            film(tmp_path / "images" / f"{name}.png", seed)
        return tmp_path

    return draw


def drops_of(source: IuXray) -> dict[str, str]:
    return {drop.id: drop.reason for drop in source.drops}


def test_kaggle_rows_become_studies_frontal_first(kaggle: Callable[..., Path]) -> None:
    source = IuXray(kaggle(), split="train")
    items = source.items()
    assert [item.id for item in items] == ["CXR1_1_IM-0001", "CXR2_IM-0002", "CXR3_IM-0003", "CXR4_IM-0004"]
    study, films = source.read(items[1])
    assert study.report == 'Drawn, film\n"2" is clear.'
    assert [view.position for view in study.views] == ["frontal", "lateral"]
    assert [view.file for view in study.views] == [f"images_normalized/2_IM-0002-{n}001.dcm.png" for n in (1, 2)]
    assert (study.sections["impression"], study.provenance["mesh"]) == ("Normal.", "Heart")
    assert (study.patient, study.provenance["row"]) == ("CXR2", "line 4")
    assert (films[0] != films[1]).any()
    assert (source.drops, source.published) == ([], None)


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
    source = IuXray(kaggle(edit), split="train")
    used = {item.patient for item in source.items()}
    assert {"CXR1", "CXR3", "CXR4"} <= used
    dropped = drops_of(source)
    assert identifier in dropped and dropped[identifier].startswith(reason)
    assert ("CXR2" in used) == (reason in ("duplicate id", "film of no") or identifier.startswith("CXR9"))
    assert not any("Drawn" in drop.detail for drop in source.drops)


@pytest.mark.parametrize("column", ["uid", "findings", "impression", "indication", "comparison"])
def test_kaggle_columns_that_are_missing_are_named(kaggle: Callable[..., Path], column: str) -> None:
    def edit(reports: Rows, films: Rows) -> None:
        at = COLUMNS.index(column)
        for row in reports:
            del row[at]

    found = ", ".join(name for name in COLUMNS if name != column)
    with pytest.raises(DataError, match=rf"{REPORTS} has no column {column}; the columns found are {found}"):
        IuXray(kaggle(edit)).items()


def test_kaggle_needs_both_files(kaggle: Callable[..., Path]) -> None:
    root = kaggle(lambda reports, films: films[0].__setitem__(2, "view"))
    with pytest.raises(DataError, match=rf"{PROJECTIONS} has no column projection"):
        IuXray(root).items()
    (root / PROJECTIONS).unlink()
    with pytest.raises(DataError, match=rf"{PROJECTIONS} is missing"):
        IuXray(root).items()


def test_projections_of_other_words_are_told(kaggle: Callable[..., Path]) -> None:
    source = IuXray(kaggle(lambda reports, films: films[4].__setitem__(2, "AP")), split="train")
    assert source.items()[1].payload["views"] == ["unknown", "lateral"]
    assert any("1 films are neither Frontal nor Lateral: '2_IM-0002-1001.dcm.png'" in note for note in source.notes)


HEADER = "id,image,findings,impression\n"


def test_plain_rows_become_studies(plain: Callable[..., Path]) -> None:
    source = IuXray(
        plain(f'\ufeff{HEADER}CXR7_x,a.png;images/b.png,"One\r\n""two"", three",\r\n\r\nw,c.png,Four,F\r\n')
    )
    items = source.items()
    assert [(item.id, item.split, item.patient) for item in items] == [("CXR7_x", "train", "CXR7"), ("w", "train", "")]
    study, films = source.read(items[0])
    assert study.report == 'One\r\n"two", three'
    assert ([view.file for view in study.views], len(films)) == (["a.png", "b.png"], 2)
    assert study.provenance == {"source": "iu_xray", "file": PLAIN, "row": "line 2"}
    assert source.notes[0].startswith("all studies are in train: reports.csv")
    assert source.read(items[1])[0].provenance["row"] == "line 5"
    assert [item.payload["report"] for item in IuXray(source.raw, section="findings+impression").items()] == [
        'One\r\n"two", three',
        "Four F",
    ]


@pytest.mark.parametrize(
    ("row", "name", "reason"),
    [
        ("x,a.png,text", "x", "row has another number of cells"),
        ("x,a.png,text,,", "x", "row has another number of cells"),
        (",a.png,text,", f"{PLAIN} line 3", "id is not a name"),
        ("../../x,a.png,text,", "../../x", "id is not a name"),
        ("x\0y,a.png,text,", "x\0y", "id is not a name"),
        (",,,", f"{PLAIN} line 3", "id is not a name"),
        ("x,,text,", "x", "no film is listed"),
        ("x,/etc/hostname,text,", "x", "path leaves the data root"),
        ("x,a.png|../../b.png,text,", "x", "path leaves the data root"),
        ("x,a.png\0,text,", "x", "path leaves the data root"),
        ("x,a.png,nan,", "x", "report is a placeholder"),
        ("first,b.png,text,", "first", "duplicate id"),
    ],
)
def test_plain_rows_that_cannot_be_used_are_dropped_by_name(
    plain: Callable[..., Path], row: str, name: str, reason: str
) -> None:
    source = IuXray(plain(f"{HEADER}first,a.png,One,\n{row}\nlast,c.png,Three,\n"))
    assert [item.id for item in source.items()] == ["first", "last"]
    [drop] = source.drops
    assert (drop.id, drop.reason) == (name, reason)
    assert "line 3" in drop.detail and "text" not in drop.detail


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "has 0 bytes"),
        (HEADER.encode(), "holds a header and no rows"),
        (b"id,image,impression\nx,a.png,\n", "no column findings; the columns found are id, image, impression"),
        (b"id;image;findings\nx;a.png;t\n", r"no column .*'id;image;findings', one name: .* divided by semicolons"),
        (b"id\timage\tfindings\nx\ta.png\tt\n", r"'id\\timage\\tfindings', one name: .* divided by tabs"),
        (b"id,image,findings,findings\nx,a.png,t,u\n", "more than one column findings"),
        (b'id,image,findings\nx,a.png,t\ny,a.png,"t\nz,a.png,t\n', "row that begins on line 3 cannot be divided"),
        (b'id,image,findings\nx,a.png,"t\ny,b.png,"u"\nz,a.png,t\n', "row that begins on line 2 cannot be divided"),
        (b'id,image,findings\nx,a.png,"' + b"a" * 140_000 + b'"\n', "row that begins on line 2 cannot be divided"),
        ("id,image,findings\nx,a.png,café\n".encode("latin-1"), r"not UTF-8 at line 2, byte 29 \(0xe9\)"),
        ("\ufeffid,image,findings\nx,a.png,t\n".encode("utf-16-le"), r"not UTF-8 at line 1, byte 0 \(0xff\)"),
        (b"x,a.png,The heart is normal in size and there is no effusion\n", r"found are x, a.png, <52 characters>"),
    ],
)
def test_tables_that_cannot_be_read_whole_are_refused(plain: Callable[..., Path], data: bytes, cause: str) -> None:
    with pytest.raises(DataError, match=rf"{PLAIN}.*{cause}"):
        IuXray(plain(data)).items()


def test_old_line_ends_and_line_separators_in_cells_are_text(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("a,b\r1,x\u2028y\x0bz\r2,\0\r".encode())
    rows = read_table(tmp_path / "t.csv", ("a",)).rows
    assert [(row.line, row.cells["b"]) for row in rows] == [(2, "x\u2028y\x0bz"), (3, "\0")]


def test_the_split_column_is_used_where_it_is(plain: Callable[..., Path]) -> None:
    root = plain("id,image,findings,split\nx,a.png,One,train\ny,b.png,Two,Test\nz,c.png,Three,dev\n")
    source = IuXray(root)
    assert [(item.id, item.split) for item in source.items()] == [("x", "train"), ("y", "test")]
    assert drops_of(source) == {"z": "split is not a name"}
    assert {item.split for item in IuXray(root, split="train").items()} == {"train"}
    with pytest.raises(ConfigError, match=r"split='annotation', but .*annotation.json is missing: choose auto or"):
        IuXray(root, split="annotation").items()
    with pytest.raises(ConfigError, match=r"split='column', but reports.csv has no column split"):
        IuXray(plain(f"{HEADER}x,a.png,One,\n"), split="column").items()


def test_an_id_in_two_splits_is_given_on_for_the_writer_to_refuse(plain: Callable[..., Path]) -> None:
    source = IuXray(plain("id,image,findings,split\nx,a.png,One,train\nx,b.png,Two,test\n"))
    assert [(item.id, item.split) for item in source.items()] == [("x", "train"), ("x", "test")]
    assert source.drops == []
