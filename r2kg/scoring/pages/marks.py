"""What two texts of a study say, side by side: findings in both, in one alone, and those that are denied.

A finding is what an answer is made of: in a report a disorder or device that the extractor `rules` reads, with its
place in the text; in a list of triples a triple; in a list of labels a name. Names are compared, neither sides nor
places: a left effusion and a right one are both "pleural effusion". What is said with doubt counts as said. A name that
a text both says and denies is said.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from r2kg.config.protocol import Task
from r2kg.graph.schema import Annotation, Certainty
from r2kg.scoring.metrics.triples import agreement
from shards.graphs.text import triples_in

MAX_READ = 10_000
"""Characters of a text that are read for findings, and shown: real reports have a few thousand, and what is one
sentence of 100,000 characters takes the extractor half a minute."""
FINDING_KINDS = ("disorder", "device")
"""Kinds of entities (`r2kg.graph.schema`) that are findings."""
CONTROLS = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]"
    "|[\U000e0000-\U000e007f]"
)
"""Characters that cannot be seen or that turn the direction of what follows; a page names them."""


class Mention(NamedTuple):
    """A finding at characters [start, end) of a text."""

    start: int
    end: int
    name: str
    certainty: Certainty


class Compared(NamedTuple):
    """Findings of a study by name, in the order of their first mention."""

    hit: tuple[str, ...]
    """In both texts."""
    missed: tuple[str, ...]
    """In the reference alone."""
    invented: tuple[str, ...]
    """In the prediction alone."""
    denied: tuple[str, ...]
    """Said in neither, denied in one or both."""

    @property
    def f1(self) -> float:
        """Of hit, missed and invented findings, 0..1; two texts without any agree (1)."""
        hits = len(self.hit)
        return agreement(hits, hits + len(self.invented), hits + len(self.missed))[2]


class Piece(NamedTuple):
    """A part of a text as it is shown."""

    text: str
    kind: str
    """Its style: "" for what is no finding, else hit, missed, invented or denied; "against" and "doubt" may follow."""
    title: str
    """A sentence on the finding; "" for what is none."""


def mentions_of(task: Task, text: str, annotation: Annotation, truncated: bool = False) -> list[Mention]:
    """The findings of a text, in its order.

    Args:
        annotation: of a report, what the extractor says; not looked at for triples and labels.
        truncated: the text broke off, as for `triples_in`.
    """
    if task == "labels":
        parts = [(found, " ".join(found[0].split())) for found in re.finditer(r"[^,\s](?:[^,]*[^,\s])?", text)]
        return [Mention(found.start(), found.end(), name, "present") for found, name in parts]
    if task == "triples":
        whole, said = {*triples_in(text, truncated).triples}, list[Mention]()
        for found in re.finditer(r"[^;\s](?:[^;\n\r]*[^;\s])?", text):
            triples = triples_in(found[0]).triples
            if triples and triples[0] in whole:
                said.append(Mention(found.start(), found.end(), " ".join(triples[0]), "present"))
        return said
    entities = annotation.entities
    said = [Mention(e.start, e.end, e.name, e.certainty) for e in entities if e.kind in FINDING_KINDS]
    for relation in annotation.relations:  # "the heart is enlarged" is no phrase of the lexicon
        head, tail = entities[relation.head], entities[relation.tail]
        if relation.kind == "modify" and (head.name, tail.name) == ("enlarged", "heart"):
            said.append(Mention(head.start, head.end, "cardiomegaly", head.certainty))
    return sorted(said)


def compared(reference: Sequence[Mention], prediction: Sequence[Mention]) -> Compared:
    """Which findings are hit, missed, invented or denied."""
    given, said = (
        dict.fromkeys(one.name for one in side if one.certainty != "absent") for side in (reference, prediction)
    )
    denied = dict.fromkeys(one.name for one in [*reference, *prediction] if one.certainty == "absent")
    return Compared(
        tuple(name for name in given if name in said),
        tuple(name for name in given if name not in said),
        tuple(name for name in said if name not in given),
        tuple(name for name in denied if name not in given and name not in said),
    )


def pieces_of(text: str, own: Sequence[Mention], other: Sequence[Mention], of_reference: bool) -> list[Piece]:
    """A text cut at its findings, each with its style: what is put together again is the text's first `MAX_READ`.

    Args:
        own: findings of this text.
        other: those of the study's other text.
        of_reference: this text is the reference, so that what it alone says is missed, else invented.
    """
    there = "the generated answer" if of_reference else "the reference"
    theirs = {name: [one.certainty for one in other if one.name == name] for name in {one.name for one in own}}
    cut, end = list[Piece](), 0
    text = text[:MAX_READ]
    for one in own:
        if one.start < end or one.end > len(text):
            continue
        elsewhere = theirs[one.name]
        said = any(certainty != "absent" for certainty in elsewhere)
        kind, title = ("missed" if of_reference else "invented"), f"{one.name}: {there} does not say it"
        if one.certainty == "absent":
            kind, title = "denied", f"{one.name}, denied here"
            title += f"; {there} " + ("says it" if said else "denies it too" if elsewhere else "does not speak of it")
            kind += " against" if said else ""
        elif said:
            kind, title = "hit", f"{one.name}: in both"
        elif elsewhere:
            title = f"{one.name}: {there} denies it"
        if one.certainty == "uncertain":
            kind, title = f"{kind} doubt", f"{title}; said with doubt here"
        cut += [Piece(text[end : one.start], "", ""), Piece(text[one.start : one.end], kind, title)]
        end = one.end
    return [piece for piece in [*cut, Piece(text[end:], "", "")] if piece.text]


def shown(text: str) -> str:
    """The text with characters that cannot be seen, or that turn its direction, named as ⟨U+202E⟩."""
    return CONTROLS.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)
