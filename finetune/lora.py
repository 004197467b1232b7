"""Small trainable parts inside frozen attention: low-rank changes (LoRA) and bottleneck adapters."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from ssl_med.errors import UserError


class LoRALinear(nn.Module):
    """A frozen linear layer W with a trainable change of low rank: y = W x + alpha / r * B A x (arXiv 2106.09685).

    A is random and B zero, so that nothing is changed before training.

    Args:
        base: the layer; it is frozen.
        rank: r.
        alpha: of the formula.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base, self.scale = base.requires_grad_(False), alpha / rank
        self.down = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.up = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))  # as the authors' code

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self.base(x) + self.scale * linear(linear(x, self.down), self.up)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """One plain layer of the same function."""
        self.base.weight += self.scale * self.up @ self.down
        return self.base.requires_grad_(True)


class Adapter(nn.Module):
    """A frozen layer followed by a trainable bottleneck on a residual branch: z + U gelu(D z), z = W x (1902.00751).

    U is zero at first, so that nothing is changed before training.

    Args:
        base: the layer; it is frozen.
        width: of the bottleneck.
    """

    def __init__(self, base: nn.Linear, width: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down, self.up = nn.Linear(base.out_features, width), nn.Linear(width, base.out_features)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        z = self.base(x)
        return z + self.up(gelu(self.down(z)))


def attention_layers(module: nn.Module) -> Iterator[nn.Module]:
    """Attention modules by timm's and our names: ``qkv`` and ``proj`` are linear layers."""
    for part in module.modules():
        if all(isinstance(getattr(part, name, None), nn.Linear) for name in ("qkv", "proj")):
            yield part


def wrap(module: nn.Module, names: tuple[str, ...], around: Callable[[nn.Linear], nn.Module]) -> None:
    """Put something around linear layers of every attention.

    Raises:
        UserError: there is no attention.
    """
    found = list(attention_layers(module))
    if not found:
        raise UserError(
            f"{type(module).__name__} has no attention with qkv and proj layers, which LoRA and adapters change: "
            "choose another tuning, such as full or sawtooth"
        )
    for attention in found:
        for name in names:
            setattr(attention, name, around(getattr(attention, name)))


def merge(module: nn.Module) -> None:
    """Replace every :class:`LoRALinear` by the plain layer of the same function, in place."""
    for part in list(module.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, LoRALinear):
                setattr(part, name, child.merged())
    module.requires_grad_(True)
