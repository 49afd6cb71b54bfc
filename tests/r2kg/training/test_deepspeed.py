"""What users add to DeepSpeed's configuration goes in beside ours, and what has a field is refused by its name."""

import pytest

from r2kg.config.parts import OURS_IN_DEEPSPEED, Train
from r2kg.recipes import find_recipe
from r2kg.training.engine import deepspeed_config
from shards.errors import ConfigError


def test_extra_settings_are_merged_key_by_key():
    run = find_recipe("r2gengpt.tiny").change({"engine.zero": 3})
    extra = {"zero_optimization": {"reduce_bucket_size": 1000}, "wall_clock_breakdown": True}
    ours, theirs = deepspeed_config(run), deepspeed_config(run.change({"engine.deepspeed": extra}))
    assert theirs["zero_optimization"] == ours["zero_optimization"] | {"reduce_bucket_size": 1000}
    assert theirs == ours | {"zero_optimization": theirs["zero_optimization"], "wall_clock_breakdown": True}
    assert run.engine.deepspeed == {} and extra["zero_optimization"] == {"reduce_bucket_size": 1000}


@pytest.mark.parametrize("path", OURS_IN_DEEPSPEED)
def test_what_has_a_field_is_refused_and_the_field_named(path):
    run, extra = find_recipe("r2gengpt.tiny"), False
    for key in reversed(path.split(".")):
        extra = {key: extra}
    with pytest.raises(ConfigError, match=rf"engine\.deepspeed.*{path}, which is .*: set that instead") as refused:
        run.change({"engine.deepspeed": extra})
    for field in OURS_IN_DEEPSPEED[path].replace(" and ", ", ").split(", "):
        part, name = field.split(".")
        assert field in str(refused.value) and name in type(getattr(run, part)).model_fields


def test_compiled_models_are_not_partitioned():
    with pytest.raises(ConfigError, match=r"engine.compile=true needs engine.zero=0, 1 or 2, not 3"):
        find_recipe("r2gengpt.tiny").change({"engine.zero": 3, "engine.compile": True})


def test_patience_needs_a_validation_loss():
    with pytest.raises(ValueError, match=r"train.patience=2 needs a validation loss"):
        Train(patience=2, validation_studies=0)
