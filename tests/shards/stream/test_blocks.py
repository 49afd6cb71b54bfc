"""The stream gives every rank its slice of every step, whatever the consumers' speed, and names what it cannot read."""

import json
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from shards.errors import ConfigError, DataError
from shards.films.augment import Augment
from shards.films.stored import decode
from shards.stream import members
from shards.stream.blocks import (
    BLOCK_BYTES,
    RECORD_BYTES,
    Rows,
    Stream,
    read_batches,
    read_block,
    rows_per_block,
    stream_blocks,
)
from shards.stream.index import Index, open_splits, read_studies, read_targets
from shards.stream.order import plan, sequential_blocks
from shards.stream.side import Side
from shards.study import Study
from shards.tars.format import read_manifest
from shards.tars.kinds import KINDS, Kind
from shards.tars.sides import write_side
from shards.tars.write import Made

pytestmark = pytest.mark.usefixtures("ray_session")
SIZE, VIEWS, BATCH = 32, 3, 6


def consume(stream: Stream, world: int, micro: int, delays: tuple[float, ...] = (0, 0)) -> list[list[Rows]]:
    """Micro-batches of every rank, read at the same time by consumers of different speed."""
    ranks: list[list[Rows]] = [[] for _ in range(world)]

    def read(rank: int) -> None:
        for rows in read_batches(stream.of(rank), micro):
            ranks[rank].append(rows)
            time.sleep(delays[rank])

    threads = [threading.Thread(target=read, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ranks


def joined(batches: list[Rows], field: str) -> list:
    return np.concatenate([rows[field] for rows in batches]).tolist()


@pytest.mark.parametrize(("world", "micro", "delays"), [(1, 3, (0.0,)), (2, 3, (0.0, 0.05)), (2, 1, (0.02, 0.0))])
def test_each_rank_gets_its_slice_of_every_step(phantom_shards: Path, world: int, micro: int, delays: tuple) -> None:
    index = Index.open(phantom_shards, "train")
    blocks = plan(len(index), 3, 5 * BATCH, 13, BATCH, world, rows_per_block=12)
    ranks = consume(stream_blocks(phantom_shards, "train", blocks, SIZE, VIEWS), world, micro, delays)
    for rank, batches in enumerate(ranks):
        mine = [block for block in blocks if block.rank == rank]
        assert joined(batches, "index") == np.concatenate([block.index.ravel() for block in mine]).tolist()
        assert joined(batches, "step") == np.repeat(np.arange(5, 18), BATCH // world).tolist()
        assert all(len(rows["valid"]) == micro and rows["valid"].all() for rows in batches)


def test_rows_keep_their_contract(phantom_shards: Path) -> None:
    index = Index.open(phantom_shards, "train")
    blocks = plan(len(index), 0, 0, 2, BATCH, 1, rows_per_block=12)
    [rows] = consume(stream_blocks(phantom_shards, "train", blocks, SIZE, VIEWS, index=index), 1, 12)[0]
    assert rows["images"].shape == (12, VIEWS, SIZE, SIZE)
    assert rows["images"].dtype == np.uint8
    assert rows["view_mask"].tolist() == [[True, True, False]] * 12
    assert not rows["images"][:, 2].any()
    assert set(rows["bad"]) == {""}
    for image, study, record in zip(rows["images"], rows["index"], rows["record"], strict=True):
        assert Study.model_validate_json(record).key == index.keys[study].decode()
        films, _ = index.read(study)
        assert (image[1] == decode(films[1], SIZE)).all()


def test_sequential_blocks_give_each_study_once_and_fill_with_invalid_rows(phantom_shards: Path) -> None:
    index = Index.open(phantom_shards, "test")
    blocks = sequential_blocks(len(index), 2, 4, rows_per_block=4)
    ranks = consume(stream_blocks(phantom_shards, "test", blocks, SIZE, 1), 2, 4)
    assert len(joined(ranks[0], "index")) == len(joined(ranks[1], "index"))
    rows = [
        row
        for batches in ranks
        for row in zip(joined(batches, "index"), joined(batches, "valid"), joined(batches, "record"), strict=True)
    ]
    assert sorted(i for i, valid, _ in rows if valid) == list(range(len(index)))
    assert {(i, record) for i, valid, record in rows if not valid} == {(-1, "")}


@pytest.fixture
def damaged(phantom_shards: Path, tmp_path: Path) -> Path:
    """The shards with one film and one record of the first training tar overwritten, sizes unchanged."""
    root = tmp_path / "damaged"
    shutil.copytree(phantom_shards, root)
    tar = root / "train-00000.tar"
    data = bytearray(tar.read_bytes())
    entries = json.loads(tar.with_suffix(".index.json").read_text())["studies"]
    for entry, member in ((entries[3], "1.jpg"), (entries[7], "json")):
        at, size, _ = entry["members"][member]
        data[at : at + size] = b"\0" * size
    tar.write_bytes(data)
    return root


def test_unreadable_studies_become_invalid_rows_that_say_why(damaged: Path) -> None:
    index = Index.open(damaged, "train")
    [rows] = consume(stream_blocks(damaged, "train", sequential_blocks(16, 1, 16), SIZE, 2), 1, 16)[0]
    bad = np.flatnonzero(~rows["valid"])
    assert bad.tolist() == [3, 7]
    assert not rows["images"][bad].any() and not rows["view_mask"][bad].any()
    assert rows["record"][bad].tolist() == ["", ""]
    for row, cause in (
        (3, "in train-00000.tar are not those that were written"),
        (7, "are not those that were written"),
    ):
        assert rows["bad"][row].startswith(index.keys[row].decode()) and cause in rows["bad"][row]
    assert (rows["bad"][rows["valid"]] == "").all()


def test_strict_policy_raises_the_cause_itself(damaged: Path) -> None:
    dataset = stream_blocks(damaged, "train", sequential_blocks(16, 1, 16), SIZE, 2, on_bad="fail")
    with pytest.raises(DataError, match="phantom-.*in train-00000.tar are not those that were written"):
        list(read_batches(dataset, 16))


def test_a_tar_cut_after_its_index_was_read_is_named(damaged: Path) -> None:
    tar = damaged / "train-00000.tar"
    tar.write_bytes(tar.read_bytes()[:20_000])
    rows = read_block(Index.open(damaged, "train"), sequential_blocks(16, 1, 16)[0], SIZE, 2)
    assert not rows["valid"].all()
    assert "train-00000.tar breaks off" in rows["bad"][15]


def test_a_torn_index_is_made_again_from_a_whole_tar(phantom_shards: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(phantom_shards, tmp_path / "torn"))
    (root / "train-00001.index.json").write_bytes(b'{"version": 2, "na')
    with pytest.raises(DataError, match=r"train-00001.index.json cannot be used: it is torn"):
        Index.open(root, "train")
    whole, again = Index.open(phantom_shards, "train"), Index.open(root, "train", "skip")
    for field in ("keys", "tar", "span"):
        assert (getattr(whole, field) == getattr(again, field)).all()
    rows = [read_block(index, sequential_blocks(45, 1, 45)[0], SIZE, 2) for index in (whole, again)]
    assert rows[1]["valid"].all() and (rows[0]["images"] == rows[1]["images"]).all()


def test_a_torn_index_of_a_torn_tar_leaves_its_studies_listed_by_number(phantom_shards: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(phantom_shards, tmp_path / "torn"))
    (root / "train-00001.index.json").unlink()
    (root / "train-00001.tar").write_bytes((root / "train-00001.tar").read_bytes()[:-3000])
    index = Index.open(root, "train", "skip")
    rows = read_block(index, sequential_blocks(45, 1, 45)[0], SIZE, 2)
    assert len(index) == 45 and rows["valid"].sum() == 45 - 16
    bad = [text for text in rows["bad"] if text]
    assert [text.partition(": ")[0] for text in bad] == [f"train-00001-{number}" for number in range(16)]
    assert all("train-00001.tar is not whole either" in text for text in bad)
    unread: dict[str, str] = {}
    assert len(read_targets(root, "train", unread)) == 29 and len(unread) == 16


def test_one_changed_bit_of_a_film_is_noticed(phantom_shards: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(phantom_shards, tmp_path / "bit"))
    index = Index.open(root, "train")
    at, size = index.span[4, 1, :2].tolist()
    with (root / index.tars[0]).open("r+b") as tar:
        tar.seek(at + size // 2)
        byte = tar.read(1)[0] ^ 4
        tar.seek(at + size // 2)
        tar.write(bytes([byte]))
    rows = read_block(Index.open(root, "train"), sequential_blocks(45, 1, 45)[0], SIZE, 2)
    assert np.flatnonzero(~rows["valid"]).tolist() == [4]


def test_one_changed_bit_anywhere_is_named_by_study_or_index(phantom_shards: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(phantom_shards, tmp_path / "bits"))
    index, rng = Index.open(root, "train"), np.random.default_rng(0)
    for row in rng.choice(len(index), 12, replace=False).tolist():
        for member, (at, size, _) in enumerate(index.span[row].tolist()):
            path, bit = root / index.tars[int(index.tar[row])], int(rng.integers(8 * size))
            whole = path.read_bytes()
            flipped = bytearray(whole)
            flipped[at + bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            again = Index.open(root, "train")
            with pytest.raises(DataError, match=f"study {index.keys[row].decode()}: its bytes in .* not those"):
                again.read(row)
            if member == index.span.shape[1] - 1:
                with pytest.raises(DataError, match=f"study {index.keys[row].decode()}: its bytes in .* not those"):
                    again.read_record(row)
                unread: dict[str, str] = {}
                assert len(list(read_studies(root, "train", unread))) == len(index) - 1 and len(unread) == 1
            path.write_bytes(whole)
    path = root / "train-00001.index.json"
    for at in rng.choice(path.stat().st_size, 20, replace=False).tolist():
        whole = path.read_bytes()
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(DataError, match="train-00001.index.json cannot be used"):
            Index.open(root, "train")
        path.write_bytes(whole)


def test_a_tar_written_anew_is_not_read_through_the_old_file(phantom_shards: Path, tmp_path: Path) -> None:
    from shards.sources.phantom.source import Phantom
    from shards.tars.shards import write_shards

    films = []
    for seed in (0, 1):
        write_shards(Phantom(studies=6, size=64, seed=seed), tmp_path, size=64, replace=True)
        films.append(read_block(Index.open(tmp_path, "train"), sequential_blocks(4, 1, 4)[0], SIZE, 1)["images"])
    assert (films[0] != films[1]).any()


def test_missing_split_and_missing_shards_are_named(phantom_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no studies of split 'dev'.*train, val, test"):
        Index.open(phantom_shards, "dev")
    with pytest.raises(DataError, match="no shards at .*manifest.json is missing there"):
        Index.open(tmp_path, "train")


def test_blocks_are_bounded_and_small_runs_still_get_several() -> None:
    assert rows_per_block(224, 2, 10**6) == BLOCK_BYTES // (2 * 224 * 224)
    assert rows_per_block(64, 1, 100) == 25
    assert rows_per_block(4096, 2, 100) == 1
    assert rows_per_block(None, 1, 10**6) == rows_per_block(None, 4, 10**6) == BLOCK_BYTES // RECORD_BYTES
    assert rows_per_block(None, 2, 100) == 25
    assert rows_per_block(None, 2, 10**6, 1000) == BLOCK_BYTES // 2000  # what is stored per film stands for films


def test_manifest_and_index_agree(phantom_shards: Path) -> None:
    manifest = read_manifest(phantom_shards)
    assert {name: len(Index.open(phantom_shards, name)) for name in manifest.splits} == {
        name: count.studies for name, count in manifest.splits.items()
    }


CUT = Augment(resize_px=SIZE + 8, flip=0.5, rotate=5, brightness=0.2)


def test_augmented_films_are_the_same_in_another_world_block_size_and_after_a_restart(phantom_shards: Path) -> None:
    def seen(first: int, steps: int, world: int, micro: int, rows: int) -> dict[tuple[int, int], bytes]:
        blocks = plan(45, 3, first * BATCH, steps, BATCH, world, rows)
        films = stream_blocks(phantom_shards, "train", blocks, SIZE, 2, augment=CUT, seed=3)
        own = [[at for block in blocks if block.rank == rank for at in block.position.flat] for rank in range(world)]
        ranks = consume(films, world, micro)
        images = [np.concatenate([rows["images"] for rows in batches]) for batches in ranks]
        pairs = [pair for places, shown in zip(own, images, strict=True) for pair in zip(places, shown, strict=True)]
        return {(int(at), view): shown[view].tobytes() for at, shown in pairs for view in (0, 1)}

    whole = seen(0, 10, 1, 6, 24)
    assert {at for at, _ in whole} == set(range(60)) and seen(0, 10, 2, 3, 7) == whole
    assert seen(6, 4, 2, 1, 50) == {place: film for place, film in whole.items() if place[0] >= 36}


def test_augmented_films_are_cut_from_films_decoded_large_enough(phantom_shards: Path) -> None:
    """64 px films are decoded at 16 px for 16, but at 32 for the 20 of which 16 are cut."""
    index, augment = Index.open(phantom_shards, "train"), Augment(resize_px=20)
    block = plan(45, 0, 0, 2, 45, 1, 90)[0]
    rows = read_block(index, block, 16, 2, "fail", augment=augment, seed=9)
    assert rows["images"].shape == (90, 2, 16, 16)
    places = {study: set[tuple[int, int]]() for study in range(45)}
    for study, image in zip(rows["index"], rows["images"][:, 1], strict=True):
        film = decode(index.read(study)[0][1], 20)
        found = [(y, x) for y in range(5) for x in range(5) if (film[y : y + 16, x : x + 16] == image).all()]
        assert len(found) == 1
        places[study].add(found[0])
    assert sum(len(own) == 2 for own in places.values()) > 35  # another epoch, another cut
    assert (read_block(index, block, 16, 2)["images"][0] == read_block(index, block, 16, 2, seed=9)["images"][0]).all()


def test_records_alone_are_read_without_a_byte_of_a_film(
    damaged: Path, phantom_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, block, read_bytes, real = Index.open(damaged, "train"), sequential_blocks(45, 1, 45)[0], [], members.read_at
    monkeypatch.setattr(members, "read_at", lambda *where: read_bytes.append(where[3]) or real(*where))
    rows = read_block(index, block, None, 1)
    assert sum(read_bytes) == index.span[:, -1, 1].sum() and len(read_bytes) == 45
    assert "images" not in rows and rows["view_mask"].shape == (45, 1) and not rows["view_mask"].any()
    assert np.flatnonzero(~rows["valid"]).tolist() == [7]  # study 3 has lost a film, which nobody reads
    assert rows["record"][7] == "" and "not those that were written" in rows["bad"][7]
    with pytest.raises(DataError, match="not those that were written"):
        read_block(index, block, None, 1, "fail")
    whole = read_block(Index.open(phantom_shards, "train"), block, SIZE, 1)
    assert (np.delete(rows["record"], 7) == np.delete(whole["record"], 7)).all()


def test_a_kind_that_only_this_process_knows_is_streamed_also_without_films(
    damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = Kind(suffix="note", extent=("longest",), column="note", how="`r2kg notes`", unpack="zlib:crc32")
    monkeypatch.setitem(KINDS, "notes", note)
    manifest = read_manifest(damaged)

    def build():
        return lambda index, rows, given: (Made({"note": b"row %d" % row}) for row in rows)

    write_side(damaged, tmp_path / "notes", "notes", manifest, open_splits(damaged, manifest), {"longest": 7}, build)
    sides, blocks = {"notes": tmp_path / "notes"}, sequential_blocks(45, 1, 9, rows_per_block=9)
    for size, unread in ((None, [7]), (SIZE, [3, 7])):
        films = stream_blocks(damaged, "train", blocks, size, 1, sides=sides)
        batches = consume(films, 1, 9)[0]
        assert np.flatnonzero(~np.array(joined(batches, "valid"))).tolist() == unread
        assert [text for row, text in enumerate(joined(batches, "note")) if row not in unread] == [
            b"row %d" % row for row in range(45) if row not in unread
        ]
        assert ("images" in batches[0]) is (size is not None)


def test_films_that_something_stored_stands_for_are_not_augmented(phantom_shards: Path, tmp_path: Path) -> None:
    manifest, description = read_manifest(phantom_shards), {"views": 1, "patches": 1, "width": 1}

    def build():
        return lambda index, rows, given: (Made({"features": b"ab"}) for _ in rows)

    index, out = Index.open(phantom_shards, "val"), tmp_path / "features"
    write_side(phantom_shards, out, "features", manifest, open_splits(phantom_shards, manifest), description, build)
    with pytest.raises(ConfigError, match="features were made of films as they are"):
        stream_blocks(phantom_shards, "val", [], SIZE, 1, sides={"features": out}, augment=CUT)
    opened = Side.open(out, index, manifest, "features")
    rows = read_block(index, sequential_blocks(6, 1, 6)[0], None, 1, "fail", {"features": opened})
    assert rows["features"].shape == (6, 1, 1, 1) and rows["view_mask"].all()
