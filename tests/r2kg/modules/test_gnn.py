"""Parts of R2GenKG that know the graph: sizes of the paper, equations, and what is not there."""

import pytest
import torch
from torch import nn
from torch_geometric.nn import MeanAggregation

from r2kg.modules.gnn import CrossBlock, RelationalEncoder, ScaleFusion


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_sizes_are_those_of_the_paper():
    """R2GenKG §1.6: 2.36 M, 11.5 M, 25.2 M for two blocks."""
    with torch.device("meta"):
        assert size(RelationalEncoder(768, 384, 0.1)) == 2_360_448
        assert size(ScaleFusion(768, 5, 600, 2, 8, 0.1)) == 11_492_608
        assert 2 * size(CrossBlock(1024, 16, 0.1)) == pytest.approx(25.2e6, rel=0.005)


def test_a_layer_is_its_equation():
    torch.manual_seed(0)
    encoder, x = RelationalEncoder(6, 4, 0.0), torch.randn(5, 6)
    edge_index, edge_type = torch.tensor([[0, 1, 2, 3, 0], [4, 4, 4, 1, 1]]), torch.tensor([0, 0, 2, 1, 1])
    conv, expected = encoder.first, torch.zeros(5, 4)
    for node in range(5):
        expected[node] = x[node] @ conv.root + conv.bias
        for relation in range(3):
            heads = [
                h
                for h, t, r in zip(*edge_index.tolist(), edge_type.tolist(), strict=True)
                if (t, r) == (node, relation)
            ]
            if heads:
                expected[node] += (x[heads] @ conv.weight[relation]).mean(0)
    assert torch.allclose(conv(x, edge_index, edge_type), expected, atol=1e-6)
    assert encoder(x, edge_index, edge_type).shape == (5, 6)


def test_a_graph_without_nodes_or_edges_is_none_and_has_gradients():
    """A rank whose films have no part of the graph takes the same way through every layer."""
    encoder = RelationalEncoder(6, 4, 0.0)
    none = encoder(torch.zeros(0, 6), torch.zeros(2, 0, dtype=torch.long), torch.zeros(0, dtype=torch.long))
    assert none.shape == (0, 6)
    none.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in encoder.parameters())
    alone = encoder(torch.ones(2, 6), torch.zeros(2, 0, dtype=torch.long), torch.zeros(0, dtype=torch.long))
    assert alone.shape == (2, 6) and torch.equal(alone[0], alone[1])


def test_levels_speak_to_one_another_and_keep_their_places():
    torch.manual_seed(0)
    fusion = ScaleFusion(16, 2, 6, 1, 2, 0.0).eval()
    small, large = torch.randn(3, 16), torch.randn(6, 16)
    fused, first = fusion([small, large]), fusion([small, large], 0)
    assert fused.shape == (9, 16) and first.shape == (3, 16)
    told = torch.cat([x + fusion.scale[g] + fusion.place[: len(x)] for g, x in enumerate((small, large))])
    assert torch.allclose(fused, fusion.encoder(told[None])[0], atol=1e-6)
    assert torch.allclose(fused[:3], first, atol=1e-6)
    assert torch.allclose(fused[3:], fusion([small, large], 1), atol=1e-6)
    changed = fusion([small, large + 1], 0)
    assert not torch.allclose(first, changed), "the other scale is attended to"
    assert not torch.allclose(fusion([small.flip(0), large], 0).flip(0), first), "places tell nodes apart"


def test_sums_over_many_neighbours_are_taken_in_fp32(monkeypatch):
    """What reaches PyG's mean over a hub's neighbours, and what comes back, for weights in bf16."""
    torch.manual_seed(0)
    encoder, seen = RelationalEncoder(8, 4, 0.0).to(torch.bfloat16), []
    plain = MeanAggregation.forward
    spy = lambda self, x, *rest, **named: seen.append(x.dtype) or plain(self, x, *rest, **named)  # noqa: E731
    monkeypatch.setattr(MeanAggregation, "forward", spy)
    hub = torch.stack([torch.arange(1, 601), torch.zeros(600, dtype=torch.long)])
    x = torch.randn(601, 8).to(torch.bfloat16) + 1
    out = encoder(x, hub, torch.zeros(600, dtype=torch.long))
    assert set(seen) == {torch.float32} and out.dtype == torch.bfloat16
    torch.testing.assert_close(
        out.float(), encoder.float()(x.float(), hub, torch.zeros(600).long()), rtol=0.02, atol=0.02
    )


def test_keys_that_are_not_there_change_nothing():
    torch.manual_seed(0)
    block, q, kv = CrossBlock(16, 4, 0.0).eval(), torch.randn(2, 3, 16), torch.randn(2, 5, 16)
    present = torch.tensor([[True, True, False, False, False], [False] * 5])
    out, _ = block(q, kv, present)
    assert torch.allclose(out[:1], block(q[:1], kv[:1, :2])[0], atol=1e-6)
    alone = q[1] + block.mlp(block.norm_mlp(q[1]))
    assert torch.allclose(out[1], alone, atol=1e-6) and out.isfinite().all()
    plain = block(q, kv, torch.ones(2, 5, dtype=torch.bool))[0]
    assert torch.allclose(block(q, kv)[0], plain, atol=1e-6)
    weighed, weights = block(q, kv, present, weigh=True)
    assert torch.allclose(weighed, out, atol=1e-6) and block(q, kv)[1] is None
    assert torch.allclose(weights.sum(-1), torch.tensor([[1.0] * 3, [0.0] * 3])) and not weights[0, :, 2:].any()
