"""The finding graph as a run takes it: names, what they stand for, and edges, made before the run into a directory."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from r2kg.config.needs import Artefact
from r2kg.config.run import Run
from r2kg.graph.build.findings import adjacency, keywords_of, load_finding_graph, supervised
from r2kg.graph.extract.rules import Rules
from r2kg.systems.gcn.targets import Names, names_of
from shards.errors import DataError
from shards.tars.format import Manifest
from shards.tars.place import write_atomic

FILE, ARRAYS = "findings.json", "adjacency.safetensors"
VERSION = 2
"""Of what a keyword stands for (`r2kg.systems.gcn.targets.names_of`): other targets are another artefact."""


class Findings(NamedTuple):
    """A finding graph of N nodes, without root."""

    names: tuple[str, ...]
    stands_for: Names
    """Names in reports that count for each node."""
    supervised: int
    """So many nodes, the first ones, are learned."""
    adjacency: NDArray[np.float32]
    """[N, N] 0 or 1, symmetric, with a diagonal of 0."""
    graph: str
    """Fingerprint of the graph."""
    both_ways: bool = False
    """Whether edges lead to the root too, as in the published matrix of forty; in the others they lead from it."""

    def edges(self) -> NDArray[np.int64]:
        """[2, E] of the graph with the root before the others as node 0, from which an edge leads to every node."""
        whole = np.zeros((len(self.names) + 1,) * 2, np.float32)
        whole[0, 1:], whole[1:, 1:] = 1, self.adjacency
        whole[1:, 0] = self.both_ways
        return np.stack(whole.nonzero())


def artefact(place: str, run: Run, manifest: Manifest, into: str) -> Artefact:
    """The graph at `place`, what its keywords stand for in it, as what a run needs made.

    Raises:
        DataError: no graph, one that is none of findings, one of other shards.
    """
    graph = load_finding_graph(place, manifest)

    def make(folder: Path) -> None:
        told = {
            "names": graph.names,
            "stands_for": names_of(keywords_of(graph)),
            "supervised": supervised(graph),
            "graph": graph.manifest.fingerprint,
            "both_ways": str(graph.manifest.description.get("kind")).startswith("kg40"),
        }
        write_atomic(folder / ARRAYS, save({"adjacency": adjacency(graph)}))
        write_atomic(folder / FILE, json.dumps(told, indent=1).encode())

    return Artefact(
        name="findings",
        settings={"graph": graph.manifest.fingerprint, "rules": Rules().settings(), "version": VERSION},
        make=make,
        into=into,
        sentence=f"Reading what {graph.nodes.num_rows} findings stand for in reports",
    )


def read_findings(folder: Path) -> Findings:
    """What `artefact` made; DataError for what is missing, damaged, or contradicts itself."""
    try:
        told, matrix = json.loads((folder / FILE).read_bytes()), load_file(folder / ARRAYS)["adjacency"]
        names, stands_for = tuple(map(str, told["names"])), tuple(tuple(map(str, own)) for own in told["stands_for"])
        numbers = int(told["supervised"]), matrix, str(told["graph"]), bool(told["both_ways"])
        found = Findings(names, stands_for, *numbers)
        if matrix.shape != (len(names),) * 2 or len(stands_for) != len(names) or (matrix != matrix.T).any():
            raise ValueError("its nodes, names and edges do not belong together")
        if not 1 <= found.supervised <= len(names):
            raise ValueError(f"{found.supervised} of {len(names)} findings cannot be learned")
        return found
    except (OSError, ValueError, LookupError, TypeError, SafetensorError) as error:
        what = error.strerror if isinstance(error, OSError) else str(error) or type(error).__name__
        raise DataError(
            f"no finding graph of a run at {folder} ({what}): delete it, and submit the run again"
        ) from None
