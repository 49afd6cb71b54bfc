# ruff: noqa: SIM905
"""Relations between the entities of a sentence, by what stands between them."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from r2kg.graph.extract import context
from r2kg.graph.schema import Certainty, Kind, RelationKind

FINDINGS: frozenset[Kind] = frozenset(("disorder", "device"))
MODIFIERS: frozenset[Kind] = frozenset(("concept", "size"))
FILLERS = frozenset(
    """
    a an the any this that these those its their his her some of is there are been be grossly relatively very again also
    now still currently only well otherwise readily clearly slightly size sized position appearance degree area areas
    amount amounts appearing definite visualized level portion aspect stably somewhat most more likely possibly probably
    contour caliber configuration course xxxx - /
    """.split()
)
"""Words without a say in what belongs to what; xxxx is a word that was taken out of a report."""
OF = frozenset(
    """
    of degree area areas amount amounts size sized appearing definite grossly relatively very again also now still
    somewhat most more likely well xxxx - /
    """.split()
)
"""What may stand between a concept and what it modifies."""
JOINED = FILLERS | frozenset(", and or nor as with no without to in but not".split())
"""What may stand between a verb and the concepts behind it."""
LISTED = frozenset(", a an the any and or nor no of definite / either evidence xxxx".split())
"""What may stand between the members of a list."""
BESIDE = frozenset(
    """
    in at of within throughout over from along behind involving overlying near on above below beneath into adjacent
    about around through across to under projecting overlies beyond toward towards inside against abutting affecting
    """.split()
)
"""Prepositions, and verbs that take their place."""
BEING = frozenset(
    """
    seen noted identified present visualized demonstrated appreciated projects project lies lie terminates terminate
    terminating extends extend extending located ends tip possible suspected visible evident placed positioned run runs
    parallel remains remain
    """.split()
)
COPULAS = frozenset(
    """
    is are was were appears appear remains remain seems has have looks be been demonstrates demonstrate shows show
    """.split()
)
SHOWN = frozenset("shows show demonstrates demonstrate reveals reveal contains contain free clear negative".split())
"""Verbs, and words that take their place, between an anatomy and what it shows or shows not."""
SUGGESTED = tuple(
    tuple(phrase.split())
    for phrase in """
    suggestive of; suggesting; suggests; suggest; consistent with; compatible with; concerning for; worrisome for;
    suspicious for; representing; represents; represent; in keeping with; reflecting; reflect; reflects; indicative of;
    indicating; indicates; diagnostic of; typical of
    """.split(";")
)


class Span(NamedTuple):
    """An entity at tokens [start, end) of its sentence."""

    start: int
    end: int
    name: str
    kind: Kind


Found = tuple[int, RelationKind, int, str]


def related(spans: Sequence[Span], words: Sequence[str], certain: Sequence[Certainty]) -> list[Found]:
    """(head, relation, tail, rule) between positions in `spans`, each once."""
    gaps = [words[a.end : b.start] for a, b in pairwise(spans)]
    found = [*modified_before(spans, gaps), *modified_bare(spans, words, gaps)]
    found += modified_behind(spans, words, {head for head, *_ in found})
    found += located(spans, words, gaps)
    found += suggested(spans, words, gaps, certain)
    return list({(head, kind, tail): (head, kind, tail, rule) for head, kind, tail, rule in reversed(found)}.values())[
        ::-1
    ]


def modified_before(spans: Sequence[Span], gaps: Sequence[Sequence[str]]) -> Iterator[Found]:
    """Concepts and sizes right before what they modify: "small linear opacity", "mild left base atelectasis"."""
    for number, span in enumerate(spans):
        if span.kind not in MODIFIERS:
            continue
        at = number
        while at + 1 < len(spans) and spans[at].kind in MODIFIERS:
            listed = {",", "and", "or", "to", "but"} if spans[at + 1].kind in MODIFIERS else set()
            if not (OF | listed).issuperset(gaps[at]):
                break
            at += 1
        if at == number or spans[at].kind in MODIFIERS:
            continue
        if spans[at].kind == "anatomy" and at + 1 < len(spans) and not gaps[at] and spans[at + 1].kind == "disorder":
            at += 1
        yield number, "modify", at, "before"


def modified_bare(spans: Sequence[Span], words: Sequence[str], gaps: Sequence[Sequence[str]]) -> Iterator[Found]:
    """A concept right behind its anatomy where no verb is said: "heart size normal", "osseous structures intact"."""
    for number, span in enumerate(spans[:-1]):
        after = spans[number + 1]
        if span.kind != "anatomy" or after.kind not in MODIFIERS or not OF.issuperset(gaps[number]):
            continue
        if context.VERBS.isdisjoint(words) and (after.end == len(words) or words[after.end] in ".,;and"):
            yield number + 1, "modify", number, "behind"


def modified_behind(spans: Sequence[Span], words: Sequence[str], taken: set[int]) -> Iterator[Found]:
    """Concepts behind a verb, of its subject: "lungs are clear", "effusion at the left base is unchanged"."""
    for number, span in enumerate(spans):
        if span.kind not in MODIFIERS or number in taken or not number:
            continue
        verb = next((at for at in range(span.start - 1, -1, -1) if words[at] in COPULAS), -1)
        between = words[verb + 1 : span.start]
        inside = [other for other in spans if verb < other.start < span.start]
        rest = set(between) - {word for other in inside for word in words[other.start : other.end]}
        if verb < 0 or any(other.kind not in MODIFIERS for other in inside) or not rest <= JOINED:
            continue
        while verb and words[verb - 1] in COPULAS:
            verb -= 1
        start = next((at + 1 for at in range(verb - 1, -1, -1) if clause_ends(at, words, verb)), 0)
        subjects = [k for k, other in enumerate(spans) if start <= other.start < verb and other.kind not in MODIFIERS]
        things = [k for k in subjects if spans[k].kind != "anatomy"]
        for subject in things or listed_from(subjects, spans, words):
            yield number, "modify", subject, "behind a verb"


def clause_ends(at: int, words: Sequence[str], verb: int) -> bool:
    """Whether the subject of a verb begins behind this word."""
    if words[at] in (";", ":", "but", "however"):
        return True
    return words[at] in context.COMMAS and not context.VERBS.isdisjoint(words[:at])


def listed_from(subjects: list[int], spans: Sequence[Span], words: Sequence[str]) -> list[int]:
    """The first of some anatomies and those listed with it: not the lung of "the apex of the left lung"."""
    kept = subjects[:1]
    for subject in subjects[1:]:
        if not (LISTED - {"of"}).issuperset(words[spans[kept[-1]].end : spans[subject].start]):
            break
        kept.append(subject)
    return kept


def located(spans: Sequence[Span], words: Sequence[str], gaps: Sequence[Sequence[str]]) -> Iterator[Found]:
    """Where disorders and devices are."""
    placed = dict[int, list[int]]()
    for number, span in enumerate(spans):
        if span.kind != "anatomy":
            continue
        before = next((k for k in range(number - 1, -1, -1) if spans[k].kind not in MODIFIERS), -1)
        if before >= 0 and spans[before].kind in FINDINGS and lies(words, spans, before, number):
            placed.setdefault(before, []).append(number)
        elif before >= 0 and spans[before].kind == "anatomy":  # a further one of a list: "in the left base and apex"
            for places in placed.values():
                if before in places and (LISTED | BESIDE - {"of"}).issuperset(gaps[before]):
                    places.append(number)
        behind = number + 1
        while behind < len(spans) and spans[behind].kind in MODIFIERS and not gaps[behind - 1]:
            behind += 1
        if behind < len(spans) and spans[behind].kind == "disorder" and set(gaps[behind - 1]) <= {"xxxx"}:
            placed.setdefault(behind, []).append(number)
    for number in list(placed):  # those listed before it lie there too
        at = number
        while at and at - 1 not in placed and spans[at - 1].kind in FINDINGS | MODIFIERS:
            if not LISTED.issuperset(gaps[at - 1]):
                break
            at -= 1
            if spans[at].kind in FINDINGS and not spans[number].start <= spans[at].start:
                placed[at] = placed[number]
    shown(spans, words, placed)
    for head, places in placed.items():
        for tail in places:
            yield head, "located_at", tail, "beside" if tail > head else "before"


def lies(words: Sequence[str], spans: Sequence[Span], head: int, tail: int) -> bool:
    """Whether what stands between a finding and an anatomy says that the one lies at the other."""
    inside = {at for k in range(head + 1, tail) for at in range(spans[k].start, spans[k].end)}
    between = [words[at] for at in range(spans[head].end, spans[tail].start) if at not in inside]
    if not between:
        return spans[head].kind == "disorder"  # "opacity left base"
    return not BESIDE.isdisjoint(between) and (FILLERS | BESIDE | BEING | {"and"}).issuperset(between)


def shown(spans: Sequence[Span], words: Sequence[str], placed: dict[int, list[int]]) -> None:
    """Add what an anatomy shows or is free of: "lungs are free of consolidation", "bones show no fracture"."""
    for number, span in enumerate(spans):
        if span.kind != "disorder" or number in placed:
            continue
        verb = next((at for at in range(span.start - 1, -1, -1) if words[at] in SHOWN), -1)
        places = [k for k in range(number) if spans[k].kind == "anatomy" and spans[k].end <= verb]
        inside = [k for k in range(number) if verb < spans[k].start]
        if verb < 0 or not places or any(spans[k].kind == "anatomy" for k in inside):
            continue
        if not (COPULAS | FILLERS | {"and"}).issuperset(
            word
            for at, word in enumerate(words[spans[places[-1]].end : verb], spans[places[-1]].end)
            if not any(other.start <= at < other.end for other in spans)
        ):
            continue
        rest = set(words[verb + 1 : span.start]) - {w for k in inside for w in words[spans[k].start : spans[k].end]}
        if rest <= LISTED | {"for", "neither", "from", "evidence"}:
            placed[number] = [places[-1]]


def suggested(
    spans: Sequence[Span], words: Sequence[str], gaps: Sequence[Sequence[str]], certain: Sequence[Certainty]
) -> Iterator[Found]:
    """A finding, a phrase such as "suggestive of", and the diseases listed behind it; what is absent suggests none."""
    for phrase in SUGGESTED:
        for at in range(len(words) - len(phrase) + 1):
            if tuple(words[at : at + len(phrase)]) != phrase:
                continue
            heads = [k for k, span in enumerate(spans) if span.kind == "disorder" and span.end <= at]
            tails = [k for k, span in enumerate(spans) if span.kind == "disorder" and span.start >= at + len(phrase)]
            if not heads or not tails or certain[heads[-1]] == "absent":
                continue
            listed = tails[:1]
            for k in tails[1:]:
                between = [word for gap in gaps[listed[-1] : k] for word in gap]
                if not LISTED.issuperset(between):
                    break
                listed.append(k)
            yield from ((heads[-1], "suggestive_of", tail, " ".join(phrase)) for tail in listed)
