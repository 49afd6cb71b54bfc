"""Options that verbs share: what one means that is left out, and which have no effect beside others."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from r2kg.graph.schema import Extractor
from shards.errors import ConfigError


def given(**values: Any) -> dict[str, Any]:
    """Those that are on the command line: neither None nor "", nor an empty list, nor a switch that is off."""
    return {name: value for name, value in values.items() if not (value is None or value is False or value in ("", []))}


def refuse_idle(beside: str, words: Iterable[str]) -> None:
    """ConfigError for the first of these options, which were given and have no effect beside others.

    Args:
        beside: where they have none, e.g. "beside --classifier".
        words: names as parameters have them, such as `per_label`.
    """
    if options := [f"--{word.replace('_', '-')}" for word in words]:
        raise ConfigError(f"{', '.join(options)} would have no effect {beside}: leave out what is not meant")


def extractor_of(name: str, licence: str, asked: Mapping[str, Any], cache: str) -> Extractor:
    """The extractor of that name.

    Args:
        licence: of the reports that it is to read.
        asked: fields of it that were given: `model`, of llm `endpoint`, `allow` and more.
        cache: directory that llm keeps its answers in.

    Raises:
        ConfigError: an unknown name; a field that is lacking, unknown, or of another extractor.
    """
    if name not in ("rules", "llm", "ner-re"):
        raise ConfigError(f"--extractor {name}: known are rules, llm, ner-re")
    if name != "llm":
        idle = asked.keys() - ({"model"} if name == "ner-re" else set())
        refuse_idle(f"beside --extractor {name}", sorted("allow-host" if one == "allow" else one for one in idle))
    if name == "rules":
        from r2kg.graph.extract.rules import Rules

        return Rules()
    if name == "ner-re":
        if "model" not in asked:
            raise ConfigError("--extractor ner-re needs --model DIR, which `r2kg graph learn` wrote")
        from r2kg.graph.extract.ner_re import NerRe  # seconds of torch

        return NerRe.load(asked["model"])
    if not asked.keys() >= {"endpoint", "model"}:
        raise ConfigError("--extractor llm asks a server: give --endpoint, e.g. http://127.0.0.1:8000/v1, and --model")
    from r2kg.graph.extract.llm import LlmExtractor

    known = {field.name for field in fields(LlmExtractor) if field.init}
    if strange := sorted(asked.keys() - known):
        raise ConfigError(f"unknown field {strange[0]!r} of llm; known are {', '.join(sorted(known))}")
    return LlmExtractor(licence=licence, cache=cache, **{**asked, "allow": tuple(asked.get("allow", ()))})
