"""Tables as code: every row can be, every figure belongs to a row, and equal trainings are one."""

import pytest

from r2kg.recipes import find_recipe
from shards.errors import ConfigError
from tune.rows import NLG, content_hash, trials_of
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
