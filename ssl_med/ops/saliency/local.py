"""Simple measures of what stands out: edges, local variety of grey values, and what is not background."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from ssl_med.ops.filters import gaussian_blur, gaussian_radius
from ssl_med.ops.saliency.scale import unit

_MEAN = {2: functional.avg_pool2d, 3: functional.avg_pool3d}


def gradient_magnitude(grey: Float[Tensor, "b 1 *space"], sigma: float = 1.0) -> Float[Tensor, "b 1 *space"]:
    """Length of the gradient (central differences, per voxel) of the smoothed image, scaled to 0..1.

    Args:
        grey: images.
        sigma: of the Gaussian, in voxels.
    """
    widths = torch.full((len(grey),), sigma, device=grey.device)
    smooth = gaussian_blur(grey.float(), widths, gaussian_radius(sigma))
    parts = torch.gradient(smooth, dim=list(range(2, grey.ndim)))
    return unit(torch.stack([part.square() for part in parts]).sum(0).sqrt())


def local_entropy(grey: Int[Tensor, "b 1 *space"], window: int = 9, bins: int = 16) -> Float[Tensor, "b 1 *space"]:
    """Entropy of the grey values around every voxel over its largest value, ln(bins) (Kadir and Brady, IJCV 2001).

    Args:
        grey: values 0 to 255.
        window: odd side of the neighbourhood, in voxels; outside the image nothing is counted.
        bins: grey levels that are told apart.
    """
    mean = _MEAN[grey.ndim - 2]
    level = grey * bins // 256
    entropy = torch.zeros(grey.shape, device=grey.device)
    for number in range(bins):
        share = mean((level == number).float(), window, stride=1, padding=window // 2, count_include_pad=False)
        entropy = entropy - torch.xlogy(share, share)
    return entropy / math.log(bins)


def foreground(grey: Int[Tensor, "b 1 *space"]) -> Float[Tensor, "b 1 *space"]:
    """1 above the threshold that separates two classes of grey values best (Otsu, 1979), 0 below.

    Args:
        grey: values 0 to 255; background is dark.
    """
    values = grey.flatten(1)
    counts = torch.zeros(len(values), 256, device=grey.device)
    counts.scatter_add_(1, values, torch.ones(values.shape, device=grey.device))
    share = counts / values.shape[1]
    below, moment = share.cumsum(1), (share * torch.arange(256, device=grey.device)).cumsum(1)
    between = (moment[:, -1:] * below - moment).square() / (below * (1 - below)).clamp_min(1e-7)
    threshold = between.argmax(1)
    return (grey > threshold.reshape(-1, *[1] * (grey.ndim - 1))).float()
