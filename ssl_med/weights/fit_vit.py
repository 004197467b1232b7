"""Our ViT: patch embedding, positions, tokens beside the patches, and layer scales."""

import re

import torch

from ssl_med.backbones import ViT
from ssl_med.backbones.vit import of_raw_values
from ssl_med.ops.patches import patch_centres
from ssl_med.ops.positions import sincos
from ssl_med.weights import adapt
from ssl_med.weights.adapt import Adapted
from ssl_med.weights.fitted import Fitted, Wishes
from ssl_med.weights.layouts import Translated

PATCH, BIAS = "patch_embed.proj.weight", "patch_embed.proj.bias"
MEAN, STD = "patch_embed.mean", "patch_embed.std"
TOKENS = ("cls_token", "reg_token")
_SCALED = {"ls1": "attn.proj", "ls2": "mlp.fc2"}


def fit_vit(source: Translated, into: ViT, wishes: Wishes) -> Fitted:
    """Every part in turn; a part of the source that would change the features and has no place is named."""
    result, own = Fitted(notes=list(source.notes)), into.state_dict()
    _moments(source, into, result)
    _patches(source, into, wishes, result)
    _positions(source, into, wishes, result)
    for name, tensor in source.tensors.items():
        theirs = source.origin[name]
        if name in (PATCH, "pos_embed") or name in result.tensors:
            continue
        if name not in own:
            result.unplaced[theirs] = _no_place(name, tuple(tensor.shape))
        elif tensor.shape != own[name].shape:
            result.unplaced[theirs] = f"{tuple(tensor.shape)} does not fit {tuple(own[name].shape)}"
        else:
            result.put(name, theirs, Adapted(tensor), before=source.how.get(name, ""))
    _layer_scale(source, into, result)
    _fill(own, result)
    _compare(source, into, result)
    return result


def _no_place(name: str, shape: tuple[int, ...]) -> str:
    if name == "cls_token":
        return "the backbone has no class token: class_token=True gives it one"
    if name == "reg_token":
        return f"the backbone has no registers: registers={shape[1]} gives it some"
    if re.match(r"blocks\.\d+\.", name) and name.split(".")[2] in ("norm1", "attn", "norm2", "mlp"):
        return "the backbone has no such block or part"
    return "the backbone has no such part"


def _moments(source: Translated, into: ViT, result: Fitted) -> None:
    """How the source standardises its images goes where it was, or into its weights where it finds no place."""
    mean, std, kernel = (source.tensors.get(name) for name in (MEAN, STD, PATCH))
    here = into.patch_embed
    if mean is not None and std is not None and (here.mean is None or len(mean) != into.in_channels):
        if kernel is not None and kernel.ndim == 2:
            kernel = adapt.from_linear(kernel, source.patch or into.patch)
        if kernel is None or BIAS not in source.tensors:
            return
        source.tensors[PATCH], source.tensors[BIAS] = of_raw_values(kernel, source.tensors[BIAS], mean, std)
        source.how[PATCH] = source.how[BIAS] = "mean and spread of its images multiplied in"
        for name in (MEAN, STD):
            source.left[source.origin[name]] = "multiplied into the patch embedding"
            del source.tensors[name]
        mean = None
    if mean is None and here.mean is not None and here.std is not None:
        result.put(MEAN, "", Adapted(torch.zeros_like(here.mean), "zero: the source takes values as they are"))
        result.put(STD, "", Adapted(torch.ones_like(here.std), "one: the source takes values as they are"))


def _patches(source: Translated, into: ViT, wishes: Wishes, result: Fitted) -> None:
    """Kernel over patches: axes, rank, channels, size, then our linear layer."""
    tensor = source.tensors.get(PATCH)
    if tensor is None:
        return
    steps = [Adapted(tensor, source.how.get(PATCH, ""))]
    if tensor.ndim == 2:
        alike = tensor.shape == into.patch_embed.proj.weight.shape and source.patch in (None, into.patch)
        if wishes.axes == "same" and alike:
            result.put(PATCH, source.origin[PATCH], *steps)
            return
        steps = [Adapted(adapt.from_linear(tensor, source.patch or into.patch))]
    if wishes.axes == "reversed":
        steps.append(adapt.reverse_axes(steps[-1].tensor))
    steps.append(adapt.change_rank(steps[-1].tensor, into.spatial_dims, into.patch[0], wishes.inflate))
    steps.append(adapt.channels(steps[-1].tensor, into.in_channels, wishes.channels))
    steps.append(adapt.resize_kernel(steps[-1].tensor, into.patch))
    steps.append(adapt.to_linear(steps[-1].tensor))
    if steps[-1].tensor.shape == into.patch_embed.proj.weight.shape:
        result.put(PATCH, source.origin[PATCH], *steps)
    else:
        result.unplaced[source.origin[PATCH]] = f"width {len(tensor)} does not fit {into.embed_dim}"


def _positions(source: Translated, into: ViT, wishes: Wishes, result: Fitted) -> None:
    """Rows of tokens go into the tokens, rows of patches into our table, or are compared with the fixed one."""
    table, theirs = source.tensors.get("pos_embed"), source.origin.get("pos_embed", "pos_embed")
    if table is None:
        if into.pos_embed is not None:
            result.notes.append("the source has no position table; the backbone's stays as it was made")
        return
    if table.shape[-1] != into.embed_dim:
        result.unplaced[theirs] = f"width {table.shape[-1]} does not fit {into.embed_dim}"
        return
    before, grid = adapt.grid_of_table(table.shape[1], _rank(source, into), source.prefix, _grid(source, into, wishes))
    _rows_of_tokens(source, table[:, :before], result)
    rows, turned = table[:, before:], wishes.axes == "reversed"
    if into.pos_embed is not None:
        target = into.grid or grid
        result.put(
            "pos_embed", theirs, adapt.positions(rows, grid, target, turned), before=source.how.get("pos_embed", "")
        )
    elif into.positions == "sincos" and _is_fixed(rows, grid, into):
        result.notes.append("the source's position table is the backbone's fixed one")
    else:
        result.unplaced[theirs] = (
            f"a table of {len(grid)}D positions; the backbone has {into.positions} ones: build it with "
            f"positions='learned', grid={list(grid)}, or drop the table"
        )


def _rank(source: Translated, into: ViT) -> int:
    if source.patch:
        return len(source.patch)
    kernel = source.tensors.get(PATCH)
    return kernel.ndim - 2 if kernel is not None and kernel.ndim > 3 else into.spatial_dims


def _grid(source: Translated, into: ViT, wishes: Wishes) -> tuple[int, ...] | None:
    """The grid of the source where it is known, else the backbone's where it has as many patches."""
    return wishes.grid or source.grid or (into.grid if _rank(source, into) == into.spatial_dims else None)


def _rows_of_tokens(source: Translated, rows: torch.Tensor, result: Fitted) -> None:
    """Other libraries add positions to the class token and registers too; ours have none, so the tokens take them."""
    start = 0
    for name in TOKENS:
        token = source.tensors.get(name)
        if token is None or start >= rows.shape[1]:
            continue
        count = token.shape[1]
        source.tensors[name] = token + rows[:, start : start + count]
        source.how[name] = "its row of the position table added"
        start += count


def _is_fixed(rows: torch.Tensor, grid: tuple[int, ...], into: ViT) -> bool:
    """The table is the one that the backbone computes, in the same order of axes."""
    same_rank = len(grid) == into.spatial_dims and into.position_unit == "patch"
    return same_rank and torch.allclose(rows[0].float(), sincos(patch_centres(grid), into.embed_dim), atol=1e-4)


def _layer_scale(source: Translated, into: ViT, result: Fitted) -> None:
    """Scales of residual branches go into the matrix before them where the backbone has none."""
    if into.layer_scale is not None:
        return
    for name, scale in source.tensors.items():
        match = re.match(r"(blocks\.\d+)\.(ls[12])\.gamma$", name)
        target = f"{match[1]}.{_SCALED[match[2]]}" if match else ""
        if f"{target}.weight" not in result.tensors:
            continue
        for part in (f"{target}.weight", f"{target}.bias"):
            value = result.tensors[part]
            folded = value * (scale[:, None] if value.ndim == 2 else scale)
            result.put(
                part, result.origin[part], Adapted(folded, "layer scale multiplied in"), before=result.how.get(part, "")
            )
        del result.unplaced[source.origin[name]]


def _fill(own: dict[str, torch.Tensor], result: Fitted) -> None:
    """Parts that the source does without, set so that they change nothing."""
    for name, value in own.items():
        if name in result.tensors:
            continue
        block = name.rsplit(".", 2)[0]
        if name.endswith(".attn.qkv.bias") and name.replace("bias", "weight") in result.tensors:
            result.put(name, "", Adapted(torch.zeros_like(value), "zero: the source has no such bias"))
        elif name.endswith(("ls1.gamma", "ls2.gamma")) and f"{block}.attn.proj.weight" in result.tensors:
            result.put(name, "", Adapted(torch.ones_like(value), "one: the source has no layer scale"))


def _compare(source: Translated, into: ViT, result: Fitted) -> None:
    """Settings that no tensor shows but that change the features."""
    if source.heads and source.heads != into.heads:
        result.unplaced["heads"] = f"the source has {source.heads} attention heads, the backbone {into.heads}"
    elif not source.heads and into.embed_dim != 64 * into.heads:
        width = into.embed_dim // into.heads
        result.notes.append(
            f"no file says how many heads there are; the backbone's are {width} wide, published ones 64"
        )
    if source.eps and source.eps != into.norm_eps:
        result.notes.append(
            f"norms of the source add {source.eps:g} to the variance, the backbone's {into.norm_eps:g}: "
            f"norm_eps={source.eps:g} gives equal features"
        )
    if source.positions and source.positions != into.positions:
        result.unplaced["positions"] = f"the source has {source.positions} positions, the backbone {into.positions}"
    for name in TOKENS:
        if name not in source.tensors and getattr(into, name) is not None:
            result.notes.append(f"the source has no {name}; the backbone's stays as it was made")
