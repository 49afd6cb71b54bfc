"""A sweep of two rows on a few drawn studies, as a process that can be killed: SHARDS LANGUAGE_MODEL ROOT."""

import sys
from pathlib import Path

from tune.plan import Sweep
from tune.report import write_table
from tune.rows import Row, Table
from tune.sweep import sweep

TABLE = Table(
    name="small",
    shows="whether a sweep goes on after a kill",
    recipes=("r2gengpt.tiny", "r2gengpt.tiny"),
    rows=(
        Row("adapters", paper=(0.1,)),
        Row("frozen | <b>", "frozen"),
        Row("the same again", "lora"),
    ),
    metrics=("bleu4",),
    others={"Another": (0.2,)},
    seeds=(1, 1),
)


def asked(shards: str, lm: str, root: str) -> Sweep:
    """The first three rows, of which two are one."""
    changes = {
        "data.shards": shards,
        "model.vision": {"name": "test_vit", "weights": "random", "image_px": 64},
        "model.llm.source": lm,
        "model.decoding.max_new_tokens": 8,
        "train.steps": 2,
        "train.workers": 1,
        "train.cpus_per_worker": 0.4,
        "train.validation_studies": 0,
    }
    return Sweep(TABLE, False, 1, ("adapters", "frozen", "lora"), Path(root), changes)


if __name__ == "__main__":
    whole = asked(*sys.argv[1:])
    sweep(whole)
    print(write_table(TABLE, whole.directory).markdown)
