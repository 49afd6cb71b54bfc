"""The rules extractor: a lexicon, ConText and rules on what stands between two entities. Offline, no weights.

Entities are phrases of the lexicon; an anatomy takes the side and level before it into its name. Relations:

* modify: a concept before its head ("small effusion"), or behind it and a verb ("lungs are clear");
* located_at: a disorder or device, a preposition, an anatomy; an anatomy right before a disorder ("rib fracture"); an
  anatomy that shows, or is free of, a disorder;
* suggestive_of: a disorder, a phrase such as "suggestive of", a disorder.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from typing import Any

from r2kg.graph.extract import context, lexicon
from r2kg.graph.extract.relate import Span, related
from r2kg.graph.schema import Annotation, Certainty, Entity, Relation

VERSION = 1
SIDES = {"left": "left", "right": "right", "both": "both", "bilateral": "both", "either": "both"}
LEVELS = {
    **{level: level for level in ("upper", "lower", "middle", "lateral", "medial", "anterior", "posterior", "apical")},
    **{"mid": "middle", "basal": "basal", "basilar": "basal", "central": "central", "peripheral": "peripheral"},
}
MANY = {"apex": "apices", "hilum": "hila", "bronchus": "bronchi", "vertebra": "vertebrae", "atrium": "atria"}
SPACE = re.compile(r"\s+")
SIZE = re.compile(r"\b\d+(?:\.\d+)?(?: ?(?:x|by) ?\d+(?:\.\d+)?)*[ -]?(?:mm|cm|millimeters?|centimeters?)\b", re.I)


@dataclass
class Rules:
    """An `Extractor`: the same text is always the same annotation."""

    name: str = field(default="rules", init=False)

    def settings(self) -> dict[str, Any]:
        """Version of the rules, hash of lexicon and cues."""
        data = repr((VERSION, sorted(lexicon.spellings().items()), sorted(context.phrases().items())))
        return {"version": VERSION, "words": sha256(data.encode()).hexdigest()[:16]}

    def annotate(self, reports: Sequence[str]) -> list[Annotation]:
        """One annotation for every report; none is refused."""
        return [self._annotate(report) for report in reports]

    def _annotate(self, report: str) -> Annotation:
        language, terms, cues = matchers()
        entities, relations = list[Entity](), list[Relation]()
        known, categories = lexicon.spellings(), context.phrases()
        text, places = in_one_line(report)
        document, strings = language(text), language.vocab.strings
        matches = [[(start, end, strings[key]) for key, start, end in matcher(document)] for matcher in (terms, cues)]
        for number, sentence in enumerate(document.sents):
            words, at, behind = [token.lower_ for token in sentence], sentence.start, sentence.end
            here = [[(s - at, e - at, key) for s, e, key in found if at <= s and e <= behind] for found in matches]
            found = [Span(start, end, *known[key]) for start, end, key in here[0]]
            told = context.longest([context.Cue(start, end, *categories[key]) for start, end, key in here[1]])
            spans = composed(chosen([*found, *sizes(sentence)], told), words)
            first, certain = len(entities), certainties(spans, words, told)
            for span, (certainty, cue) in zip(spans, certain, strict=True):
                last = sentence[span.end - 1]
                start, end = places[sentence[span.start].idx], places[last.idx + len(last) - 1] + 1
                rule = f"lexicon; {cue}" if cue else "lexicon"
                entities.append(Entity(start, end, number, span.name, span.kind, certainty, rule))
            for head, kind, tail, rule in related(spans, words, [certainty for certainty, _ in certain]):
                relations.append(Relation(first + head, kind, first + tail, rule))
        return Annotation(tuple(entities), tuple(relations))


@cache
def matchers() -> tuple[Any, Any, Any]:
    """(spaCy's English tokenizer with sentences, matcher of terms, matcher of cues), made once in a process."""
    import spacy
    from spacy.matcher import PhraseMatcher

    language = spacy.blank("en")
    language.add_pipe("sentencizer")
    terms, cues = (PhraseMatcher(language.vocab, attr="LOWER") for _ in range(2))
    for matcher, phrases in ((terms, lexicon.spellings()), (cues, context.phrases())):
        for phrase in phrases:
            matcher.add(phrase, [language.make_doc(phrase)])
    return language, terms, cues


def in_one_line(report: str) -> tuple[str, list[int]]:
    """The report with single blanks, a full stop where a blank line ends a sentence, and the place of every character.

    Phrases run across the ends of lines, and headings stand without a full stop.
    """
    text, places, end = list[str](), list[int](), 0
    for blank in SPACE.finditer(report):
        text += report[end : blank.start()]
        places += range(end, blank.start())
        stop = " . " if blank[0].count("\n") > 1 else " "
        text += stop
        places += [blank.start()] * len(stop)
        end = blank.end()
    return "".join([*text, report[end:]]), [*places, *range(end, len(report))]


def sizes(sentence: Any) -> Iterator[Span]:
    """Lengths with a unit in a spaCy sentence."""
    for match in SIZE.finditer(sentence.text):
        span = sentence.char_span(match.start(), match.end(), alignment_mode="expand")
        if span is not None:
            start = span.start - sentence.start
            yield Span(start, start + len(span), " ".join(match[0].lower().split()), "size")


def chosen(found: list[Span], cues: list[context.Cue]) -> list[Span]:
    """Spans that no longer one overlaps, and that are no part of a phrase that means nothing, in order."""
    void = {at for cue in cues if cue.category == "pseudo" for at in range(cue.start, cue.end)}
    taken, kept = set[int](), list[Span]()
    for span in sorted(found, key=lambda span: (span.start - span.end, span.start)):
        places = set(range(span.start, span.end))
        if not places & taken and not places <= void:
            taken |= places
            kept.append(span)
    return sorted(kept)


def composed(spans: list[Span], words: Sequence[str]) -> list[Span]:
    """Anatomies with the sides and levels before them in their names; these are no entities of their own then."""
    whole: list[Span] = []
    for span in spans:
        start, side, levels = span.start, "", list[str]()
        while span.kind == "anatomy" and start and not side:
            if (word := words[start - 1]) in LEVELS and LEVELS[word] not in levels:
                levels.insert(0, LEVELS[word])
            elif word in SIDES:
                side = SIDES[word]
            else:
                break
            start -= 1
        if span.kind != "anatomy" or start == span.start:
            whole.append(span)
            continue
        noun = MANY.get(span.name, lexicon.plurals(span.name)[0]) if side == "both" else span.name
        while whole and whole[-1].end > start:
            whole.pop()
        whole.append(Span(start, span.end, " ".join(filter(None, (side, *levels, noun))), "anatomy"))
    return whole


def certainties(
    spans: Sequence[Span], words: Sequence[str], cues: Sequence[context.Cue]
) -> list[tuple[Certainty, str]]:  # fmt: skip
    """What the sentence says of every entity, and the cue that decides; denied before doubted. Anatomy is there."""
    said: list[tuple[Certainty, str]] = [("present", "")] * len(spans)
    order = {"present": 0, "uncertain": 1, "absent": 2}
    of: dict[str, Certainty] = {
        "negated": "absent", "family": "absent", "uncertain": "uncertain", "history": "uncertain",
    }  # fmt: skip
    for cue in cues:
        if cue.category not in of:
            continue
        places, certainty = context.scope(cue, words, cues), of[cue.category]
        for number, span in enumerate(spans):
            if span.kind != "anatomy" and span.start in places and order[certainty] > order[said[number][0]]:
                said[number] = certainty, f"{cue.category} by {' '.join(words[cue.start : cue.end])!r}"
    return said
