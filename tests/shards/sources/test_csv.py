"""A table beside films: anybody's data without a class of their own."""

import gzip
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from shards.errors import ConfigError, DataError
from shards.sources import open_source
from shards.sources.forms.csv import Csv
from shards.sources.split import hash_split
from shards.study import BadStudy
from shards.tars.shards import Settings, prepare

HEADER = "id,patient,split,image,findings"


def drawn(tmp_path: Path, rows: list[str], header: str = HEADER, table: str = "reports.csv") -> Path:
    """Six films below films/, and a table of these rows."""
    raw = tmp_path / "raw"
    (raw / "films").mkdir(parents=True, exist_ok=True)
    for number in range(6):
        Image.linear_gradient("L").resize((48, 48)).rotate(60 * number).save(raw / "films" / f"{number}.png")
    data = ("\n".join([header, *rows]) + "\n").encode()
    (raw / table).write_bytes(gzip.compress(data) if table.endswith(".gz") else data)
    return raw


def read_all(source: Csv) -> tuple[dict[str, str], dict[str, str]]:
    """Id → report of what can be read, id → reason of what cannot."""
    listing = source.listing()
    reports, drops = {}, {drop.id: drop.reason for drop in listing.drops}
    for item in listing.items:
        try:
            study, films = source.read(item)
            assert len(films) == len(study.views) and all(film.shape == (48, 48) for film in films)
            reports[study.id] = study.report
        except BadStudy as error:
            drops[item.id] = error.reason
    return reports, drops


def test_a_row_is_a_study_with_its_films_and_sections(tmp_path: Path) -> None:
    header = "id,patient,split,images,position,findings,impression,indication"
    row = 'a,p1,train,films/0.png; films/1.png,lateral;frontal,"The heart\nis normal.",No disease.,Cough.'
    source = Csv(raw=drawn(tmp_path, [row], header))
    [item] = source.listing().items
    study, _ = source.read(item)
    assert (study.id, study.patient, study.split, study.report) == ("a", "p1", "train", "The heart\nis normal.")
    assert study.sections == {"findings": study.report, "impression": "No disease.", "indication": "Cough."}
    assert [(view.position, view.file) for view in study.views] == [
        ("lateral", "films/0.png"),
        ("frontal", "films/1.png"),
    ]
    assert study.provenance == {"source": "csv", "file": "reports.csv", "row": "2"}
    whole, _, _ = prepare(source, item, Settings(out="", cleaning=source.cleaning, size=48))
    assert [view.position for view in whole.views] == ["frontal", "lateral"]
    both = Csv(raw=source.raw, section="findings+impression")
    assert both.read(both.listing().items[0])[0].report == "The heart\nis normal.\nNo disease."


def test_rows_that_cannot_be_used_are_drops_with_a_reason_and_no_text(tmp_path: Path) -> None:
    rows = [
        "good,p0,train,films/0.png,Clear.",
        "good,p0,train,films/1.png,Secret.",
        f"{'x' * 121},p1,train,films/0.png,Secret.",
        "nobody,,train,films/0.png,Secret.",
        "exam,p2,exam,films/0.png,Secret.",
        "blind,p3,train,,Secret.",
        "gone,p4,train,films/9.png,Secret.",
        "out,p5,train,../../etc/hostname,Secret.",
        "mute,p6,train,films/2.png,",
        "broken,p7,train,films/2.png",
    ]
    source = Csv(raw=drawn(tmp_path, rows))
    reports, drops = read_all(source)
    assert reports == {"good": "Clear."}
    assert drops == {
        "good": "duplicate id",
        "x" * 121: "id is not a name",
        "nobody": "no patient",
        "exam": "unknown split",
        "blind": "too few views",
        "gone": "film is missing",
        "out": "path leaves the data root",
        "mute": "no findings section",
        "broken": "broken row",
    }
    assert "Secret" not in "".join(drop.detail for drop in source.listing().drops)


def test_without_patients_and_splits_they_are_made_and_said(tmp_path: Path) -> None:
    rows = [f"s{number},films/{number % 6}.png,Clear." for number in range(40)]
    listing = Csv(raw=drawn(tmp_path, rows, "id,image,findings", "t.csv.gz"), table="t.csv.gz").listing()
    assert [item.split for item in listing.items] == [hash_split(f"s{number}") for number in range(40)]
    assert min(Counter(item.split for item in listing.items).values()) >= 1
    assert [note.partition(":")[0] for note in listing.notes] == ["no column patient", "no column split"]


@pytest.mark.parametrize(
    ("header", "options", "message"),
    [
        ("id,image", {}, "missing columns: findings"),
        ("id,findings", {}, "has no column image, nor images"),
        ("image,findings", {}, "missing columns: id"),
        (HEADER, {"section": "impression"}, "missing columns: impression"),
        (HEADER, {"table": "other.csv"}, "other.csv is missing"),
    ],
)
def test_a_table_that_lacks_what_is_needed_is_refused(tmp_path: Path, header: str, options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Csv(raw=drawn(tmp_path, [], header), **options).listing()


def test_positions_must_be_told_of_every_film_and_a_row_must_stay_what_it_was(tmp_path: Path) -> None:
    header = f"{HEADER},position"
    rows = ["a,p,train,films/0.png;films/1.png,Clear.,frontal", "b,q,train,films/0.png,Clear.,sideways"]
    source = Csv(raw=drawn(tmp_path, [*rows, "c,r,train,films/0.png,Clear.,frontal"], header))
    listing = source.listing()
    assert {drop.id: drop.reason for drop in listing.drops} == dict.fromkeys("ab", "positions are unclear")
    drawn(tmp_path, [*rows, "c,r,train,films/0.png,Cloud.,frontal"], header)
    with pytest.raises(BadStudy, match="changed"):
        source.read(listing.items[0])


def test_its_terms_are_an_option() -> None:
    assert open_source("csv", raw=Path(), licence="public").licence == "public"
    assert Csv(raw=Path()).licence == "unknown"
    with pytest.raises(ConfigError, match="raw= is missing: say --raw DIR"):
        open_source("csv")
