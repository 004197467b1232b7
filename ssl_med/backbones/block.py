"""The transformer block, with timm's parameter names."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from timm.layers import DropPath, LayerScale, Mlp
from torch import Tensor, nn

from ssl_med.ops.attention import attend
from ssl_med.ops.positions import rotate


class Groups(NamedTuple):
    """Sequences of several lengths whose tokens stand one after the other, as (1, n, d).

    Attributes:
        shapes: images and tokens an image of each group.
        angles: rotary angles of each group; see :class:`Attention`.
    """

    shapes: Sequence[tuple[int, int]]
    angles: Sequence[Tensor | None]

    def apart(self, x: Float[Tensor, "1 n d"]) -> list[Tensor]:
        """Each group by itself, (b_i, n_i, d)."""
        parts = x[0].split([images * tokens for images, tokens in self.shapes])
        return [part.unflatten(0, tuple(shape)) for part, shape in zip(parts, self.shapes, strict=True)]

    def each(self, function: Callable[..., Tensor], x: Tensor, *others: Sequence) -> Tensor:
        """What a function makes of each group, one after the other again."""
        return joined([function(part, *more) for part, *more in zip(self.apart(x), *others, strict=True)])


def joined(groups: Sequence[Tensor]) -> Float[Tensor, "1 n d"]:
    """The tokens of all groups, one after the other."""
    return torch.cat([group.flatten(0, 1) for group in groups])[None]


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al., arXiv 1706.03762) with optional rotary angles.

    Args:
        dim: width of the tokens.
        heads: number of heads, a divisor of the width.

    Attributes:
        seen: a list to which every call adds its queries and keys (b, heads, n, d / heads); None to keep nothing. A
            hook would not do: compiled blocks pass over hooks that came later, and blocks in shards over weights.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"width {dim} is not divisible by {heads} heads")
        self.heads = heads
        self.seen: list[tuple[Tensor, Tensor]] | None = None
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, x: Float[Tensor, "b n d"], angles: Tensor | None = None, groups: Groups | None = None
    ) -> Float[Tensor, "b n d"]:
        """Mix the tokens of each sequence; ``angles`` (b or 1, n, pairs) turn queries and keys."""
        qkv = self.qkv(x)
        return self.proj(self._mixed(qkv, angles) if groups is None else groups.each(self._mixed, qkv, groups.angles))

    def _mixed(self, qkv: Tensor, angles: Tensor | None) -> Tensor:
        """From queries, keys and values side by side."""
        b, n, width = qkv.shape
        q, k, v = qkv.view(b, n, 3, self.heads, width // 3 // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        if self.seen is not None:
            self.seen.append((q, k))
        return attend(q, k, v).transpose(1, 2).reshape(b, n, width // 3)


class Block(nn.Module):
    """Pre-norm transformer block (ViT, arXiv 2010.11929) with layer scale and stochastic depth.

    Args:
        dim: width of the tokens.
        heads: number of attention heads.
        mlp_ratio: hidden width of the MLP over the width.
        drop_path: probability that a sample skips the residual branch.
        layer_scale: initial scale of each branch (CaiT, arXiv 2103.17239); None for none.
        norm_eps: what the norms add to the variance.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, heads)
        self.ls1 = LayerScale(dim, layer_scale) if layer_scale is not None else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.ls2 = LayerScale(dim, layer_scale) if layer_scale is not None else nn.Identity()
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(
        self, x: Float[Tensor, "b n d"], angles: Tensor | None = None, groups: Groups | None = None
    ) -> Float[Tensor, "b n d"]:
        """Attention, then MLP, each on a residual branch.

        Args:
            x: tokens of sequences of one length, or of several.
            angles: see :class:`Attention`.
            groups: which tokens belong together where the lengths differ; they have angles of their own.
        """
        x = x + self._dropped(self.ls1(self.attn(self.norm1(x), angles, groups)), groups)
        return x + self._dropped(self.ls2(self.mlp(self.norm2(x))), groups)

    def _dropped(self, branch: Tensor, groups: Groups | None) -> Tensor:
        """Stochastic depth drops whole images, so it must see them."""
        if groups is None or isinstance(self.drop_path, nn.Identity):
            return self.drop_path(branch)
        return groups.each(self.drop_path, branch)


def init_as_vit(module: nn.Module) -> None:
    """MAE's initialisation: Xavier-uniform linear layers with zero bias, unit LayerNorms."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def drop_path_rates(peak: float, depth: int) -> list[float]:
    """Stochastic depth that grows linearly from 0 to ``peak`` over the blocks (arXiv 1603.09382)."""
    return [peak * number / max(depth - 1, 1) for number in range(depth)]
