"""Our ViT in the layout that other libraries share: strided convolution, a table of positions, no settings."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ssl_med.backbones import ViT
from ssl_med.backbones.vit import of_raw_values, resize_positions
from ssl_med.ops.patches import grid_of
from ssl_med.ops.positions import sincos


def misfits(vit: ViT, space: Sequence[int], spacing: Sequence[float] | None) -> list[str]:
    """Why no table of positions can stand for those of a ViT; empty where one can.

    Args:
        vit: the transformer.
        space: voxels along each axis of the images.
        spacing: mm per voxel, where all images have the same.
    """
    reasons = []
    if vit.positions == "rotary":
        reasons.append("its positions are rotary, turned by angles of our own that no class of the library computes")
    if vit.position_unit == "mm" and vit.positions != "none" and spacing is None:
        reasons.append("its positions are in mm, and a table holds those of one spacing only (data.crop_mm fixes it)")
    if rest := [axis for axis, (size, p) in enumerate(zip(space, vit.patch, strict=True)) if size % p]:
        reasons.append(f"the crop {tuple(space)} is not divisible by the patch {vit.patch} along axes {rest}")
    return reasons


def plain_state(vit: ViT, space: Sequence[int], spacing: Sequence[float] | None) -> dict[str, Tensor]:
    """Weights under timm's names; the patch embedding is a convolution, ``pos_embed`` (1, n, d) is for patches.

    Args:
        vit: a ViT without :func:`misfits`.
        space: voxels along each axis of the images.
        spacing: mm per voxel, where positions are in mm.
    """
    state = {name: tensor.detach().clone() for name, tensor in vit.state_dict().items()}
    linear = state["patch_embed.proj.weight"]
    filters = linear.reshape(len(linear), *vit.patch, vit.in_channels).movedim(-1, 1)
    if (mean := state.pop("patch_embed.mean", None)) is not None:
        std, bias = state.pop("patch_embed.std"), state["patch_embed.proj.bias"]
        filters, state["patch_embed.proj.bias"] = of_raw_values(filters, bias, mean, std)
    state["patch_embed.proj.weight"] = filters.contiguous()
    state["pos_embed"] = position_table(vit, space, spacing)
    return state


@torch.no_grad()
def position_table(vit: ViT, space: Sequence[int], spacing: Sequence[float] | None) -> Tensor:
    """What the ViT adds to its patches of an image of this size, (1, n, d)."""
    grid = grid_of(tuple(space), vit.patch)
    if vit.pos_embed is not None:
        return resize_positions(vit.pos_embed, vit.grid or grid, grid).detach().clone()
    if vit.positions == "none":
        return torch.zeros(1, len(_centres(vit, space, spacing)[0]), vit.embed_dim)
    return sincos(_centres(vit, space, spacing), vit.embed_dim)


def _centres(vit: ViT, space: Sequence[int], spacing: Sequence[float] | None) -> Tensor:
    steps = torch.tensor([spacing or [1.0] * len(space)])
    return vit.tokenize(torch.zeros(1, vit.in_channels, *space), steps).centre


def with_prefix_rows(table: Tensor, prefix: int) -> Tensor:
    """A table that has rows for class token and registers too: zero, since ours carry their position in themselves."""
    return torch.cat([table.new_zeros(1, prefix, table.shape[-1]), table], 1)


def fold_layer_scale(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same function without layer scale: a scale behind a linear layer is a scale of its weights."""
    folded = dict(state)
    for name in [name for name in state if name.endswith((".ls1.gamma", ".ls2.gamma"))]:
        gamma, (block, branch) = folded.pop(name), name.removesuffix(".gamma").rsplit(".", 1)
        layer = f"{block}.{'attn.proj' if branch == 'ls1' else 'mlp.fc2'}"
        folded[f"{layer}.weight"] = folded[f"{layer}.weight"] * gamma[:, None]
        folded[f"{layer}.bias"] = folded[f"{layer}.bias"] * gamma
    return folded


_STREAM = ("patch_embed.", "pos_embed", "cls_token", "reg_token", "attn.proj", "mlp.fc2")
"""What is added to the stream of tokens."""


def with_epsilon(state: Mapping[str, Tensor], ours: float, theirs: float) -> dict[str, Tensor]:
    """The same function where the norms add another epsilon to the variance; layer scale must be folded.

    ``norm(s x; s**2 e) == norm(x; e)``, so tokens ``s = sqrt(theirs / ours)`` times as large make up for it;
    after the last norm all is as before.
    """
    scale = (theirs / ours) ** 0.5
    return {name: t * scale if any(part in name for part in _STREAM) else t for name, t in state.items()}


def image_space(facts: Mapping[str, object]) -> tuple[list[int], list[float] | None]:
    """Crop and fixed spacing of a card's ``input``; None where images keep their own."""
    crop, spacing = facts["crop"], facts.get("fixed_spacing_mm")
    return list(crop), (list(spacing) if spacing else None)  # pyright: ignore[reportArgumentType, reportCallIssue]
