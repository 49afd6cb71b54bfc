"""The card of a graph: what it holds, how much of other splits' reports it knows, and a picture."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from r2kg.graph.artefact import KnowledgeGraph
from r2kg.graph.extract.rules import Rules
from r2kg.graph.schema import CERTAINTIES
from shards.stream.index import read_studies
from shards.tars.place import Place

COLOURS = {
    "anatomy": "#4477aa", "disorder": "#cc3311", "concept": "#999933", "device": "#009988", "procedure": "#aa4499",
    "size": "#555555",
}  # fmt: skip
LINES = {"modify": "#bbbbaa", "located_at": "#88aacc", "suggestive_of": "#dd7766"}
AREA = 1.6
"""Square inches of the picture for a node."""


def card_lines(graph: KnowledgeGraph, top: int = 15) -> list[str]:
    """Counts, degrees, kinds, and the most frequent triples."""
    nodes, triples, manifest = graph.nodes, graph.triples, graph.manifest
    kinds = Counter(nodes["kind"].to_pylist())
    ends = Counter(triples["head"].to_pylist()) + Counter(triples["tail"].to_pylist())
    degrees = sorted((ends[node] for node in range(nodes.num_rows)), reverse=True)
    relations, counts = Counter(triples["relation"].to_pylist()), triples["count"].to_pylist()
    if manifest.origin == "findings":
        said, size, once = _findings_said(manifest.description, relations["co_occurs"]), "", ""
    else:
        sums = {certainty: sum(triples[certainty].to_pylist()) for certainty in CERTAINTIES}
        size = f", {sum(counts):,} statements"
        once = f"; {counts.count(1):,} triples are said once"
        said = ["statements: " + ", ".join(f"{certainty} {count:,}" for certainty, count in sums.items())]
    lines = [
        f"{nodes.num_rows:,} nodes, {triples.num_rows:,} triples{size}; {manifest.licence}",
        f"from {manifest.origin} by {_maker(manifest.description)}; fingerprint {manifest.fingerprint[:12]}",
        "nodes: " + ", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common()),
        "triples: " + ", ".join(f"{relation} {count:,}" for relation, count in relations.most_common()),
        *said,
        f"degree: largest {degrees[0]}, middle {degrees[len(degrees) // 2]}, {degrees.count(0)} nodes without triples"
        + once,
    ]
    lines += [f"note: {note}: {count:,}" for note, count in manifest.warnings.items()]
    named = zip(graph.named_triples()[:top], counts, strict=False)
    shown = ((triple, "" if count is None else f"{count:,}") for triple, count in named)
    return lines + [f"{count:>8}  {' '.join(triple)}" for triple, count in shown]


def _findings_said(description: dict[str, Any], together: int) -> list[str]:
    """What the card says of a finding graph in place of statements, of which it holds none."""
    limits = f"min_count {description.get('min_count', 1)}, min_npmi {description.get('min_npmi')}"
    return [
        f"made of: {description.get('made_of')}",
        *([f"co_occurs: one report holds keywords of both, denied or not; {limits}"] if together else []),
        "groups: " + ", ".join(f"{group} {len(own)}" for group, own in description["groups"].items()),
    ]


def _maker(description: dict[str, Any]) -> str:
    splits = description.get("splits", [])
    maker = description.get("extractor") or description.get("kind", "an import")
    return f"{maker}" + (f" of {', '.join(splits)}" if splits else "")


def coverage(graph: KnowledgeGraph, root: str | Place, split: str) -> dict[str, float]:
    """Share of what a split's reports name that the graph knows: entities and triples, by mention, read by rules.

    For the card alone: nothing of it becomes part of the graph. A finding graph has no triples that reports say.
    """
    names = {*graph.names, *(alias for aliases in graph.nodes["aliases"].to_pylist() for alias in aliases)}
    triples, known, seen = set(graph.named_triples()), Counter[str](), Counter[str]()
    rules = Rules()
    for study in read_studies(root, split, {}):
        (annotation,) = rules.annotate([study.report])
        seen["entities"] += len(annotation.entities)
        known["entities"] += sum(entity.name in names for entity in annotation.entities)
        said = () if graph.manifest.origin == "findings" else annotation.triples()
        seen["triples"] += len(said)
        known["triples"] += sum(triple in triples for triple in said)
    return {what: known[what] / count for what, count in seen.items() if count}


def layout(net: Any, side: float) -> dict[int, Any]:
    """Places in inches: the largest component in a square, the others, smaller ones, in lines below it."""
    import networkx

    whole, *rest = sorted(networkx.connected_components(net), key=lambda nodes: (-len(nodes), min(nodes)))
    main = net.subgraph(sorted(whole))
    start = networkx.kamada_kawai_layout(main, weight=None)
    free = networkx.spring_layout(main, pos=start, k=1.6 / len(main) ** 0.5, iterations=30, seed=0)
    outwards = sorted(free, key=lambda node: (np.hypot(*free[node]), node))
    radii = {node: side / 2 * ((rank + 0.5) / len(free)) ** 0.5 for rank, node in enumerate(outwards)}
    places = {node: free[node] * radii[node] / max(np.hypot(*free[node]), 1e-9) for node in free}  # an even disc
    x, y = -side / 2, -side / 2 - 1.0
    for nodes in rest:
        for down, node in enumerate(sorted(nodes)):
            places[node] = (x + 0.35 * (down % 2), y - 0.3 * down)
        x += 1.5
        if x > side / 2:
            x, y = -side / 2, y - 1.5
    return places


def draw(graph: KnowledgeGraph, out: Path, most: int = 500) -> Path:
    """A picture of the `most` frequent nodes that have a triple, as SVG or whatever the suffix of `out` says.

    Of a finding graph: all its nodes on a circle, group by group.
    """
    if graph.manifest.origin == "findings":
        return _draw_findings(graph, out)
    import matplotlib

    matplotlib.use("Agg")
    import networkx
    from matplotlib import pyplot

    drawn, net = set(range(min(most, graph.nodes.num_rows))), networkx.Graph()
    rows = zip(*(graph.triples[name].to_pylist() for name in ("head", "relation", "tail", "count")), strict=True)
    for head, relation, tail, count in rows:
        if head in drawn and tail in drawn and head != tail:
            net.add_edge(head, tail, relation=relation, weight=count**0.25)
    side = max(8.0, (AREA * len(net)) ** 0.5)
    figure, axes = pyplot.subplots(figsize=(side, side))
    places = layout(net, side)
    kinds, counts = graph.nodes["kind"].to_pylist(), graph.nodes["count"].to_pylist()
    for relation, colour in LINES.items():
        edges = [(a, b) for a, b, data in net.edges(data=True) if data["relation"] == relation]
        networkx.draw_networkx_edges(net, places, edgelist=edges, edge_color=colour, width=0.6, ax=axes, label=relation)
    for kind, colour in COLOURS.items():
        mine = [node for node in net if kinds[node] == kind]
        sizes = [12 + 60 * (counts[node] / max(counts)) ** 0.5 * 10 for node in mine]
        networkx.draw_networkx_nodes(
            net, places, nodelist=mine, node_size=sizes, node_color=colour, ax=axes, label=kind
        )
    labels = {node: graph.names[node] for node in net}
    networkx.draw_networkx_labels(net, places, labels=labels, font_size=7, ax=axes)
    axes.legend(loc="upper left", fontsize=9)
    axes.set_axis_off()
    figure.tight_layout()
    figure.savefig(out)
    pyplot.close(figure)
    return out


def _draw_findings(graph: KnowledgeGraph, out: Path) -> Path:
    """All findings on a circle, those of a group side by side in its colour; edges within an organ stand out."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    groups, number = graph.manifest.description["groups"], {name: at for at, name in enumerate(graph.names)}
    colours = dict(zip(groups, pyplot.get_cmap("tab10").colors * len(groups), strict=False))  # type: ignore[attr-defined]
    slots = [(name, group) for group, own in groups.items() for name in (*own, None)]  # an empty one behind each group
    figure, axes = pyplot.subplots(figsize=(12, 12))
    held, angles = graph.nodes["count"].to_pylist(), dict[int, float]()
    most = max([count or 0 for count in held] + [1])
    for at, (name, group) in enumerate(slots):
        if name is None:
            continue
        node, angle = number[name], 2 * np.pi * at / len(slots)
        angles[node], left = angle, np.cos(angle) < 0
        size = 30 + 170 * ((held[node] or 0) / most) ** 0.5
        axes.scatter(np.cos(angle), np.sin(angle), s=size, color=colours[group], edgecolors="black", zorder=3)
        axes.text(
            1.05 * np.cos(angle), 1.05 * np.sin(angle), name if held[node] is None else f"{name} ({held[node]:,})",
            rotation=np.degrees(angle) + 180 * left, rotation_mode="anchor", ha="right" if left else "left",
            va="center", fontsize=9,
        )  # fmt: skip
    columns = (graph.triples[column].to_pylist() for column in ("head", "relation", "tail", "count"))
    often = max([count or 0 for count in graph.triples["count"].to_pylist()] + [1])
    for head, relation, tail, count in zip(*columns, strict=True):
        ends, organ = np.array([angles[head], angles[tail]]), relation == "same_organ"
        width = 2.0 if organ else 0.4 + 2.6 * ((count or 0) / often) ** 0.5
        colour, alpha = ("#cc3311", 0.9) if organ else ("#4477aa", 0.4)
        axes.plot(np.cos(ends), np.sin(ends), linewidth=width, color=colour, alpha=alpha, zorder=1 + organ)
    dots = [Line2D([], [], marker="o", linestyle="", color=colour, label=name) for name, colour in colours.items()]
    lines = [Line2D([], [], color="#cc3311", label="same_organ"), Line2D([], [], color="#4477aa", label="co_occurs")]
    axes.legend(handles=dots + lines, loc="upper left", fontsize=9, bbox_to_anchor=(-0.02, 1.02))
    axes.set(xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), aspect="equal")
    axes.set_axis_off()
    figure.tight_layout()
    figure.savefig(out)
    pyplot.close(figure)
    return out
