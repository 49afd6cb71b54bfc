"""What one study's annotation, or its triples, says, in the names that the graph has."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

from r2kg.graph.extract.lexicon import spellings
from r2kg.graph.schema import CERTAINTIES, Certainty, Kind, unpack
from shards.graphs.radgraph import STATUS
from shards.graphs.subgraph import Triple

SHORTEST = 3
"""Letters of the shorter part of a glued word."""
ROLES: dict[str, tuple[tuple[int, Kind], tuple[int, Kind]]] = {
    "located_at": ((0, "disorder"), (0, "anatomy")),
    "suggestive_of": ((0, "disorder"), (0, "disorder")),
    "modify": ((1, "concept"), (2, "disorder")),
}
"""Relation → (rank, kind) of a head and of a tail that the lexicon does not know; the lowest rank in a study tells."""
OF_TRIPLES = "triple"
"""What found a statement that was given as a triple: it has no place in the report."""


class Statement(NamedTuple):
    """One relation as it was said in one report."""

    head: str
    relation: str
    tail: str
    certainty: Certainty
    study: str
    sentence: int | None
    start: int | None
    end: int | None
    rule: str


class Said(NamedTuple):
    """What the annotations of some studies say."""

    mentions: Counter[tuple[str, str, str]]
    """(name, kind, certainty) → how often."""
    statements: list[Statement]
    unused: int = 0
    """Triples of relations that the schema has not."""


def add(said: Said, study: str, data: bytes | memoryview) -> None:
    """Add what one packed annotation says, its names made alike."""
    annotation = unpack(data)
    entities = [entity._replace(name=alike(entity.name)) for entity in annotation.entities]
    said.mentions.update((entity.name, entity.kind, entity.certainty) for entity in entities)
    for relation in annotation.relations:
        head, tail = entities[relation.head], entities[relation.tail]
        said.statements.append(
            Statement(
                head.name,
                relation.kind,
                tail.name,
                annotation.certainty(relation),
                study,
                head.sentence,
                min(head.start, tail.start),
                max(head.end, tail.end),
                relation.rule,
            )
        )


def add_triples(said: Said, study: str, triples: Iterable[Triple]) -> int:
    """Add what the triples of one study say, its names made alike; returns how many are of relations unknown here.

    The lexicon tells the kind of a name, else its role in the study's relations. A name counts once a study. Triples
    of the relation status tell certainties (`shards.graphs.radgraph.flattened`); a name without is present.
    """
    kinds, stated = defaultdict[str, list[tuple[int, Kind]]](list), defaultdict[str, set[str]](set)
    relations, unused = dict[Triple, None](), 0
    for head, relation, tail in triples:
        if relation == STATUS and tail in CERTAINTIES:
            stated[alike(head)].add(tail)
            kinds[alike(head)].append((3, "disorder"))
        elif relation in ROLES:
            names = alike(head), alike(tail)
            relations[names[0], relation, names[1]] = None
            for name, role in zip(names, ROLES[relation], strict=True):
                kinds[name].append(role)
        else:
            unused += 1

    def certainty(*names: str) -> Certainty:
        of = [next((c for c in CERTAINTIES if c in stated[name]), "present") for name in names]  # the first is present
        return "absent" if "absent" in of else "uncertain" if "uncertain" in of else "present"

    for name, roles in kinds.items():
        kind = spellings()[name][1] if name in spellings() else min(roles)[1]
        said.mentions[name, kind, certainty(name)] += 1
    for head, relation, tail in relations:
        ends = (head,) if relation == "suggestive_of" else (head, tail)
        statement = Statement(head, relation, tail, certainty(*ends), study, None, None, None, OF_TRIPLES)
        said.statements.append(statement)
    return unused


@cache
def alike(name: str) -> str:
    """The name that all spellings of an entity have in the graph: the lexicon's, words that were glued taken apart."""
    known = spellings()
    name = " ".join(name.lower().split())
    if name not in known:
        name = " ".join(unglued(word) for word in name.split())
    return known[name][0] if name in known else name


@cache
def words() -> frozenset[str]:
    """The words of the lexicon."""
    return frozenset(word for spelling in spellings() for word in spelling.split())


def unglued(word: str) -> str:
    """Two words of the lexicon that stand without a blank ("pleuraleffusion"), with it; any other word as it is."""
    if word in words():
        return word
    cuts = range(SHORTEST, len(word) - SHORTEST + 1)
    return next((f"{word[:at]} {word[at:]}" for at in cuts if {word[:at], word[at:]} <= words()), word)
