"""How a knowledge matrix is made: of what a GCN classifier sees in training films, or of the nodes' names alone.

CKNet's paper does not tell how its 40 x 512 matrix came from its classifier. Here a node's vector is the mean of its
final states over the films of the training split, the states being those that findings are read from; the root is left
out. Without a classifier a text encoder reads the nodes' keywords, and neighbours are mixed in once.

Shapes: N nodes, W width, F films, S side of a film in pixels, D width of the text encoder.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import ray
import ray.data
import torch
from numpy.typing import NDArray
from torch import Tensor

from r2kg.config.needs import Inputs
from r2kg.graph.artefact import KnowledgeGraph, standing_alike
from r2kg.graph.build.findings import adjacency, keywords_of
from r2kg.graph.embed import embed
from r2kg.graph.matrix.artefact import ARRAY, FILE, Matrix, MatrixManifest, load_matrix, save_matrix
from r2kg.modules.config import TextEncoder
from r2kg.modules.hub import weight_hashes
from r2kg.modules.packaged import text_encoder
from shards.errors import DataError, OnBad
from shards.privacy import fence
from shards.session import in_our_words, pool_for, quiet, watched
from shards.stream.blocks import Rows, micro_batches, rows_per_block, stream_blocks
from shards.stream.index import Index
from shards.stream.order import sequential_blocks
from shards.tars.format import Manifest
from shards.tars.place import Place, place

PORTION = 16
"""Studies that are looked at at once."""


class NodeEncoder(Protocol):
    """What sees the nodes in a film: a trained `r2kg.systems.gcn.model.Gcn`."""

    def node_states(self, films: Tensor) -> Tensor:
        """fp32 [F, N, W] of films uint8 [F, S, S], without the root."""


Made = tuple[NDArray[Any], dict[str, Any]]
"""Vectors [N, W], of any length, and what the manifest says beside them."""


def write_matrix(
    out: str | Place,
    graph: KnowledgeGraph,
    manifest: Manifest,
    described: dict[str, Any],
    make: Callable[[], Made],
    replace: bool = False,
    centred: bool = True,
) -> Matrix:
    """Make the matrix of a graph's nodes and write it into `out`; one that is there and was made alike is kept.

    Args:
        manifest: of the shards whose training split it is made of.
        described: what decides the content beside shards and graph.
        make: `of_films` or `of_names` with what they need.
        replace: put it in the place of a matrix that was made otherwise.
        centred: take the mean over nodes from each. A classifier's mean states are nearly alike, and what is the same
            in all of them tells nothing to a softmax over nodes.

    Raises:
        ConfigError: `out` holds something else, or a matrix that was made otherwise.
        DataError: a node without a direction; what `make` raises.
    """
    out, its_graph = place(out), graph.manifest
    told_of_graph = {name: its_graph.description.get(name) for name in ("kind", "made_of")}
    described = described | {"centred": centred, "findings": told_of_graph}

    def told_of(matrix: Matrix) -> dict[str, Any]:
        its = matrix.manifest
        return {"shards": its.parent, "graph": its.graph, **its.description}

    asked = {"shards": manifest.fingerprint, "graph": its_graph.fingerprint, **described}
    if there := standing_alike(out, "matrix", {FILE, ARRAY}, load_matrix, told_of, asked, replace):
        return there
    vectors, said = make()
    vectors = vectors - vectors.mean(0) if centred else vectors
    told = MatrixManifest(
        licence=manifest.licence, parent=manifest.fingerprint, graph=its_graph.fingerprint, nodes=graph.names,
        description=described | said,
    )  # fmt: skip
    return save_matrix(out, told, vectors)


def of_films(
    root: str | Place,
    manifest: Manifest,
    build: Callable[[], NodeEncoder],
    inputs: Inputs,
    on_bad: OnBad = "skip",
    actors: int = 0,
    wait_minutes: float | None = None,
) -> Made:
    """Mean node states over the films of the training split; nothing of other splits is read.

    Ray's tasks read films, actors add up in fp64, and a block comes back as one sum [N, W].

    Args:
        build: makes the encoder; called once in every actor.
        inputs: how many films of a study it sees, and how large, as in its training.
        actors: processes that hold it, one GPU each where the cluster has them; 0: see `shards.session.pool_for`.
        wait_minutes: longest time to wait for GPUs that an autoscaler can bring; None: what is there is taken.

    Raises:
        ConfigError: more actors than there can be GPUs.
        WaitedError: GPUs that could come did not in time.
        DataError: no film of the split can be read; under "fail" one that cannot.
    """
    index, licence = Index.open(root, "train", on_bad, manifest), manifest.licence

    class Adder:
        """A process that holds the encoder."""

        def __init__(self) -> None:
            self.encoder: NodeEncoder | None = None

        def __call__(self, rows: Rows) -> Rows:
            total, films = np.zeros(()), 0
            with fence(licence), torch.inference_mode():
                self.encoder = self.encoder or build()  # not in __init__: an error of a call comes back as it was
                own = iter(self.encoder.parameters()) if isinstance(self.encoder, torch.nn.Module) else iter(())
                device = next((parameter.device for parameter in own), torch.device("cpu"))
                for part in micro_batches(rows, PORTION):
                    if (seen := part["images"][part["view_mask"]]).size:
                        states = self.encoder.node_states(torch.tensor(seen, device=device))
                        total, films = total + states.double().sum(0).cpu().numpy(), films + len(seen)
            unread = int(sum(cause != "" for cause in rows["bad"]))
            return {"sum": total[None], "films": np.array([films]), "unread": np.array([unread])}

    size = min(PORTION, len(index))
    blocks = sequential_blocks(len(index), 1, size, rows_per_block(inputs.image_px, inputs.views, len(index)))
    held_by, gpus = pool_for(actors, len(blocks), wait_minutes)
    summed = (
        stream_blocks(root, "train", blocks, inputs.image_px, inputs.views, on_bad, index, fit=inputs.fit)
        .dataset()
        .map_batches(
            Adder,
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=held_by),
            num_cpus=0,  # else as many actors as cores would leave none to read films, and wait for ever
            num_gpus=gpus,
        )
    )
    total, films, unread = np.zeros(()), 0, 0
    with in_our_words():
        for row in watched(quiet(summed).iter_rows(), "adding up blocks of films", len(blocks)):
            total = total + row["sum"]
            films, unread = films + int(row["films"]), unread + int(row["unread"])
    if not films:
        raise DataError(f"not one film of the training split of {root} can be read: there is nothing to make it of")
    return total / films, {"films": films, "unread": unread}


def of_names(graph: KnowledgeGraph, encoder: TextEncoder, width: int, seed: int) -> Made:
    """What a text encoder makes of the nodes' keywords, mixed once with that of their neighbours.

    A node begins as the mean over its keywords, each of length 1, and becomes its row of D^-½ (A + 2 I) D^-½ times all:
    with I alone, findings that are joined to one another and to no others would all be the same. A matrix that `seed`
    draws from a normal distribution brings D to W; where they are equal it stays as it is.

    Raises:
        ConfigError, RetryableError: as `r2kg.graph.embed.embed`.
    """
    keywords = keywords_of(graph)
    vectors = iter(torch.nn.functional.normalize(embed([w for own in keywords for w in own], encoder), dim=-1).numpy())
    states = np.stack([np.mean([next(vectors) for _ in own], 0) for own in keywords])  # [N, D]
    joined = adjacency(graph) + 2 * np.eye(len(keywords))
    scale = joined.sum(1) ** -0.5
    mixed = (scale[:, None] * joined * scale) @ states
    if mixed.shape[1] != width:
        drawn = np.random.default_rng(seed).normal(size=(mixed.shape[1], width)) / width**0.5
        mixed = mixed @ drawn
    return mixed, {}


def named_encoder(encoder: TextEncoder, width: int, seed: int) -> dict[str, Any]:
    """What `of_names` depends on beside the graph, for the matrix's description."""
    weights = weight_hashes(text_encoder(encoder.source, "--text"), encoder.revision)
    return {"text": encoder.model_dump(mode="json") | {"weights": weights}, "width": width, "seed": seed}
