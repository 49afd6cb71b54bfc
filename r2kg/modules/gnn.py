"""A knowledge graph as tokens: R-GCN over levels and films' own parts, their fusion, and attention to and from films;
and convolution over a graph of findings, whose nodes are read off a film.

Shapes: B batch, N nodes of a level, E edges, D_k width of the graph, P film tokens, D_v width of the encoder, F films.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import GCNConv, MeanAggregation, RGCNConv
from torch_geometric.utils import add_self_loops, degree

RELATIONS = 3
"""No types for the inverse: an edge is read from head to tail (R2GenKG §1.3)."""


class WideMean(MeanAggregation):
    """Means over neighbours in fp32, whatever the dtype of what is sent: in bf16 those of a hub lose digits.

    On GPUs PyTorch adds by atomics there, in an order that differs from run to run: the last bits may, too.
    """

    def forward(self, x: Tensor, *where: Any, **named: Any) -> Tensor:
        """[N, D] of messages [E, D], in their dtype; the rest as PyG's own."""
        return super().forward(x.float(), *where, **named).to(x.dtype)


class RelationalEncoder(nn.Module):
    """Two layers of R-GCN (Schlichtkrull et al. 2018) with D_k / 2 channels between them; R2GenKG §1.3.

    h_i' = W_0 h_i + Σ_r 1/|N_i^r| Σ_{j ∈ N_i^r} W_r h_j + b, ReLU and dropout between the two.
    """

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.first = RGCNConv(width, hidden, RELATIONS, aggr=WideMean())
        self.second = RGCNConv(hidden, width, RELATIONS, aggr=WideMean())
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, edge_index: Tensor, edge_type: Tensor) -> Tensor:
        """Node states [N, D_k] from features [N, D_k], int64 [2, E] and int64 [E]; of no nodes, none.

        PyG's layer adds into fp32, so that its output has to be brought back to the weights' dtype.
        """
        inner = self.dropout(self.first(x, edge_index, edge_type).to(x.dtype).relu())
        return self.second(inner, edge_index, edge_type).to(x.dtype)


class ScaleFusion(nn.Module):
    """Self-attention over the nodes of all levels, told apart by scale and by place in their level (R2GenKG §1.3)."""

    def __init__(self, width: int, levels: int, most: int, layers: int, heads: int, dropout: float) -> None:
        """`most` is the largest level's number of nodes, for the embedding of places."""
        super().__init__()
        self.scale, self.place = nn.Parameter(torch.empty(levels, width)), nn.Parameter(torch.empty(most, width))
        nn.init.normal_(self.scale, std=0.02)
        nn.init.normal_(self.place, std=0.02)
        layer = nn.TransformerEncoderLayer(width, heads, 2048 * width // 768, dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, levels: Sequence[Tensor], shown: int | None = None) -> Tensor:
        """Fused states of the level `shown`, [N_shown, D_k], or of all, [ΣN, D_k], from their states [N_g, D_k].

        Of one level the last layer asks for that level's nodes alone: what it would make of the others goes nowhere.
        """
        x = torch.cat([x + self.scale[g] + self.place[: len(x)] for g, x in enumerate(levels)])[None]  # [1, ΣN, D_k]
        *first, last = self.encoder.layers
        for layer in first:
            x = layer(x)
        if shown is None:
            return last(x)[0]
        begin = sum(len(level) for level in levels[:shown])
        asked = x[:, begin : begin + len(levels[shown])]
        asked = last.norm1(asked + last.dropout1(last.self_attn(asked, x, x, need_weights=False)[0]))
        inner = last.linear2(last.dropout(last.activation(last.linear1(asked))))
        return last.norm2(asked + last.dropout2(inner))[0]


class CrossBlock(nn.Module):
    """Queries attend to keys, then an MLP, both residual (R2GenKG §1.4); one LayerNorm without bias for q, k and v."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.norm_mlp = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.attention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(
        self, q: Tensor, kv: Tensor, present: Tensor | None = None, weigh: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """[B, Q, D] from queries [B, Q, D] and keys [B, K, D].

        Args:
            present: bool [B, K], False at keys that are not there. Where none is, nothing is attended to: the query
                goes through the MLP alone.
            weigh: give the heads' mean attention [B, Q, K] too, 0 where nothing is; fused kernels are not used then.
        """
        keys = self.norm(kv)
        ignored, some = None, None
        if present is not None:
            some = present.any(1)
            ignored = ~present & some[:, None]  # a row of nothing but ignored keys would be NaN
        asked = self.norm(q)
        attended, weights = self.attention(asked, keys, keys, key_padding_mask=ignored, need_weights=weigh)
        if some is not None:
            attended = attended * some[:, None, None].to(attended.dtype)
            weights = None if weights is None else weights * some[:, None, None]
        q = q + attended
        return q + self.mlp(self.norm_mlp(q)), weights


def edge_weights(edge_index: Tensor, nodes: int, self_loops: bool = False) -> tuple[Tensor, Tensor]:
    """Edges of a directed graph with the weights of its normalised adjacency: int64 [2, E] and fp32 [E].

    Of an edge from i to j 1/√(edges from i · edges to j), which is D_f^-½ A D_b^-½ (SentKG); a node without edges has
    none to weigh. With `self_loops` 1/√(edges from i · edges from j) of A + I (AMIA 2022).
    """
    if self_loops:
        edge_index, _ = add_self_loops(edge_index, num_nodes=nodes)
    first, second = edge_index
    sent, got = degree(first, nodes), degree(first if self_loops else second, nodes)
    return edge_index, (sent[first] * got[second]).rsqrt()


class FindingConvolution(nn.Module):
    """A layer of SentKG's classifier (Zhang et al. 2020): a node hears itself, those that its edges lead to, and those
    that have edges to it, each through weights of their own.

    h' = ReLU(h + dropout(norm(W [ReLU norm(h W_s) ; ReLU norm(Ã h W_f) ; ReLU norm(Ãᵀ h W_b)]))), without biases.
    The released code has BatchNorm; here it is LayerNorm over the channels of a node, as batch statistics would differ
    between workers and micro-batches. Neighbours are added up in fp32.
    """

    def __init__(self, width: int, dropout: float) -> None:
        """`width` is that of a node, which 4 divides: each branch has a quarter."""
        super().__init__()
        part = width // 4
        self.own = nn.Linear(width, part, bias=False)
        self.ahead, self.behind = (GCNConv(width, part, normalize=False, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(part) for _ in range(3))
        self.joined, self.norm = nn.Linear(3 * part, width, bias=False), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, edge_index: Tensor, weight: Tensor) -> Tensor:
        """[F, N, D] of node states [F, N, D] in their dtype, with the edges that `edge_weights` gives."""
        # PyG sends from an edge's first node to its second
        heard = self.own(x), self.ahead(x, edge_index.flip(0), weight), self.behind(x, edge_index, weight)
        branches = [norm(part.to(x.dtype)).relu() for norm, part in zip(self.norms, heard, strict=True)]
        return (x + self.dropout(self.norm(self.joined(torch.cat(branches, -1))))).relu()
