"""Files of RadGraph: entities and relations of reports, as version 1 (Jain et al. 2021) and XL (2024) write them.

A file is one JSON object, document → {"text", "entities": {"1": {"tokens", "label", "start_ix", "end_ix", "relations":
[[relation, "2"], ...]}, ...}}. Places are words of the text, the last one included. Documents of the test set have
"labeler_1" and "labeler_2", each with its own "entities". Errors name a document by its number: its name tells who the
patient is.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from io import TextIOWrapper
from json import JSONDecodeError, JSONDecoder
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from shards.errors import ConfigError, DataError
from shards.graphs.subgraph import Triple
from shards.tars.place import Place, place

MAX_DOCUMENT = 4_000_000
"""Characters of one document."""
CHUNK = 1 << 20
LABELS = {"ANAT-DP": ("anatomy", "present"), "OBS-DP": ("observation", "present")}
LABELS |= {"OBS-U": ("observation", "uncertain"), "OBS-DA": ("observation", "absent")}
for _kind in ("Anatomy", "Observation"):
    for _words in ("definitely present", "definitely absent", "uncertain"):
        LABELS[f"{_kind}::{_words}"] = _kind.lower(), _words.split()[-1]
        LABELS[f"{_kind}::measurement::{_words}"] = "measurement", _words.split()[-1]
STATUS = "status"
"""Relation of a name to "absent", "uncertain" or "present"."""
Annotator = Literal["labeler_1", "labeler_2", "merge"]
_BLANK = re.compile(r"\s*")


class Mention(NamedTuple):
    """One entity of a document."""

    number: str
    """Its name in the file."""
    tokens: str
    """Its words, as they are written."""
    kind: str
    """anatomy, observation or measurement."""
    certainty: str
    """present, absent or uncertain."""
    first: int
    """Its first word in the text, from 0."""
    last: int
    """Its last word."""


class Document(NamedTuple):
    """What one annotator says of one report."""

    number: int
    """Of the document in the file, from 1."""
    name: str
    text: str
    entities: tuple[Mention, ...]
    """By place in the report."""
    relations: tuple[tuple[int, str, int], ...]
    """(head, relation, tail): positions in `entities`. None is of an entity to itself."""


class _Heard(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, hide_input_in_errors=True)


class _Entity(_Heard):
    tokens: str
    label: str
    start_ix: int
    end_ix: int
    relations: list[Annotated[tuple[Literal["modify", "located_at", "suggestive_of"], str], Field(strict=False)]]

    @field_validator("label")
    @classmethod
    def _label_is_known(cls, label: str) -> str:
        if label not in LABELS:
            raise ValueError(f"it is none of {', '.join(LABELS)}")
        return label


class _Labels(_Heard):
    entities: dict[str, _Entity]


class _Report(_Heard):
    text: str
    entities: dict[str, _Entity] | None = None
    labeler_1: _Labels | None = None
    labeler_2: _Labels | None = None


FIELDS = {*_Report.model_fields, *_Entity.model_fields}


def documents_in(path: str | Place, annotator: Annotator = "labeler_1") -> Iterator[Document]:
    """All documents of a file, one in memory at a time.

    Args:
        annotator: whose annotations are taken where a document has those of two; "merge": both, one `Document` each.

    Raises:
        ConfigError: no such file.
        DataError: no such JSON, an unknown label, a relation to none, a document without annotations of that annotator.
    """
    number = 0
    try:
        for name, value in members_of(place(path)):
            number += 1
            report = _Report.model_validate(value)
            apart = [report.labeler_1] if annotator == "labeler_1" else [report.labeler_2]
            apart = [report.labeler_1, report.labeler_2] if annotator == "merge" else apart
            said = [labels.entities for labels in apart if labels] if report.entities is None else [report.entities]
            if not said:
                whose = "anybody" if annotator == "merge" else annotator
                raise ValueError(f"it has neither entities nor those of {whose}")
            for entities in said:
                yield _document(number, name, report.text, entities)
    except (OSError, ValueError, RecursionError) as error:
        kind = ConfigError if isinstance(error, FileNotFoundError) else DataError
        where = f"{path}, document {number}" if number else str(path)
        raise kind(f"{where}: no RadGraph that can be read: {_why(error)}") from None


def _document(number: int, name: str, text: str, said: dict[str, _Entity]) -> Document:
    order = sorted(said, key=lambda key: (said[key].start_ix, said[key].end_ix))
    at = {key: position for position, key in enumerate(order)}
    relations = dict[tuple[int, str, int], None]()
    for key in said:
        for relation, tail in said[key].relations:
            if tail not in at:
                raise ValueError(f"entity {_shown(key)} has a relation to {_shown(tail)}, which is none")
            if tail != key:
                relations[at[key], relation, at[tail]] = None
    entities = []
    for key in order:
        one = said[key]
        if not 0 <= one.start_ix <= one.end_ix or not one.tokens.strip():
            raise ValueError(f"entity {_shown(key)} has no words, or no place")
        entities.append(Mention(key, one.tokens, *LABELS[one.label], one.start_ix, one.end_ix))
    return Document(number, name, text, tuple(entities), tuple(relations))


def members_of(path: Place) -> Iterator[tuple[str, Any]]:
    """(name, value) of the JSON object that a file is, a member in memory at a time, so that a file may be of any size.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such object, or a member is longer than `MAX_DOCUMENT`; nothing of it is quoted.
    """
    decode, text, at, ended = JSONDecoder().raw_decode, "", 0, False
    with path.open("rb") as raw, TextIOWrapper(raw, "utf-8-sig") as file:

        def read(signs: str = "") -> Any:
            """Whichever of the signs comes next, or without signs the JSON value that does."""
            nonlocal text, at, ended
            while True:
                at = _BLANK.match(text, at).end()  # type: ignore[union-attr]  # it matches always
                if at < len(text) and signs:
                    at += 1
                    return text[at - 1] if text[at - 1] in signs else None
                if ended and signs:
                    return ""
                with suppress(JSONDecodeError):
                    value, end = decode(text, at)
                    if end < len(text) or ended:
                        at = end
                        return value
                if ended or len(text) - at > MAX_DOCUMENT:
                    raise ValueError("it is cut short, no JSON, or larger than a report's can be")
                more = file.read(CHUNK)
                text, at, ended = text[at:] + more, 0, not more

        if read("{") != "{":
            raise ValueError("it is no JSON object")
        sign = read('"}')
        while sign == '"':
            at -= 1
            name = read()
            if read(":") != ":":
                raise ValueError("it is cut short, or no JSON")
            yield name, read()
            if (sign := read(",}")) == "," and (sign := read('"')) != '"':
                raise ValueError("it is cut short, or no JSON")
        if sign != "}" or read("}") != "":
            raise ValueError("it is cut short, or more than one JSON object")


def flattened(
    entities: Sequence[tuple[str, str]],
    relations: Iterable[tuple[int, str, int]],
    status: bool = False,
    isolated: bool = False,
) -> tuple[Triple, ...]:
    """The triples that entities and relations are, each once, by the places of head and tail.

    Without options these are the relations alone, as in the papers: of "no pneumothorax" nothing is left, of "no left
    effusion" that effusion is at the left.

    Args:
        entities: (name, certainty) by place in the report.
        relations: (head, relation, tail), positions in `entities`.
        status: say (name, status, absent) and (name, status, uncertain) of the heads and tails that are. A name has no
            status where it is present only; one that is denied here and there not has both.
        isolated: say (name, status, certainty) of entities without any relation.
    """
    tails: dict[int, list[tuple[str, int]]] = {}
    for head, relation, tail in relations:
        tails.setdefault(head, []).append((relation, tail))
    joined = {*tails, *(tail for of in tails.values() for _, tail in of)}
    doubtful = {name for name, certainty in entities if certainty != "present"}
    triples = dict[Triple, None]()
    for at, (name, certainty) in enumerate(entities):
        for relation, tail in sorted(tails.get(at, ())):
            triples[name, relation, entities[tail][0]] = None
        if (isolated and at not in joined) or (status and at in joined and name in doubtful):
            triples[name, STATUS, certainty] = None
    return tuple(triples)


def _shown(name: str) -> str:
    """The name of an entity, which is a number; what else stands there is not quoted."""
    return f"'{name}'" if name.isdecimal() and len(name) < 9 else "one whose name is no number"


def _why(error: Exception) -> str:
    """What is wrong, and where in the document; nothing of the document is quoted."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_input=False, include_url=False)[0]
    parts = (str(part) for part in first["loc"])
    where = ".".join(part if part in FIELDS or (part.isdecimal() and len(part) < 9) else "?" for part in parts)
    return f"{where or 'the whole'}: {first['msg']}"
