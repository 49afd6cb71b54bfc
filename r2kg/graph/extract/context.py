"""What a sentence says of an entity in it: denied, doubted, of the past, of the family, or none of these.

After ConText (Harkema et al., J Biomed Inform 2009): cues of a category work forwards or backwards over a scope that
clauses, terminators and lists end. Longest cues win, so that a pseudo-cue ("no change in") hides the one inside it. Own
cues; beside ConText's, what radiographs need: lists ("no A, B or C"), change over time, "has resolved".
"""

from collections.abc import Sequence
from itertools import product
from typing import Literal, NamedTuple

Category = Literal["negated", "uncertain", "history", "family", "pseudo", "end"]


class Cue(NamedTuple):
    """A phrase at tokens [start, end) of a sentence."""

    start: int
    end: int
    category: Category
    backward: bool


SEEN = (
    *("seen", "identified", "visualized", "present", "appreciated", "evident", "demonstrated", "detected", "noted"),
    *("observed", "visible", "found", "apparent", "shown", "recognized", "formed", "suggested"),
)
BE = ("is", "are", "was", "were")
FORWARD: dict[Category, str] = {
    "negated": """
no; not; without; denies; denied; absence of; absent; negative for; free of; clear of; free from; neither; nor;
lack of; lacks; lacking; no evidence of; no evidence for; no sign of; no signs of; no definite;
no definite evidence of; no radiographic evidence of; no convincing evidence of; without evidence of;
no indication of; no suggestion of; not demonstrate; not show; resolution of; interval resolution of;
clearing of; interval clearing of; removal of; interval removal of; rather than; fails to reveal;
fails to show; no appreciable; no discrete; no obvious; no convincing; no new
""",
    "uncertain": """
may be; may represent; may reflect; may indicate; may have; maybe; might be; might represent; could be;
could represent; could reflect; could indicate; possible; possibly; probable; probably; likely; suspected;
suspicious for; suspicion of; suspicion for; questionable; question of; question; questioned; equivocal;
equivocal appearance of; cannot exclude; can not exclude; cannot rule out; can not rule out; not exclude;
suggesting; suggestive of; suggest; suggests; suggestion of; concerning for; concern for; worrisome for;
versus; vs; rule out; r/o; exclude; presumed; presumably; perhaps; evaluate for; assess for; differential;
differential includes; differential considerations include; raising the possibility of;
raise the possibility of; possibility of; if there is; would be
""",
    "history": "history of; h/o; past history of; prior history of; remote history of; hx of; clinical history of",
    "family": "family history of; mother with; father with; family hx of",
    "pseudo": """
no change; no change in; no significant change; no significant change in; no interval change;
no interval change in; no acute change; no acute change in; no significant interval change;
no significant interval change in; no change from; without change; without change in;
without significant change; without significant interval change; no increase; no decrease; no increase in;
no decrease in; not increased; not decreased; not significantly changed; not changed;
not changed significantly; no further; no substantial change; no substantial change in; no definite change;
no definite change in; not certain whether; not necessarily; not only; or older; gram negative;
no appreciable change; no appreciable change in; likely unchanged; no previous; no prior; no comparison;
no comparisons; cannot be seen in detail
""",
    "end": """
but; however; although; though; except; except for; aside from; apart from; other than; besides;
with the exception of; secondary to; due to; because of; while; yet; nevertheless; which; where; otherwise;
whereas; despite; with stable; with persistent
""",
}
"""Category → phrases that speak of what follows; those of "end" end every scope, those of "pseudo" mean nothing."""
OUT = ("excluded", "ruled out", "assessed", "entirely excluded", "completely excluded", "confirmed", "evaluated")
DOUBTED = (
    *("possible", "suspected", "questioned", "questionable", "likely", "probable", "equivocal", "considered"),
    *("not excluded", "difficult to exclude", "suspected but difficult to confirm", "suggested", "unlikely"),
    *("not entirely excluded", "thought less likely", "less likely", "in the differential"),
)
BACKWARD: dict[Category, tuple[str, ...]] = {
    "negated": (
        *(f"{be} not {how}{seen}" for be, how, seen in product(BE, ("", "clearly ", "well ", "definitely "), SEEN)),
        *(f"{have} not {seen}" for have, seen in product(("has", "have"), SEEN)),
        *(f"no longer {seen}" for seen in SEEN),
        *(f"{be} no longer {seen}" for be, seen in product(BE, SEEN)),
        *(f"{be} absent" for be in BE),
        *(f"{have} resolved" for have in ("has", "have")),
        *(f"{have} {how}cleared" for have, how in product(("has", "have"), ("", "completely "))),
        *(f"{be} {how}resolved" for be, how in product(BE, ("", "completely ", "now "))),
        *("ruled out", "has been ruled out", "have been ruled out", "has been excluded", "have been excluded"),
        *("not seen", "not identified", "not visualized", "not present", "not evident", "resolved", "has been removed"),
        *("have been removed", "was removed", "were removed", "is gone", "are gone", "cleared completely"),
    ),
    "uncertain": (
        *(f"{can} be {out}" for can, out in product(("cannot", "can not", "could not", "not"), OUT)),
        *(f"{be} {doubt}" for be, doubt in product(BE, DOUBTED)),
        *("not excluded", "could be present", "may be present", "might be present", "could explain", "may explain"),
        *("could be considered", "should be considered", "may be considered", "could cause", "may contribute"),
    ),
}
"""Category → phrases that speak of what stands before them."""
VERBS = frozenset(
    (
        *("is", "are", "was", "were", "has", "have", "had", "appears", "appear", "remains", "remain", "seems", "shows"),
        *(
            "show",
            "demonstrates",
            "demonstrate",
            "reveals",
            "reveal",
            "projects",
            "project",
            "lies",
            "terminates",
            "may",
        ),
        *("could", "cannot", "can", "includes", "include", "suggests", "suggest", "contains", "extends", "represents"),
    )
)
FRESH = frozenset(
    (
        *(
            "a",
            "an",
            "there",
            "the",
            "stable",
            "small",
            "mild",
            "moderate",
            "large",
            "unchanged",
            "persistent",
            "minimal",
        ),
        *(
            "left",
            "right",
            "bilateral",
            "mildly",
            "minimally",
            "moderately",
            "chronic",
            "old",
            "scattered",
            "calcified",
        ),
        *(
            "low",
            "normal",
            "heart",
            "lungs",
            "cardiac",
            "mediastinal",
            "degenerative",
            "tortuous",
            "with",
            "this",
            "mid",
        ),
    )
)
"""First words of what is no further member of a denied list, unless an "or" follows."""
COMMAS = frozenset((",", "and"))


def phrases() -> dict[str, tuple[Category, bool]]:
    """Every cue → (category, whether it works backwards)."""
    known: dict[str, tuple[Category, bool]] = {";": ("end", False), ":": ("end", False)}
    for category, text in FORWARD.items():
        known |= {" ".join(part.split()): (category, False) for part in text.split(";") if part.strip()}
    return known | {phrase: (category, True) for category, all_ in BACKWARD.items() for phrase in all_}


def longest(spans: Sequence[Cue]) -> list[Cue]:
    """Cues that no longer one overlaps, in order."""
    kept: list[Cue] = []
    for cue in sorted(spans, key=lambda cue: (cue.start - cue.end, cue.start)):
        if all(cue.end <= other.start or other.end <= cue.start for other in kept):
            kept.append(cue)
    return sorted(kept)


def scope(cue: Cue, words: Sequence[str], cues: Sequence[Cue]) -> range:
    """Positions of the words that a cue speaks of, in its sentence's lower-case `words`."""
    ends = [other for other in cues if other.category == "end"]
    if cue.backward:
        low = max((other.end for other in ends if other.end <= cue.start), default=0)
        for at in range(cue.start - 1, low - 1, -1):
            if words[at] in COMMAS and not VERBS.isdisjoint(words[low:at]):
                low = at + 1
                break
        return range(low, cue.start)
    high = min((other.start for other in ends if other.start >= cue.end), default=len(words))
    starts = {other.start for other in cues if other.category == cue.category and not other.backward}
    seen_verb = False
    for at in range(cue.end, high):
        seen_verb = seen_verb or words[at] in VERBS
        if at in starts:
            return range(cue.end, at)  # the next of its kind speaks for the rest
        if words[at] not in COMMAS or at + 1 >= high:
            continue
        rest = words[at + 1 : high]
        if seen_verb and not VERBS.isdisjoint(rest):
            return range(cue.end, at)
        if rest[0] in FRESH and "or" not in rest and "nor" not in rest:
            return range(cue.end, at)
    return range(cue.end, high)
