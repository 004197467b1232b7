"""Projection heads: what stands between a backbone and a loss, and is thrown away afterwards."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_med.ops.norm import BatchNorm


class MLPHead(nn.Sequential):
    """Linear layers with norm and activation between them.

    The paper's heads: SimCLR ``[d, 2048, 128]``; BYOL ``[d, 4096, 256]``; VICReg and Barlow Twins ``[d, 8192, 8192,
    8192]``; MoCo v3 ``[d, 4096, 4096, 256]`` with ``last_norm``.

    Args:
        widths: of the input, the hidden layers and the output.
        norm: after every hidden layer: ``batch`` (over all processes) or none.
        last_norm: a norm without scale and shift after the last layer too (MoCo v3, arXiv 2104.02057).
        bias: of the linear layers that no norm follows.
        activation: ``relu`` or ``gelu``.
    """

    def __init__(
        self,
        widths: Sequence[int],
        norm: Literal["batch", "none"] = "batch",
        last_norm: bool = False,
        bias: bool = True,
        activation: Literal["relu", "gelu"] = "relu",
    ) -> None:
        layers: list[nn.Module] = []
        last = len(widths) - 2
        for number, (inside, outside) in enumerate(pairwise(widths)):
            normed = last_norm if number == last else norm == "batch"
            layers.append(nn.Linear(inside, outside, bias=bias and not normed))
            if normed:
                layers.append(BatchNorm(outside, affine=number != last))
            if number != last:
                layers.append(nn.ReLU() if activation == "relu" else nn.GELU())
        super().__init__(*layers)


class PrototypeHead(nn.Module):
    """DINO's head (arXiv 2104.14294): an MLP, unit length, then cosines to prototypes.

    Args:
        in_dim: width of the features.
        prototypes: number of outputs.
        hidden_dim: width of the hidden layers.
        bottleneck_dim: width before the prototypes.
        layers: linear layers of the MLP.
        norm_last_layer: prototypes have length 1 and the outputs are cosines. Otherwise each prototype has a length of
            its own, 1 at first, that is learned.
    """

    def __init__(
        self,
        in_dim: int,
        prototypes: int,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        layers: int = 3,
        norm_last_layer: bool = True,
    ) -> None:
        super().__init__()
        self.mlp = MLPHead([in_dim, *[hidden_dim] * (layers - 1), bottleneck_dim], norm="none", activation="gelu")
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck_dim))
        for module in self.mlp.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.prototypes, std=0.02)
        self.lengths = None if norm_last_layer else nn.Parameter(torch.ones(prototypes))

    def last(self) -> list[nn.Parameter]:
        """What is held still at first: the prototypes, and their lengths where they are learned."""
        return [self.prototypes] if self.lengths is None else [self.prototypes, self.lengths]

    def forward(self, x: Float[Tensor, "n d"], frozen: bool = False) -> Float[Tensor, "n k"]:
        """Cosine of each row to each prototype, times the prototype's length.

        Args:
            x: features (n, d).
            frozen: send no gradient to the prototypes (DINO's first epoch).
        """
        x = nn.functional.normalize(self.mlp(x), dim=-1, eps=1e-6)
        prototypes = self.prototypes.detach() if frozen else self.prototypes
        # the length is applied to the logits: dividing a (k, d) matrix each step costs more than dividing (n, k)
        cosines = nn.functional.linear(x, prototypes) / prototypes.norm(dim=1).to(x.dtype)
        if self.lengths is None:
            return cosines
        return cosines * (self.lengths.detach() if frozen else self.lengths).to(x.dtype)
