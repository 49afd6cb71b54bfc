"""Which findings of a finding graph a report says, by what an extractor said of the report; and CheXpert's names for
them.

A node stands for the names that the extractor's lexicon has for its keywords, for these themselves, and for a few more
of the same meaning (`SAME`). What a report names counts for a node when it is one of those or holds one as whole words
("pleural thickening" for thickening), and is not denied. A concept that is said of an anatomy is read as one name with
it: "the heart is enlarged" says enlarged heart, which is cardiomegaly.
"""

from collections.abc import Sequence
from functools import cache
from typing import Literal

from r2kg.graph.build.reports import alike
from r2kg.graph.extract.lexicon import spellings
from r2kg.graph.extract.rules import Rules
from r2kg.graph.schema import Annotation
from r2kg.systems.gcn.parts import CHEXPERT, DEVICE, NORMAL

Uncertain = Literal["present", "absent", "left_out"]
Names = tuple[tuple[str, ...], ...]
"""By node."""
OTHERS = "others"
"""The node of disorders and devices that no other node stands for; `NORMAL` is that of nothing else being there."""
SAME = {
    "hypoinflation": ("hypoinflated", "low lung volume"),
    "hyperdistention": ("hyperinflation", "hyperinflated"),
    "calcinosis": ("calcification",),
}
"""Keyword → more names that say the same."""
UNLIKE = frozenset(("subcutaneous emphysema", "mass effect", "pericardial effusion", "pericardial calcification"))
"""Names that hold a keyword and mean something else."""


def names_of(keywords: Sequence[Sequence[str]]) -> Names:
    """What every node stands for, from its keywords, of which the first is the node's name; of NORMAL and OTHERS none.

    A keyword's own names are taken where the lexicon finds one name in it beside anatomies: in "chest pain" it finds
    an anatomy alone, in "malignant neoplastic disease" two others that are not the finding.
    """
    rules, found = Rules(), list[tuple[str, ...]]()
    for words in keywords:
        if words[0] in (NORMAL, OTHERS):
            found.append(())
            continue
        names = dict.fromkeys(words)
        for word, annotation in zip(words, rules.annotate(list(words)), strict=True):
            said = [entity.name for entity in annotation.entities if entity.kind != "anatomy"]
            names |= dict.fromkeys([*(said if len(said) == 1 else ()), *SAME.get(word, ())])
        found.append(tuple(names))
    return tuple(found)


@cache
def nodes_for(name: str, kind: str, stands_for: Names) -> tuple[int, ...]:
    """The nodes that an entity of this name and kind counts for."""
    if name in UNLIKE:
        return ()
    return tuple(
        node
        for node, own in enumerate(stands_for)
        if (kind == "device" and DEVICE in own) or any(f" {word} " in f" {name} " for word in own)
    )


def targets(
    annotation: Annotation, names: Sequence[str], stands_for: Names, count: int, uncertain: Uncertain
) -> list[float]:
    """1 for the findings among the first `count` nodes that the report says, else 0; NaN for those that are left out.

    Args:
        names: of all nodes.
        stands_for: `names_of` their keywords.
        uncertain: what a finding is that the report is never sure of.
    """
    entities = annotation.entities
    mentions = [(alike(entity.name), entity.kind, entity.certainty) for entity in entities]
    for relation in annotation.relations:
        head, tail = entities[relation.head], entities[relation.tail]
        if relation.kind == "modify" and tail.kind == "anatomy":
            name, kind = spellings().get(f"{head.name} {tail.name}", (f"{head.name} {tail.name}", "concept"))
            mentions.append((name, kind, annotation.certainty(relation)))
    sure = dict[int, bool]()
    for name, kind, certainty in mentions:
        if certainty != "absent":
            nodes = nodes_for(name, kind, stands_for)
            if not nodes and kind in ("disorder", "device") and OTHERS in names:
                nodes = (names.index(OTHERS),)
            for node in nodes:
                sure[node] = sure.get(node, False) or certainty == "present"
    unsure = {"present": 1.0, "absent": 0.0, "left_out": float("nan")}[uncertain]
    found = [(1.0 if sure[node] else unsure) if node in sure else 0.0 for node in range(count)]
    if NORMAL in names[:count]:
        found[names.index(NORMAL)] = 0.0 if any(sure.values()) else 1 - unsure if sure else 1.0
    return found


def chexpert_nodes(labels: Sequence[str], names: Sequence[str], stands_for: Names, count: int) -> tuple[list[int], ...]:
    """Of CheXpert's findings the nodes, among the first `count`, that stand for them; none for one without."""
    return tuple(
        [node for node in range(count) if {*CHEXPERT.get(label, ())} & {names[node], *stands_for[node]}]
        for label in labels
    )
