"""Shards: what is given is used or dropped by name, bytes depend on content alone, a broken run is resumed."""

import errno
import io
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import webdataset
from rich.console import Console

from shards.errors import ConfigError, DataError, RetryableError
from shards.films.raw import open_film
from shards.films.stored import decode
from shards.privacy import Names
from shards.sources import Item
from shards.sources.iu_xray.source import IuXray
from shards.sources.phantom.source import Phantom
from shards.stream.index import Index
from shards.stream.show import find_study, study_lines, write_films
from shards.study import Study, View
from shards.tars import shards as shards_module
from shards.tars.format import (
    DROPS_FILE,
    SHARDS_FILE,
    WARNINGS_FILE,
    Remark,
    dropped_in,
    index_path,
    read_index,
    read_manifest,
    warned_in,
)
from shards.tars.place import sha256_of
from shards.tars.report import counts_table, receipt_lines
from shards.tars.shards import (
    CONTROLS_REMOVED,
    FILM_IN_TWO_SPLITS,
    LONG_TARGET,
    LONG_WORDS,
    PATIENT_IN_TWO_SPLITS,
    Settings,
    films_first,
    is_blank,
    mixed,
    plan_shards,
    prepare,
    recipe_of,
    write_shard,
    write_shards,
)
from shards.tars.verify import verify
from shards.tars.write import unwritable

Draw = Callable[..., Path]
pytestmark = pytest.mark.usefixtures("ray_session")


def entry_editor(number: int, **fields: object) -> Callable[[dict], None]:
    """Edit one training entry of a drawn annotation."""
    return lambda listing: listing["train"][number].update(fields)


def files_of(root: Path) -> dict[str, str]:
    """Name → sha256 of the files in a directory of shards; facts and sides beside them are none of its own."""
    return {path.name: sha256_of(path) for path in sorted(root.iterdir()) if path.is_file()}


def test_phantom_shards_hold_every_study_once(phantom_shards: Path) -> None:
    manifest = read_manifest(phantom_shards)
    verify(phantom_shards, manifest)
    assert manifest.given == sum(count.studies for count in manifest.splits.values()) == 60
    assert [shard.name for shard in manifest.shards][:2] == ["train-00000.tar", "train-00001.tar"]
    assert sum(shard.images for shard in manifest.shards) == 120
    keys = [key for split in manifest.splits for key in Index.open(phantom_shards, split).keys.tolist()]
    assert len(set(keys)) == 60
    assert not list(phantom_shards.glob(".*"))


def test_plain_webdataset_reads_them(phantom_shards: Path) -> None:
    shard = read_manifest(phantom_shards).shards[0]
    samples = list(webdataset.WebDataset(str(phantom_shards / shard.name), shardshuffle=False))
    index = read_index(phantom_shards, shard)
    assert [sample["__key__"] for sample in samples] == [entry.key for entry in index.studies]
    for sample, entry in zip(samples, index.studies, strict=True):
        assert sample["0.jpg"][:2] == sample["1.jpg"][:2] == b"\xff\xd8"
        assert Study.model_validate_json(sample["json"]).key == entry.key
        at, size, _ = entry.members["1.jpg"]
        assert (phantom_shards / shard.name).read_bytes()[at : at + size] == sample["1.jpg"]


def test_bytes_do_not_depend_on_who_writes_beside_whom(phantom_shards: Path, tmp_path: Path) -> None:
    source = Phantom(studies=60, size=64)
    settings = Settings(out=str(tmp_path), cleaning=source.cleaning, size=64, quality=95, on_bad="skip")
    for job in reversed(plan_shards(source.listing().items, 16, recipe_of(source, settings))):
        write_shard(source, settings, job)
    wanted = files_of(phantom_shards)
    for written_last in (SHARDS_FILE, DROPS_FILE, WARNINGS_FILE):
        wanted.pop(written_last)
    assert files_of(tmp_path) == wanted


def test_whole_shards_are_kept_and_broken_ones_written_again(tmp_path: Path) -> None:
    source = Phantom(studies=20, size=64)
    first = write_shards(source, tmp_path, size=64, studies_per_shard=5)
    before, written = files_of(tmp_path), {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("*.tar")}
    tar = tmp_path / "train-00001.tar"
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")
    index_path(tmp_path / "train-00002.tar").unlink()
    (tmp_path / ".train-00002.tar.1.tmp").write_bytes(b"half")
    (tmp_path / SHARDS_FILE).unlink()
    (tmp_path / ".writing").touch()
    assert write_shards(source, tmp_path, size=64, studies_per_shard=5) == first
    assert files_of(tmp_path) == before
    changed = {p.name for p in tmp_path.glob("*.tar") if p.stat().st_mtime_ns != written[p.name]}
    assert changed == {"train-00001.tar", "train-00002.tar"}


def test_other_settings_write_other_shards_and_old_ones_go(tmp_path: Path) -> None:
    first = write_shards(Phantom(studies=20, size=64), tmp_path, size=64, studies_per_shard=5)
    there = files_of(tmp_path)
    with pytest.raises(
        ConfigError, match="asked for otherwise: phantom seed was 0, is now 1; studies_per_shard was 5, is now"
    ):
        write_shards(Phantom(studies=20, size=64, seed=1), tmp_path, size=64, studies_per_shard=20)
    assert files_of(tmp_path) == there
    other = write_shards(Phantom(studies=20, size=64, seed=1), tmp_path, size=64, studies_per_shard=20, replace=True)
    assert first.fingerprint != other.fingerprint
    assert {path.name for path in tmp_path.glob("*.tar")} == {shard.name for shard in other.shards}
    verify(tmp_path, other)


def test_bad_studies_are_dropped_by_name_and_counted(drawn_iu: Draw, tmp_path: Path) -> None:
    def edit(listing: dict) -> None:
        train = listing["train"]
        train[0]["report"] = " \t\u00a0\u200b\n"
        train[1]["report"] = None
        train[2]["report"] = "The heart\x00 is \x07normal."
        train[3]["report"] = "..."

    raw = drawn_iu(train=6, edit=edit)
    film = raw / "images" / "CXR4_IM-0004" / "1.png"
    film.write_bytes(film.read_bytes()[:-200])
    source = IuXray(raw=raw)
    manifest = write_shards(source, tmp_path / "out", size=64)
    dropped = {drop.id: (drop.reason, drop.file) for drop in dropped_in(tmp_path / "out")}
    assert dropped == {
        "CXR0_IM-0000": ("empty report", ""),
        "CXR1_IM-0001": ("report is not a string", ""),
        "CXR3_IM-0003": ("empty report", ""),
        "CXR4_IM-0004": ("image does not decode", "CXR4_IM-0004/1.png"),
    }
    assert manifest.given == 8 and manifest.dropped == 4 and manifest.drops["empty report"] == 2
    assert manifest.splits["train"].studies == 2
    assert manifest.warnings == {CONTROLS_REMOVED: 1}
    assert [*warned_in(tmp_path / "out")] == [Remark(warning=CONTROLS_REMOVED, of="CXR2_IM-0002")]
    index = Index.open(tmp_path / "out", "train")
    study = Study.model_validate_json(index.record_of(0, index.read_record(0)))
    assert (study.report, study.target) == ("The heart is normal.", "the heart is normal .")
    with pytest.raises(DataError, match="CXR1_IM-0001.*report is not a string"):
        write_shards(source, tmp_path / "strict", size=64, on_bad="fail")


def test_strict_policy_stops_at_the_first_bad_study(drawn_iu: Draw, tmp_path: Path) -> None:
    raw = drawn_iu(edit=entry_editor(2, report=""))
    write_shards(IuXray(raw=raw), tmp_path, size=64)
    with pytest.raises(DataError, match="'CXR2_IM-0002' of split train: empty report"):
        write_shards(IuXray(raw=raw), tmp_path, size=64, on_bad="fail")


def test_a_study_of_two_splits_is_refused_with_both_places(drawn_iu: Draw, tmp_path: Path) -> None:
    def edit(listing: dict) -> None:
        listing["test"].append({**listing["train"][1], "split": "test"})

    with pytest.raises(DataError, match=r"id 'CXR1_IM-0001' is listed twice, as train entry 1 and as test entry 1"):
        write_shards(IuXray(raw=drawn_iu(edit=edit)), tmp_path, size=64)
    assert not list(tmp_path.glob("*.tar"))


def test_ids_that_become_one_key_are_refused(drawn_iu: Draw, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'cxr0_im-0000' become one shard key"):
        write_shards(IuXray(raw=drawn_iu(edit=entry_editor(1, id="cxr0_im-0000"))), tmp_path, size=64)


def test_nothing_to_train_on_is_refused(drawn_iu: Draw, tmp_path: Path) -> None:
    def blank(listing: dict) -> None:
        for entry in listing["train"]:
            entry["report"] = ""

    with pytest.raises(
        DataError, match="every study of split 'train' was dropped: empty report .4.. .*; see .*drops.jsonl"
    ):
        write_shards(IuXray(raw=drawn_iu(edit=blank)), tmp_path / "out", size=64)
    assert not (tmp_path / "out" / SHARDS_FILE).exists()


def test_requests_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="r2gen-2020-iu"):
        write_shards(Phantom(studies=4, size=64), tmp_path, cleaning="no such")
    with pytest.raises(ConfigError, match="quality=0"):
        write_shards(Phantom(studies=4, size=64), tmp_path, quality=0)
    (tmp_path / "theirs.tar").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"not written here \(theirs.tar\)"):
        write_shards(Phantom(studies=4, size=64), tmp_path)


def test_a_full_disk_is_named_and_leaves_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda size: "0" * size)
    source = Phantom(studies=4, size=64)
    settings = Settings(out=str(tmp_path), cleaning="raw", size=64, quality=95, on_bad="skip")
    job = plan_shards(source.listing().items, 4, recipe_of(source, settings))[0]
    (tmp_path / f".{job.name}.{os.getpid()}-0000.tmp").symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"no space left for .*train-00000.tar.*Whole shards are kept"):
        write_shard(source, settings, job)
    assert not list(tmp_path.iterdir())
    assert len(write_shard(source, settings, job).studies) == len(job.items)


def test_index_of_another_tar_is_refused(tmp_path: Path) -> None:
    write_shards(Phantom(studies=8, size=64), tmp_path, size=64)
    path = index_path(tmp_path / "train-00000.tar")
    path.write_text(json.dumps({**json.loads(path.read_text()), "sha256": "0" * 64}))
    with pytest.raises(DataError, match="cannot be used: it is torn or was changed"):
        Index.open(tmp_path, "train")
    path.write_text("{}")
    with pytest.raises(DataError, match="Run the command that wrote it again"):
        Index.open(tmp_path, "train")


@pytest.mark.parametrize(
    ("text", "blank"), [("", True), (" \t\u00a0\u200b\ufeff\x00\n", True), ("a", False), ("\x00.", False)]
)
def test_white_space_zero_width_and_controls_are_no_text(text: str, blank: bool) -> None:
    assert is_blank(text) is blank


def test_a_patient_in_two_splits_is_an_error_unless_it_is_to_be_reported(drawn_iu: Draw, tmp_path: Path) -> None:
    def edit(listing: dict) -> None:
        listing["test"].append({**listing["train"][0], "id": "CXR0_IM-0999", "split": "test"})

    source = IuXray(raw=drawn_iu(edit=edit))
    with pytest.raises(DataError, match=r"1 patients are in more than one split \(CXR0: .*--overlap report"):
        write_shards(source, tmp_path / "out", size=64)
    assert not (tmp_path / "out" / SHARDS_FILE).exists()
    manifest = write_shards(source, tmp_path / "out", size=64, overlap="report")
    warned = defaultdict[str, list[str]](list)
    for remark in warned_in(tmp_path / "out"):
        warned[remark.warning].append(remark.of)
    assert manifest.warnings == {what: len(found) for what, found in warned.items()}
    [patient] = warned[PATIENT_IN_TWO_SPLITS]
    assert patient.startswith("CXR0: ") and "train" in patient and "test" in patient
    same = "cxr0_im-0000 (train) = cxr0_im-0999 (test)"
    assert warned[FILM_IN_TWO_SPLITS] == [same, same], "both films of that study"


def test_the_receipt_sets_ours_beside_the_published_and_names_every_drop(drawn_iu: Draw, tmp_path: Path) -> None:
    manifest = write_shards(IuXray(raw=drawn_iu(edit=entry_editor(2, report=""))), tmp_path / "out", size=64)
    printed = io.StringIO()
    Console(file=printed, width=120).print(counts_table(manifest))
    row = next(line for line in printed.getvalue().splitlines() if "train" in line)
    assert [cell.strip() for cell in row.split("│")[1:-1]] == ["train", "3", "2,069", "6", "4,138", "3", "–"]
    told = "\n".join(receipt_lines(tmp_path / "out", manifest))
    assert "Dropped 1: empty report\n  CXR2_IM-0002 (train)" in told
    assert "6 studies given, 5 used, 1 dropped." in told and manifest.fingerprint[:12] in told


def test_one_study_is_shown_by_key_or_id(drawn_iu: Draw, tmp_path: Path) -> None:
    raw = drawn_iu(edit=entry_editor(2, report=""))
    write_shards(IuXray(raw=raw), tmp_path / "out", size=64)
    for name in ("CXR5_IM-0005", "cxr5_im-0005"):
        index, row = find_study(tmp_path / "out", name)
        told = "\n".join(study_lines(index, row))
        assert "patient CXR5), test" in told and "film 1: " in told and "64x64 px" in told
        assert "target: the heart is normal in size . film 5 is drawn ." in told
    films = list(write_films(index, row, tmp_path / "shown"))
    assert [path.name for path in films] == ["cxr5_im-0005.0.png", "cxr5_im-0005.1.png"]
    assert open_film(films[0]).shape == (64, 64)
    with pytest.raises(DataError, match="it was dropped .empty report"):
        find_study(tmp_path / "out", "CXR2_IM-0002")
    with pytest.raises(DataError, match="no study 'nobody'"):
        find_study(tmp_path / "out", "nobody")


def test_patients_listed_together_lie_apart_and_the_salt_hides_in_what_order() -> None:
    """As full a shuffle as the stream's window makes of it: see bench/shuffle.py for the shares."""
    items = [Item(id=f"s{row}", patient=f"p{row // 4}", split="train") for row in range(4_000)]
    for names in (Names(), Names(salt=b"one" * 8)):
        order = [item.patient for item in mixed(items, names)]
        beside = sum(one == other for one, other in pairwise(order))
        assert beside < 15, "full shuffles have 3 of such pairs, the listing 3,000"
        assert sorted(order) == sorted(item.patient for item in items)
    keys = [sorted(items, key=lambda item: n.key(item.id)) for n in (Names(), Names(salt=b"one" * 8))]
    assert mixed(items, Names(salt=b"one" * 8)) not in (mixed(items), mixed(items, Names(salt=b"two" * 8)), *keys)
    first = [job.items for job in plan_shards(items, 10, "")]
    assert [item for part in first for item in part] == mixed(items)
    assert mixed(items[:100] + items[101:]) == [item for item in mixed(items) if item != items[100]]


@pytest.mark.parametrize(
    ("positions", "order"),
    [
        ("fl", "01"),
        ("ffl", "021"),
        ("lf", "10"),
        ("uflfl", "12034"),
        ("ul", "10"),
        ("uu", "01"),
        ("l", "0"),
        ("fff", "012"),
    ],
)
def test_two_films_of_a_study_are_both_sides_of_it(positions: str, order: str) -> None:
    named = {"f": "frontal", "l": "lateral", "u": "unknown"}
    views = [View(position=named[letter], file=str(n)) for n, letter in enumerate(positions)]  # type: ignore[arg-type]
    assert films_first(views) == [int(number) for number in order]
    films = [np.full((40, 40), 10 * n, np.uint8) for n in range(len(views))]

    class Drawn(Phantom):
        def read(self, item: Item) -> tuple[Study, list[np.ndarray]]:
            study, _ = super().read(item)
            return study.model_copy(update={"views": tuple(views)}), films

    source = Drawn(studies=4, size=64)
    settings = Settings(out="", cleaning=source.cleaning, size=40, on_bad="skip")
    study, stored, _ = prepare(source, source.listing().items[0], settings)
    assert [view.file for view in study.views] == list(order)
    assert [round(decode(film, 40).mean() / 10) for film in stored] == [int(number) for number in order]


def test_targets_that_are_unusually_long_are_counted_and_named(drawn_iu: Draw, tmp_path: Path) -> None:
    raw = drawn_iu(train=3, edit=entry_editor(1, report="The heart is large. " * 126))
    manifest = write_shards(IuXray(raw=raw), tmp_path / "out", size=64)
    assert manifest.warnings == {LONG_TARGET: 1} and LONG_WORDS == 500
    assert f"Warning: {LONG_TARGET} (1): CXR1_IM-0001" in receipt_lines(tmp_path / "out", manifest)


def test_another_version_of_what_reads_films_makes_all_tars_again(
    drawn_iu: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, settings = IuXray(raw=drawn_iu()), Settings(out="", cleaning="raw")
    recipes = {recipe_of(source, settings)}
    for module, name in ((shards_module, "DECODING"), (IuXray, "version")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, 2)
            recipes.add(recipe_of(source, settings))
    assert len(recipes) == 3


def test_two_sites_find_that_they_hold_the_same_and_neither_names_change(
    drawn_iu: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A salt of each site, studies in other tars and another order; then one site whose salt is gone."""
    monkeypatch.setattr(IuXray, "licence", "physionet-credentialed-1.5.0")
    made, raw = {}, drawn_iu(train=6)
    for site, name, size in (("a", "one", 4), ("a", "two", 2), ("b", "one", 4)):
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / site / "config"))
        made[site, name] = write_shards(IuXray(raw=raw), tmp_path / site / name, size=64, studies_per_shard=size)
    keys = {at: set(Index.open(tmp_path / at[0] / at[1], "train").keys) for at in made}
    assert keys["a", "one"] == keys["a", "two"] and not keys["a", "one"] & keys["b", "one"]
    assert len({manifest.content for manifest in made.values()}) == 1
    assert made["a", "one"].names == made["a", "two"].names != made["b", "one"].names
    listing = raw / "annotation.json"
    said = listing.read_text()
    listing.write_text(said.replace("Film 1", "Lung 1"))
    other = write_shards(IuXray(raw=raw), tmp_path / "b" / "three", size=64)
    listing.write_text(said)
    assert said.count("Film 1") == 1 and other.content != made["a", "one"].content
    shutil.rmtree(tmp_path / "b" / "config")
    with pytest.raises(ConfigError, match=f"begun with salt {made['b', 'one'].names}: .*bring it back as .*/salts/"):
        write_shards(IuXray(raw=raw), tmp_path / "b" / "one", size=64, studies_per_shard=4)
    assert not (tmp_path / "b" / "config").exists(), "no other salt is made for the next shards"
    with pytest.raises(DataError, match="Ids of the owner cannot be looked up without the salt of these shards"):
        find_study(tmp_path / "b" / "one", "CXR0_IM-0000")
    assert read_manifest(tmp_path / "b" / "one") == made["b", "one"]


def test_what_cannot_be_written_names_no_raw_file(tmp_path: Path) -> None:
    """The error may be of a raw film, whose path has the owner's names in it."""
    for number, kind in ((errno.EIO, RetryableError), (errno.EACCES, DataError)):
        error = unwritable(tmp_path / "train-00000.tar", OSError(number, os.strerror(number), "/raw/p10000032/a.jpg"))
        assert type(error) is kind and "p10000032" not in str(error) and os.strerror(number) in str(error)
