"""One grey channel, and its scale: what every saliency map begins and ends with."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ssl_med.ops.constants import constant

_LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601), as in OpenCV."""


def grey(image: Float[Tensor, "b c *space"]) -> Float[Tensor, "b 1 *space"]:
    """One channel: the luma of three, the mean of any other number."""
    image = image.float()
    if image.shape[1] != 3:
        return image.mean(1, keepdim=True)
    weights = constant(_LUMA, image.device).reshape(1, 3, *[1] * (image.ndim - 2))
    return (image * weights).sum(1, keepdim=True)


def unit(x: Float[Tensor, "b 1 *space"]) -> Float[Tensor, "b 1 *space"]:
    """Each image from its minimum and maximum to 0 and 1; a constant image becomes 0."""
    axes = tuple(range(1, x.ndim))
    low, high = x.amin(axes, keepdim=True), x.amax(axes, keepdim=True)
    return torch.where(high > low, (x - low) / (high - low), torch.zeros_like(x))


def as_bytes(image: Float[Tensor, "b c *space"]) -> Int[Tensor, "b 1 *space"]:
    """Grey values 0 to 255 between each image's minimum and maximum, rounded."""
    return (unit(grey(image)) * 255).round().long()
