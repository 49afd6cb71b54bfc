"""What the code that was released with CKNet asks in place of a matrix: node states of the study's own films.

It makes them by graph convolutions whose weights to and from neighbours are drawn anew in every forward pass, whatever
was loaded before, and in inference words ask a matrix that nothing has ever written to (Kangbeichen/CKNet). It is here
as a control, so that its figures can be told from those of the paper's method. What its classifier's file held was not
released: attention maps and the maps of a node's own state are drawn once here.

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

    def __init__(self, width: int, seed: int) -> None:
        """`width` is D, that of the image encoder's tokens; `seed` is of all that is drawn once."""
        super().__init__()
        self.seed = seed
        self.maps = nn.Linear(width, NODES, bias=False)
        self.own = nn.ModuleList(nn.Linear(width, width // 4, bias=False) for _ in range(LAYERS))
        self.condense = nn.ModuleList(nn.Linear(3 * (width // 4), width) for _ in range(LAYERS))
        self.requires_grad_(False)
        if torch.get_default_device().type != "meta":
            draw = torch.Generator("cpu").manual_seed(seed)
            for parameter in self.parameters():
                nn.init.normal_(parameter, std=width**-0.5, generator=draw)
        near = torch.eye(NODES + 1, device="cpu")
        near[0, :] = 1.0  # the root reaches all, none the root
        for head, tail in organ_pairs(NODES) | published_pairs(NODES):
            near[1 + head, 1 + tail] = near[1 + tail, 1 + head] = 1.0
        scale = near.sum(1).rsqrt()
        self.register_buffer("near", scale[:, None] * near * scale, persistent=False)

    @torch.no_grad()
    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        """Node states [B, N, D], the sum over films, from tokens [B, V, P, D] and bool [B, V].

        In eval mode what is drawn anew is always the same, so that a checkpoint's loss can be found again.
        """
        look = self.maps(tokens).float().softmax(2).to(tokens.dtype)  # [B, V, P, 30]
        seen = torch.einsum("bvpn,bvpd->bvnd", look, tokens)
        nodes = torch.cat((tokens.mean(2, keepdim=True), seen), 2)  # the root first
        near, width = self.near.to(tokens.dtype), tokens.shape[-1]
        draw = None if self.training else torch.Generator("cpu").manual_seed(self.seed)
        for own, condense in zip(self.own, self.condense, strict=True):
            ahead, back = (torch.empty(width, width // 4, device="cpu" if draw else tokens.device) for _ in range(2))
            for drawn in (ahead, back):
                nn.init.xavier_normal_(drawn, gain=0.02, generator=draw)
            ahead, back = ahead.to(tokens), back.to(tokens)
            parts = own(nodes), near @ (nodes @ ahead), near.T @ (nodes @ back)
            nodes = F.relu(nodes + condense(torch.cat([F.relu(part) for part in parts], -1)))
        return (nodes * present[..., None, None]).sum(1)
