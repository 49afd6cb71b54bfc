"""Ablations as code: named changes of a recipe, run one by one with `r2kg train ablation:RECIPE:NAME`.

A module of this package belongs to the system it is called after; of a system's name alone its first base is taken.
"""

import difflib
import importlib
import pkgutil
from typing import Any

from r2kg.config.run import Run
from r2kg.recipes import find_recipe
from shards.errors import ConfigError

PREFIX = "ablation:"


def ablations(system: str) -> dict[str, tuple[str, Any]]:
    """Name → (what it asks, in words; changes of the base recipe, or what makes them of it) of a system.

    Raises:
        ConfigError: the system has none; those that have are named.
    """
    known = [module.name for module in pkgutil.iter_modules(__path__)]
    if system not in known:
        raise ConfigError(f"no ablations of {system!r}: there are some of {', '.join(known)}")
    return importlib.import_module(f"{__name__}.{system}").ABLATIONS


def find_ablation(words: str) -> Run:
    """The run that ablation:RECIPE:NAME names, such as ablation:r2genkg.tiny:no-bank; its name and recipe say so.

    Raises:
        ConfigError: another form, no such recipe or ablation; the nearest are named.
    """
    recipe, colon, name = words.removeprefix(PREFIX).rpartition(":")
    if not colon:
        raise ConfigError(f"{words!r} is no ablation: say ablation:RECIPE:NAME, e.g. ablation:r2genkg.tiny:no-bank")
    system, dot, _ = recipe.partition(".")
    known = ablations(system)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(known)}"
        raise ConfigError(f"{system} has no ablation {name!r}; {hint}")
    base = find_recipe(recipe if dot else importlib.import_module(f"{__name__}.{system}").BASE)
    changes = known[name][1]
    changes = changes(base) if callable(changes) else changes
    try:
        return base.change({**changes, "name": f"{base.name}-{name}", "recipe": words})
    except ConfigError as error:
        raise ConfigError(f"{recipe} has not what the ablation {name} changes: {error}") from None
