"""Words of the command line, key=value, as changes of a run's dotted fields."""

import difflib
import json
from typing import Any

from pydantic import BaseModel

from shards.errors import ConfigError


def parse_overrides(words: list[str]) -> dict[str, Any]:
    """Turn command line words key=value into changes; values are JSON where they parse, else text.

    Raises:
        ConfigError: a word without '='.
    """
    changes = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise ConfigError(f"{word!r} is not an override: write key=value, e.g. train.epochs=3")
        try:
            changes[key] = json.loads(text)
        except json.JSONDecodeError:
            changes[key] = {"True": True, "False": False, "None": None}.get(text, text)
    return changes


def assign(tree: dict, whole: type[BaseModel], path: str, value: Any) -> None:
    """Set the dotted field `path` of `tree`, a dump of the model `whole`.

    Raises:
        ConfigError: no such field; the nearest are named.
    """
    *parents, leaf = path.split(".")
    node, model, seen = tree, whole, []
    for name in parents:
        _check_key(whole, model, name, seen, path)
        seen.append(name)
        model = model.model_fields[name].annotation if model else None
        model = model if isinstance(model, type) and issubclass(model, BaseModel) else None
        if not isinstance(node[name], dict):
            raise ConfigError(f"unknown key {path!r}: {'.'.join(seen)} has no parts")
        node = node[name]
    _check_key(whole, model, leaf, seen, path)
    node[leaf] = value


def _check_key(whole: type[BaseModel], model: type[BaseModel] | None, name: str, seen: list[str], path: str) -> None:
    if model is None or name in model.model_fields:
        return
    prefix = ".".join([*seen, ""])
    near = difflib.get_close_matches(path, _all_keys(whole), n=3, cutoff=0.6)
    near += [prefix + n for n in difflib.get_close_matches(name, model.model_fields, n=2)]
    hint = f"; did you mean {', '.join(dict.fromkeys(near))}?" if near else ""
    raise ConfigError(f"unknown key {path!r}{hint} Keys at {prefix or 'the top'}: {', '.join(model.model_fields)}")


def _all_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += _all_keys(field.annotation, f"{prefix}{name}.")
    return keys
