"""Runs refuse what cannot work before anything starts, and say what to do."""

import subprocess
import sys

import pytest

from r2kg.config.overrides import parse_overrides
from r2kg.config.run import Run, load_run
from r2kg.recipes import find_recipe, recipes
from shards.errors import ConfigError


def change(*words: str) -> Run:
    return Run(name="x").change(parse_overrides(list(words)))


def test_overrides_reach_any_depth_and_keep_types():
    run = change("model.llm.lora.rank=4", "optim.lr=3e-4", "train.gpus=false", "model.vision.options.depths=[1,2]")
    assert (run.model.llm.lora.rank, run.optim.lr, run.train.gpus) == (4, 3e-4, False)
    assert run.model.vision.options == {"depths": [1, 2]}
    extra = change("engine.deepspeed.zero_optimization.reduce_bucket_size=5").engine.deepspeed
    assert extra == {"zero_optimization": {"reduce_bucket_size": 5}}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("train.epoch=3", "train.epochs"),
        ("model.llm.tunning=lora", "model.llm.tuning"),
        ("modle.llm.tuning=lora", "model.llm.tuning"),
        ("name.first=x", "name has no parts"),
        ("engine.deepspeed.zero_optimization.stage=3", "which is engine.zero here"),
        ('engine.deepspeed={"bf16": null}', "which is engine.precision here"),
        ("engine.deepspeed.zero_optimization=[1]", "must be a dictionary"),
        ("optim.lr_of.vision=-1", "greater than or equal to 0"),
        ("optim.eps=-1", "greater than 0"),
        ("optim.kind=AdamW", r"did you mean adamw\?"),
        ("model.decoding.seed=5", "no effect with model.decoding.sample=false: set model.decoding.sample=true"),
        ("train.epochs=0", "greater than or equal to 1"),
        ("train.epochs", "not an override"),
        ("engine.offload_parameters=true", "engine.zero=3"),
        ("name=a/b", "plain directory name"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_the_way_out(word, message):
    with pytest.raises(ConfigError, match=message):
        change(word)


@pytest.mark.parametrize("field", ["root", "data.shards", "train.init_from", "recipe"])
def test_a_text_with_a_nul_character_is_refused(field):
    with pytest.raises(ConfigError, match="holds a NUL character"):
        Run(name="a").change({field: "a\0b"})
    assert Run(name="a").change({"recipe": r"a\u0000b"}).recipe == r"a\u0000b"


@pytest.mark.parametrize(
    ("field", "path"), [("root", "~nobody-here/x"), ("data.shards", "~nobody-here/x"), ("train.init_from", "a" * 5000)]
)
def test_a_path_that_can_be_none_is_refused(field, path):
    with pytest.raises(ConfigError, match="a path of the run can be none"):
        Run(name="a").change({field: path}).absolute()


def test_impossible_batch_names_all_values_and_what_works():
    with pytest.raises(
        ConfigError, match="global batch 96 cannot be split over 5 workers × micro-batch 8: use a mul.* 40"
    ):
        change("train.global_batch=96", "train.workers=5", "train.micro_batch=8")
    with pytest.raises(ConfigError, match="train.micro_batch=6"):
        change("train.global_batch=12", "train.workers=2", "train.micro_batch=12")


def test_a_run_comes_back_from_its_file(tmp_path):
    run = change("train.steps=7", "tracking.parent=table")
    run.save(tmp_path / "run.json")
    assert load_run(tmp_path / "run.json") == run


@pytest.mark.parametrize("name", sorted(recipes()))
def test_every_recipe_is_a_run_that_says_what_it_is(name):
    run = find_recipe(name)
    assert run.recipe == name and run.train.accumulation >= 1
    assert len(recipes()[name].__doc__.strip()) > 20
    vision = getattr(run.model, "vision", None)
    assert vision is None or vision.tuning != "frozen" or "vision" not in run.optim.lr_of, "nothing of it is trained"


def test_paper_settings_of_r2gengpt():
    run = find_recipe("r2gengpt.deep_iu")
    assert (run.train.epochs, run.train.global_batch, run.optim.lr, run.optim.schedule) == (
        15,
        16,
        1e-4,
        "cosine_epoch",
    )
    assert (run.model.decoding.beams, run.model.decoding.length_penalty, run.model.decoding.repetition_penalty) == (
        3,
        2.0,
        2.0,
    )
    chexpert = find_recipe("r2gengpt.delta_chexpert_plus")
    assert (chexpert.train.epochs, chexpert.train.global_batch, chexpert.model.report_tokens) == (10, 6, 100)
    assert chexpert.model.vision.tuning == "lora"


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(ConfigError, match=r"did you mean r2gengpt\.deep_iu"):
        find_recipe("r2gengpt.dep_iu")
    with pytest.raises(ConfigError, match="cannot be imported"):
        find_recipe("nowhere.module:run")


def own_recipe() -> Run:
    return Run(name="mine")


def no_recipe() -> str:
    return "mine"


def test_a_recipe_may_be_given_by_module_and_function():
    assert find_recipe(f"{__name__}:own_recipe") == Run(name="mine", recipe=f"{__name__}:own_recipe")
    with pytest.raises(ConfigError, match="returned str, not a Run"):
        find_recipe(f"{__name__}:no_recipe")


def test_recipes_and_overrides_need_no_heavy_library():
    code = (
        "import sys, r2kg.recipes, r2kg.config.run, r2kg.config.overrides; r2kg.recipes.recipes(); "
        "print([name for name in ('torch', 'ray', 'transformers') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
