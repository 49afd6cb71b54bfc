"""Recipes: functions that return a `Run`. `MODULE.NAME` of this package, or a user's own `their.module:function`."""

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable

from r2kg.config import Run
from shards.errors import ConfigError


def recipes() -> dict[str, Callable[[], Run]]:
    """Every recipe of this package by its name, e.g. "r2gengpt.deep_iu"."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        for name, function in inspect.getmembers(importlib.import_module(f"{__name__}.{module.name}"), _is_recipe):
            if function.__module__.endswith(f".{module.name}"):
                found[f"{module.name}.{name}"] = function
    return found


def find_recipe(name: str) -> Run:
    """Run of a recipe.

    Raises:
        ConfigError: no such recipe; the nearest names are given.
    """
    if ":" in name:
        return _own(name)
    known = recipes()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(known)}."
        raise ConfigError(f"unknown recipe {name!r}; {hint} A recipe of your own is their.module:function")
    return known[name]().change({"recipe": name})


def _own(name: str) -> Run:
    module, _, function = name.partition(":")
    try:
        run = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"recipe {name!r} cannot be imported: {error}") from error
    if not isinstance(run, Run):
        raise ConfigError(f"recipe {name!r} returned {type(run).__name__}, not a Run")
    return run.change({"recipe": name})


def _is_recipe(member: object) -> bool:
    return (
        inspect.isfunction(member)
        and not member.__name__.startswith("_")
        and member.__annotations__.get("return") is Run
    )
