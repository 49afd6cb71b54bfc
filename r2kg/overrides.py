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
    node, names = tree, path.split(".")
    model: type[BaseModel] | None = whole
    for depth, name in enumerate(names):
        if model is not None and name not in model.model_fields:
            prefix = ".".join([*names[:depth], ""])
            near = difflib.get_close_matches(path, _all_keys(whole), n=3, cutoff=0.6)
            near += [prefix + n for n in difflib.get_close_matches(name, model.model_fields, n=2)]
            hint = f"; did you mean {', '.join(dict.fromkeys(near))}?" if near else ""
            raise ConfigError(
                f"unknown key {path!r}{hint} Keys at {prefix or 'the top'}: {', '.join(model.model_fields)}"
            )
        if depth == len(names) - 1:
            node[name] = value
            return
        if not isinstance(node.get(name), dict):
            raise ConfigError(f"unknown key {path!r}: {'.'.join(names[: depth + 1])} has no parts")
        part = model.model_fields[name].annotation if model else None
        model = part if isinstance(part, type) and issubclass(part, BaseModel) else None
        node = node[name]


def _all_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += _all_keys(field.annotation, f"{prefix}{name}.")
    return keys
