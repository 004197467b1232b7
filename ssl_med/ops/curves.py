"""Random monotone curves on [0, 1] (the non-linear intensity change of Models Genesis, arXiv 1908.06912)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ssl_med.ops.streams import compiled_for

ENTRIES, STEPS = 1024, 1024
"""Entries of a table, linear in between, and points of a curve from which it is made."""


def bezier_tables(
    points: Float[Tensor, "b 2 2"], falling: Bool[Tensor, " b"], entries: int = ENTRIES
) -> Float[Tensor, "b entries 2"]:
    """Cubic Bezier curves through (0, 0) and (1, 1), or (0, 1) and (1, 0), as tables of values and steps.

    With x(t), y(t) the curve of control points (0, 0), P1, P2, (1, 1), a rising map takes x(t) to y(t) and a falling
    one x(t) to y(1 - t). Both coordinates rise with t for every P1, P2 in the unit square, so no sorting is needed.

    Args:
        points: P1 and P2, each (x, y), in [0, 1].
        falling: which images are inverted.
        entries: evenly spaced in [0, 1].

    Returns:
        The value at each entry and the step to the next one, float32; the last step is 0.
    """
    t = torch.linspace(0, 1, STEPS, dtype=torch.float64, device=points.device)
    if compiled_for(points):
        from ssl_med.ops import corruption_kernels

        tables = torch.empty(len(points), entries, 2)
        corruption_kernels.tables(*(part.numpy() for part in (points.double(), falling, t, tables)))
        return tables
    second, third = 3 * t * (1 - t) * (1 - t), 3 * t * t * (1 - t)
    curve = points[:, 0, :, None] * second + points[:, 1, :, None] * third + t * t * t
    x, y = curve[:, 0].contiguous(), curve[:, 1]
    y = torch.where(falling[:, None], y.flip(1), y)
    place = torch.linspace(0, 1, entries, dtype=torch.float64, device=points.device).expand(len(points), -1)
    right = torch.searchsorted(x, place.contiguous()).clamp_(1, STEPS - 1)
    left = right - 1
    x0, y0 = x.gather(1, left), y.gather(1, left)
    share = (place - x0) / (x.gather(1, right) - x0).clamp_(min=1e-12)
    values = y0 + (y.gather(1, right) - y0) * share.clamp_(0, 1)
    values = values.float()
    return torch.stack([values, torch.cat([values.diff(dim=1), torch.zeros_like(values[:, :1])], 1)], 2)


def apply_tables_(
    image: Float[Tensor, "b c *space"],
    tables: Float[Tensor, "b entries 2"],
    low: Float[Tensor, "b c"],
    span: Float[Tensor, "b c"],
    chosen: Bool[Tensor, " b"],
) -> Float[Tensor, "b c *space"]:
    """Each chosen image through its table; ``low`` .. ``low + span`` stands for 0 .. 1, what lies outside is clamped.

    ``image`` may be overwritten; what counts is the answer.

    Args:
        image: float32.
        tables: see :func:`bezier_tables`.
        low, span: of each channel.
        chosen: the others stay as they are.
    """
    if compiled_for(image):
        from ssl_med.ops import corruption_kernels

        image = image.contiguous()
        corruption_kernels.curve(*(part.numpy() for part in (image.flatten(2), tables, low, span, chosen)))
        return image
    scale = (1 / span)[..., None]
    flat, last = image.flatten(2), tables.shape[1] - 1
    place = ((flat - low[..., None]) * scale).clamp(0.0, 1.0) * last
    cell = place.long()
    values, steps = (tables[:, None, :, i].expand(-1, flat.shape[1], -1).gather(2, cell) for i in (0, 1))
    bent = low[..., None] + span[..., None] * (values + (place - cell.float()) * steps)
    return torch.where(chosen.reshape(-1, *[1] * (image.ndim - 1)), bent.reshape(image.shape), image)
