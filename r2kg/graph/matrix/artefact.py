"""A knowledge matrix as files: one vector for every node of a graph, frozen while reports are learned.

Shapes: N nodes, D width.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from r2kg.graph.artefact import read_hashed, reading
from shards.errors import DataError
from shards.tars.format import Manifest, SealedManifest, Sha256, read_sealed, write_sealed
from shards.tars.place import Place, make_directory, place, sha256_of, write_atomic

FILE, ARRAY = "matrix.json", "matrix.safetensors"
HOW = "make it with `r2kg graph matrix SHARDS --classifier RUN`, a run of gcn, and --out for a place of its own"
MAX_BYTES = 1 << 30


class MatrixManifest(SealedManifest):
    """matrix.json: what the matrix was made from, its nodes, the hash of its vectors."""

    parent: Sha256
    """Fingerprint of the shards whose training split it was made of."""
    graph: Sha256
    """Fingerprint of the graph whose nodes it has."""
    nodes: tuple[str, ...]
    """Names, one a row."""
    description: dict[str, Any]
    """What decides the content: by which classifier or text encoder, how it was projected."""
    sha256: str = ""
    """Of the file of vectors."""


class Matrix(NamedTuple):
    """A knowledge matrix in memory."""

    manifest: MatrixManifest
    vectors: NDArray[np.float32]
    """[N, D], rows of length 1."""

    @property
    def likeness(self) -> float:
        """Median cosine of two nodes' vectors: near 1, tokens can hardly tell nodes apart; of one node 1."""
        cosines = (self.vectors @ self.vectors.T)[np.triu_indices(len(self.vectors), 1)]
        return float(np.median(cosines)) if len(cosines) else 1.0


def save_matrix(where: str | Place, manifest: MatrixManifest, vectors: NDArray[Any]) -> Matrix:
    """Write the vectors, each brought to length 1, then matrix.json, which seals them; returns what was written.

    Raises:
        DataError: not one finite vector for every node, or one of length 0.
    """
    where, values = place(where), np.asarray(vectors, np.float32)
    lengths = np.linalg.norm(values, axis=-1) if values.ndim == 2 else np.zeros(0)
    if len(lengths) != len(manifest.nodes):
        raise DataError(f"vectors of shape {list(values.shape)} for {len(manifest.nodes)} nodes")
    if len(odd := np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))):
        raise DataError(
            f"the vector of node {manifest.nodes[odd[0]]!r} has length {lengths[odd[0]]}: it has no direction"
        )
    make_directory(where)
    write_atomic(where / ARRAY, save({"vectors": np.ascontiguousarray(values / lengths[:, None])}))
    sealed = manifest.model_copy(update={"sha256": sha256_of(where / ARRAY)})
    return load_matrix(where, write_sealed(where / FILE, sealed))


def load_matrix(where: str | Place, manifest: MatrixManifest | None = None) -> Matrix:
    """The matrix at `where`, compared with its hash.

    Raises:
        DataError: something is missing, changed, or contradicts itself.
    """
    where = place(where)
    told = manifest or read_sealed(where / FILE, MatrixManifest, f"no knowledge matrix at {where}", HOW)
    with reading(f"the knowledge matrix at {where}", HOW):
        vectors = load(read_hashed(where / ARRAY, told.sha256, FILE, HOW, MAX_BYTES))["vectors"].astype(np.float32)
        if vectors.ndim != 2 or len(vectors) != len(told.nodes) or not len(vectors) or not np.isfinite(vectors).all():
            raise DataError(f"the knowledge matrix at {where} contradicts itself: {HOW}")
    return Matrix(told, vectors)


def load_training_matrix(where: str | Place, manifest: Manifest) -> Matrix:
    """The matrix at `where`; DataError unless it is of the training split of these shards."""
    matrix = load_matrix(where)
    if matrix.manifest.parent != manifest.fingerprint:
        raise DataError(
            f"the knowledge matrix at {where} is of shards {matrix.manifest.parent[:12]}, these have "
            f"{manifest.fingerprint[:12]}: it may know their test reports. {HOW}, or name another"
        )
    return matrix
