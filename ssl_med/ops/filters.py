"""Filters of images with one setting per image, for any number of axes."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ssl_med.ops.streams import compiled_for

TRUNCATE = 4.0
"""A Gaussian is cut after this many standard deviations, as in scipy."""


def gaussian_radius(sigma: float) -> int:
    """Voxels on each side of the centre that a Gaussian of ``sigma`` voxels reaches."""
    return int(TRUNCATE * sigma + 0.5)


def gaussian_kernels(sigma: Float[Tensor, " b"], radius: int) -> Float[Tensor, "b taps"]:
    """One sampled Gaussian per image, (b, 2 * radius + 1), each of sum one; sigma 0 is the identity."""
    offset = torch.arange(-radius, radius + 1, device=sigma.device, dtype=sigma.dtype)
    sigma = sigma.clamp_min(1e-6)[:, None]
    weights = torch.exp(-0.5 * (offset / sigma).square())
    weights = weights * (offset.abs() <= (TRUNCATE * sigma + 0.5).floor())
    return weights / weights.sum(1, keepdim=True)


def gaussian_blur(
    x: Float[Tensor, "b c *space"], sigma: Float[Tensor, " b"], radius: int | None = None
) -> Float[Tensor, "b c *space"]:
    """Gaussian blur along every axis, where each image has its own width; the border voxel is repeated outwards.

    Equal to ``scipy.ndimage.gaussian_filter(mode="nearest")``. A sum of shifted copies: faster than a grouped
    convolution, and its bits depend neither on the rest of the batch nor on the convolution settings of the device.

    Args:
        x: images.
        sigma: standard deviations in voxels, 0 or more.
        radius: taps on each side, at least :func:`gaussian_radius` of the largest sigma, which it defaults to; a given
            one saves a synchronisation of the device.
    """
    if radius is None:
        radius = gaussian_radius(float(sigma.max()))
    kernels = gaussian_kernels(sigma.float(), radius).to(x.dtype)
    for axis in range(2, x.ndim):
        x = _correlate(x, kernels, axis)
    return x


def _correlate(x: Tensor, kernels: Tensor, axis: int) -> Tensor:
    """Weighted sum of copies of ``x`` shifted along one axis, the border voxel repeated outwards."""
    radius = kernels.shape[1] // 2
    if radius == 0:
        return x
    if compiled_for(x) and x.dtype == torch.float32 and not x.requires_grad:
        return _compiled(x, kernels, axis)
    padding = [0] * (2 * (x.ndim - 2))
    first = 2 * (x.ndim - 1 - axis)  # pad counts axes from the last
    padding[first] = padding[first + 1] = radius
    padded = functional.pad(x, padding, mode="replicate")
    result = torch.zeros_like(x)
    for tap, weight in enumerate(kernels.unbind(1)):
        result = torch.addcmul(result, padded.narrow(axis, tap, x.shape[axis]), weight.reshape(-1, *[1] * (x.ndim - 1)))
    return result


def _compiled(x: Tensor, kernels: Tensor, axis: int) -> Tensor:
    from ssl_med.ops.filter_kernels import correlate

    x = x.detach().contiguous()
    inner = math.prod(x.shape[axis + 1 :])
    lines = x.reshape(len(x), -1, x.shape[axis], inner)
    result = torch.empty_like(lines)
    correlate(lines.numpy(), kernels.contiguous().numpy(), inner == 1, result.numpy())
    return result.view_as(x)


def cosine_field(coefficients: Float[Tensor, "b *order"], space: tuple[int, ...]) -> Float[Tensor, "b 1 *space"]:
    """A smooth field from the coefficients of its lowest cosines (DCT-II basis), (b, order, order[, order]).

    Example:
        Only ``coefficients[:, 0, 1]`` set: half a wave along the last axis, +1 at one border and -1 at the other.
    """
    field = coefficients
    for axis, length in enumerate(space, start=1):
        place = (torch.arange(length, device=field.device, dtype=field.dtype) + 0.5) / length
        parts, field = field.split(1, axis), torch.zeros_like(field.narrow(axis, 0, 1))
        for number, part in enumerate(parts):
            wave = torch.cos(math.pi * number * place)
            field = field + part * wave.reshape(-1, *[1] * (part.ndim - 1 - axis))
    return field.unsqueeze(1)
