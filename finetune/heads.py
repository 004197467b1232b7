"""From the features of any backbone to a few numbers per image: linear, attentive and two-layer heads."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ssl_med.backbones import Backbone
from ssl_med.errors import UserError
from ssl_med.types import Features

Kind = Literal["linear", "attentive", "mlp"]
Pooling = Literal["mean", "class", "both"]


class VectorHead(nn.Module):
    """Norm and one or two linear layers on one vector per image; the last layer begins at zero.

    So an untrained head answers 0 for everything, and the first gradients into the backbone are zero too.

    Args:
        backbone: whose features come in.
        outputs: numbers per image.
        pooling: the mean over the coarsest map (``Features.pooled``), the class token, or both side by side.
        hidden: width of a hidden layer as a multiple of what comes in; 0 for none.

    Raises:
        UserError: a class token is asked of a backbone without one.
    """

    def __init__(self, backbone: Backbone, outputs: int, pooling: Pooling = "mean", hidden: float = 0) -> None:
        super().__init__()
        if pooling != "mean" and not getattr(backbone, "class_token", False):
            raise UserError(f"pooling: {pooling} needs a class token, {type(backbone).__name__} has none; take mean")
        self.pooling = pooling
        width = backbone.embed_dim * (2 if pooling == "both" else 1)
        self.norm = nn.LayerNorm(width)
        inner = round(width * hidden)
        self.hidden = nn.Sequential(nn.Linear(width, inner), nn.GELU()) if inner else nn.Identity()
        self.last = zeroed(nn.Linear(inner or width, outputs))

    def forward(self, features: Features) -> Float[Tensor, "b k"]:
        """Features to (b, outputs)."""
        token = features.token
        if self.pooling == "mean" or token is None:
            vector = features.pooled
        else:
            vector = token if self.pooling == "class" else torch.cat([token, features.pooled], -1)
        return self.last(self.hidden(self.norm(vector)))


class AttentiveHead(nn.Module):
    """One learned query attends to all cells of the coarsest map (attentive probing, as in CAE and V-JEPA).

    The light form: keys and values are one linear layer of the normalised cells, and what is found goes through a norm
    and a linear layer (Chen et al., arXiv 2202.03026; Bardes et al., arXiv 2404.08471, add an MLP in between).

    Args:
        backbone: whose features come in.
        outputs: numbers per image.
        heads: of the attention; the largest divisor of the width up to it is taken.
    """

    def __init__(self, backbone: Backbone, outputs: int, heads: int = 8) -> None:
        super().__init__()
        width = backbone.channels[-1]
        self.heads = max(n for n in range(1, heads + 1) if width % n == 0)
        self.query = nn.Parameter(0.02 * torch.randn(1, width))
        self.cells = nn.LayerNorm(width)
        self.key_value = nn.Linear(width, 2 * width)
        self.norm = nn.LayerNorm(width)
        self.last = zeroed(nn.Linear(width, outputs))

    def forward(self, features: Features) -> Float[Tensor, "b k"]:
        """Features to (b, outputs)."""
        cells = self.cells(features.maps[-1].flatten(2).transpose(1, 2))
        b, n, width = cells.shape
        keys, values = self.key_value(cells).view(b, n, 2, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        query = self.query.view(1, self.heads, 1, -1).expand(b, -1, -1, -1).to(keys.dtype)
        found = scaled_dot_product_attention(query, keys, values)
        return self.last(self.norm(found.reshape(b, width)))


def zeroed(layer: nn.Linear) -> nn.Linear:
    """A linear layer that answers 0."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def make_head(kind: Kind, backbone: Backbone, outputs: int, pooling: Pooling = "mean") -> nn.Module:
    """The head of a name; ``mlp`` has a hidden layer of the width that comes in, ``attentive`` does its own pooling."""
    if kind == "attentive":
        if pooling != "mean":
            raise UserError(f"pooling: the attentive head pools by itself and takes no {pooling!r}; leave it at mean")
        return AttentiveHead(backbone, outputs)
    return VectorHead(backbone, outputs, pooling, hidden=1 if kind == "mlp" else 0)
