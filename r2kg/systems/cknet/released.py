"""What the code that was released with CKNet asks in place of a matrix: node states of the study's own films.

It makes them by a graph whose weights are drawn anew in every forward pass, whatever was loaded before, and in
inference words ask a matrix that nothing has ever written to (lineage of the code, Kangbeichen/CKNet). It is here as a
control, so that its figures can be told from those of the paper's method; weights of its classifier were not released.

Shapes: B batch, V views, P patches, N nodes and the root, D channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from r2kg.graph.build.keywords import organ_pairs, published_pairs

NODES = 30
LAYERS = 3


class ReleasedGraph(nn.Module):
    """Films → states of the 30 findings and the root; nothing in it is trained."""

    near: Tensor

    def __init__(self, width: int) -> None:
        """`width` is D, that of the image encoder's tokens."""
        super().__init__()
        self.maps = nn.Linear(width, NODES, bias=False).requires_grad_(False)
        near = torch.eye(NODES + 1, device="cpu")
        near[0, :] = 1.0  # the root reaches all, none the root
        for head, tail in organ_pairs(NODES) | published_pairs(NODES):
            near[1 + head, 1 + tail] = near[1 + tail, 1 + head] = 1.0
        scale = near.sum(1).rsqrt()
        self.register_buffer("near", scale[:, None] * near * scale, persistent=False)

    @torch.no_grad()
    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        """Node states [B, N, D], the sum over films, from tokens [B, V, P, D] and bool [B, V]."""
        look = self.maps(tokens).float().softmax(2).to(tokens.dtype)  # [B, V, P, 30]
        seen = torch.einsum("bvpn,bvpd->bvnd", look, tokens)
        nodes = torch.cat((tokens.mean(2, keepdim=True), seen), 2)  # the root first
        near, width = self.near.to(tokens.dtype), tokens.shape[-1]
        for _ in range(LAYERS):
            bound = width**-0.5
            drawn = torch.empty(3, width, width, dtype=tokens.dtype, device=tokens.device).uniform_(-bound, bound)
            own, ahead, back = (nodes @ weights for weights in drawn)
            nodes = F.relu(nodes + (F.relu(own) + F.relu(near @ ahead) + F.relu(near.T @ back)) / 3)
        return (nodes * present[..., None, None]).sum(1)
