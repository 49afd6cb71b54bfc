"""r2kg: knowledge-graph radiology report generators, one data path, one training loop, one evaluation.

From Python: `find_recipe` or `load_run` give a `Run`; `train` it, `generate` its reports on a split, `evaluate` them;
`report` is for films at hand. Each is imported when it is first used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
STACK = ("torch", "ray", "deepspeed", "transformers", "peft", "timm", "mlflow")
"""Packages whose versions decide what a run does."""
WHERE = {
    "find_recipe": "r2kg.recipes:find_recipe",
    "load_run": "r2kg.rundir:saved_run",
    "train": "r2kg.scoring.choose:train",
    "generate": "r2kg.scoring.generate:generate",
    "evaluate": "r2kg.scoring.evaluate:evaluate",
    "report": "r2kg.scoring.report:report",
}
__all__ = ["__version__", *WHERE]


def __getattr__(name: str) -> Any:
    if name not in WHERE:
        raise AttributeError(f"module 'r2kg' has no attribute {name!r}: it has {', '.join(WHERE)}")
    module, _, attribute = WHERE[name].partition(":")
    return getattr(import_module(module), attribute)
