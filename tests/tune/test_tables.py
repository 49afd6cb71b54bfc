"""Tables as code: every row can be, every figure belongs to a row, and equal trainings are one."""

from pathlib import Path

import pytest

from r2kg.recipes import find_recipe
from shards.errors import ConfigError
from tune.rows import IDLE, NLG, content_hash, contents_of, field_of, trials_of
from tune.tables import TABLES, find_table


@pytest.mark.parametrize("tiny", [False, True])
@pytest.mark.parametrize("name", TABLES)
def test_every_row_is_a_run_and_every_figure_has_its_row(name, tiny):
    table = TABLES[name]
    trials = trials_of(table, tiny, 1, {}, "films")
    written = [row for one in trials for row in one.rows]
    assert sorted(written) == sorted(row.name for row in table.rows if not (tiny and row.tiny is None))
    assert len({one.hash for one in trials}) == len({one.name for one in trials}) == len(trials)
    assert {one.run.model.task for one in trials} == {"triples" if name.startswith("vlm") else "report"}
    for one in trials:
        for changes in one.rows.values():
            assert one.run.change(changes) is not one.run
        if tiny:
            assert not one.run.train.gpus and one.run.train.steps and one.run.train.steps <= 150
    asked = {row.name for row in table.rows} | set(table.others)
    assert set(table.figures) <= asked and all(figures.keys() <= {*table.metrics} for figures in table.figures.values())
    assert all(0 <= value <= 1 for figures in table.figures.values() for value in figures.values())


def test_the_papers_figures_are_those_that_are_printed():
    assert TABLES["cknet_table4"].figures["+CKNet"] == dict(
        zip(NLG, (0.515, 0.354, 0.257, 0.194, 0.213, 0.402, 0.392), strict=True)
    )
    assert TABLES["vlm_kg_table3"].figures["n=128, k=64"]["bleu4"] == pytest.approx(0.2861)
    assert "meteor" not in TABLES["cknet_table2"].figures["CoATT"], "NaN is nothing that the paper says"
    assert TABLES["vlm_kg_table1"].figures["DyGIE++"]["rouge_l"] == pytest.approx(0.5649)


def test_a_hash_knows_what_is_learned_and_from_what_and_no_name_or_place():
    run = find_recipe("cknet.tiny")
    same = run.change(
        {"name": "other", "root": "/elsewhere", "tracking.parent": "x", "recipe": "y", "data.shards": "moved"}
    )
    assert content_hash(run, "films") == content_hash(same, "films")
    others = [content_hash(run.change(one), "films") for one in ({"train.seed": 1}, {"model.knowledge.top_gamma": 2})]
    assert len({content_hash(run, "films"), content_hash(run, "other films"), *others}) == 4


def test_what_changes_nothing_that_is_learnt_leaves_the_hash_and_the_directory():
    run = find_recipe("cknet.tiny").change({"train.choose": "loss", "train.patience": 0})
    changes = {
        "train.workers": 2, "train.micro_batch": 4, "train.cpus_per_worker": 0.5, "train.max_restarts": 9,
        "train.wait_minutes": 3.0, "train.stop_seconds": 1.0, "train.accept_changes": True, "train.log_every": 1,
        "train.validate_every": 3, "protocols": ("full-text",), "engine.zero": 1, "engine.offload_optimizer": True,
    }  # fmt: skip
    assert content_hash(run.change(changes), "films") == content_hash(run, "films")
    for name in IDLE:
        node, last = field_of(run.model_dump(), name)
        assert last in node
    patient = run.change({"train.patience": 2})
    by_metric = [run.change({"train.choose": "BLEU-4", "protocols": (name,)}) for name in ("full-text", "r2gen-2020")]
    others = [patient, patient.change({"train.validate_every": 3}), *by_metric, run.change({"train.global_batch": 32})]
    others += [run.change({"engine.precision": "fp32" if run.engine.precision == "bf16" else "bf16"}), run]
    assert len({content_hash(one, "films") for one in others}) == len(others)


@pytest.mark.parametrize(
    ("table", "place", "whose"),
    [
        ("vlm_kg_table1", "films/side/triples/side.json", {"LLM-KG", "VLM-KG"}),
        ("cknet_table4", "films/knowledge/matrix.json", {"+MEN", "+CKNet"}),
        ("cknet_table4", "weights.bin", {"Base", "+MEN", "+CKNet"}),
        ("r2genkg", "films/bank/bank.json", {"R2GenKG"}),
    ],
)
def test_what_is_made_anew_at_the_same_place_makes_another_trial(tmp_path, table, place, whose):
    file, changes = tmp_path / place, {"data.shards": f"{tmp_path}/films", "root": f"{tmp_path}/runs"}
    file.parent.mkdir(parents=True, exist_ok=True)
    changes |= {"model.vision.weights": str(file)} if place == "weights.bin" else {}
    rows = ["R2GenKG", "no bank"] if table == "r2genkg" else []
    hashes = []
    for content in ("one", "one", "another"):
        file.write_text(content)
        trials = trials_of(TABLES[table], False, 1, changes, "films", rows)
        hashes.append({row: one.hash for one in trials for row in one.rows})
    assert hashes[0] == hashes[1] and {row for row in hashes[0] if hashes[0][row] != hashes[2][row]} == whose


def test_a_run_that_another_begins_with_is_known_by_what_it_is(tmp_path):
    before = find_recipe("vlm_kg.llm_tiny").change({"name": "before", "root": str(tmp_path)})
    run = find_recipe("vlm_kg.tiny").change({"root": str(tmp_path), "train.init_from": "before@best"})
    assert "train.init_from" not in contents_of(run)
    found = []
    for changes in ({}, {"train.workers": 1, "tracking.experiment": "x"}, {"optim.lr": 0.5}):
        before.directory.mkdir(exist_ok=True)
        before.change(changes).save(before.directory / "run.json")
        found.append(contents_of(run)["train.init_from"])
    assert found[0] == found[1] != found[2] and found[0].endswith("@best")
    before.change({"train.init_from": "before@best"}).save(before.directory / "run.json")
    assert contents_of(run)["train.init_from"], "a circle of runs comes to an end"


def test_rows_of_two_tables_that_are_one_training_lie_in_one_directory(tmp_path):
    own = {"root": str(tmp_path)}
    earlier = {one.hash: one.name for one in trials_of(TABLES["r2genkg"], True, 1, own, "films")}
    for name in earlier.values():
        (tmp_path / name).mkdir()
    later = {one.hash: one.name for one in trials_of(TABLES["systems"], True, 1, own, "films")}
    shared = earlier.keys() & later.keys()
    assert shared and all(earlier[one] == later[one] for one in shared) and later.keys() - shared
    assert {path.name for path in Path(tmp_path).iterdir()} == {*earlier.values()}


def test_rows_that_are_one_training_are_trained_once():
    (trial,) = trials_of(TABLES["vlm_kg_table4"], False, 1, {}, "films")
    assert [how["model.decoding.max_new_tokens"] for how in trial.rows.values()] == [200, 256, 300, 512]
    gamma = trials_of(TABLES["cknet_gamma"], False, 1, {}, "films")
    (full,) = [one for one in gamma if "γ=8" in one.rows]
    (own,) = [one for one in trials_of(TABLES["cknet_table4"], False, 1, {}, "films") if "+CKNet" in one.rows]
    assert (full.hash, full.name) == (own.hash, own.name), "two tables share what they both need"


def test_every_seed_begins_with_its_own_first_stage():
    trials = trials_of(TABLES["vlm_kg_table3"], True, 2, {"train.steps": 7}, "films", ["n64-k64"])
    stages = {one.seed: one for one in trials if one.first}
    rows = [one for one in trials if not one.first]
    assert len(stages) == len(rows) == 2 and {one.run.train.steps for one in trials} == {7}
    for one in rows:
        assert one.run.train.init_from == f"{stages[one.seed].name}@best"
    one_stage = trials_of(TABLES["vlm_kg_table1"], True, 1, {}, "films")
    assert [(list(one.rows), one.first) for one in one_stage] == [(["LLM-KG"], True), (["VLM-KG"], False)]


@pytest.mark.parametrize(
    ("name", "changes", "rows", "told"),
    [
        ("cknet_table4", {}, ["+MNE"], "did you mean \\+MEN"),
        ("cknet_table4", {"model.nosuch": 1}, [], "unknown key 'model.nosuch'"),
        ("r2genkg", {}, ["scale-5"], "r2genkg-tiny has no row 'scale-5'"),
    ],
)
def test_what_cannot_be_is_told_with_a_way_out(name, changes, rows, told):
    with pytest.raises(ConfigError, match=told):
        trials_of(find_table(name), True, 1, changes, "films", rows)


def test_a_change_is_made_in_the_rows_that_have_such_a_field():
    trials = trials_of(TABLES["cknet_table4"], True, 1, {"model.knowledge.top_gamma": 3}, "films")
    gammas = {name: getattr(one.run.model.knowledge, "top_gamma", None) for one in trials for name in one.rows}
    assert gammas == {"Base": None, "+MEN": 3, "+CKNet": 3}
    with pytest.raises(ConfigError, match="did you mean cknet_table4"):
        find_table("cknet_tabel4")
