"""Triples as the text that a language model reads and writes, and back: `head , relation , tail ; head , ...`."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from shards.graphs.subgraph import Triple

VERSION = 2
"""Of the rules here: part of the hash of every protocol that compares triples."""
NOTHING = "none"
"""A study without triples."""
MAX_TEXT = 20_000
"""Characters of a generated text that are read."""
MAX_CHUNK = 1_000
"""Characters of a piece that can be a triple."""
_ANSWER = re.compile(r"##\s*response\s*:?")
_ENDS = re.compile(r"</s>|<\|(?:endoftext|eot_id|end_of_text|im_end)\|>")
_BULLET = re.compile(r"^\s*(?:[-*•]+|\d+[.)])\s+")
_RELATION = re.compile(r"[\s,|:(]+(located[_ ]at|suggestive[_ ]of|modif(?:y|ies))[\s,|:)]+")
_SEPARATORS = re.compile(r"[,;|\n\r]")
_WORD = re.compile(r"\w+|[^\w\s]")
_AROUND = " -*•()[]{}<>\"'`.:"


@dataclass(frozen=True)
class Reading:
    """What a text was read as."""

    triples: tuple[Triple, ...]
    """Each once, in the order of its first mention."""
    chunks: int
    """Pieces between semicolons and line ends."""
    rejected: int
    """Pieces that are no triple."""
    repeated: int
    """Pieces that say a triple again."""
    truncated: int = 0
    """1 where the last piece was left out, because the text broke off in it."""


def triples_text(triples: Iterable[Iterable[str]]) -> str:
    """The scoring string: lower case, blanks around punctuation, every triple once; "none" where there is none.

    `triples_in` reads back what is written here.
    """
    written = (normal_triple(*triple) for triple in triples)
    return " ; ".join(" , ".join(triple) for triple in dict.fromkeys(written) if all(triple)) or NOTHING


def normal_triple(head: str, relation: str, tail: str) -> Triple:
    """A triple as it is compared: separators and quotes gone, punctuation apart, "modifies" as modify."""
    first, last = (" ".join(_WORD.findall(_SEPARATORS.sub(" ", end.lower()))).strip(_AROUND) for end in (head, tail))
    name = "_".join(re.findall(r"[^\W_]+", relation.lower()))
    return first, {"modifies": "modify"}.get(name, name), last


def triples_in(text: str, truncated: bool = False) -> Reading:
    """The triples that a generated text says. Every text can be read; what is no triple is counted.

    Read are three fields between commas or bars, or a known relation between two names. What stands before a last
    "### Response:" and behind an end token is not read.

    Args:
        truncated: the writer was stopped at its length limit. A last piece that nothing ends may then lack words, and
            is left out also where it reads as a triple.
    """
    answer, *behind = _ENDS.split(_ANSWER.split(text[-MAX_TEXT:].lower())[-1], maxsplit=1)
    pieces = re.split(r"[;\n\r]", answer)
    broken = int(truncated and not behind and bool(pieces[-1].strip()))
    chunks = [chunk.strip() for chunk in pieces[: len(pieces) - broken] if chunk.strip()]
    if len(chunks) == 1 and chunks[0].strip(_AROUND) == NOTHING:
        return Reading((), broken, 0, 0, broken)
    found: dict[Triple, None] = {}
    said = 0
    for chunk in chunks:
        bare = _BULLET.sub("", " ".join(chunk.split()))
        fields = re.split(r"[,|]", bare)
        if len(fields) != 3 and len(bare) <= MAX_CHUNK:
            fields = _RELATION.split(bare, maxsplit=1)
        if len(fields) == 3 and len(bare) <= MAX_CHUNK and all(triple := normal_triple(*fields)):
            found[triple] = None
            said += 1
    return Reading(tuple(found), len(chunks) + broken, len(chunks) - said, said - len(found), broken)
