"""What an extractor says of a report: entities of six kinds and three relations between them, each with its place.

The schema is M3KG's (R2GenKG, arXiv 2508.03426, Fig. 1), with a certainty for every entity, where ReXKG's finer labels
know present and not present only. Directions: modify goes from the modifier to what it modifies, located_at from the
finding to the anatomy, suggestive_of from the finding to the disease.
"""

import json
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

from shards.errors import DataError
from shards.study import refuse_bomb

Kind = Literal["concept", "anatomy", "disorder", "device", "procedure", "size"]
KINDS: tuple[Kind, ...] = ("concept", "anatomy", "disorder", "device", "procedure", "size")
RelationKind = Literal["modify", "located_at", "suggestive_of"]
RELATIONS: tuple[RelationKind, ...] = ("modify", "located_at", "suggestive_of")
FINDING_RELATIONS = ("same_organ", "co_occurs")
"""Of a finding graph (`r2kg.graph.build.findings`): undirected, and nothing that a report says."""
Certainty = Literal["present", "absent", "uncertain"]
CERTAINTIES: tuple[Certainty, ...] = ("present", "absent", "uncertain")


class Entity(NamedTuple):
    """One mention in a report."""

    start: int
    """First character in the report as it was given, from 0."""
    end: int
    """One behind the last."""
    sentence: int
    """Number of its sentence, from 0."""
    name: str
    """Lower case, single blanks; of a term with several spellings the first."""
    kind: Kind
    certainty: Certainty
    rule: str
    """What in the extractor found it; free text of a few words."""


class Relation(NamedTuple):
    """One statement about two entities of the same report."""

    head: int
    """Position in `Annotation.entities`."""
    kind: RelationKind
    tail: int
    rule: str
    """As for entities."""


class Annotation(NamedTuple):
    """All that an extractor says of one report."""

    entities: tuple[Entity, ...] = ()
    """By place in the report."""
    relations: tuple[Relation, ...] = ()

    def triples(self, *certainties: Certainty) -> tuple[tuple[str, str, str], ...]:
        """(head, relation, tail) by name, each once, of one of these certainties; of all where none is given."""
        entities = self.entities
        named = (
            (entities[r.head].name, r.kind, entities[r.tail].name)
            for r in self.relations
            if not certainties or self.certainty(r) in certainties
        )
        return tuple(dict.fromkeys(named))

    def certainty(self, relation: Relation) -> Certainty:
        """That of the less certain of its two ends: of "no left effusion" nothing is located at the left.

        A disease that is suggested is uncertain, the suggestion is not: it is as certain as its head.
        """
        if relation.kind == "suggestive_of":
            return self.entities[relation.head].certainty
        ends = {self.entities[relation.head].certainty, self.entities[relation.tail].certainty}
        return "absent" if "absent" in ends else "uncertain" if "uncertain" in ends else "present"


def pack(annotation: Annotation) -> bytes:
    """The annotation as JSON, a list an entity and a relation."""
    return json.dumps([annotation.entities, annotation.relations], ensure_ascii=False, separators=(",", ":")).encode()


def unpack(data: bytes | memoryview) -> Annotation:
    """What `pack` wrote, checked.

    Raises:
        DataError: no JSON of that shape, an unknown kind, a relation that points outside. It quotes nothing.
    """
    try:
        refuse_bomb(data)
        entities, relations = json.loads(str(data, "utf-8"))
        annotation = Annotation(tuple(Entity(*e) for e in entities), tuple(Relation(*r) for r in relations))
        for e in annotation.entities:
            whole = all(type(n) is int for n in e[:3]) and 0 <= e.start < e.end and e.sentence >= 0
            if not whole or e.kind not in KINDS or e.certainty not in CERTAINTIES:
                raise ValueError("an entity without place, kind or certainty")
            if not all(isinstance(text, str) for text in (e.name, e.rule)) or not e.name:
                raise ValueError("an entity without a name")
        for r in annotation.relations:
            inside = all(type(n) is int and 0 <= n < len(annotation.entities) for n in (r.head, r.tail))
            if not inside or r.kind not in RELATIONS or not isinstance(r.rule, str):
                raise ValueError("a relation of an unknown kind, or between what is not there")
    except (ValueError, TypeError, RecursionError) as error:
        what = str(error) if type(error) is ValueError else type(error).__name__
        raise DataError(f"an annotation is not readable: {what}") from None
    return annotation


class Extractor(Protocol):
    """What turns reports into annotations. It is made in the driver, and pickled into workers."""

    name: str
    """"rules", "llm" or "ner-re"."""

    def settings(self) -> dict[str, Any]:
        """What decides its answers, as JSON: versions, models, hashes. It is part of the graph's fingerprint."""
        ...

    def annotate(self, reports: Sequence[str]) -> list[Annotation]:
        """One annotation for every report, in order.

        Raises:
            DataError: a report for which no annotation can be had. A report without entities has an empty one.
            RetryableError: a server that does not answer.
        """
        ...
