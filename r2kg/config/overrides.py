"""Words of the command line, key=value, as changes of a run's dotted fields.

A part may be switched off (None), and it may be a tagged union: one of its fields, "system" or "kind", says which
member it is, and a new word there puts the new member's defaults in the old one's place.
"""

import difflib
import json
import re
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined, to_jsonable_python

from shards.errors import ConfigError

TAGS = ("system", "kind")
"""Fields that say which member of a union a part is."""


def parse_overrides(words: list[str]) -> dict[str, Any]:
    """Turn command line words key=value into changes; values are JSON where they parse, else text.

    Of a key given twice the last word counts.

    Raises:
        ConfigError: a word without key or '=', JSON that gives a key twice.
    """
    changes = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"{_brief(word)!r} is not an override: write key=value, e.g. train.epochs=3")

        def once(pairs: list[tuple[str, Any]], key: str = key) -> dict[str, Any]:
            if twice := [name for n, (name, _) in enumerate(pairs) if name in dict(pairs[:n])]:
                raise ConfigError(f"{_brief(key)}: the JSON says {_brief(twice[0])!r} twice; leave one of them out")
            return dict(pairs)

        try:
            changes[key] = json.loads(text, object_pairs_hook=once)
        except ConfigError:
            raise
        except ValueError:  # no JSON, or a number of thousands of digits
            changes[key] = {"True": True, "False": False, "None": None}.get(text, text)
        except RecursionError:
            raise ConfigError(f"{_brief(key)}: the JSON nests too deep") from None
    return changes


def assign(tree: dict, whole: type[BaseModel], path: str, value: Any) -> None:
    """Set the dotted field `path` of `tree`, a dump of the model `whole`.

    Raises:
        ConfigError: no such field (the nearest are named), a field of a part that is switched off or of another member
            of a union, a value that is no JSON or no part.
    """
    try:
        value = to_jsonable_python(value)
        json.dumps([path, value], allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{_brief(path)} takes JSON: finite numbers, text, lists, dictionaries ({_brief(str(error))})"
        ) from None
    node: Any = tree
    part: type[BaseModel] | None = whole
    tag, names = "", path.split(".")
    for depth, name in enumerate(names[:-1]):
        here = ".".join(names[: depth + 1])
        if not name or (part and name not in part.model_fields):
            raise ConfigError(unknown(whole, tree, path))
        field = part.model_fields[name] if part else None
        if field and name not in node:
            node[name] = _default(field)
        if field and node[name] is None and _parts(field.annotation):
            if names[depth + 1 :] != [_members(field.annotation, None)[0]]:  # its tag alone switches a union on
                raise ConfigError(unknown(whole, tree, path))
            node[name] = {}
        if (
            field
            and get_origin(field.annotation) is dict
            and not {Any, *_parts(field.annotation)} & {*get_args(field.annotation)}
        ):
            node[name][".".join(names[depth + 1 :])] = value  # a dictionary of plain values: its keys may have dots
            return
        if field is None and part is None and name not in node:
            node[name] = {}  # inside a dictionary of anything
        if not isinstance(node.get(name), dict):
            now = f": write {here}={_brief(json.dumps(node[name]))}" if name in node else ""
            raise ConfigError(f"unknown key {_brief(path)!r}: {_brief(here)} has no parts{now}")
        node = node[name]
        tag, _, part = _members(field.annotation if field else None, node)
    name = names[-1]
    if not name or (part and name not in part.model_fields):
        raise ConfigError(unknown(whole, tree, path))
    annotation = part.model_fields[name].annotation if part else None
    if _parts(annotation):
        now = node.get(name) if isinstance(node.get(name), dict) else {}
        below, members, current = _members(annotation, now)
        if isinstance(value, dict):
            value = ({below: now[below]} if below in now else {}) | value
        elif value is not None or type(None) not in get_args(annotation):
            inside = (current or next(iter(members.values()))).model_fields
            word = value if isinstance(value, str) else json.dumps(value)
            fit = [key for key, f in inside.items() if value is not None and type(f.default) is type(value)]
            hint = f"did you mean {path}.{fit[0]}={_brief(word)}?" if fit else f"change its keys {', '.join(inside)}"
            raise ConfigError(f"{path} is a part, not a value like {_brief(word)}; {hint}")
    if type(value) is int and str in (annotation, *get_args(annotation)) and int not in get_args(annotation):
        value = str(value)  # name=123 is a name
    if tag and name == tag and node.get(tag) != value:
        node.clear()
    node[name] = value


def unknown(whole: type[BaseModel], tree: dict, path: str) -> str:
    """The sentence on a key that a run does not have: what would bring it, or the nearest that there are."""
    keys, names = _keys(whole, tree), path.split(".")
    above = [".".join(names[:count]) for count in range(len(names), 0, -1)]
    if missing := next((key for key in above if keys.get(key)), None):
        words = keys[missing]
        name = words[0].partition("=")[0]
        if name.rpartition(".")[2] in TAGS:
            return f"unknown key {_brief(path)!r}: {missing} comes with {' or '.join(words[:3])}"
        return f"{_brief(path)!r}: {name} is switched off; switch it on with {' or '.join(words[:3])}"
    prefix = next((f"{key}." for key in above[1:] if any(other.startswith(f"{key}.") for other in keys)), "")
    inside = [key for key in keys if key.startswith(prefix) and "." not in key.removeprefix(prefix)]
    near = [key for key in keys if key.endswith(f".{path}")]
    near += difflib.get_close_matches(path[:200], keys, n=3, cutoff=0.85)
    if not near and prefix and path == prefix + names[-1]:
        leaves = [key.removeprefix(prefix) for key in inside]
        near = [prefix + leaf for leaf in difflib.get_close_matches(names[-1], leaves, n=3, cutoff=0.75)]
    if not near and (path != prefix + names[-1] or not prefix):
        near = difflib.get_close_matches(path[:200], keys, n=3, cutoff=0.7)
    near = [key for key in dict.fromkeys(near) if not names[-1] or key not in above]
    near = [key for key in near if not keys[key]] or near  # what is there comes before what would have to be brought
    if near:
        return f"unknown key {_brief(path)!r}; did you mean {', '.join(near[:4])}?"
    there = ", ".join(key.removeprefix(prefix) for key in inside if not keys[key])
    return f"unknown key {_brief(path)!r}; keys at {prefix or 'the top'}: {there}"


def explain(error: ValidationError, whole: type[BaseModel], tree: Any) -> str:
    """What pydantic found in `tree`, in one sentence that names the keys as a person writes them."""
    sentences = []
    for fault in error.errors(include_url=False):
        node, names, message = tree, [], fault["msg"].removeprefix("Value error, ")
        for name in fault["loc"]:
            if isinstance(node, dict) and name not in node and name in [node.get(tag) for tag in TAGS]:
                continue  # pydantic puts the tag between a union and its field
            names.append(str(name))
            node = node.get(name) if isinstance(node, dict) else None
        key, context = ".".join(names), fault.get("ctx", {})
        if fault["type"] == "extra_forbidden":
            sentences.append(unknown(whole, tree, key))
            continue
        if fault["type"] in ("literal_error", "union_tag_invalid"):
            expected = re.findall(r"'([^']*)'", str(context.get("expected", context.get("expected_tags", ""))))
            given = context.get("tag", fault["input"])
            near = [word for word in expected if isinstance(given, str) and word.lower() == given.lower()]
            near = near or difflib.get_close_matches(str(given), expected, n=1, cutoff=0.65)
            message = f"Input should be {' or '.join(expected) or context.get('expected')}, not {_brief(repr(given))}"
            message += f"; did you mean {near[0]}?" if near else ""
        if fault["type"] in ("tuple_type", "list_type"):
            message = f"Input should be a list, e.g. {_brief(json.dumps([fault['input']], default=str))}"
        if fault["type"] == "string_type" and isinstance(fault["input"], int | float):
            message = f"Input should be text: write {key}='\"{_brief(str(fault['input']))}\"'"
        if fault["type"].startswith("union_tag"):
            key += f".{context['discriminator'].strip(chr(39))}"
            message = message if "tag" in context else "say which member of the union the part is"
        sentences.append(_brief(f"{_brief(key) or 'run'}: {message}", 280))
    more = [f"and {len(sentences) - 2} more"] if len(sentences) > 3 else sentences[2:]
    return " ".join("; ".join(sentences[:2] + more).split())[:600]


def _parts(annotation: Any) -> list[type[BaseModel]]:
    """The models among an annotation's alternatives."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    alternatives = get_args(annotation) if get_origin(annotation) in (Union, UnionType, Annotated) else ()
    return [part for alternative in alternatives for part in _parts(alternative)]


def _members(annotation: Any, node: Any) -> tuple[str, dict[str, type[BaseModel]], type[BaseModel] | None]:
    """Of a field that is a part: its tag, its members by what the tag says, and the one that `node` is a dump of.

    A part that is no union has no tag and the one member "".
    """
    parts: list[Any] = _parts(annotation)
    if not parts:
        return "", {}, None
    if hasattr(parts[0], "named"):
        tag, members = "system", {name: parts[0].named(name) for name in parts[0].known}
    else:
        tag = next((tag for tag in TAGS if parts[1:] and tag in parts[0].model_fields), "")
        members = {name: part for part in parts if tag for name in get_args(part.model_fields[tag].annotation)}
    if not tag:
        return "", {"": parts[0]}, parts[0]
    named = node.get(tag) if isinstance(node, dict) else None
    if tag == "system" and named is not None and named not in list(members):
        members[str(named)] = parts[0].named(str(named))
    return tag, members, next((part for name, part in members.items() if name == str(named)), None)


def _keys(part: type[BaseModel], node: dict, prefix: str = "", needs: tuple[str, ...] = ()) -> dict[str, list[str]]:
    """Every dotted key of a part → the words that would bring it; none for those that are there."""
    keys: dict[str, list[str]] = {}
    for name, field in part.model_fields.items():
        here = prefix + name
        keys[here] = list(needs)
        inside = node.get(name, _default(field))
        tag, members, current = _members(field.annotation, inside)
        for value, member in members.items():
            if isinstance(inside, dict) and member is current:
                below = _keys(member, inside, f"{here}.", needs)
            elif needs:
                continue
            else:
                below = _keys(member, {}, f"{here}.", (f"{here}.{tag}={value}" if tag else f"{here}={{}}",))
            for key, words in below.items():
                keys[key] = [] if not words or keys.get(key) == [] else keys.get(key, []) + words
    return keys


def _default(field: Any) -> Any:
    """The dump of a field's default; of a part that has to be given, an empty one."""
    default = field.get_default(call_default_factory=True)
    return {} if default is PydanticUndefined else to_jsonable_python(default, fallback=str)


def _brief(text: str, most: int = 80) -> str:
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= most else f"{text[: most - 3]}..."
