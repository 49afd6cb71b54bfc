"""A table of triples of MeSH codes (head, relation, tail, count) as `r2kg graph read` takes it.

MeSH's relations on IU X-Ray become two of ours: a finding that is located_in a place is located_at it; what a place or
a finding has as attribute or side modifies it, so that the ends change places. Names that differ in case are one node,
and rows that join two nodes more than once become one of the commonest way, with the sum of their counts.
"""

import csv
from collections import Counter
from pathlib import Path

from r2kg.graph.build.published import COLUMNS as PUBLISHED
from shards.errors import DataError
from shards.sources.tables import Table

COLUMNS = ("head", "relation", "tail", "count")
RELATIONS = {"located_in": ("located_at", False), "has_attribute": ("modify", True), "has_side": ("modify", True)}
"""Theirs → ours, and whether the ends change places."""


def write_published(table: Path, out: Path) -> dict[str, int]:
    """Write the table anew; returns how often each relation was met, and how many rows were joined with others.

    Raises:
        DataError: a relation that is none of `RELATIONS`, a count that is no number; columns that are missing.
    """
    ways, notes = dict[tuple[str, ...], Counter[tuple[str, str, str]]](), Counter[str]()
    for row in Table(table, COLUMNS).rows():
        head, relation, tail, count = (" ".join(row.cells.get(name, "").lower().split()) for name in COLUMNS)
        if row.fault or relation not in RELATIONS or not count.isdecimal():
            why = row.fault or f"{relation[:40]!r}, {count[:20]!r}"
            raise DataError(
                f"{table} line {row.line} is no triple ({why}): relations are {', '.join(RELATIONS)}, with a count of "
                "rows that say so"
            )
        ours, turned = RELATIONS[relation]
        ends = (tail, head) if turned else (head, tail)
        ways.setdefault(tuple(sorted(ends)), Counter())[ends[0], ours, ends[1]] += int(count)
        notes[f"{relation} as {ours}"] += 1
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(PUBLISHED)
        for way in ways.values():
            head, relation, tail = min(way, key=lambda one: (-way[one], one))
            writer.writerow((head, tail, head, tail, relation, way.total()))
    notes["rows joined with others"] = notes.total() - len(ways)
    return dict(notes)
