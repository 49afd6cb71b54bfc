"""Training reports → the finding graph of the CKNet lineage: few findings, joined by organ or by standing together.

Findings of one organ are joined. Any other two, one of them auxiliary, are joined when keywords of both stand in the
text of one report: so the published graph was made of all reports of IU X-Ray, and so `kg40-train` is made of training
reports alone. Keywords are looked for as they are, within words too, and denied ones count: "no pneumothorax" joins
pneumothorax to all that the report holds.

A report counts once for every study of the shards that has it. In shards of MIMIC-CXR that were made with per=image,
R2Gen's form, a study is one film, and a report of two films counts twice: in the nodes' counts, against min_count and
in min_npmi. The rule of the published graph, one report or more, is the same there; limits are meant for per=study.

As an artefact it is a graph of origin "findings". A row of its provenance says that a report holds both ends of an
edge: `start` is the first character, in the text that `text_of` gives, of the keyword that comes first, `end` one
behind the other keyword, `rule` names the two. Sentence and certainty are null: the two may stand in different
sections, and nobody asked whether they are denied.

Shapes: N findings, R reports.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import ray
import ray.data
from numpy.typing import NDArray

from r2kg.graph.artefact import (
    FILE,
    NODES,
    PROVENANCE,
    TABLES,
    TRIPLES,
    GraphManifest,
    KnowledgeGraph,
    load_graph,
    save_graph,
    standing_alike,
)
from r2kg.graph.build.keywords import FINDINGS, REPORTS, SUPERVISED, organ_pairs, published_pairs
from shards.errors import ConfigError, DataError
from shards.session import in_our_words, quiet
from shards.stream.index import Index, studies_of
from shards.study import Study
from shards.tars.format import Manifest, read_manifest
from shards.tars.place import Place, place

FindingKind = Literal["kg40-train", "kg40-lineage", "kg30-code", "sentkg20"]
SIZES: dict[FindingKind, int] = {"kg40-train": 40, "kg40-lineage": 40, "kg30-code": 30, "sentkg20": SUPERVISED}
"""Nodes of each kind."""
IU = f"all {REPORTS:,} reports of IU X-Ray, test reports included, and not these shards' training split alone"
MADE_OF: dict[FindingKind, str] = {
    "kg40-lineage": IU,
    "kg30-code": IU,
    "sentkg20": "no reports: findings of one organ are joined",
}
"""What the published kinds were made of; `kg40-train` is made of training reports."""
SECTIONS = ("comparison", "indication", "findings", "impression")
EVIDENCE = 20
"""Most reports that the provenance names for an edge: the first ones in the order of the shards."""
NEARLY_ALL = 0.8
"""Of the edges that can be, from which on a graph hardly tells findings apart: one report in millions joins two."""
UNREAD, ALONE = "records that cannot be read", "reports without comparison and indication, which the rule reads too"
WHOLE = "reports with neither findings nor impression: their target section was read"


class Evidence(NamedTuple):
    """A report that holds two findings."""

    head: int
    tail: int
    study: str
    start: int
    end: int
    rule: str


class Counts(NamedTuple):
    """What some reports hold."""

    together: NDArray[np.int64]
    """[N, N] reports that hold both; the diagonal: that hold the finding."""
    reports: int
    evidence: list[Evidence]
    """At most `EVIDENCE` for two findings, one of them auxiliary."""
    notes: Counter[str]


def write_findings(
    root: str | Place,
    out: str | Place,
    kind: FindingKind = "kg40-train",
    min_count: int = 1,
    min_npmi: float | None = None,
    replace: bool = False,
) -> KnowledgeGraph:
    """Write a finding graph into `out`; one that is there and was made alike is kept.

    Of the shards at `root` the training split alone is read, by `kg40-train`, and only where the graph is to be made.

    Args:
        replace: put it in the place of a graph that was made otherwise.
        min_count: training reports that must hold both ends of an edge; findings of one organ stay joined.
        min_npmi: least normalised pointwise mutual information of the two, from -1 to 1; none is asked for by default.

    Raises:
        ConfigError: an unknown kind; limits out of range, or of a kind that is as published; `out` holds something
            else, or a graph that was made otherwise.
        DataError: no shards; not one record of the training split can be read.
    """
    root, out, manifest = place(root), place(out), read_manifest(root)
    if kind not in SIZES:
        raise ConfigError(f"unknown kind {kind!r} of finding graph: one of {', '.join(SIZES)}")
    if min_count < 1 or not -1 <= (min_npmi or 0) <= 1:
        raise ConfigError(f"min_count={min_count}, min_npmi={min_npmi}: from 1, and between -1 and 1")
    if kind in MADE_OF and (min_count > 1 or min_npmi is not None):
        raise ConfigError(f"{kind} is as it was published: min_count and min_npmi are for kg40-train")
    findings, parent = FINDINGS[: SIZES[kind]], "" if kind in MADE_OF else manifest.fingerprint
    groups = {group: [f.keywords[0] for f in findings if f.group == group] for group in {f.group: 0 for f in findings}}
    told: dict[str, Any] = {"kind": kind, "supervised": SUPERVISED, "groups": groups}
    if kind in MADE_OF:
        told["made_of"] = MADE_OF[kind]
    else:
        told |= {"splits": ["train"], "sections": [*SECTIONS], "evidence": EVIDENCE}
        told |= {"min_count": min_count, "min_npmi": min_npmi}

    def told_of(graph: KnowledgeGraph) -> dict[str, Any]:
        return {"origin": graph.manifest.origin, "shards": graph.manifest.parent, **graph.manifest.description}

    asked, files = {"origin": "findings", "shards": parent, **told}, {FILE, *(f"{name}.parquet" for name in TABLES)}
    if there := standing_alike(out, "graph", files, load_graph, told_of, asked, replace):
        return there
    if kind in MADE_OF:
        held = [None if kind == "sentkg20" else finding.reports for finding in findings]
        tables, notes = tables_of(published_pairs(len(findings)), held), Counter[str]()
    else:
        counts = counts_of(root, manifest)
        if not counts.reports:
            raise DataError(f"not one record of the training split at {root} can be read: nothing to make a graph of")
        pairs, notes = joined(counts, min_count, min_npmi)
        may_be = (whole := len(findings)) * (whole - 1) // 2 - SUPERVISED * (SUPERVISED - 1) // 2
        if len(pairs) > NEARLY_ALL * may_be:
            notes[f"of {may_be} edges that can be: so many tell little, ask for --min-npmi or --min-count"] = len(pairs)
        tables = tables_of(pairs, counts.together.diagonal().tolist(), counts)
        notes.update(counts.notes)
        told |= {"made_of": f"{counts.reports:,} reports of the training split", "reports": counts.reports}
    made = GraphManifest(
        licence="public" if kind in MADE_OF else manifest.licence, origin="findings", parent=parent, description=told,
        counts={}, tables={}, warnings={note: count for note, count in notes.items() if count},
    )  # fmt: skip
    return save_graph(out, made, tables)


def counts_of(root: str | Place, manifest: Manifest) -> Counts:
    """What the training reports of the shards at `root` hold, tar by tar on the cluster; counts alone come back."""
    index = Index.open(root, "train", on_bad="skip", manifest=manifest)
    ref, tars = ray.put(index), len(index.tars)

    def read(row: dict) -> dict:
        mine, unread, notes = ray.get(ref), dict[str, str](), Counter[str]()
        studies = (study for _, study in studies_of(mine, mine.rows_of(int(row["id"])), unread) if study)
        part = count(((study.key, text_of(study, notes)) for study in studies), [f.keywords for f in FINDINGS])
        notes[UNREAD] += len(unread)
        return {
            "tar": int(row["id"]),
            "together": part.together,
            "reports": part.reports,
            "said": json.dumps([part.evidence, notes]),
        }

    together, reports, notes = np.zeros((len(FINDINGS), len(FINDINGS)), np.int64), 0, Counter[str]()
    evidence = defaultdict[tuple[int, int], list[tuple[int, Evidence]]](list)
    with in_our_words():
        for row in quiet(ray.data.range(tars, override_num_blocks=tars).map(read)).iter_rows():
            together += row["together"]
            reports += int(row["reports"])
            found, noted = json.loads(row["said"])
            notes.update(noted)
            for one in found:
                evidence[one[0], one[1]].append((int(row["tar"]), Evidence(*one)))
            for pair, own in evidence.items():  # tars may end in any order; the sort keeps that within each
                evidence[pair] = sorted(own, key=lambda one: one[0])[:EVIDENCE]
    return Counts(together, reports, [one for own in evidence.values() for _, one in own], notes)


def text_of(study: Study, notes: Counter[str] | None = None) -> str:
    """What is searched: `SECTIONS` in that order, lower case, single blanks.

    Where a study has neither findings nor impression its target section stands for them. `notes` counts such studies,
    and those without the two other sections.
    """
    notes = Counter() if notes is None else notes
    parts = [study.sections[name] for name in SECTIONS if study.sections.get(name, "").strip()]
    notes[ALONE] += not any(study.sections.get(name, "").strip() for name in SECTIONS[:2])
    if not any(study.sections.get(name, "").strip() for name in SECTIONS[2:]):
        parts.append(study.report)
        notes[WHOLE] += 1
    return " ".join(" ".join(parts).lower().split())


def count(texts: Iterable[tuple[str, str]], keywords: Sequence[Sequence[str]]) -> Counts:
    """Which findings stand together in these reports.

    Args:
        texts: (key of the study, what `text_of` gives).
        keywords: [N] those of each finding.
    """
    together, reports = np.zeros((len(keywords), len(keywords)), np.int64), 0
    evidence, kept = list[Evidence](), Counter[tuple[int, int]]()
    for study, text in texts:
        reports += 1
        found = dict[int, tuple[int, str]]()
        for node, words in enumerate(keywords):
            if places := [(at, word) for word in words if (at := text.find(word)) >= 0]:
                found[node] = min(places)
        rows = list(found)
        together[np.ix_(rows, rows)] += 1
        for tail in (row for row in rows if row >= SUPERVISED):
            for head in (row for row in rows if row < tail and kept[row, tail] < EVIDENCE):
                kept[head, tail] += 1
                (start, _), (at, last) = sorted((found[head], found[tail]))
                rule = f"{found[head][1]} + {found[tail][1]}"
                evidence.append(Evidence(head, tail, study, start, at + len(last), rule))
    return Counts(together, reports, evidence, Counter())


def joined(
    counts: Counts, min_count: int = 1, min_npmi: float | None = None
) -> tuple[set[tuple[int, int]], Counter[str]]:
    """(row, larger row) of the findings that stand together often enough, and how many others the limits took.

    The normalised pointwise mutual information of a and b is ln(p(ab) / p(a)p(b)) / -ln p(ab), with shares of the
    reports; 1 where every report holds both.
    """
    together, notes, pairs = counts.together, Counter[str](), set[tuple[int, int]]()
    own = together.diagonal() / counts.reports
    for head, tail in np.argwhere(np.triu(together, 1)).tolist():
        if tail < SUPERVISED:
            continue
        both = together[head, tail] / counts.reports
        npmi = np.log(both / (own[head] * own[tail])) / -np.log(both) if both < 1 else 1.0
        if together[head, tail] < min_count:
            notes["edges below min_count"] += 1
        elif min_npmi is not None and npmi < min_npmi - 1e-9:  # as 1 comes out of logarithms
            notes["edges below min_npmi"] += 1
        else:
            pairs.add((head, tail))
    return pairs, notes


def tables_of(
    pairs: set[tuple[int, int]], held: Sequence[int | None], counts: Counts | None = None
) -> dict[str, pa.Table]:
    """Nodes, edges and where these were found, as they are stored.

    Args:
        pairs: rows of the findings that occur together; those of one organ are added.
        held: [N] reports that hold each finding, as far as is known.
        counts: of the reports; of a published graph nobody knows how often two findings stood together.
    """
    nodes = [
        {"id": f.keywords[0], "name": f.keywords[0], "kind": f.kind, "aliases": f.keywords[1:], "count": reports}
        for f, reports in zip(FINDINGS, held, strict=False)
    ]
    organ = organ_pairs(len(nodes))
    often = {pair: int(counts.together[pair]) if counts else None for pair in organ | pairs}
    number = {pair: at for at, pair in enumerate(sorted(often, key=lambda pair: (-(often[pair] or 0), pair)))}
    triples = [
        {
            "head": pair[0],
            "relation": "same_organ" if pair in organ else "co_occurs",
            "tail": pair[1],
            "count": often[pair],
        }
        for pair in number
    ]
    found = [one for one in counts.evidence if (one.head, one.tail) in pairs] if counts else []
    found.sort(key=lambda one: number[one.head, one.tail])
    origins = [{"triple": number[one.head, one.tail], **one._asdict()} for one in found]
    tables = {"nodes": (nodes, NODES), "triples": (triples, TRIPLES), "provenance": (origins, PROVENANCE)}
    return {name: pa.Table.from_pylist(rows, schema=schema) for name, (rows, schema) in tables.items()}


def load_finding_graph(where: str | Place, manifest: Manifest | None) -> KnowledgeGraph:
    """The finding graph at `where`.

    Args:
        manifest: of the shards that are trained on. A graph of a published kind is of no shards and taken with any;
            None takes any graph, for looking at it alone.

    Raises:
        DataError: no graph, one of another origin, one of other shards' training reports.
    """
    graph = load_graph(where)
    told = graph.manifest
    if told.origin != "findings":
        raise DataError(
            f"the graph at {where} is made from {told.origin}, and a finding graph is needed: make one with "
            "`r2kg graph findings SHARDS`, or name another"
        )
    if manifest and told.description.get("kind") not in MADE_OF and told.parent != manifest.fingerprint:
        raise DataError(
            f"the finding graph at {where} is of shards {told.parent[:12]}, these have {manifest.fingerprint[:12]}: it "
            "may know their test reports. Make it of these with `r2kg graph findings SHARDS`, or name another"
        )
    return graph


def adjacency(graph: KnowledgeGraph) -> NDArray[np.float32]:
    """[N, N] 1 where two findings are joined, by organ or by standing together: symmetric, 0 on the diagonal.

    The root of the published matrices, which is joined to all, is not in it.
    """
    matrix = np.zeros((graph.nodes.num_rows, graph.nodes.num_rows), np.float32)
    head, tail = (graph.triples[column].to_numpy() for column in ("head", "tail"))
    matrix[head, tail] = matrix[tail, head] = 1
    return matrix


def supervised(graph: KnowledgeGraph) -> int:
    """So many nodes, the first ones, are findings that a classifier learns; the others are auxiliary."""
    return int(graph.manifest.description["supervised"])


def keywords_of(graph: KnowledgeGraph) -> tuple[tuple[str, ...], ...]:
    """[N] the keywords of every node, its name first; a report holds the node when its lower-cased text holds one."""
    columns = (graph.nodes[name].to_pylist() for name in ("name", "aliases"))
    return tuple((name, *aliases) for name, aliases in zip(*columns, strict=True))
