"""Ablations: each can be, changes what it says and nothing else, and a mistyped one is told its neighbours."""

import pytest

from jobs.train import resolve
from r2kg.config.run import load_run
from r2kg.recipes import find_recipe
from r2kg.training.plan import differences
from shards.errors import ConfigError
from tune.ablations import ablations, find_ablation
from tune.ablations.cknet import PAPER

NAMES = list(ablations("r2genkg"))


@pytest.mark.parametrize("base", ["r2genkg.chexpert_plus", "r2genkg.tiny"])
def test_every_ablation_can_be_and_they_all_differ(base, tmp_path):
    runs, same = {}, {"bank-500", "frozen"} if base.endswith("plus") else {"lora"}
    for name in NAMES:
        if base == "r2genkg.tiny" and name in ("scale-4", "scale-5"):
            with pytest.raises(ConfigError, match="r2genkg-tiny has 3 levels: there is no scale-[45]"):
                find_ablation(f"ablation:{base}:{name}")
            continue
        if name in same:
            with pytest.raises(ConfigError, match=f"{base} is already what the ablation {name} would make of it"):
                find_ablation(f"ablation:{base}:{name}")
            continue
        run = find_ablation(f"ablation:{base}:{name}")
        run.save(tmp_path / "run.json")
        assert load_run(tmp_path / "run.json") == run and run.name == f"{find_recipe(base).name}-{name}"
        runs[name] = run.model.model_dump_json()
    assert len(set(runs.values())) == len(runs)


@pytest.mark.parametrize("base", ["cknet.iu", "cknet.tiny"])
def test_every_ablation_of_cknet_can_be_and_they_all_differ(base, tmp_path):
    runs = {}
    for name in ablations("cknet"):
        if name == "gamma-8":
            with pytest.raises(ConfigError, match="already what the ablation gamma-8 would make of it"):
                find_ablation(f"ablation:{base}:{name}")
            continue
        run = find_ablation(f"ablation:{base}:{name}")
        run.save(tmp_path / "run.json")
        assert load_run(tmp_path / "run.json") == run
        runs[name] = run.model.model_dump_json()
    assert len(set(runs.values())) == len(runs)
    assert {name for rows in PAPER.values() for name in rows} <= {*runs}


def test_recipes_of_ones_own_have_ablations_too(tmp_path, monkeypatch):
    (tmp_path / "ablated.py").write_text(
        "from r2kg.recipes import find_recipe\ndef small():\n"
        "    return find_recipe('r2genkg.tiny').change({'name': 'small', 'train.epochs': 3})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = find_ablation("ablation:ablated:small:no-bank")
    assert run.name == "small-no-bank" and run.train.epochs == 3 and run.model.queries.bank is None
    with pytest.raises(ConfigError, match="no ablations of 'classifier': there are some of cknet, r2genkg"):
        find_ablation("ablation:classifier.tiny:no-bank")


def test_an_ablation_changes_what_it_names_and_nothing_else():
    base = find_recipe("r2genkg.tiny").model_dump()
    for name, fields in {
        "no-bank": {"model.queries.bank"},
        "i2g": {"model.graph.g2i"},
        "scale-2": {"model.graph.sizes"},
        "control-film": {"model.graph.control", "model.graph.source"},
    }.items():
        changed = differences(base, find_ablation(f"ablation:r2genkg.tiny:{name}").model_dump())
        assert {field for field in changed if not field.startswith(("name", "recipe"))} - {
            "model.graph.shown"
        } == fields


def test_an_ablation_of_cknet_changes_what_it_names_and_nothing_else():
    base = find_recipe("cknet.tiny").model_dump()
    for name, fields in {
        "base": {""},
        "men": {".control"},
        "men-trained": {".control", ".trained"},
        "trained": {".trained"},
        "gamma-2": {".top_gamma"},
        "ratio": {".weights"},
        "film-alone": {".fuse_words"},
        "words-alone": {".fuse_film"},
        "control-values": {".control"},
        "control-other": {".control"},
    }.items():
        changed = differences(base, find_ablation(f"ablation:cknet.tiny:{name}").model_dump())
        fields = {f"model.knowledge{field}" for field in fields}
        assert {field for field in changed if not field.startswith(("name", "recipe"))} == fields, name


def test_the_system_alone_names_its_paper_recipe():
    assert find_ablation("ablation:r2genkg:no-graph").data == find_recipe("r2genkg.chexpert_plus").data
    resolved = resolve("ablation:r2genkg.tiny:no-graph", ["train.seed=7"])
    assert resolved.train.seed == 7 and resolved.recipe == "ablation:r2genkg.tiny:no-graph"
    assert resolved.model.graph is None and resolved.inputs.sides == ()
    assert resolve("ablation:r2genkg.tiny:control-film", []).inputs.sides == ("film_subgraphs_of_another",)


def test_mistyped_ones_are_told_their_neighbours():
    for words, told in {
        "ablation:r2genkg.tiny:no-grph": "did you mean no-graph",
        "ablation:r2genkg.tiny": "no ablations of 'r2genkg'|say ablation:RECIPE:NAME|is no ablation",
        "ablation:cnet:full": "unknown recipe 'cnet'",
        "ablation:r2genkg.tinny:full": "did you mean r2genkg.tiny",
    }.items():
        with pytest.raises(ConfigError, match=told):
            find_ablation(words)
