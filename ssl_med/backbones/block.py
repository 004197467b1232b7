"""The transformer block, with timm's parameter names."""

from jaxtyping import Float
from timm.layers import DropPath, LayerScale, Mlp
from torch import Tensor, nn

from ssl_med.ops.attention import attend
from ssl_med.ops.positions import rotate


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al., arXiv 1706.03762) with optional rotary angles.

    Args:
        dim: width of the tokens.
        heads: number of heads, a divisor of the width.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"width {dim} is not divisible by {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b n d"], angles: Tensor | None = None) -> Float[Tensor, "b n d"]:
        """Mix the tokens; ``angles`` (b or 1, n, pairs) turn queries and keys."""
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        return self.proj(attend(q, k, v).transpose(1, 2).reshape(b, n, d))


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

    def forward(self, x: Float[Tensor, "b n d"], angles: Tensor | None = None) -> Float[Tensor, "b n d"]:
        """Attention, then MLP, each on a residual branch."""
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x), angles)))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


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
