"""The same command again: what is kept, what is written again and why, and what is never lost."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shards.errors import ConfigError, DataError
from shards.films.raw import open_film
from shards.films.stored import decode
from shards.sources.forms.webdataset import WebDataset
from shards.sources.iu_xray.source import IuXray
from shards.stream.index import Index
from shards.tars.format import SHARDS_FILE, Manifest, index_path, raw_path, read_manifest
from shards.tars.place import sha256_of
from shards.tars.repair import LINE, held_at, looks_of
from shards.tars.shards import write_shards
from shards.tars.write import claim

Draw = Callable[..., Path]
pytestmark = pytest.mark.usefixtures("ray_session")


def files_of(root: Path) -> dict[str, str]:
    """Path → sha256 of everything in a directory of shards."""
    return {str(path.relative_to(root)): sha256_of(path) for path in sorted(root.rglob("*")) if path.is_file()}


def edited(raw: Path, change: Callable[[dict], None]) -> None:
    """Change a drawn annotation.json."""
    path = raw / "annotation.json"
    listing = json.loads(path.read_text())
    change(listing)
    path.write_text(json.dumps(listing))


def test_a_film_that_comes_later_or_is_replaced_is_read_by_the_same_command(
    drawn_iu: Draw, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    raw, out = drawn_iu(train=6, val=1), tmp_path / "out"
    away, other = raw / "images" / "CXR1_IM-0001" / "1.png", raw / "images" / "CXR5_IM-0005" / "0.png"
    film = away.read_bytes()
    away.unlink()

    def written() -> tuple[Manifest, set[str]]:
        """The manifest, and the tars that were not touched."""
        before = {path: path.stat().st_ino for path in out.glob("*.tar")}
        manifest = write_shards(IuXray(raw=raw), out, size=64, studies_per_shard=2)
        return manifest, {path.name for path, inode in before.items() if path.stat().st_ino == inode}

    manifest, _ = written()
    assert manifest.drops == {"image does not decode": 1} and not capsys.readouterr().out
    manifest, kept = written()
    assert len(kept) == len(manifest.shards) == 5 and not capsys.readouterr().out
    away.write_bytes(film)
    manifest, kept = written()
    assert not manifest.drops and len(kept) == 4
    assert "1 of 5 tars were written again, because raw files have changed or come: " in capsys.readouterr().out
    other.write_bytes(film)
    before = read_manifest(out)
    manifest, kept = written()
    assert len(kept) == 4 and manifest.fingerprint != before.fingerprint
    index = Index.open(out, "train")
    films, _ = index.read(index.keys.tolist().index(b"cxr5_im-0005"))
    assert np.abs(decode(films[0], 64).astype(int) - open_film(other)).mean() < 2
    os.truncate(next(out.glob("train-*.tar")), 100)
    manifest, kept = written()
    assert "because the tar is missing or damaged: train-" in capsys.readouterr().out


def test_an_index_that_was_changed_is_noticed_before_a_manifest_names_it(
    drawn_iu: Draw, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Still an index by its form. Without the raw films nothing could be put in its tar's place."""
    raw, out = drawn_iu(train=4), tmp_path / "out"
    manifest = write_shards(IuXray(raw=raw), out, size=64, studies_per_shard=2)
    index = index_path(out / "train-00001.tar")
    whole = index.read_bytes()
    torn = re.sub(rb'"patient":"CXR.', b'"patient":"CXR9', whole, count=1)
    assert torn != whole
    index.write_bytes(torn)
    assert write_shards(IuXray(raw=raw), out, size=64, studies_per_shard=2) == manifest
    assert "because the tar is missing or damaged: train-00001.tar" in capsys.readouterr().out
    index.write_bytes(torn)
    for film in (raw / "images").rglob("*.png"):
        film.unlink()
    with pytest.raises(DataError, match=r"raw files of 2 are gone .* missing or damaged. Nothing was"):
        write_shards(IuXray(raw=raw), out, size=64, studies_per_shard=2)
    assert index.read_bytes() == torn and (out / "train-00001.tar").exists()


def test_finished_tars_outlive_the_raw_films_they_were_made_from(
    drawn_iu: Draw, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Whoever has shards may want the room of the raw films, or has a disk that is not mounted."""
    raw, out = drawn_iu(train=4), tmp_path / "out"
    manifest = write_shards(IuXray(raw=raw), out, size=64, studies_per_shard=2)
    for film in (raw / "images").rglob("*.png"):
        film.unlink()
    before = files_of(out)
    assert write_shards(IuXray(raw=raw), out, size=64, studies_per_shard=2) == manifest and files_of(out) == before
    assert "4 of 4 tars were kept as they are, although raw files are gone: train-" in capsys.readouterr().out
    with pytest.raises(
        DataError,
        match=r"raw files of 6 are gone .*whose tars would be written again because the listing, the settings",
    ):
        write_shards(IuXray(raw=raw), out, size=32, studies_per_shard=2, replace=True)
    assert {name: digest for name, digest in files_of(out).items() if name.endswith(".tar")} == {
        name: digest for name, digest in before.items() if name.endswith(".tar")
    }
    assert write_shards(IuXray(raw=raw), out, size=64, studies_per_shard=2) == manifest


def test_when_raw_films_were_copied_is_no_part_of_the_fingerprint(drawn_iu: Draw, tmp_path: Path) -> None:
    raw = drawn_iu(train=3)
    one = write_shards(IuXray(raw=raw), tmp_path / "one", size=64)
    for film in (raw / "images").rglob("*.png"):
        os.utime(film, (1, 1))
    assert write_shards(IuXray(raw=raw), tmp_path / "one", size=64) == one
    assert write_shards(IuXray(raw=raw), tmp_path / "two", size=64).fingerprint == one.fingerprint


@pytest.mark.parametrize("change", ["listed", "unlisted", "size"])
def test_a_changed_listing_or_setting_is_no_loss_where_all_raw_films_are_there(
    drawn_iu: Draw, tmp_path: Path, change: str
) -> None:
    """Studies move between tars, of which one then has fewer raw files than before."""
    raw, out = drawn_iu(train=7), tmp_path / "out"
    extra: list[dict] = []
    if change == "listed":
        edited(raw, lambda listing: extra.append(listing["train"].pop(3)))
    write_shards(IuXray(raw=raw), out, size=64, studies_per_shard=3)
    if change == "listed":
        edited(raw, lambda listing: listing["train"].insert(3, extra[0]))
    if change == "unlisted":
        edited(raw, lambda listing: listing["train"].pop(3))
        before = files_of(out)
        with pytest.raises(DataError, match=r"1 are not listed any more \(cxr3_im-0003\).*changed: list .*--replace"):
            write_shards(IuXray(raw=raw), out, size=64, studies_per_shard=3)
        assert files_of(out) == before
    per_tar = 2 if change == "size" else 3
    manifest = write_shards(IuXray(raw=raw), out, size=64, studies_per_shard=per_tar, replace=change != "listed")
    assert manifest.splits["train"].studies == (6 if change == "unlisted" else 7) and not manifest.drops
    afresh = write_shards(IuXray(raw=raw), tmp_path / "afresh", size=64, studies_per_shard=per_tar)
    assert files_of(out) == files_of(tmp_path / "afresh") and manifest == afresh


def test_one_film_that_comes_does_not_cost_one_that_went(
    drawn_iu: Draw, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    raw, out = drawn_iu(train=3), tmp_path / "out"
    late, lost = raw / "images" / "CXR0_IM-0000" / "0.png", raw / "images" / "CXR2_IM-0002" / "1.png"
    away = Path(shutil.move(late, tmp_path / "late.png"))
    manifest = write_shards(IuXray(raw=raw), out, size=64)
    assert manifest.dropped == 1
    shutil.move(away, late)
    shutil.move(lost, tmp_path / "lost.png")
    before = files_of(out)
    with pytest.raises(DataError, match=r"raw files of 1 are gone \(cxr2_im-0002\), whose tars .* changed or come"):
        write_shards(IuXray(raw=raw), out, size=64)
    assert files_of(out) == before
    shutil.move(tmp_path / "lost.png", lost)
    capsys.readouterr()
    assert not write_shards(IuXray(raw=raw), out, size=64).drops
    assert "1 of 3 tars were written again" in capsys.readouterr().out


def test_damage_is_told_also_where_raw_films_are_gone_and_the_other_tars_stay_usable(
    drawn_iu: Draw, tmp_path: Path
) -> None:
    raw, out = drawn_iu(train=4), tmp_path / "out"
    manifest = write_shards(IuXray(raw=raw), out, size=64, studies_per_shard=2)
    tar = out / "val-00000.tar"
    data = bytearray(tar.read_bytes())
    data[3000] ^= 1
    tar.write_bytes(data)
    for film in (raw / "images").rglob("*.png"):
        film.unlink()
    with pytest.raises(DataError, match=r"raw files of 1 are gone .* because the tar is missing or damaged"):
        write_shards(IuXray(raw=raw), out, size=64, studies_per_shard=2)
    assert read_manifest(out) == manifest and len(Index.open(out, "train")) == 4


def test_tars_of_which_nothing_tells_how_their_raw_films_looked_are_kept(drawn_iu: Draw, tmp_path: Path) -> None:
    """As after a copy of *.tar and *.json."""
    raw, out = drawn_iu(train=4), tmp_path / "out"
    manifest = write_shards(IuXray(raw=raw), out, size=64, studies_per_shard=2)
    for path in out.glob("*.raw"):
        path.unlink()
    before = files_of(out)
    assert write_shards(IuXray(raw=raw), out, size=64, studies_per_shard=2) == manifest and files_of(out) == before
    shutil.rmtree(raw / "images")
    (raw / "images").mkdir()
    assert write_shards(IuXray(raw=raw), out, size=64, studies_per_shard=2) == manifest and files_of(out) == before
    with pytest.raises(DataError, match="raw files of 6 are gone"):
        write_shards(IuXray(raw=raw), out, size=32, studies_per_shard=2, replace=True)
    assert files_of(out) == before


def test_a_raw_archive_that_is_gone_takes_no_study_with_it(phantom_shards: Path, tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    for tar in phantom_shards.glob("*.tar"):
        shutil.copy(tar, raw)
    source = WebDataset(raw=raw, licence="my-hospital")
    manifest = write_shards(source, out, size=32, studies_per_shard=16)
    (raw / "train-00002.tar").unlink()
    before = files_of(out)
    with pytest.raises(DataError, match=r"are not listed any more \(s[0-9a-f]{20}, "):
        write_shards(source, out, size=32, studies_per_shard=16)
    assert files_of(out) == before and read_manifest(out) == manifest
    fewer = write_shards(source, out, size=32, studies_per_shard=16, replace=True)
    assert fewer.given < manifest.given
    told = {path.stem for path in (out / "private").glob("*.jsonl")} - {"listing"}
    assert told == {shard.name.removesuffix(".tar") for shard in fewer.shards}, "nothing is told of who is gone"


def test_what_is_told_of_raw_files_is_a_line_a_study_and_salted(drawn_iu: Draw, tmp_path: Path, monkeypatch) -> None:
    raw = drawn_iu(train=2, val=1)
    write_shards(IuXray(raw=raw), tmp_path / "open", size=64)
    lines = raw_path(tmp_path / "open" / "train-00000.tar").read_text().splitlines()
    assert len(lines) == 2 and all(LINE.fullmatch(line)[2] == "2" for line in lines)
    raw_path(tmp_path / "open" / "train-00000.tar").write_bytes(b"cxr0_im-0000 2 " + b"\xff" * 40)
    assert held_at(tmp_path / "open")["cxr0_im-0000"].present == -1
    monkeypatch.setattr(IuXray, "licence", "my-hospital")
    write_shards(IuXray(raw=raw), tmp_path / "closed", size=64)
    items = IuXray(raw=raw).listing().items
    shown = "".join(path.read_text() for path in (tmp_path / "closed").glob("*.raw"))
    assert not [look.hash for look in looks_of(IuXray(raw=raw), items).values() if look.hash in shown]


def test_a_stored_study_whose_film_is_torn_since_is_not_written_over(drawn_iu: Draw, tmp_path: Path) -> None:
    """As many raw files as before, and another film changed: only reading tells."""
    raw, out = drawn_iu(train=3), tmp_path / "out"
    write_shards(IuXray(raw=raw), out, size=64)
    film = raw / "images" / "CXR1_IM-0001" / "1.png"
    whole, before = film.read_bytes(), files_of(out)
    film.write_bytes(whole[:300])
    with pytest.raises(
        DataError, match="study cxr1_im-0001 is stored in .* cannot be made again: image does not decode"
    ):
        write_shards(IuXray(raw=raw), out, size=64)
    after = files_of(out)
    assert {name: after[name] for name in after if name[0] != "."} == {
        name: digest for name, digest in before.items() if name != SHARDS_FILE
    }
    film.write_bytes(whole)
    write_shards(IuXray(raw=raw), out, size=64)
    assert {name for name, digest in files_of(out).items() if before[name] != digest} == {"train-00000.raw"}


def test_nothing_to_do_leaves_the_manifest_where_runs_look_for_it(
    drawn_iu: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, out = drawn_iu(train=2), tmp_path / "out"
    manifest = write_shards(IuXray(raw=raw), out, size=64)
    monkeypatch.setattr("shards.tars.shards.claim", None)
    assert write_shards(IuXray(raw=raw), out, size=64) == manifest


@pytest.mark.parametrize("left", ["tar and raw", "tar, raw and old index", "raw"])
def test_a_kill_between_two_files_forgets_no_stored_study(drawn_iu: Draw, tmp_path: Path, left: str) -> None:
    raw, out = drawn_iu(train=3), tmp_path / "out"
    asked = write_shards(IuXray(raw=raw), out, size=64).asked
    tar = out / "train-00000.tar"
    claim(out, SHARDS_FILE, json.dumps({"names": "", "asked": asked}))
    if left == "tar, raw and old index":
        tar.write_bytes(tar.read_bytes() + bytes(10_240))  # another tar than the index is of
    else:
        index_path(tar).unlink()
    if left == "raw":
        tar.unlink()
    (raw / "images" / "CXR1_IM-0001" / "0.png").unlink()
    if left == "raw":  # it was never finished
        assert write_shards(IuXray(raw=raw), out, size=64).drops == {"image does not decode": 1}
    else:
        with pytest.raises(DataError, match=r"raw files of 1 are gone .cxr1_im-0001.*is missing or damaged"):
            write_shards(IuXray(raw=raw), out, size=64)


def test_unfinished_shards_and_those_of_another_format_are_not_replaced_in_silence(
    drawn_iu: Draw, tmp_path: Path
) -> None:
    raw, out = drawn_iu(train=2), tmp_path / "out"
    write_shards(IuXray(raw=raw), out, size=64)
    content = json.loads((out / SHARDS_FILE).read_text())
    claim(out, SHARDS_FILE, json.dumps({"names": "", "asked": content["asked"]}))  # and then it was killed
    with pytest.raises(ConfigError, match="asked for otherwise: quality was 95, is now 50. Say --replace"):
        write_shards(IuXray(raw=raw), out, size=64, quality=50)
    write_shards(IuXray(raw=raw), out, size=64)
    (out / SHARDS_FILE).write_text(json.dumps(content | {"format": 2}))
    with pytest.raises(ConfigError, match="are of format 2, and 3 is written now. Say --replace"):
        write_shards(IuXray(raw=raw), out, size=64)
    assert write_shards(IuXray(raw=raw), out, size=64, replace=True).format == 3
