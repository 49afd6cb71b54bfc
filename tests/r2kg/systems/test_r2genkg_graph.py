"""R2GenKG with its graph: the paper's sizes, what the language model is shown, what is trained, what is not there."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from jobs.show import parameter_lines
from r2kg.config.parts import Data, Decoding
from r2kg.graph.film import FILMS
from r2kg.graph.levels import ARRAYS, FILE, Level, sample_levels, write_levels
from r2kg.graph.schema import RELATIONS
from r2kg.modules.config import Llm, Vision
from r2kg.recipes import find_recipe
from r2kg.systems.contract import build_model, load_stored, stored, to_bf16
from r2kg.systems.r2genkg.config import R2GenKGConfig
from r2kg.systems.r2genkg.graph import collate, controlled, triples_told
from r2kg.systems.r2genkg.model import FILM_COLUMN
from r2kg.systems.r2genkg.parts import Bank, Graph, Queries
from r2kg.systems.r2genkg.queries import CELLS, BankAttention
from r2kg.systems.r2genkg.queries import FILE as TOKENS
from r2kg.training.artefacts import built, with_init
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


PAPER = (101, 206, 319, 400, 558)


@pytest.fixture
def paper_levels(tmp_path) -> Path:
    """Five nested levels of the paper's sizes, over a graph of 558 nodes."""
    graphs = [
        Level(np.arange(n), np.stack([np.arange(n - 1), np.arange(1, n)]), np.zeros(n - 1, int), 1) for n in PAPER
    ]
    arrays = {f"{name}.{at}": getattr(one, name) for at, one in enumerate(graphs) for name in ("node", "edge_index")}
    arrays |= {f"edge_type.{at}": one.edge_type for at, one in enumerate(graphs)}
    save_file(arrays | {"features": np.zeros((PAPER[-1], 768), np.float32)}, tmp_path / ARRAYS)
    names = [f"n{at}" for at in range(PAPER[-1])]
    told = {"names": names, "thresholds": [1] * 5, "graph": "0" * 64, "studies": [[] for _ in names]}
    (tmp_path / FILE).write_text(json.dumps(told))
    return tmp_path


def test_the_papers_numbers_of_parameters_and_tokens(llama_2_7b, paper_levels):  # noqa: F811
    """R2GenKG §1.5, §1.6: 445 soft tokens, 239.9 M trained parameters, each module within half a percent."""
    changes = {"model.llm.source": str(llama_2_7b), "model.graph.levels_at": str(paper_levels)}
    run = find_recipe("r2genkg.chexpert_plus").change(changes)
    with torch.device("meta"):
        model = build_model(run.model)
    assert sum(model.token_counts().values()) == 445
    assert model.writer.width == model.projection.out_features == 4096
    assert model.queries.bank.tokens.shape == (6943, 768)
    millions = {
        "vision": 86.7, "graph.tokens.relational": 2.36, "graph.tokens.fusion": 11.5, "graph.tokens.project": 0.79,
        "queries.qformer": 105.1, "queries.film": 1.44, "queries.out": 0.79, "queries.bank": 1.77, "projection": 4.20,
    }  # fmt: skip
    for name, expected in millions.items():
        count = sum(p.numel() for p in model.get_submodule(name).parameters())
        assert count / 1e6 == pytest.approx(expected, rel=0.005), name
    both = sum(p.numel() for name in ("i2g", "g2i") for p in model.graph.get_submodule(name).parameters())
    assert both / 1e6 == pytest.approx(25.2, rel=0.005)
    trained = {name: sum(p.numel() for _, p in pairs) for name, pairs in model.trainable().items()}
    assert set(trained) == {"vision", "projection", "graph", "queries"} == {*R2GenKGConfig.trains} - {"llm"}
    assert sum(trained.values()) / 1e6 == pytest.approx(239.9, rel=0.0005)
    lines = parameter_lines(run)
    assert lines[-1].startswith("Soft tokens: 445 (49 of the film, 319 of the graph,")
    told = {line.split()[0]: int(line.split()[2].replace(",", "")) for line in lines[1:-1]}
    assert told["all"] == sum(trained.values()) and told["writer"] == 0


@pytest.mark.parametrize(
    ("changes", "graph_tokens"),
    [
        ({}, 3), ({"shown": 1}, 6), ({"fusion": "paper"}, 9), ({"i2g": False}, 3), ({"g2i": False}, 0),
        ({"source": "film"}, 3), ({"source": "both"}, 6), ({"source": "both", "attention_width": 4}, 6),
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
    assert not [name for name in held if "features" in name or "edge" in name or "node_" in name or "bank.tok" in name]
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


@pytest.fixture
def tokens(tmp_path) -> str:
    """Nine tokens of a bank of the queries' width."""
    values = np.random.default_rng(1).normal(size=(9, QUERIES.width)).astype(np.float32)
    save_file({"tokens": values}, tmp_path / TOKENS)
    (tmp_path / CELLS).write_text(json.dumps([["Edema", f"study-{at}"] for at in range(9)]))
    return str(tmp_path)


@pytest.mark.parametrize(("shown", "asked"), product((True, False), repeat=2))
def test_what_is_shown_of_queries_and_bank(source, tokens, shown, asked):  # noqa: F811
    if not shown and not asked:
        with pytest.raises(ValueError, match="shown=false without a bank shows nothing"):
            Queries(shown=False)
        return
    given = {"shown": shown, "bank": Bank(tokens_at=tokens) if asked else None}
    queries = Queries(**QUERIES.model_dump() | given)
    model = tiny(source, queries=queries).eval()
    batch = model.collate(stream_rows())
    soft, _ = model.soft_tokens(batch)
    assert soft.shape[1] == sum(model.token_counts().values()) == model.vision.patches + 5 * (shown + asked)
    loss_of(model, batch).backward()
    assert all(
        p.grad is not None and p.grad.any() for n, p in model.named_parameters() if "bank" in n and "key.b" not in n
    )


def test_the_bank_is_asked_by_one_head_of_attention(tokens):
    torch.manual_seed(0)
    bank = BankAttention(Bank(tokens_at=tokens), QUERIES.width)
    queries = torch.randn(2, 5, QUERIES.width)
    answer, weights = bank(queries)
    held = bank.tokens
    wanted = torch.nn.functional.scaled_dot_product_attention(bank.query(queries), bank.key(held), bank.value(held))
    torch.testing.assert_close(answer, wanted)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 5))
    with pytest.raises(ConfigError, match="tokens have 12 channels, model.queries.width=8"):
        BankAttention(Bank(tokens_at=tokens), 8)
    with pytest.raises(ConfigError, match="tokens_at is empty"):
        BankAttention(Bank(), 8)
    with pytest.raises(DataError, match="cannot be read .*delete it"):
        BankAttention(Bank(tokens_at="/nowhere"), 8)


def test_levels_are_encoded_once_where_nothing_is_trained(source, levels, monkeypatch):  # noqa: F811
    model, calls = tiny(source, graph=graph(levels)), []
    tokens = model.graph.tokens
    fuse = tokens.fusion.forward
    monkeypatch.setattr(tokens.fusion, "forward", lambda *given: calls.append(1) or fuse(*given))
    batch = model.collate(stream_rows())

    def seen():
        with torch.inference_mode():
            return model.eval().soft_tokens(batch)[0].clone()

    model.eval()
    with torch.no_grad():
        first, again = model.soft_tokens(batch)[0], model.soft_tokens(batch)[0]
    assert len(calls) == 1 and torch.equal(first, again)
    loss_of(model.train(), batch).backward()
    loss_of(model, batch).backward()
    assert len(calls) == 3, "with weights that learn, once a batch"
    with torch.no_grad():
        tokens.project.weight.add_(1.0)
    assert not torch.allclose(seen(), first) and len(calls) == 4


@pytest.mark.parametrize("control", ["empty", "edges", "features"])
def test_controls_keep_the_tokens_and_take_the_sense(drawn_graph, control, tmp_path):  # noqa: F811
    made = sample_levels(drawn_graph, thresholds=(700, 40))
    features = np.random.default_rng(0).normal(size=(NODES, WIDTH)).astype(np.float32)
    changed, held = controlled(made, features, control)
    assert [level.node.tolist() for level in changed] == [level.node.tolist() for level in made]
    edges = [level.edge_index.tolist() for level in changed] != [level.edge_index.tolist() for level in made]
    assert edges == (control != "features") and (held != features).any() == (control != "edges")
    read = write_levels(drawn_graph, changed, held, tmp_path)  # as `prepare` writes them, and a model reads them
    assert all(np.array_equal(one.edge_index, two.edge_index) for one, two in zip(read.graphs, changed, strict=True))
    if control == "edges":
        for before, after in zip(made, changed, strict=True):
            assert before.edge_index[0].tolist() == after.edge_index[0].tolist()
            assert sorted(before.edge_index[1]) == sorted(after.edge_index[1])
    if control == "features":
        assert sorted(map(tuple, held)) == sorted(map(tuple, features))
    if control == "empty":
        assert not held.any() and not any(level.edge_index.size for level in changed)
    parts = rows_with_parts()[FILM_COLUMN]
    whole, without = collate(parts, NODES), collate(parts, NODES, empty=True)
    assert torch.equal(whole["node"], without["node"]) and whole["edge_type"].numel() > 0
    assert not without["edge_type"].numel() and without["edge_index"].shape == (2, 0)


def test_a_control_that_would_still_tell_is_refused():
    """Which nodes a film's own part has says what is on the film, whatever becomes of edges and features."""
    for changes, words in (
        ({"source": "film", "control": "edges"}, "control=edges is one of source=levels, and source=film"),
        ({"source": "both", "control": "features"}, "control=features is one of source=levels, and source=both"),
        ({"source": "both", "control": "film"}, "control=film is one of source=film, and source=both"),
        ({"source": "film", "control": "empty", "text_triples": 3}, "would say what control=empty takes away"),
    ):
        with pytest.raises(ValueError, match=words):
            Graph(**changes)


def test_triples_stand_in_the_prompt_as_words(source, levels):  # noqa: F811
    model = tiny(source, graph=graph(levels, source="film", text_triples=1)).eval()
    names = model.graph.tokens.names
    rows = rows_with_parts()
    told = triples_told(rows[FILM_COLUMN], names, 1)
    assert told == [f" Similar films: {names[0]} {RELATIONS[0].replace('_', ' ')} {names[2]}.", "",
                    f" Similar films: {names[1]} {RELATIONS[0].replace('_', ' ')} {names[3]}."]  # fmt: skip
    batch = model.collate(rows)
    soft, present = model.soft_tokens(batch)
    plain = tiny(source, graph=graph(levels, source="film")).eval()
    fewer, there = plain.soft_tokens(plain.collate(rows))
    words = soft.shape[1] - fewer.shape[1]
    assert torch.equal(soft[:, :-words], fewer) and torch.equal(present[:, :-words], there)
    lengths = [len(ids) for ids in model.writer.tokenizer(told, add_special_tokens=False).input_ids]
    assert present[:, -words:].sum(1).tolist() == lengths and words == max(lengths)
    assert len(model.generate(batch, Decoding(beams=1, max_new_tokens=4))) == 3
    with pytest.raises(ValueError, match="text_triples=1 are of films' own parts"):
        graph(levels, text_triples=1)


def test_evidence_names_what_was_asked_most(source, levels, tokens):  # noqa: F811
    queries = Queries(**QUERIES.model_dump() | {"bank": Bank(tokens_at=tokens)})
    model = tiny(source, graph=graph(levels, source="both"), queries=queries, evidence=2).eval()
    batch = model.collate(rows_with_parts())
    written = model.generate(batch, Decoding(beams=1, max_new_tokens=4))
    film, _ = model.vision.see(batch, torch.float32)
    graph_tokens, there = model.graph.tokens(3, batch["films"])
    keys = model.graph.i2g.norm(graph_tokens)
    by_head = model.graph.i2g.attention(model.graph.i2g.norm(film), keys, keys, key_padding_mask=~there)[1]
    weight, ids = by_head.detach().mean(1), model.graph.tokens.node_ids(3, batch["films"])
    for row, one in enumerate(written):
        by_node = {node: float(weight[row][ids[row] == node].sum()) for node in range(NODES)}
        best = sorted(by_node, key=lambda node: -by_node[node])[:2]
        found = one.extra["evidence"]
        assert [name for name, _, _ in found["nodes"]] == [model.graph.tokens.names[node] for node in best]
        assert [value for _, value, _ in found["nodes"]] == pytest.approx([by_node[node] for node in best], abs=1e-3)
        assert len(found["bank"]) == 2 and found["bank"][0][0] == "Edema" and found["bank"][0][2] >= found["bank"][1][2]
    assert tiny(source, graph=graph(levels), evidence=0).generate(batch, Decoding(max_new_tokens=4))[0].extra == {}
    assert tiny(source).generate(batch, Decoding(max_new_tokens=4))[0].extra == {}


def test_the_q_former_begins_as_blip_2s(source, tmp_path):  # noqa: F811
    """A file with the names of LAVIS's checkpoints fills the Q-Former and nothing else."""
    config = R2GenKGConfig(
        vision=Vision(name="test_vit", weights="random", image_px=64), llm=Llm(source=str(source)), queries=QUERIES
    )
    run = find_recipe("r2genkg.chexpert_plus").change({"root": str(tmp_path), "model": config.model_dump()})
    torch.manual_seed(0)
    own = dict(build_model(run.model).named_parameters())
    held, wanted = (
        {"query_tokens": torch.zeros(1, 32, 12), "ln_vision.weight": torch.zeros(3)},
        dict[str, torch.Tensor](),
    )
    for name, parameter in own.items():
        if name.startswith("queries.qformer."):
            wanted[name] = torch.randn_like(parameter)
            old = name.replace("queries.qformer.layernorm", "Qformer.bert.embeddings.LayerNorm")
            old = old.replace("queries.qformer.", "Qformer.bert.").replace("attention.attention.", "attention.self.")
            held[old] = wanted[name]
    for layer in (0, 1):  # the text's, which the queries do not use
        held[f"Qformer.bert.encoder.layer.{layer}.intermediate.dense.weight"] = torch.zeros(4)
        held[f"Qformer.bert.encoder.layer.{layer}.output.LayerNorm.bias"] = torch.zeros(4)
    held["Qformer.cls.predictions.bias"] = torch.zeros(9)
    torch.save({"model": held}, tmp_path / "blip2.pth")
    torch.manual_seed(0)
    begun = dict(built(with_init(run.change({"train.init_from": str(tmp_path / "blip2.pth")}))).named_parameters())
    for name, parameter in begun.items():
        assert torch.equal(parameter, wanted.get(name, own[name])), name
    assert len(wanted) == 2 + 2 * 16 + 10, "a layer's own attention and feed-forward, the first one's to the film"


@pytest.mark.parametrize("kind", ["levels", "both"])
def test_all_of_it_trains_and_writes_in_bf16(source, levels, tokens, kind):  # noqa: F811
    """As DeepSpeed casts it at stages 1 to 3: parameters, not buffers. The loss is about that of fp32."""
    queries = Queries(**QUERIES.model_dump() | {"bank": Bank(tokens_at=tokens)})
    changes = {"source": kind, "text_triples": 2 if kind == "both" else 0}
    model = tiny(source, graph=graph(levels, **changes), queries=queries)
    batch = model.collate(rows_with_parts() if kind == "both" else stream_rows())
    wanted = float(loss_of(model.eval(), batch).detach())
    to_bf16(model)
    assert model.graph.tokens.features.dtype == model.queries.bank.tokens.dtype == torch.float32
    loss = loss_of(model.train(), batch)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(wanted, rel=0.05)
    assert all(p.grad.dtype == torch.bfloat16 for p in model.parameters() if p.grad is not None)
    with torch.inference_mode():
        written = model.eval().generate(batch, Decoding(beams=1, max_new_tokens=4))
    assert len(written) == 3 and written[0].extra["evidence"]["nodes"]


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
        ({"attention_width": 5}, "heads=2 do not divide attention_width=5"),
    ):
        with pytest.raises(ValueError, match=told):
            graph(levels, **wrong)
    with pytest.raises(ValueError, match="heads=5 do not divide width=12"):
        Queries(width=12, heads=5)
