"""Recipes: functions that return a `Run`. `MODULE.NAME` of this package, or a user's own `their.module:function`."""

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable

from r2kg.config.run import Run
from shards.errors import ConfigError


def recipes() -> dict[str, Callable[[], Run]]:
    """Every recipe of this package by its name, e.g. "r2gengpt.deep_iu"."""
    by_name: dict[str, Callable[[], Run]] = {}
    for module in pkgutil.iter_modules(__path__):
        imported = importlib.import_module(f"{__name__}.{module.name}")
        for name, function in inspect.getmembers(imported, inspect.isfunction):
            own = function.__module__ == imported.__name__ and not name.startswith("_")
            if own and function.__annotations__.get("return") is Run:
                by_name[f"{module.name}.{name}"] = function
    return by_name


def find_recipe(name: str) -> Run:
    """Run of a recipe, whose name is kept in it.

    Raises:
        ConfigError: no such recipe; the nearest names are given.
    """
    if ":" in name:
        module_name, _, function_name = name.partition(":")
        try:
            run = getattr(importlib.import_module(module_name), function_name)()
        except ConfigError:
            raise
        except Exception as error:  # a module of one's own may raise anything
            cause = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise ConfigError(f"recipe {name!r} cannot be imported or made ({cause})") from error
        if not isinstance(run, Run):
            raise ConfigError(f"recipe {name!r} returned {type(run).__name__}, not a Run")
        return run.change({"recipe": name})
    known = recipes()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(known)}."
        raise ConfigError(f"unknown recipe {name!r}; {hint} A recipe of your own is their.module:function")
    return known[name]().change({"recipe": name})
