"""The forty findings of the AMIA 2022 finding graph and how they were published joined: facts, in its order.

Wang S. et al., "Prior knowledge enhances radiology report generation" (AMIA Informatics Summit 2022), whose keywords
and matrices are under the MIT licence; the first twenty are SentKG's (Zhang Y. et al., AAAI 2020). CKNet (Kang et al.)
names forty nodes, and its released code has the first thirty. Numbers here are those of the published matrices, from 1:
their row 0 is a root that is joined to all, which is no finding. In our tables finding n is row n - 1.
"""

from collections import defaultdict
from typing import NamedTuple

from r2kg.graph.schema import Kind

SUPERVISED = 20
"""The first so many are what a classifier learns; the others are auxiliary, and joined by co-occurrence alone."""
AUXILIARY = "auxiliary"
NO_ORGAN = "no organ"
REPORTS = 3955
"""Reports of IU X-Ray, test reports included, that the published graph was made of."""


class Finding(NamedTuple):
    """A node: it is in a report whose lower-cased text holds one of its keywords anywhere, also inside a word."""

    group: str
    """Its organ, `NO_ORGAN` or `AUXILIARY`. Findings of one organ are joined."""
    kind: Kind
    reports: int
    """Of the `REPORTS` that the graph was made of, those that hold it."""
    keywords: tuple[str, ...]
    """The first is the node's name."""


def _finding(group: str, kind: Kind, reports: int, keywords: str) -> Finding:
    return Finding(group, kind, reports, tuple(keywords.split("/")))


FINDINGS = (
    _finding(NO_ORGAN, "concept", 3473, "normal/no indexing"),
    _finding("heart", "disorder", 305, "cardiomegaly"),
    _finding("spine", "disorder", 557, "scoliosis/degenerative"),
    _finding("bone", "disorder", 119, "fractures bone/fractures/fracture bones/fracture bone"),
    _finding("pleura", "disorder", 2486, "pleural effusion/pleural effusions"),
    _finding("pleura", "disorder", 55, "thickening"),
    _finding("pleura", "disorder", 2547, "pneumothorax"),
    _finding("mediastinum", "disorder", 67, "hernia hiatal/hernia"),
    _finding("mediastinum", "disorder", 0, "calcinosis"),
    _finding("lung", "disorder", 125, "emphysema/pulmonary emphysema"),
    _finding("lung", "disorder", 1876, "pneumonia/infiltrate/consolidation"),
    _finding("lung", "disorder", 369, "pulmonary edema/edema"),
    _finding("lung", "disorder", 393, "pulmonary atelectasis/atelectasis"),
    _finding("lung", "disorder", 235, "cicatrix/scar/scars"),
    _finding("lung", "disorder", 735, "opacity/opacities"),
    _finding("lung", "disorder", 357, "nodule/mass/nodules"),
    _finding("airspace", "disorder", 537, "airspace disease"),
    _finding("airspace", "disorder", 28, "hypoinflation/hyperdistention"),
    _finding(
        "foreign object", "device", 6,
        "catheters indwelling/surgical instruments/tube inserted/medical device/surgical instrument/medical devices"
        "/tubes",
    ),
    _finding(NO_ORGAN, "concept", 0, "others"),
    _finding(AUXILIARY, "concept", 882, "chest pain"),
    _finding(AUXILIARY, "concept", 283, "shortness of breath"),
    _finding(AUXILIARY, "disorder", 458, "granuloma"),
    _finding(AUXILIARY, "disorder", 20, "lymphadenopathy"),
    _finding(AUXILIARY, "disorder", 63, "deformity"),
    _finding(AUXILIARY, "disorder", 95, "granulomatous disease"),
    _finding(AUXILIARY, "disorder", 82, "congestion"),
    _finding(AUXILIARY, "disorder", 62, "tuberculosis"),
    _finding(AUXILIARY, "disorder", 71, "infection"),
    _finding(AUXILIARY, "disorder", 71, "hypertension"),
    _finding(AUXILIARY, "disorder", 59, "osteophyte"),
    _finding(AUXILIARY, "disorder", 600, "calcification/calcified"),
    _finding(AUXILIARY, "disorder", 51, "enlargement"),
    _finding(AUXILIARY, "disorder", 48, "asthma"),
    _finding(AUXILIARY, "disorder", 33, "injury"),
    _finding(AUXILIARY, "disorder", 0, "malignant neoplastic disease"),
    _finding(AUXILIARY, "concept", 35, "vomiting"),
    _finding(AUXILIARY, "disorder", 34, "eventration"),
    _finding(AUXILIARY, "disorder", 32, "metastatic disease"),
    _finding(AUXILIARY, "disorder", 35, "fibrosis"),
)  # fmt: skip
ALONE = (9, 19, 20, 36)
"""Findings that are joined to no auxiliary one: hardly any report holds them."""
APART = {
    24: (8, 14, 18),
    25: (24,),
    26: (8, 18, 24),
    27: (4, 8, 18, 24, 25),
    28: (10, 18, 21, 24, 25, 26, 27),
    29: (18,),
    30: (25, 26, 27),
    31: (18, 24, 29),
    33: (4, 8, 18, 25, 31),
    34: (4, 18, 24, 25, 27, 28, 29, 30, 31, 33),
    35: (6, 13, 14, 18, 22, 24, 27, 28, 29, 30, 31, 33, 34),
    37: (4, 6, 8, 18, 24, 25, 26, 27, 28, 29, 30, 31, 33, 34, 35),
    38: (4, 18, 22, 24, 26, 28, 29, 33, 35, 37),
    39: (2, 6, 8, 18, 21, 22, 26, 28, 31, 34, 35, 37, 38),
    40: (4, 8, 18, 24, 25, 28, 29, 30, 31, 33, 34, 35, 37, 38, 39),
}
"""Auxiliary finding → those before it that it is not joined to, beside the ones that are `ALONE`. The graph is nearly
complete: what is not joined is the shorter list."""


def organ_pairs(nodes: int) -> set[tuple[int, int]]:
    """(row, larger row) of the first `nodes` findings that are of one organ."""
    rows = defaultdict[str, list[int]](list)
    for row, finding in enumerate(FINDINGS[:nodes]):
        rows[finding.group].append(row)
    organs = [own for group, own in rows.items() if group not in (NO_ORGAN, AUXILIARY)]
    return {(head, tail) for own in organs for head in own for tail in own if head < tail}


def published_pairs(nodes: int) -> set[tuple[int, int]]:
    """(row, larger row) of the first `nodes` findings that were published joined as occurring together."""
    return {
        (head - 1, tail - 1)
        for tail in range(SUPERVISED + 1, nodes + 1)
        for head in range(1, tail)
        if not {head, tail} & {*ALONE} and head not in APART.get(tail, ())
    }
