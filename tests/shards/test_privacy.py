"""The fence: credentialed data goes under salted names, and errors of libraries lose their messages."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import ValidationError

from shards.errors import ConfigError, DataError
from shards.privacy import TERMS, fence, fenced, terms_of
from shards.study import Study, View
from shards.tars.format import SHARDS_FILE
from shards.tars.private import PRIVATE, begin_names, salt_path, write_private_lines
from shards.tars.write import claim

MIMIC = "physionet-credentialed-1.5.0"
TEXT = "The patient in bed four has a large effusion."


def study(**fields: object) -> Study:
    record = {
        "key": "s1", "id": "s50414267", "patient": "p10000032", "split": "train", "report": TEXT, "target": TEXT,
        "views": (View(file="files/p10/p10000032/s50414267/a.jpg"),), "provenance": {"source": "mimic_cxr", "row": "7"},
    }  # fmt: skip
    return Study.model_validate(record | fields)


def test_unknown_terms_are_treated_as_credentialed() -> None:
    assert terms_of("my-hospital").credentialed
    assert {tag for tag, terms in TERMS.items() if terms.credentialed} == {MIMIC, "stanford-aimi-rua", "credentialed"}


def test_open_data_keeps_its_names_and_needs_no_salt(tmp_path: Path) -> None:
    names = begin_names(tmp_path, "synthetic")
    assert (names.key("CXR1_IM-1"), names.id("CXR1_IM-1"), names.patient("CXR1")) == ("cxr1_im-1", "CXR1_IM-1", "CXR1")
    assert names.study(study()) == study() and not list(tmp_path.iterdir())


def test_credentialed_studies_carry_no_name_of_their_owner(tmp_path: Path) -> None:
    names = begin_names(tmp_path, MIMIC)
    outside = names.study(study())
    text = outside.model_dump_json(exclude={"report", "target"})
    assert not [piece for piece in ("50414267", "10000032", "a.jpg") if piece in text]
    assert outside.key == outside.id == names.key("s50414267") and outside.patient == names.patient("p10000032")
    assert names.key("s50414268") != names.key("s50414267") and names.patient("") == ""
    assert outside.report == TEXT, "the record itself is the data"


def test_names_are_the_same_on_the_next_day_and_other_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    first = begin_names(one, MIMIC)
    claim(one, SHARDS_FILE, json.dumps({"names": first.digest}))
    assert begin_names(one, MIMIC) == begin_names(other, MIMIC) == first
    assert begin_names(other, "stanford-aimi-rua").key("s1") != first.key("s1"), "a licence has a salt of its own"
    salt = salt_path(MIMIC)
    assert salt.read_bytes() == first.salt and salt.stat().st_mode & 0o077 == salt.parent.stat().st_mode & 0o077 == 0
    assert not any(first.salt in path.read_bytes() for path in one.rglob("*") if path.is_file())
    monkeypatch.setenv("R2KG_SALT", "ours" * 4)
    assert begin_names(tmp_path / "a", MIMIC) == begin_names(tmp_path / "b", MIMIC)
    with pytest.raises(ConfigError, match="begun with another salt .* than R2KG_SALT has") as caught:
        begin_names(one, MIMIC)
    assert first.salt.decode() not in str(caught.value) and "oursours" not in str(caught.value)


def test_a_salt_that_two_make_at_once_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda number: begin_names(tmp_path / str(number), MIMIC), range(8)))
    assert len(set(names)) == 1 and [path.name for path in salt_path(MIMIC).parent.iterdir()] == [
        MIMIC.replace(".", "-")
    ]


@pytest.mark.parametrize("salt", ["", " ", "short", " " * 40])
def test_salts_that_hide_nothing_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, salt: str) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    salt_path(MIMIC).parent.mkdir(parents=True)
    salt_path(MIMIC).write_text(salt)
    with pytest.raises(ConfigError, match=r"a salt has at least 16"):
        begin_names(tmp_path / "new", MIMIC)
    monkeypatch.setenv("R2KG_SALT", salt)
    with pytest.raises(ConfigError, match="R2KG_SALT has .* bytes: unset it, or give at least 16"):
        begin_names(tmp_path / "new", MIMIC)
    assert not (tmp_path / "new").exists() and salt_path(MIMIC).read_text() == salt


def test_any_bytes_are_a_salt_and_any_text_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environb, b"R2KG_SALT", b"\xff" * 16)
    names = begin_names(tmp_path, MIMIC)
    assert names.salt == b"\xff" * 16 and begin_names(tmp_path, MIMIC) == names
    assert names.key("s1\udc00") not in (names.key("s1"), names.key("s1\udc01"))


def test_private_files_are_for_their_owner_only(tmp_path: Path) -> None:
    write_private_lines(tmp_path, "a.jsonl", [{"key": "s1"}, {"key": "s2"}])
    path = tmp_path / PRIVATE / "a.jsonl"
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["s1", "s2"]
    assert (path.stat().st_mode & 0o077, path.parent.stat().st_mode & 0o077) == (0, 0)


def test_messages_of_libraries_are_withheld_and_their_place_is_told() -> None:
    with pytest.raises(RuntimeError, match="ValueError .*withheld.*test_privacy.py:") as caught, fence(MIMIC):
        raise ValueError(f"cannot read {TEXT!r}")
    assert TEXT not in str(caught.value) and caught.value.__suppress_context__
    with pytest.raises(ValueError, match="large effusion"), fence(MIMIC, allow_text=True):
        raise ValueError(TEXT)
    with pytest.raises(ValueError, match="large effusion"), fence("cc-by-nc-nd-4.0"):
        raise ValueError(TEXT)
    ours = DataError("train-00000.tar is missing")
    assert fenced(ours, MIMIC) is ours


def test_a_record_that_does_not_fit_is_not_quoted() -> None:
    with pytest.raises(ValidationError) as caught:
        study(labels=TEXT, sections=[TEXT])
    assert "effusion" not in str(caught.value)


def test_no_salt_is_made_in_a_home_that_goes_with_a_clusters_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(ConfigError, match="on a cluster none is made.* Set R2KG_SALT to 32 characters"):
        begin_names(tmp_path / "out", MIMIC)
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("R2KG_SALT", "0" * 32)
    assert begin_names(tmp_path / "out", MIMIC).salt == b"0" * 32
