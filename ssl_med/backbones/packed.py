"""One pass of a ViT over sequences of different lengths: the linear layers see all tokens as one matrix."""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from ssl_med.backbones.block import Block
from ssl_med.backbones.vit import Tokens, ViT
from ssl_med.ops.attention import attend
from ssl_med.ops.positions import rotate


def encode_packed(vit: ViT, groups: Sequence[Tokens]) -> list[Float[Tensor, "b m d"]]:
    """What ``vit.encode`` answers for each group, with one call of every norm, linear layer and MLP for all of them.

    Attention stays within each group (DINOv2, arXiv 2304.07193, section 5). It saves launches where groups are small:
    on GPUs, not on CPUs.

    Args:
        vit: the transformer.
        groups: patch tokens; the images of one group have equally many.
    """
    pairs = [vit._with_prefix(tokens) for tokens in groups]
    x, shapes = _pack([value for value, _ in pairs])
    for block in vit.blocks:
        x = _block(cast(Block, block), x, shapes, [angles for _, angles in pairs])
    return _unpack(vit.norm(x), shapes)


def _block(block: Block, x: Tensor, shapes: list[torch.Size], angles: list[Tensor | None]) -> Tensor:
    attention = block.attn
    parts = _unpack(attention.qkv(block.norm1(x)), shapes)
    mixed = [_mix(part, attention.heads, turn) for part, turn in zip(parts, angles, strict=True)]
    x = x + _drop(block, block.ls1(attention.proj(_pack(mixed)[0])), shapes)
    return x + _drop(block, block.ls2(block.mlp(block.norm2(x))), shapes)


def _mix(qkv: Tensor, heads: int, angles: Tensor | None) -> Tensor:
    """Attention within one group, from queries, keys and values side by side."""
    b, n, width = qkv.shape
    q, k, v = qkv.view(b, n, 3, heads, width // 3 // heads).permute(2, 0, 3, 1, 4).unbind(0)
    if angles is not None:
        q, k = rotate(q, angles), rotate(k, angles)
    return attend(q, k, v).transpose(1, 2).reshape(b, n, width // 3)


def _drop(block: Block, branch: Tensor, shapes: list[torch.Size]) -> Tensor:
    """Stochastic depth drops whole images, so it must see them."""
    if not (block.training and getattr(block.drop_path, "drop_prob", 0.0)):
        return branch
    return _pack([block.drop_path(part) for part in _unpack(branch, shapes)])[0]


def _pack(groups: Sequence[Tensor]) -> tuple[Tensor, list[torch.Size]]:
    return torch.cat([group.flatten(0, 1) for group in groups]), [group.shape[:2] for group in groups]


def _unpack(x: Tensor, shapes: list[torch.Size]) -> list[Tensor]:
    parts = x.split([shape[0] * shape[1] for shape in shapes])
    return [part.unflatten(0, tuple(shape)) for part, shape in zip(parts, shapes, strict=True)]
