"""One tensor made to fit another shape, by a stated law; each function returns the tensor and the sentence about it."""

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_med.backbones.vit import resize_positions
from ssl_med.errors import UserError

Channels = Literal["sum", "mean", "repeat"]
Inflation = Literal["average", "centre"]


class Adapted(NamedTuple):
    """A tensor that fits, and how it was made to; empty where it was taken as it is."""

    tensor: Tensor
    how: str = ""


def channels(kernel: Float[Tensor, "d c *space"], count: int, law: Channels = "sum") -> Adapted:
    """Input channels C to C'.

    Args:
        kernel: of the first layer.
        count: channels of the image, C'.
        law: ``sum``: every new channel gets the sum over C'; an image that is the same in all channels gives the same
            response. ``mean``: every new channel gets the mean; weights keep their size, and such an image gives C'/C
            times the response. ``repeat``: channel j gets that of j mod C, times C/C' (timm's law).
    """
    have = kernel.shape[1]
    if have == count:
        return Adapted(kernel)
    if law == "repeat":
        index = torch.arange(count, device=kernel.device) % have
        return Adapted(kernel[:, index] * (have / count), f"{have} channels repeated to {count}, times {have}/{count}")
    one = kernel.sum(1, keepdim=True) / (count if law == "sum" else have)
    how = (
        f"{have} channels summed, spread over {count}"
        if law == "sum"
        else f"mean of {have} channels in each of {count}"
    )
    return Adapted(one.expand(-1, count, *[-1] * (kernel.ndim - 2)).contiguous(), how)


def resize_kernel(kernel: Float[Tensor, "d c *space"], size: tuple[int, ...]) -> Adapted:
    """Patch or stem kernel to another size, so that an image resized with it gives the response of old.

    With B the matrix of linear interpolation from the old size to the new, the new weights solve B^T w' = w: exactly
    where the patch grows, in the least squares where it shrinks (FlexiViT, arXiv 2212.08013, section 3.4).
    """
    old = tuple(kernel.shape[2:])
    if old == size:
        return Adapted(kernel)
    result = kernel.double()
    for axis, (before, after) in enumerate(zip(old, size, strict=True), 2):
        if before != after:
            eye = torch.eye(before, dtype=torch.float64, device=kernel.device)[:, None]
            blend = nn.functional.interpolate(eye, size=after, mode="linear")[:, 0]  # B^T, (before, after)
            result = (result.movedim(axis, -1) @ torch.linalg.pinv(blend).T).movedim(-1, axis)
    return Adapted(result.to(kernel.dtype), f"kernel {_by(old)} to {_by(size)} by the pseudo-inverse of resizing")


def change_rank(kernel: Float[Tensor, "d c *space"], rank: int, size: int, law: Inflation | None) -> Adapted:
    """2D kernels to 3D along a new first axis of space, and back.

    Args:
        kernel: of 2 or 3 axes of space.
        rank: axes it shall have.
        size: voxels along the new axis.
        law: ``average``: every slice gets 1/size of the weights, so that a volume that is the same in all slices gives
            the response of one; back: the sum over slices. ``centre``: the middle slice gets all, the others nothing;
            back: the middle slice.

    Raises:
        UserError: ranks differ and no law was given.
    """
    have = kernel.ndim - 2
    if have == rank:
        return Adapted(kernel)
    if law is None or {have, rank} != {2, 3}:
        raise UserError(
            f"the source has {have} axes of space, the backbone {rank}; give inflate='average' or inflate='centre' to "
            "turn 2D kernels into 3D ones or back"
        )
    if have == 2:
        if law == "average":
            thick = (kernel / size)[:, :, None].expand(-1, -1, size, -1, -1).contiguous()
            return Adapted(thick, f"2D to 3D, each of {size} slices 1/{size} of the weights")
        thick = kernel.new_zeros(*kernel.shape[:2], size, *kernel.shape[2:])
        thick[:, :, size // 2] = kernel
        return Adapted(thick, f"2D to 3D, all in slice {size // 2} of {size}")
    if law == "average":
        return Adapted(kernel.sum(2), "3D to 2D, summed over slices")
    return Adapted(kernel[:, :, kernel.shape[2] // 2], "3D to 2D, the middle slice")


def reverse_axes(kernel: Float[Tensor, "d c *space"]) -> Adapted:
    """Axes of space in the other order: (x, y, z) of the source to our (z, y, x)."""
    order = range(kernel.ndim - 1, 1, -1)
    return Adapted(kernel.permute(0, 1, *order).contiguous(), "axes of space reversed")


def to_linear(kernel: Float[Tensor, "d c *space"]) -> Adapted:
    """A convolution over patches as the linear layer over their voxels, channels last."""
    return Adapted(kernel.movedim(1, -1).flatten(1), "convolution to linear, channels last inside a patch")


def from_linear(matrix: Float[Tensor, "d p"], patch: tuple[int, ...]) -> Float[Tensor, "d c *space"]:
    """The inverse of :func:`to_linear`.

    Raises:
        UserError: the rows do not hold whole patches.
    """
    if matrix.shape[1] % math.prod(patch):
        raise UserError(f"a linear patch embedding of {matrix.shape[1]} numbers does not hold patches of {_by(patch)}")
    return matrix.reshape(len(matrix), *patch, -1).movedim(-1, 1)


def positions(
    table: Float[Tensor, "1 n d"], old: tuple[int, ...], new: tuple[int, ...], reverse: bool = False
) -> Adapted:
    """A table of positions, without rows of other tokens, for another grid, rank or order of axes.

    From 2D to 3D each slice gets the table of one slice; from 3D to 2D it is the mean over slices.

    Args:
        table: one row per patch, in raster order.
        old: grid of the table.
        new: grid it is made for.
        reverse: the table's axes run the other way round.
    """
    how = []
    if reverse and len(old) > 1:
        axes = range(len(old) - 1, -1, -1)
        table = table.reshape(*old, -1).permute(*axes, len(old)).reshape(1, math.prod(old), -1)
        old = old[::-1]
        how.append("axes reversed")
    if len(old) == 2 and len(new) == 3:
        table, old = table.repeat(1, new[0], 1), (new[0], *old)
        how.append(f"the table of a slice repeated {new[0]} times")
    elif len(old) == 3 and len(new) == 2:
        table, old = table.reshape(1, old[0], -1, table.shape[-1]).mean(1), old[1:]
        how.append("mean over slices")
    if old != new:
        table = resize_positions(table, old, new)
        how.append(f"table {_by(old)} to {_by(new)}")
    return Adapted(table, "; ".join(how))


def grid_of_table(rows: int, rank: int, prefix: int, like: tuple[int, ...] | None) -> tuple[int, tuple[int, ...]]:
    """How many rows stand before the patches, and the grid of the patches.

    Args:
        rows: of the table.
        rank: axes of space of the source.
        prefix: tokens the source has beside the patches; their rows may be there or not.
        like: a grid known beforehand.

    Raises:
        UserError: no grid is a square or cube and none is known.
    """
    counts = sorted({0, min(prefix, 1), prefix})
    for before in counts:
        if like is not None and math.prod(like) == rows - before:
            return before, like
    for before in counts:
        side = round((rows - before) ** (1 / rank))
        if side > 0 and side**rank == rows - before:
            return before, (side,) * rank
    raise UserError(
        f"a table of {rows} positions is no {'square' if rank == 2 else 'cube'}; say grid=(...), patches along each "
        "axis"
    )


def fuse(query: Tensor, key: Tensor, value: Tensor) -> Adapted:
    """Separate projections as one, in the order query, key, value."""
    return Adapted(torch.cat([query, key, value]), "query, key and value fused")


def _by(size: tuple[int, ...]) -> str:
    return "x".join(str(s) for s in size)
