"""What is known of the studies when films are given their part of the graph: one vector each, and what is said.

All features are read once, tar by tar on the cluster; one vector a study is kept.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import ray
import ray.data
from numpy.typing import NDArray

from r2kg.graph.artefact import KnowledgeGraph
from r2kg.graph.build.reports import Said, add
from r2kg.graph.schema import RELATIONS, Certainty
from shards.errors import DataError
from shards.graphs.subgraph import Triple
from shards.session import in_our_words, quiet, watched
from shards.stream.index import Index
from shards.stream.side import Side
from shards.tars.format import Manifest, Shard, read_index
from shards.tars.kinds import KINDS
from shards.tars.place import Place, place

PORTION = 64
"""Studies that are read, or searched for, at once: 64 cosines to each of 230,000 studies take 59 MB."""
TEXTS = "patient", "said", "unread"
ROWS = 4096
"""Vectors of which float64 copies are made at once."""
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


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


class Sources(NamedTuple):
    """What every task reads from, and how it tells which triple of the graph a statement is."""

    root: str
    tars: dict[str, Shard]
    indices: Mapping[str, Index]
    films: Mapping[str, Side]
    """The side of features, by split."""
    reports: Side | None
    """Annotations of the training studies, where what they say is asked for."""
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
            fetched, reports = films.fetch(some), self.reports if split == "train" else None
            spoken = reports.fetch(some) if reports else {}
            for at, row in enumerate(some, start):
                if reports:
                    said[at] = self.triples(reports, row, spoken.get(row))
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

    def triples(self, reports: Side, row: int, fetched: memoryview | DataError | None) -> bytes:
        """The triples of the graph that a training study says, ascending, as the bytes of int32."""
        one, numbers = Said(Counter(), []), set[int]()
        if (data := reports.read(row, fetched)) is not None:
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
    reports: Side | None = None,
    graph: KnowledgeGraph | None = None,
    certainty: Sequence[Certainty] = ("present", "uncertain"),
) -> Memory:
    """What is known of the studies, read by a task a tar; this process holds one vector of each.

    Args:
        films: the side of features, by split.
        reports, graph: annotations of the training studies and the graph that was built of them; None: of the studies
            only the films are looked at.
        certainty: statements that count.

    Raises:
        DataError: as `write_film_subgraphs`.
    """
    aliases = zip(graph.names, graph.nodes["aliases"].to_pylist(), strict=True) if graph else ()
    node_of = {alias: name for name, others in aliases for alias in others}
    known = {triple: at for at, triple in enumerate(graph.named_triples() if graph else ())}
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
    if reports and not any(said):
        raise DataError(
            f"no training study says a triple of the graph, by the annotations at {reports.root}: it was not built of "
            f"them, or none of what they say is {' or '.join(certainty)}"
        )
    standardise(vectors, unread["train"])
    starts, triples = np.cumsum([0, *map(len, said)]) // 4, np.frombuffer(b"".join(said), np.int32)
    columns = {name: graph.triples[name].to_pylist() if graph else [] for name in ("head", "tail", "count", "relation")}
    columns["relation"] = [RELATIONS.index(name) for name in columns["relation"]]
    head, tail, often, relation = (np.array(column, np.int64) for column in columns.values())
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


def nearest(
    memory: Memory,
    split: str,
    rows: Sequence[int],
    count: int,
    temperature: float = 1.0,
    besides: Sequence[int] | None = None,
) -> list[Neighbours]:
    """The nearest training studies of other patients to each of B studies of a split, by cosine.

    A product of matrices in fp32 says which can be among them: a cosine there is off by some D * 2**-24 at most, in
    whatever order a library adds (Higham 2002, section 3.1). Theirs are then taken anew in float64, study by study, so
    that neither B nor the library decides which is nearer.

    Args:
        count: most neighbours.
        temperature: of the softmax over their cosines.
        besides: B further studies of the split, whose patients are left out too.
    """
    train, own = memory.vectors["train"], memory.vectors[split][list(rows)]
    cosines = own @ train.T  # [B, N]
    cosines[:, list(memory.unread["train"])] = -np.inf
    slack, found = 4 * train.shape[1] * 2.0**-24, list[Neighbours]()
    for at, (near, vector) in enumerate(zip(cosines, own.astype(np.float64), strict=True)):
        for row in (rows[at], *([besides[at]] if besides is not None else [])):
            near[memory.who["train"] == memory.who[split][row]] = -np.inf
        last = max(0, len(near) - count)
        among = np.flatnonzero((near >= np.partition(near, last)[last] - slack) & (near > -np.inf))
        exact = np.empty(len(among))
        for start in range(0, len(among), ROWS):
            some = among[start : start + ROWS]
            exact[start : start + ROWS] = (train[some] * vector).sum(1)
        best = largest(exact, count)
        power = np.exp((exact[best] - exact[best].max(initial=-np.inf)) / temperature)
        found.append(Neighbours(among[best], power / max(power.sum(), 1e-12)))
    return found


def largest(values: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Places of the `count` largest of [n] values, the largest first; of equal ones those that stand before."""
    among = np.arange(len(values))
    if 0 < count < len(values):
        among = np.flatnonzero(values >= np.partition(values, len(values) - count)[len(values) - count])
    return among[np.argsort(-values[among], kind="stable")][:count]
