"""Fine-grained saliency: a voxel against the mean of its surround, at six sizes (Montabone and Soto, 2010).

S. Montabone, A. Soto, "Human detection using a mobile platform and novel features derived from a visual saliency
mechanism", Image and Vision Computing 28(3), 2010; with OpenCV's constants (``StaticSaliencyFineGrained``). Written for
any number of axes and in integers only, so that every device gives the same map. OpenCV lets the sum of both signs
overflow its 8 bits; here it is clamped.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from ssl_med.ops.filters import gaussian_blur, gaussian_radius

SURROUNDS = (12, 24, 48, 28, 56, 112)
"""Half sizes of the surround, in voxels."""


def fine_grained(grey: Int[Tensor, "b 1 *space"], surrounds: Sequence[int] = SURROUNDS) -> Float[Tensor, "b 1 *space"]:
    """Centre-surround difference, brighter (ON) and darker (OFF), summed over the surrounds.

    For each half size n the surround is the box from x - n + 1 to x + n (cut at the borders) without its centre, with
    mean m; ON adds floor(max(0, I - m)), OFF floor(max(0, m - I)). ON and OFF are each scaled to 0..255 by their own
    maximum over the image, added and cut at 255.

    Args:
        grey: values 0 to 255, see :func:`ssl_med.ops.saliency.as_bytes`.
        surrounds: half sizes n, in voxels.
    """
    centre = _smooth(_smooth(grey.long()))
    table = _integral(centre)
    brighter, darker = torch.zeros_like(centre), torch.zeros_like(centre)
    for half in surrounds:
        total, count = _box_sums(table, half)
        others = (count - 1).clamp(min=1)
        difference = centre * others - (total - centre)  # (I - m) * others: exact in integers
        brighter += difference.clamp(min=0) // others
        darker += (-difference).clamp(min=0) // others
    return (_to_full(brighter) + _to_full(darker)).clamp(max=255).float() / 255


def local_contrast(grey: Int[Tensor, "b 1 *space"], sigma: float) -> Int[Tensor, "b 1 *space"]:
    """B. Graham's preparation of fundus photographs, as used by SSiT: ``4 I - 4 blur(I) + 128``, cut to 0..255.

    Args:
        grey: values 0 to 255.
        sigma: of the blur in voxels; SSiT: a thirtieth of the image's side.
    """
    x = grey.float()
    widths = torch.full((len(x),), sigma, device=x.device)
    smooth = gaussian_blur(x, widths, gaussian_radius(sigma))
    return (4 * x - 4 * smooth + 128).round().clamp(0, 255).long()


def _smooth(x: Tensor) -> Tensor:
    """Binomial blur [1, 2, 1] / 4 along every axis, mirrored at the border without repeating it, rounded half up."""
    for axis in range(2, x.ndim):
        length = x.shape[axis]
        mirrored = torch.arange(-1, length + 1, device=x.device).abs()
        mirrored[-1] = max(length - 2, 0)
        mirrored = mirrored.clamp(max=length - 1)
        padded = x.index_select(axis, mirrored)
        before, here, after = (padded.narrow(axis, start, length) for start in range(3))
        x = before + 2 * here + after
    scale = 4 ** (x.ndim - 2)
    return (x + scale // 2) // scale


def _integral(x: Tensor) -> Tensor:
    """Sums over all boxes that begin in the first corner, with a border of zeros before them."""
    for axis in range(2, x.ndim):
        x = x.cumsum(axis)
    return functional.pad(x, (1, 0) * (x.ndim - 2))


def _box_sums(table: Tensor, half: int) -> tuple[Tensor, Tensor]:
    """Sum over the surround of every voxel, and the number of voxels in it, (1, 1, \\*space)."""
    count = torch.ones([1] * table.ndim, dtype=torch.int64, device=table.device)
    for axis in range(2, table.ndim):
        length = table.shape[axis] - 1
        place = torch.arange(length, device=table.device)
        first, last = ((place + shift).clamp(0, length) for shift in (1 - half, 1 + half))
        table = table.index_select(axis, last) - table.index_select(axis, first)
        count = count * (last - first).reshape([-1 if other == axis else 1 for other in range(table.ndim)])
    return table, count


def _to_full(x: Tensor) -> Tensor:
    """Scale so that the maximum of each image is 255; zeros stay zeros."""
    return 255 * x // x.amax(tuple(range(1, x.ndim)), keepdim=True).clamp(min=1)
