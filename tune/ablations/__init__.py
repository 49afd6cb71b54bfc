"""Ablations as code: named changes of a recipe, run one by one with `r2kg train ablation:RECIPE:NAME`.

A module of this package belongs to the system it is called after. RECIPE is any recipe of that system, one's own
their.module:function too; a system's name alone stands for its paper's recipe.
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
    if system not in _systems():
        raise ConfigError(f"no ablations of {system!r}: there are some of {', '.join(_systems())}")
    return importlib.import_module(f"{__name__}.{system}").ABLATIONS


def _systems() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(__path__)]


def find_ablation(words: str) -> Run:
    """The run that ablation:RECIPE:NAME names, such as ablation:r2genkg.tiny:no-bank; its name and recipe say so.

    Raises:
        ConfigError: another form, no such recipe or ablation; the nearest are named.
    """
    recipe, colon, name = words.removeprefix(PREFIX).rpartition(":")
    if not colon:
        raise ConfigError(f"{words!r} is no ablation: say ablation:RECIPE:NAME, e.g. ablation:r2genkg.tiny:no-bank")
    short = recipe in _systems()
    base = find_recipe(importlib.import_module(f"{__name__}.{recipe}").BASE if short else recipe)
    run = ablated(base, name).change({"recipe": words})
    if ablations(base.model.system)[name][1] and run.change({"name": base.name, "recipe": base.recipe}) == base:
        raise ConfigError(f"{recipe} is already what the ablation {name} would make of it: train the recipe itself")
    return run


def ablated(base: Run, name: str) -> Run:
    """What an ablation makes of a run, which may be the run itself; its name says so.

    Raises:
        ConfigError: its system has no such ablation (the nearest are named), or the run not what it changes.
    """
    known = ablations(base.model.system)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(known)}"
        raise ConfigError(f"{base.model.system} has no ablation {name!r}; {hint}")
    changes = known[name][1]
    try:
        changes = changes(base) if callable(changes) else changes
        return base.change({**changes, "name": f"{base.name}-{name}", "recipe": f"{PREFIX}{base.recipe}:{name}"})
    except ConfigError as error:
        raise ConfigError(f"{base.recipe} has not what the ablation {name} changes: {error}") from None
