"""R2GenKG with its graph: the paper's sizes, what the language model is shown, what is trained, what is not there."""

from pathlib import Path

import numpy as np
import pytest
import torch

from r2kg.config.parts import Data, Decoding
from r2kg.graph.levels import sample_levels, write_levels
from r2kg.modules.config import Llm
from r2kg.recipes import find_recipe
from r2kg.systems.contract import build_model, load_stored, stored
from r2kg.systems.r2genkg.config import R2GenKGConfig
from r2kg.systems.r2genkg.model import FILM_COLUMN
from r2kg.systems.r2genkg.parts import FILMS, Graph, Queries
from shards.errors import ConfigError, DataError
from shards.graphs.subgraph import Subgraph, pack
from tests.r2kg.graph.test_levels import graph as drawn_graph  # noqa: F401  # a fixture
from tests.r2kg.systems.test_r2genkg import llama_2_7b, loss_of, source, stream_rows, tiny  # noqa: F401

NODES, WIDTH = 8, 8
SMALL = {"width": WIDTH, "hidden": 4, "places": 16, "fusion_layers": 1, "fusion_heads": 2, "heads": 2, "dropout": 0.0}


@pytest.fixture
def levels(drawn_graph, tmp_path) -> Path:  # noqa: F811
    """Two levels, of 3 and 6 nodes, of a graph of 8 that was read from a table."""
    features = np.random.default_rng(0).normal(size=(NODES, WIDTH)).astype(np.float32)
    write_levels(drawn_graph, sample_levels(drawn_graph, thresholds=(700, 40)), features, tmp_path / "levels")
    return tmp_path / "levels"


def graph(levels: Path, **changes) -> Graph:
    return Graph(**SMALL | {"thresholds": (700, 40), "shown": 0, "levels_at": str(levels)} | changes)


QUERIES = Queries(count=5, width=12, layers=2, heads=2, film_width=10)


def part(*nodes: int) -> bytes:
    """A film's part of the graph: the nodes, each joined to the next."""
    edges = np.array([range(len(nodes) - 1), range(1, len(nodes))], np.int64)
    return pack(Subgraph(np.array(nodes, np.int64), edges, np.zeros(len(nodes) - 1, np.int64)))


def rows_with_parts() -> dict:
    parts = np.empty(3, object)
    parts[:] = [part(0, 2, 5), b"", part(1, 3)]
    return stream_rows() | {FILM_COLUMN: parts}


def test_the_papers_numbers_of_parameters(llama_2_7b):  # noqa: F811
    """R2GenKG §1.6, each within half a percent; the bank's attention, 1.77 M of 239.9 M, is not among them."""
    run = find_recipe("r2genkg.chexpert_plus")
    config = run.model.model_copy(update={"llm": Llm(source=str(llama_2_7b))})
    with torch.device("meta"):
        model = build_model(config)
    millions = {
        "vision": 86.7, "graph.tokens.relational": 2.36, "graph.tokens.fusion": 11.5, "graph.tokens.project": 0.79,
        "queries.qformer": 105.1, "queries.film": 1.44, "queries.out": 0.79, "projection": 4.20,
    }  # fmt: skip
    for name, expected in millions.items():
        count = sum(p.numel() for p in model.get_submodule(name).parameters())
        assert count / 1e6 == pytest.approx(expected, rel=0.005), name
    both = sum(p.numel() for name in ("i2g", "g2i") for p in model.graph.get_submodule(name).parameters())
    assert both / 1e6 == pytest.approx(25.2, rel=0.005)
    trained = {name: sum(p.numel() for _, p in pairs) for name, pairs in model.trainable().items()}
    assert set(trained) == {"vision", "projection", "graph", "queries"} == {*R2GenKGConfig.trains} - {"llm"}
    assert sum(trained.values()) / 1e6 == pytest.approx(239.9 - 1.77, rel=0.005)


@pytest.mark.parametrize(
    ("changes", "graph_tokens"),
    [
        ({}, 3), ({"shown": 1}, 6), ({"fusion": "paper"}, 9), ({"i2g": False}, 3), ({"g2i": False}, 0),
        ({"source": "film"}, 3), ({"source": "both"}, 6),
    ],
)  # fmt: skip
def test_what_the_language_model_is_shown(source, levels, changes, graph_tokens):  # noqa: F811
    model = tiny(source, graph=graph(levels, **changes), queries=QUERIES).eval()
    rows = rows_with_parts() if changes.get("source") else stream_rows()
    soft, present = model.soft_tokens(model.collate(rows))
    patches = model.vision.patches
    assert soft.shape[1] == patches + graph_tokens + patches * model.config.graph.i2g + QUERIES.count
    if changes.get("source"):
        there = present[:, patches : patches + graph_tokens]
        fixed = graph_tokens - 3
        assert there.sum(1).tolist() == [fixed + 3, fixed, fixed + 2] and present[:, patches + graph_tokens :].all()
    else:
        assert present is None


@pytest.mark.parametrize("kind", ["levels", "film", "both"])
def test_gradients_reach_all_that_is_trained_and_nothing_of_the_graph_itself(source, levels, kind):  # noqa: F811
    model = tiny(source, graph=graph(levels, source=kind), queries=QUERIES)
    loss_of(model, model.collate(rows_with_parts() if kind != "levels" else stream_rows())).backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    allowed = ("bias", "graph.tokens.fusion.place", "relational", "attention.in_proj_bias")
    assert not [name for name in without if not name.endswith("bias") and not any(a in name for a in allowed)], without
    held = stored(model)
    assert not [name for name in held if "features" in name or "edge" in name or "node_" in name]
    assert model.graph.tokens.features.shape == (NODES, WIDTH) and not model.graph.tokens.features.requires_grad


def test_a_batch_of_which_no_film_has_a_part_takes_the_same_way(source, levels):  # noqa: F811
    """Else one rank would leave the others waiting for its gradients."""
    model = tiny(source, graph=graph(levels, source="film"), queries=QUERIES)
    parts = np.empty(3, object)
    parts[:] = [b"", b"", b""]
    loss = loss_of(model, model.collate(stream_rows() | {FILM_COLUMN: parts}))
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_a_film_is_written_about_alike_alone_and_beside_others(source, levels):  # noqa: F811
    model = tiny(source, graph=graph(levels, source="both"), queries=QUERIES).eval()
    rows = rows_with_parts()
    decoding = Decoding(beams=1, max_new_tokens=8, min_new_tokens=1)
    together = model.generate(model.collate(rows), decoding)
    for at in range(3):
        (alone,) = model.generate(model.collate({name: column[at : at + 1] for name, column in rows.items()}), decoding)
        assert alone.text == together[at].text


def test_the_part_of_the_graph_changes_what_is_seen(source, levels):  # noqa: F811
    model = tiny(source, graph=graph(levels, source="film")).eval()
    rows = rows_with_parts()
    soft, _ = model.soft_tokens(model.collate(rows))
    rows[FILM_COLUMN][2] = part(4, 6)
    changed, _ = model.soft_tokens(model.collate(rows))
    assert torch.equal(soft[0], changed[0]) and not torch.allclose(soft[2], changed[2])


def test_weights_are_stored_and_loaded(source, levels):  # noqa: F811
    model = tiny(source, graph=graph(levels), queries=QUERIES)
    other = tiny(source, graph=graph(levels), queries=QUERIES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    load_stored(other, stored(model))
    for name, tensor in stored(model).items():
        assert torch.equal(stored(other)[name], tensor), name


def test_sides_follow_the_source():
    assert R2GenKGConfig(graph=Graph()).inputs(Data()).sides == ()
    assert R2GenKGConfig(graph=Graph(source="both")).inputs(Data()).sides == (FILMS,)


def test_levels_that_do_not_fit_are_refused(source, levels):  # noqa: F811
    with pytest.raises(ConfigError, match="8 channels, model.graph.width=16: make them equal"):
        tiny(source, graph=graph(levels, width=16))
    with pytest.raises(ConfigError, match="a level has 6 nodes, model.graph.places=4: raise it"):
        tiny(source, graph=graph(levels, places=4))
    with pytest.raises(ConfigError, match="the levels are made before the run"):
        tiny(source, graph=graph(levels, levels_at=""))
    with pytest.raises(DataError, match="no levels of a graph at"):
        tiny(source, graph=graph(levels / "nowhere"))
    model = tiny(source, graph=graph(levels, source="film"))
    parts = np.empty(3, object)
    parts[:] = [part(0, 99), b"", b""]
    with pytest.raises(DataError, match="outside 0 to 8"):
        model.collate(stream_rows() | {FILM_COLUMN: parts})
    for wrong, told in (
        ({"i2g": False, "g2i": False}, "show nothing of the graph"),
        ({"shown": 5}, "shown=5 is none of 2 levels"),
        ({"fusion_heads": 3}, "do not divide width=8"),
    ):
        with pytest.raises(ValueError, match=told):
            graph(levels, **wrong)
    with pytest.raises(ValueError, match="heads=5 do not divide width=12"):
        Queries(width=12, heads=5)
