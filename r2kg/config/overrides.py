"""Words of the command line, key=value, as changes of a run's dotted fields."""

import difflib
import json
from typing import Any, get_args

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

    A part that is a tagged union is read as what its tag says; setting the tag puts the defaults of the newly named
    part in the old one's place.

    Raises:
        ConfigError: no such field (the nearest are named), or a field of a part that is switched off.
    """
    node, names = tree, path.split(".")
    model: type[BaseModel] | None = whole
    for depth, name in enumerate(names):
        here = ".".join(names[: depth + 1])
        if model is not None and name not in model.model_fields:
            prefix = here.removesuffix(name)
            near = difflib.get_close_matches(path, _all_keys(whole, tree), n=3, cutoff=0.6)
            near += [prefix + n for n in difflib.get_close_matches(name, model.model_fields, n=2)]
            hint = f"; did you mean {', '.join(dict.fromkeys(near))}?" if near else ""
            raise ConfigError(
                f"unknown key {path!r}{hint} Keys at {prefix or 'the top'}: {', '.join(model.model_fields)}"
            )
        if depth == len(names) - 1:
            if model is not None and depth and name in TAGS and node[name] != value:
                node.clear()
            node[name] = value
            return
        below = model.model_fields[name].annotation if model else None
        if node.get(name) is None and (options := _parts(below)):
            tag = next((key for key in TAGS if key in options[0].model_fields), "")
            kinds = (
                " or ".join(f"{here}={json.dumps({tag: part.model_fields[tag].default})}" for part in options)
                if tag
                else ""
            )
            raise ConfigError(f"{path!r}: {here} is switched off; switch it on with {kinds or f'{here}={{}}'}")
        if not isinstance(node.get(name), dict):
            raise ConfigError(f"unknown key {path!r}: {here} has no parts")
        node, model = node[name], _part(below, node[name])


TAGS = ("system", "kind")
"""Fields that say which member of a union a part is."""


def _parts(annotation: Any) -> list[type[BaseModel]]:
    """The models among an annotation's alternatives."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [part for argument in get_args(annotation) for part in _parts(argument)]


def _part(annotation: Any, node: dict) -> type[BaseModel] | None:
    """The model that `node` is a dump of; None for a plain dictionary."""
    options = _parts(annotation)
    for tag in TAGS:
        if tag in node and len(options) == 1 and hasattr(options[0], "named"):
            return options[0].named(node[tag])
        if tag in node and (named := [part for part in options if part.model_fields[tag].default == node[tag]]):
            return named[0]
    return options[0] if options else None


def _all_keys(model: type[BaseModel], node: dict, prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        inside = node.get(name)
        if isinstance(inside, dict) and (part := _part(field.annotation, inside)):
            keys += _all_keys(part, inside, f"{prefix}{name}.")
    return keys
