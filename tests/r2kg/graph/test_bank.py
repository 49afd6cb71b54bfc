"""The vision-token bank: which cells, which tokens, what is kept, what is refused."""

import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from r2kg.graph.bank.artefact import contact_sheets, load_bank, load_training_bank
from r2kg.graph.bank.make import BankSettings, cut_cells, project, sample_cells, write_bank
from shards.errors import ConfigError, DataError
from shards.stream.index import Index, read_studies
from shards.tars.format import read_manifest
from shards.tars.place import place

SIDE, GRID = 64, 4
LABELS = ("Cardiomegaly", "Pleural Effusion", "Pleural Other")


class Bright:
    """Sees a finding where a film is bright, with one map for all; what is encoded is the film's mean and deviation."""

    def explain(self, films):
        grid = torch.nn.functional.avg_pool2d(films[:, None].float(), SIDE // GRID)[:, 0]
        features = torch.stack([films.float().mean((1, 2)), films.float().std((1, 2))], 1)
        return grid[:, None].expand(-1, len(LABELS), -1, -1), features


def films_with(*bright: tuple[int, int]) -> np.ndarray:
    film = np.zeros((SIDE, SIDE), np.uint8)
    for row, column in bright:
        film[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = 200 + 10 * row
    return film


def test_the_cells_with_the_highest_heat_are_cut_out():
    films = np.stack([films_with((0, 1), (3, 3)), films_with((2, 0)), films_with()])
    cells = cut_cells(Bright(), films, [[0, 1], [1], [0]], BankSettings(least=0.5, per_film=1, width=2))
    assert cells["film"].tolist() == [0, 0, 1] and cells["label"].tolist() == [0, 1, 1]
    assert list(zip(cells["row"].tolist(), cells["column"].tolist(), strict=True)) == [(3, 3), (3, 3), (2, 0)]
    assert (cells["crops"][0] == 230).all() and (cells["crops"][2] == 220).all()
    np.testing.assert_allclose(cells["features"][:, 0], [230, 230, 220])
    two = cut_cells(Bright(), films[:1], [[0]], BankSettings(least=0.5, per_film=6, width=2))
    assert two["heat"].tolist() == sorted(two["heat"].tolist(), reverse=True) and len(two["film"]) == 2
    none = cut_cells(Bright(), films[2:], [[0]], BankSettings())  # heat is alike everywhere
    assert not len(none["film"]) and none["features"].shape == (0, 2)


def test_heat_is_that_of_the_map_brought_to_the_film():
    """By hand: a map of 4 x 4 brought to 64 px bilinearly, from 0 to 1, mean over cells of 16 px."""
    rng = np.random.default_rng(0)
    films = rng.integers(0, 256, (1, SIDE, SIDE), dtype=np.uint8)
    maps = Bright().explain(torch.tensor(films))[0][:1, :1]
    at = (torch.arange(SIDE) + 0.5) / 16 - 0.5
    low = at.clamp(min=0).floor().long().clamp(max=GRID - 1)
    high, share = (low + 1).clamp(max=GRID - 1), (at - low).clamp(0, 1)
    share[low == high] = 0
    across = maps[0, 0][:, low] * (1 - share) + maps[0, 0][:, high] * share
    large = across[low] * (1 - share)[:, None] + across[high] * share[:, None]
    large = (large - large.min()) / (large.max() - large.min())
    wanted = large.unflatten(0, (4, 16)).unflatten(2, (4, 16)).mean((1, 3))
    cells = cut_cells(Bright(), films, [[0]], BankSettings(least=0.0, per_film=16))
    np.testing.assert_allclose(cells["heat"], wanted[cells["row"], cells["column"]], rtol=1e-5)
    assert len(cells["heat"]) == 16


def test_fewer_tokens_of_a_finding_are_the_first_of_more():
    label = np.array([0] * 40 + [1] * 3)
    few, many = (sample_cells(label, 3, BankSettings(per_label=n)) for n in (5, 30))
    assert [*few[:5]] == [*many[:5]] and len(few) == 8 and len(many) == 33 and len({*many}) == 33
    assert [*sample_cells(label, 3, BankSettings(per_label=5, seed=1))] != [*few]


def test_projections_are_kept_with_what_they_made():
    features = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32) * [5, 4, 3, 2, 1, 0.5] + 7
    for kind in ("random", "pca"):
        made = project(features.astype(np.float32), BankSettings(width=3, projection=kind))
        again = project(features.astype(np.float32), BankSettings(width=3, projection=kind))
        np.testing.assert_allclose(made["tokens"], features @ made["projection"].T + made["bias"], rtol=1e-4, atol=1e-4)
        assert all((made[name] == again[name]).all() for name in made)
    spread = made["tokens"].var(0)
    assert (spread[:-1] > spread[1:]).all() and np.allclose(made["tokens"].mean(0), 0, atol=1e-4)
    with pytest.raises(DataError, match="50 cells of 6 channels have no 7 principal components"):
        project(features.astype(np.float32), BankSettings(width=7, projection="pca"))
    features[3, 2] = np.nan
    with pytest.raises(DataError, match="features that are not finite"):
        project(features.astype(np.float32), BankSettings(width=2))


@pytest.fixture(scope="module")
def bank(phantom_shards, tmp_path_factory):
    where = tmp_path_factory.mktemp("bank") / "bank"
    settings = BankSettings(per_label=9, per_film=3, least=0.4, width=5)
    return where, write_bank(phantom_shards, where, LABELS, SIDE, Bright, {"name": "bright"}, settings)


def test_a_bank_is_of_training_films_with_the_finding(phantom_shards, bank):
    _, made = bank
    studies = {study.key: study for study in read_studies(phantom_shards, "train")}
    assert len(made.tokens) == len(made.cells) == sum(made.manifest.counts.values()) and made.tokens.shape[1] == 5
    for cell in made.cells.to_pylist():
        assert studies[cell["study"]].labels[LABELS[cell["label"]]] == 1 and cell["heat"] > 0.4
    assert made.manifest.counts["Pleural Other"] == 0
    assert made.manifest.warnings == {"no token of Pleural Other": 1}
    assert max(made.manifest.counts.values()) == 9 and made.manifest.licence == "synthetic"
    assert (np.diff(made.label) >= 0).all() and made.cells["label"].to_pylist() == made.label.tolist()
    index = Index.open(phantom_shards, "train")
    row, cell = made.label.tolist().index(1), made.cells.to_pylist()[made.label.tolist().index(1)]
    from shards.films.stored import decode

    film = decode(index.read([*index.keys].index(cell["study"].encode()))[0][0], SIDE)
    part = film[cell["row"] * 16 : cell["row"] * 16 + 16, cell["column"] * 16 : cell["column"] * 16 + 16]
    assert (made.crops[row] == part).all()
    few = made.first(2)
    assert few.tolist() == [0, 1, made.manifest.counts["Cardiomegaly"], made.manifest.counts["Cardiomegaly"] + 1]


def test_what_is_made_is_kept_and_the_same_from_more_actors(phantom_shards, bank, tmp_path, capsys):
    where, made = bank
    settings = BankSettings(per_label=9, per_film=3, least=0.4, width=5)
    again = write_bank(phantom_shards, where, LABELS, SIDE, Bright, {"name": "bright"}, settings)
    assert "is made already" in capsys.readouterr().out and again.manifest == made.manifest
    two = write_bank(phantom_shards, tmp_path / "two", LABELS, SIDE, Bright, {"name": "bright"}, settings, actors=2)
    assert (two.tokens == made.tokens).all() and two.cells == made.cells


def test_a_bank_made_otherwise_is_replaced_where_that_is_said_alone(phantom_shards, bank, tmp_path):
    where, made = bank
    copy = tmp_path / "bank"
    shutil.copytree(where, copy)
    other = BankSettings(per_label=4, per_film=3, least=0.4, width=5)
    with pytest.raises(ConfigError, match=r"made otherwise \(per_label was 9, is now 4\): say --replace"):
        write_bank(phantom_shards, copy, LABELS, SIDE, Bright, {"name": "bright"}, other)
    assert load_bank(copy).manifest == made.manifest
    again = write_bank(phantom_shards, copy, LABELS, SIDE, Bright, {"name": "bright"}, other, replace=True)
    assert max(again.manifest.counts.values()) == 4 and load_bank(copy).manifest == again.manifest


def test_a_bank_that_is_not_the_shards_or_damaged_is_refused(phantom_shards, bank, tmp_path):
    where, made = bank
    manifest = read_manifest(phantom_shards)
    assert load_training_bank(where, manifest).manifest == made.manifest
    other = manifest.model_copy(update={"fingerprint": "0" * 64})
    with pytest.raises(DataError, match="is of shards .*, these have 000000000000"):
        load_training_bank(where, other)
    with pytest.raises(DataError, match="no bank at .*make it with `r2kg graph bank"):
        load_bank(tmp_path)
    for name in ("bank.safetensors", "cells.parquet"):
        content = (where / name).read_bytes()
        (where / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(DataError, match=f"{name} is not what bank.json says"):
            load_bank(where)
        (where / name).write_bytes(content)
    assert isinstance(load_bank(where).cells, pa.Table)


@pytest.mark.parametrize("name", ["bank.json", "bank.safetensors"])
def test_what_a_kill_or_damage_has_left_is_made_again(phantom_shards, bank, tmp_path, name):
    where, made = bank
    copy = tmp_path / "bank"
    shutil.copytree(where, copy)
    (copy / name).unlink() if name == "bank.json" else (copy / name).write_bytes(b"torn")
    settings = BankSettings(per_label=9, per_film=3, least=0.4, width=5)
    again = write_bank(phantom_shards, copy, LABELS, SIDE, Bright, {"name": "bright"}, settings)
    assert again.manifest == made.manifest and (again.tokens == made.tokens).all()


def test_what_no_bank_can_be_made_of_is_refused(phantom_shards, tmp_path):
    def make(out=tmp_path / "new", labels=LABELS, **settings):
        return write_bank(phantom_shards, out, labels, SIDE, Bright, {}, BankSettings(**settings))

    with pytest.raises(ConfigError, match="cells of 15 px do not divide films of 64 px"):
        make(cell_px=15)
    with pytest.raises(ConfigError, match="holds something else"):
        make(out=phantom_shards)
    with pytest.raises(DataError, match="no training study of .* has any of Pleural Other"):
        make(labels=LABELS[2:])
    with pytest.raises(DataError, match=r"a cell has a mean heat of 0\.999 or more"):
        make(least=0.999)
    with pytest.raises(ConfigError, match="a heat from 0 to below 1"):
        BankSettings(least=1.0)
    assert not place(tmp_path / "new").exists()


def test_contact_sheets_show_every_cell(bank, tmp_path):
    _, made = bank
    sheets = {path.stem: path for path in contact_sheets(made, tmp_path / "sheets", scale=2, across=4)}
    assert set(sheets) == {"cardiomegaly", "pleural-effusion"}
    count = made.manifest.counts["Cardiomegaly"]
    with Image.open(sheets["cardiomegaly"]) as sheet:
        assert sheet.size == (2 * 17 * min(4, count), 2 * 17 * -(-count // 4))
