"""What films' parts of the graph cost: studies read by a task a tar and searched for in portions, beside one by one.

Features and annotations of so many training studies are drawn; the films are one drawing. "plain" reads study after
study in this process, and finds neighbours and ranks of one study after the other. Only ratios within a round are
compared, as in `bench.ingest`. Memory is what this process takes for itself beside what it had before, so that pages
it shares with Ray's object store are left out.

    python -m bench.film
"""

import json
import shutil
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import psutil
import ray
import typer

from bench.ingest import VIEWS, machine, make_films, start_ray
from jobs.cli import run
from r2kg.graph.artefact import KnowledgeGraph, load_graph
from r2kg.graph.build.reports import Said, add, build_graph
from r2kg.graph.film.memory import remember
from r2kg.graph.film.write import EVIDENCE, STEPS, FilmGraphs, FilmSettings, write_film_subgraphs
from r2kg.graph.schema import Annotation, Entity, Relation, pack
from shards.stream.index import Index, open_splits
from shards.stream.side import Side
from shards.tars.format import Manifest, read_manifest
from shards.tars.kinds import KINDS
from shards.tars.sides import write_side
from shards.tars.write import Made

PX, WIDTH, NAMES, TRIPLES = 64, 1024, 20_000, 6
"""Side of the films; D of the features, as of Swin-Base; names that reports use, and statements of one."""


class Taken(NamedTuple):
    """What something gave and took."""

    result: Any
    seconds: float
    mb: float
    """Most memory that it took."""


def taken(work: Callable[[], Any]) -> Taken:
    """Do it, and look every few milliseconds how much memory this process has of its own."""
    own, ended, most = psutil.Process(), threading.Event(), [0]

    def look() -> None:
        while not ended.wait(0.005):
            now = own.memory_info()
            most[0] = max(most[0], now.rss - now.shared)

    before = own.memory_info()
    watch = threading.Thread(target=look)
    watch.start()
    start = time.perf_counter()
    try:
        result = work()
    finally:
        seconds = time.perf_counter() - start
        ended.set()
        watch.join()
    return Taken(result, seconds, (most[0] - before.rss + before.shared) / 2**20)


def drawn_features(patches: int, index: Index, rows: range, given: bytes) -> Iterator[Made]:
    """Noise around one of a hundred centres for every study, bf16 [V, P, D]."""
    centres = np.random.default_rng(0).standard_normal((100, WIDTH), np.float32)
    rng = np.random.default_rng(rows.start)
    for _ in rows:
        values = rng.standard_normal((VIEWS, patches, WIDTH), np.float32) + centres[rng.integers(100)]
        yield Made({KINDS["features"].suffix: (values.view(np.uint32) >> 16).astype("<u2").tobytes()})


def drawn_annotations(index: Index, rows: range, given: bytes) -> Iterator[Made]:
    """Statements on names some of which are frequent, as in reports."""
    rng = np.random.default_rng(rows.start)
    for _ in rows:
        drawn = np.minimum(rng.zipf(1.3, 2 * TRIPLES), NAMES)
        entities = [Entity(at, at + 1, 0, f"finding {n}", "concept", "present", "drawn") for at, n in enumerate(drawn)]
        relations = [Relation(at, "modify", at + 1, "drawn") for at in range(0, 2 * TRIPLES, 2)]
        yield Made({KINDS["annotations"].suffix: pack(Annotation(tuple(entities), tuple(relations)))})


def make_sides(root: Path, patches: int) -> Path:
    """Features, annotations and a graph of the shards at `root`; whole tars are kept."""
    manifest, out = read_manifest(root), root / "side" / f"film-{patches}"
    indices, shape = open_splits(root, manifest), {"views": VIEWS, "patches": patches, "width": WIDTH}
    maker = partial(drawn_features, patches)
    write_side(root, out / "features", "features", manifest, indices, shape, lambda: maker)
    drawn = {"extractor": "drawn", "settings": {"names": NAMES}, "splits": ["train"]}
    write_side(root, out / "said", "annotations", manifest, indices, drawn, lambda: drawn_annotations)
    build_graph(root, out / "said", out / "graph")
    return out


def plain_memory(films: Side, index: Index, reports: Side, graph: KnowledgeGraph) -> tuple[np.ndarray, list[set[int]]]:
    """Vectors [N, D] and triples of the training studies, one study at a time."""
    raw = np.stack([plain_vector(films, index, row) for row in range(len(index))])
    known, said = {triple: at for at, triple in enumerate(graph.named_triples())}, Said(Counter(), [])
    for row in range(len(index)):
        if (data := reports.read(row)) is not None:
            add(said, str(row), data)
    spoken = [set[int]() for _ in range(len(index))]
    for one in said.statements:
        ways = (one.head, one.relation, one.tail), (one.tail, one.relation, one.head)
        spoken[int(one.study)] |= {known[way] for way in ways if way in known}
    raw = (raw - raw.mean(0)) / (raw.std(0) + 1e-6)
    return raw / np.linalg.norm(raw, axis=1, keepdims=True), spoken


def plain_vector(films: Side, index: Index, row: int) -> np.ndarray:
    """The mean of one study's features, fp32 [D]."""
    bits = films.read_films(row, index.films(row))
    return (bits.astype(np.uint32) << 16).view(np.float32).reshape(-1, bits.shape[-1]).mean(0)


def plain_parts(maker: FilmGraphs, index: Index, films: Side, rows: range) -> list[list[str]]:
    """Neighbours of each study, found as its part of the graph is made: one study at a time."""
    memory, settings, found = maker.memory, maker.settings, []
    for row in rows:
        plain_vector(films, index, row)
        cosine = memory.vectors["train"] @ memory.vectors["train"][row]
        cosine = np.where(
            (memory.keys == index.keys[row]) | (memory.who["train"] == memory.who["train"][row]), -np.inf, cosine
        )
        near = np.argsort(-cosine, kind="stable")[: settings.neighbours]
        power = np.exp((cosine[near] - cosine[near].max()) / settings.temperature)
        vote, begin = np.zeros(len(memory.head)), np.zeros(maker.step.shape[0])
        for at, weight in zip(near, power / power.sum(), strict=True):
            vote[memory.said[memory.starts[at] : memory.starts[at + 1]]] += weight
        np.add.at(begin, memory.head, vote)
        np.add.at(begin, memory.tail, vote)
        begin /= begin.sum()
        rank = begin
        for _ in range(STEPS):
            rank = (1 - settings.damping) * begin + settings.damping * (maker.step @ rank)
        node = np.argsort(-rank, kind="stable")[: settings.nodes]
        inside = np.flatnonzero(np.isin(memory.head, node) & np.isin(memory.tail, node))
        np.argsort(-(vote[inside] + rank[memory.head[inside]] * rank[memory.tail[inside]]), kind="stable")
        found.append([memory.keys[at].decode() for at in near])
    return found


def opened(root: Path, beside: Path) -> tuple[Manifest, dict[str, Index], dict[str, Side], Side, KnowledgeGraph]:
    """What `remember` is given."""
    manifest = read_manifest(root)
    indices = open_splits(root, manifest)
    films = {split: Side.open(beside / "features", index, manifest, "features") for split, index in indices.items()}
    reports = Side.open(beside / "said", indices["train"], manifest, "annotations")
    return manifest, indices, films, reports, load_graph(beside / "graph")


def main(
    shards: Annotated[Path, typer.Option(help="directory in which films and sides are kept")] = Path("runs/bench-film"),
    studies: Annotated[int, typer.Option(help="training studies of two films; a multiple of 16")] = 20_000,
    patches: Annotated[int, typer.Option(help="places of a film that have features")] = 4,
    sample: Annotated[int, typer.Option(help="studies whose parts both make in a round, in this process")] = 512,
    rounds: Annotated[int, typer.Option(help="rounds of both")] = 3,
    cores: Annotated[int, typer.Option(help="cores for all")] = 2,
) -> None:
    """Measure; the last lines are ours to plain for reading and for making parts: medians of the rounds' ratios."""
    facts, reading, making = machine(), list[float](), list[float]()
    start_ray(cores)
    root = make_films(shards.resolve(), studies, 1, PX)
    beside = make_sides(root, patches)
    manifest, indices, films, reports, graph = opened(root, beside)
    index, rows = indices["train"], range(sample)
    print(f"{studies:,} studies, a graph of {graph.nodes.num_rows:,} nodes and {graph.triples.num_rows:,} triples")
    for number in range(rounds):
        alone = taken(lambda: plain_memory(films["train"], index, reports, graph))
        tasks = taken(lambda: remember(root, manifest, indices, films, reports, graph))
        maker = FilmGraphs(tasks.result, FilmSettings())
        if not np.allclose(alone.result[0], maker.memory.vectors["train"], atol=1e-4):
            raise RuntimeError("the two read other vectors: their speeds would mean nothing")
        one = taken(partial(plain_parts, maker, index, films["train"], rows))
        portions = taken(partial(lambda make: list(make(index, rows, b"")), maker))
        evidence = [json.loads(made.members[EVIDENCE])["neighbours"] for made in portions.result]
        same = np.mean([{*a} == {key for key, _ in b} for a, b in zip(one.result, evidence, strict=True)])
        reading.append(alone.seconds / tasks.seconds)
        making.append(one.seconds / portions.seconds)
        for what, count, plain, ours in (("reading", studies, alone, tasks), ("parts", sample, one, portions)):
            speeds = (f"{count / way.seconds:,.0f} studies/s, {way.mb:,.0f} MiB" for way in (plain, ours))
            print(f"round {number + 1}, {what}: plain {next(speeds)}; ours {next(speeds)}")
        print(f"round {number + 1}: the same neighbours for {same:.1%}")
        del alone, tasks, maker
    shutil.rmtree(beside / "films", ignore_errors=True)
    graph_at, seen, said, out = (beside / name for name in ("graph", "features", "said", "films"))
    whole = taken(lambda: write_film_subgraphs(root, graph_at, seen, said, out))
    ray.shutdown()
    print(f"the whole command: {studies / whole.seconds:,.0f} studies/s, {whole.mb:,.0f} MiB in the driver")
    print(f"{facts}; [{patches}, {WIDTH}] bf16 a film, on {cores} cores")
    print(f"reading_to_plain={statistics.median(reading):.2f}")
    print(f"parts_to_plain={statistics.median(making):.2f}")


if __name__ == "__main__":
    run(main)
