"""A part of the graph for every film, from the film alone: what the reports of the training studies nearest to it say.

Frozen-encoder features of a study's films → the nearest training studies → a vote of theirs over triples of the graph →
a personalised PageRank (Page et al. 1999) over the whole graph from what was voted for → the best nodes, and the best
triples between them. No report of the study itself is looked at, and a training study has neither itself nor another
study of its patient for a neighbour: it is shown what it would be shown if it were new. So, unlike the sides of
`shards.graphs.write`, this one may be an input of a model that is tested.

All features are read once, tar by tar on the cluster; one vector a study is kept. The search is exact, and what is
written for a study does not depend on which others are computed beside it, nor on how studies lie in tars.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import ray
import ray.data
from numpy.typing import NDArray
from scipy import sparse

from r2kg.graph.artefact import KnowledgeGraph
from r2kg.graph.build import Said, add, load_training_graph
from r2kg.graph.schema import RELATIONS, Certainty
from shards.errors import ConfigError, DataError
from shards.graphs.subgraph import Subgraph, Triple, pack
from shards.session import in_our_words, quiet, watched
from shards.stream.index import Index, open_splits
from shards.stream.side import Side
from shards.tars.format import Manifest, Shard, read_index, read_manifest
from shards.tars.kinds import KINDS, UNREAD, SideManifest, read_side
from shards.tars.place import Place, place
from shards.tars.sides import write_side
from shards.tars.write import Made

NAME = "film_subgraphs"
"""Place below SHARDS/side."""
EVIDENCE = "film.json"
"""Suffix of a further member: neighbours and triples with their weights, to be read by people."""
STEPS = 30
"""Of the PageRank; what is left moves less than damping ** STEPS."""
PORTION = 64
"""Studies that are read, or searched for, at once: 64 cosines to each of 230,000 studies take 59 MB."""
TEXTS = "patient", "said", "unread"
ROWS = 4096
"""Vectors of which float64 copies are made at once."""
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class FilmSettings:
    """How much of the graph a film is given."""

    neighbours: int = 16
    """Training studies that vote."""
    temperature: float = 0.1
    """Of the softmax over their cosines: small lets the nearest one speak for all."""
    nodes: int = 48
    """Most nodes of a film's part of the graph."""
    triples: int = 96
    """Most triples."""
    damping: float = 0.85
    """Share of the PageRank that goes on along edges; the rest begins anew at what was voted for."""
    certainty: tuple[Certainty, ...] = ("present", "uncertain")
    """Statements of neighbours that vote: what they deny says nothing of the film."""

    def __post_init__(self) -> None:
        positive = min(self.neighbours, self.nodes, self.triples) >= 1 and self.temperature > 0
        if not positive or not 0 <= self.damping < 1:
            raise ConfigError(f"{self}: numbers from 1, a temperature above 0 and a damping below 1 are needed")


class Memory(NamedTuple):
    """What is known of the studies, N of them training studies, and the graph of V nodes and T triples.

    Workers share its arrays in the object store.
    """

    vectors: dict[str, Floats]
    """Split → [n, D], of length 1; without meaning where the features cannot be read."""
    unread: dict[str, dict[int, str]]
    """Split → row → why its features cannot be read. Such a training study is nobody's neighbour."""
    who: dict[str, NDArray[np.int64]]
    """Split → [n]: the same number for studies of one patient, another where the patient is not known."""
    keys: NDArray[np.bytes_]
    """[N] of the training studies."""
    starts: NDArray[np.int64]
    """[N + 1], into `said`."""
    said: NDArray[np.int32]
    """Triples of the graph, study after study. One that says none may be a neighbour, and takes its share of the vote:
    where reports of like films are silent, little speaks for any triple."""
    head: NDArray[np.int64]
    tail: NDArray[np.int64]
    relation: NDArray[np.int64]
    """[T] each, ids."""
    often: NDArray[np.int64]
    """[T] counts."""


class Neighbours(NamedTuple):
    """The nearest training studies."""

    row: NDArray[np.int64]
    """[K] in the training split, the nearest first; of equally near ones the one that stands before."""
    weight: Doubles
    """[K], adding up to 1."""


def write_film_subgraphs(
    root: str | Place,
    graph_place: str | Place,
    features: str | Place,
    annotations: str | Place,
    out: str | Place,
    settings: FilmSettings | None = None,
) -> SideManifest:
    """Write a part of the graph for every study of all splits into `out`; tars that are whole are kept.

    Args:
        features: the side of a frozen encoder's features (`r2kg features`).
        annotations: the side that the graph was built of: what training studies say.

    Raises:
        ConfigError: `out` cannot be used.
        DataError: a graph of other shards or annotations, or one that other splits' reports speak in; sides of other
            shards; a split without features, features that are not finite; training studies that say no triple.
    """
    settings, manifest = settings or FilmSettings(), read_manifest(root)
    indices, graph = open_splits(root, manifest), load_training_graph(graph_place, root, manifest)
    films = {split: Side.open(features, index, manifest, "features") for split, index in indices.items()}
    reports, said = Side.open(annotations, indices["train"], manifest, "annotations"), read_side(annotations)
    if graph.manifest.annotations not in ("", said.fingerprint):
        raise DataError(
            f"the graph at {graph_place} was built of annotations {graph.manifest.annotations[:12]} "
            f"({graph.manifest.description.get('extractor')}), those at {annotations} are {said.fingerprint[:12]} "
            f"({said.description.get('extractor')}), which say other things than it holds. Way out: give those that it "
            "was built of, or build it again of these with `r2kg graph build SHARDS --annotations PLACE`"
        )
    ref = ray.put(remember(root, manifest, indices, films, reports, graph, settings.certainty))
    described = {
        "nodes": graph.names,
        "relations": RELATIONS,
        "graph": graph.manifest.fingerprint,
        "annotations": said.fingerprint,
        "features": read_side(features).fingerprint,
        "settings": asdict(settings),
    }

    def build() -> "FilmGraphs":
        memory: Memory = ray.get(ref)
        return FilmGraphs(memory, settings)

    return write_side(root, out, NAME, manifest, indices, described, build)


class Sources(NamedTuple):
    """What every task reads from, and how it tells which triple of the graph a statement is."""

    root: str
    tars: dict[str, Shard]
    indices: Mapping[str, Index]
    films: Mapping[str, Side]
    """The side of features, by split."""
    reports: Side
    """Annotations of the training studies."""
    node_of: dict[str, str]
    """Name that was merged into another → that other."""
    known: dict[Triple, int]
    """Triple by name → its number."""
    certainty: frozenset[Certainty]

    def read(self, split: str, tar: int) -> dict[str, Any]:
        """The n studies of one tar: row [n]; vector fp32 [n, D], the mean of a study's features over films and places;
        object [n] each: patient, said (numbers of triples, int32 as bytes), unread (why there is no vector, or "").

        Raises:
            DataError: features that are not finite, annotations that cannot be read.
        """
        index, films, of_tar = self.indices[split], self.films[split], self.tars[self.indices[split].tars[tar]]
        rows = index.rows_of(tar)
        vector, said, unread = np.zeros((len(rows), films.extent[-1]), np.float32), [b""] * len(rows), [""] * len(rows)
        for start in range(0, len(rows), PORTION):
            some = rows[start : start + PORTION]
            fetched, spoken = films.fetch(some), self.reports.fetch(some) if split == "train" else {}
            for at, row in enumerate(some, start):
                if split == "train":
                    said[at] = self.triples(row, spoken.get(row))
                key = index.keys[row].decode()
                try:
                    bits = films.read_films(row, index.films(row), fetched.get(row))  # of bf16, [V, P, D]
                except DataError as error:
                    unread[at] = str(error).removeprefix(f"study {key}: ")
                    continue
                with np.errstate(over="ignore", invalid="ignore"):
                    vector[at] = (bits.astype(np.uint32) << 16).view(np.float32).reshape(-1, bits.shape[-1]).mean(0)
                if not np.isfinite(vector[at]).all():
                    raise DataError(
                        f"study {key}: its features at {films.root} are not finite, so that nothing is near to it. The "
                        "encoder overflowed or its weights are broken: write them again with another, or in fp32"
                    )
        patient = [entry.patient for entry in read_index(place(self.root), of_tar).studies]
        columns = {name: np.array(own, object) for name, own in zip(TEXTS, (patient, said, unread), strict=True)}
        return {"split": np.full(len(rows), split, object), "row": np.array(rows), "vector": vector, **columns}

    def triples(self, row: int, fetched: memoryview | DataError | None) -> bytes:
        """The triples of the graph that a training study says, ascending, as the bytes of int32."""
        one, numbers = Said(Counter(), []), set[int]()
        if (data := self.reports.read(row, fetched)) is not None:
            add(one, "", data)
        for said in one.statements:
            head, tail = (self.node_of.get(end, end) for end in (said.head, said.tail))
            ways = (head, said.relation, tail), (tail, said.relation, head)  # the graph joins a pair one way
            if said.certainty in self.certainty and (way := next((way for way in ways if way in self.known), None)):
                numbers.add(self.known[way])
        return np.array(sorted(numbers), np.int32).tobytes()


def remember(
    root: str | Place,
    manifest: Manifest,
    indices: Mapping[str, Index],
    films: Mapping[str, Side],
    reports: Side,
    graph: KnowledgeGraph,
    certainty: Sequence[Certainty] = FilmSettings.certainty,
) -> Memory:
    """What is known of the studies, read by a task a tar; this process holds one vector of each.

    Raises:
        DataError: as `write_film_subgraphs`.
    """
    aliases = zip(graph.names, graph.nodes["aliases"].to_pylist(), strict=True)
    node_of = {alias: name for name, others in aliases for alias in others}
    known = {triple: at for at, triple in enumerate(graph.named_triples())}
    tars, counted = {tar.name: tar for tar in manifest.shards}, frozenset(certainty)
    vectors, texts = read_studies(Sources(str(root), tars, indices, films, reports, node_of, known, counted))
    unread = {split: {at: why for at, why in enumerate(of["unread"]) if why} for split, of in texts.items()}
    for split, rows in unread.items():
        if len(rows) == len(indices[split]):
            raise DataError(
                f"the features at {films[split].root} can be read of none of the {len(rows)} studies of {split} (the "
                f"first: {rows[0]}): write them again with {KINDS['features'].how}"
            )
    said = texts["train"]["said"].tolist()
    if not any(said):
        raise DataError(
            f"no training study says a triple of the graph, by the annotations at {reports.root}: it was not built of "
            f"them, or none of what they say is {' or '.join(certainty)}"
        )
    standardise(vectors, unread["train"])
    starts, triples = np.cumsum([0, *map(len, said)]) // 4, np.frombuffer(b"".join(said), np.int32)
    head, tail, often = (graph.triples[name].to_numpy().astype(np.int64) for name in ("head", "tail", "count"))
    relation = np.array([RELATIONS.index(name) for name in graph.triples["relation"].to_pylist()], np.int64)
    number = dict[str, int]()
    who = {split: np.zeros(len(index), np.int64) for split, index in indices.items()}
    for split, index in indices.items():
        for row, (patient, key) in enumerate(zip(texts[split]["patient"], index.keys.tolist(), strict=True)):
            name = f"patient {patient}" if patient else f"study {key.decode()}"
            who[split][row] = number.setdefault(name, len(number))
    return Memory(vectors, unread, who, indices["train"].keys, starts, triples, head, tail, relation, often)


def read_studies(sources: Sources) -> tuple[dict[str, Floats], dict[str, dict[str, NDArray[Any]]]]:
    """All that `Sources.read` gives, by a task a tar: split → vectors [n, D], split → name → object [n]."""
    ref, indices = ray.put(sources), sources.indices

    def read(job: dict[str, Any]) -> dict[str, Any]:
        mine: Sources = ray.get(ref)
        return mine.read(str(job["split"][0]), int(job["tar"][0]))

    jobs = [{"split": split, "tar": tar} for split, index in indices.items() for tar in range(len(index.tars))]
    tasks = quiet(ray.data.from_items(jobs, override_num_blocks=len(jobs)).map_batches(read, batch_size=None))
    width = sources.films["train"].extent[-1]
    vectors = {split: np.zeros((len(index), width), np.float32) for split, index in indices.items()}
    texts = {split: {name: np.full(len(index), None) for name in TEXTS} for split, index in indices.items()}
    whole_blocks: Any = None
    with in_our_words():
        blocks = tasks.iter_batches(batch_size=whole_blocks, batch_format="numpy")
        for block in watched(blocks, "reading features of tars", len(jobs)):
            split, rows = str(block["split"][0]), block["row"]
            vectors[split][rows] = block["vector"]
            for name in TEXTS:
                texts[split][name][rows] = block[name]
    return vectors, texts


def standardise(vectors: Mapping[str, Floats], unread: Mapping[int, str]) -> None:
    """In place: training vectors to mean 0 and deviation 1, `unread` rows left out, others alike; all to length 1."""
    train, seen = vectors["train"], np.ones(len(vectors["train"]), bool)
    seen[list(unread)] = False
    mean, square = train.sum(0, dtype=np.float64) / seen.sum(), np.zeros(train.shape[1])
    for start in range(0, len(train), ROWS):
        square += np.square(train[start : start + ROWS][seen[start : start + ROWS]] - mean).sum(0)
    scale = np.sqrt(square / seen.sum()) + 1e-6
    for own in vectors.values():
        for start in range(0, len(own), ROWS):
            part = (own[start : start + ROWS] - mean) / scale
            own[start : start + ROWS] = part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-9)


def largest(values: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Places of the `count` largest of [n] values, the largest first; of equal ones those that stand before."""
    among = np.arange(len(values))
    if 0 < count < len(values):
        among = np.flatnonzero(values >= np.partition(values, len(values) - count)[len(values) - count])
    return among[np.argsort(-values[among], kind="stable")][:count]


class FilmGraphs:
    """The maker of a side of film subgraphs."""

    def __init__(self, memory: Memory, settings: FilmSettings, portion: int = PORTION) -> None:
        """`portion`: studies that are searched for at once; what is made does not depend on it."""
        self.memory, self.settings, self.portion = memory, settings, portion
        nodes, triples = int(max(memory.head.max(), memory.tail.max())) + 1, len(memory.head)
        edges = sparse.coo_matrix((np.log1p(memory.often), (memory.head, memory.tail)), (nodes, nodes)).tocsr()
        both = edges + edges.T
        sums = np.asarray(both.sum(1)).ravel()
        self.step = (sparse.diags(1 / np.maximum(sums, 1e-12)) @ both).T.tocsr()  # [V, V], columns add up to 1
        where = np.concatenate([memory.head, memory.tail]), np.tile(np.arange(triples), 2)
        self.ends = sparse.coo_matrix((np.full(2 * triples, 0.5), where), (nodes, triples)).tocsr()  # [V, T]

    def __call__(self, index: Index, rows: range, given: bytes) -> Iterator[Made]:
        """One part of the graph for every row."""
        unread = self.memory.unread[index.split]
        for start in range(0, len(rows), self.portion):
            some = rows[start : start + self.portion]
            parts = iter(self.parts(self.nearest(index.split, [row for row in some if row not in unread])))
            for row in some:
                if row in unread:
                    yield Made(cause=UNREAD, detail=unread[row])
                    continue
                graph, evidence = next(parts)
                if graph is None:
                    yield Made(cause="no neighbour says a triple")
                    continue
                sizes = {"nodes": len(graph.node), "edges": len(graph.edge_type)}
                members = {EVIDENCE: json.dumps(evidence).encode(), KINDS[NAME].suffix: pack(graph)}
                yield Made(members, totals=sizes, largest=sizes)

    def nearest(self, split: str, rows: Sequence[int]) -> list[Neighbours]:
        """The nearest training studies of other patients to each of B studies, by cosine.

        A product of matrices in fp32 says which can be among them: a cosine there is off by some D * 2**-24 at most, in
        whatever order a library adds (Higham 2002, section 3.1). Theirs are then taken anew in float64, study by
        study, so that neither B nor the library decides which is nearer.
        """
        memory, settings = self.memory, self.settings
        train, own = memory.vectors["train"], memory.vectors[split][list(rows)]
        cosines = own @ train.T  # [B, N]
        cosines[:, list(memory.unread["train"])] = -np.inf
        slack, found = 4 * train.shape[1] * 2.0**-24, list[Neighbours]()
        for near, vector, who in zip(cosines, own.astype(np.float64), memory.who[split][list(rows)], strict=True):
            near[memory.who["train"] == who] = -np.inf
            last = max(0, len(near) - settings.neighbours)
            among = np.flatnonzero((near >= np.partition(near, last)[last] - slack) & (near > -np.inf))
            exact = np.empty(len(among))
            for start in range(0, len(among), ROWS):
                some = among[start : start + ROWS]
                exact[start : start + ROWS] = (train[some] * vector).sum(1)
            best = largest(exact, settings.neighbours)
            power = np.exp((exact[best] - exact[best].max(initial=-np.inf)) / settings.temperature)
            found.append(Neighbours(among[best], power / max(power.sum(), 1e-12)))
        return found

    def parts(self, near: Sequence[Neighbours]) -> list[tuple[Subgraph | None, dict[str, Any]]]:
        """The parts of the graph that B studies' neighbours vote for, and what speaks for each; None for no vote."""
        memory, damping = self.memory, self.settings.damping
        votes = np.zeros((len(near), len(memory.head)))  # [B, T]
        for vote, (rows, weights) in zip(votes, near, strict=True):
            for row, weight in zip(rows, weights, strict=True):
                vote[memory.said[memory.starts[row] : memory.starts[row + 1]]] += weight
        sums = np.array([vote.sum() for vote in votes])  # one by one: along an axis the order may depend on B
        begin = self.ends @ (votes / np.maximum(sums, 1e-12)[:, None]).T  # [V, B]
        rank = begin
        for _ in range(STEPS):
            rank = (1 - damping) * begin + damping * (self.step @ rank)
        ranks = np.ascontiguousarray(rank.T)
        return [self.part(*of) if of[1].any() else (None, {}) for of in zip(near, votes, ranks, strict=True)]

    def part(self, near: Neighbours, vote: Doubles, rank: Doubles) -> tuple[Subgraph, dict[str, Any]]:
        """The best by the votes for triples [T] and the rank of nodes [V], and what speaks for it."""
        memory, settings = self.memory, self.settings
        node = np.sort(largest(rank, min(settings.nodes, int((rank > 0).sum()))))
        held = np.zeros(len(rank), bool)
        held[node] = True
        inside = np.flatnonzero(held[memory.head] & held[memory.tail])
        worth = vote[inside] + rank[memory.head[inside]] * rank[memory.tail[inside]]
        edge = np.sort(inside[largest(worth, settings.triples)])
        ends = np.stack([np.searchsorted(node, ends[edge]) for ends in (memory.head, memory.tail)])
        voted = edge[largest(vote[edge], len(edge))]
        names = [[memory.keys[row].decode(), round(float(weight), 4)] for row, weight in zip(*near, strict=True)]
        spoken = [[int(at), round(float(vote[at]), 4)] for at in voted if vote[at] > 0]
        graph = Subgraph(node.astype(np.int64), ends.astype(np.int64), memory.relation[edge])
        return graph, {"neighbours": names, "triples": spoken}
