"""Mean and spread of what a network is shown, so that its first layer can begin around zero."""

from collections.abc import Sequence

import torch

from ssl_med.data.module import StoreData

CROPS = 64
"""Crops of each store that are looked at: the first of its training order, the same for any number of processes."""


def image_moments(stores: Sequence[StoreData], crops: int = CROPS) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over the first crops of some stores, padding left out.

    Three digits are kept, so that no rounding of another machine changes a run's settings. A channel that never changes
    gets a spread of 1.

    Args:
        stores: of one number of channels.
        crops: of each.
    """
    channels = stores[0].channels
    count, total, squares = torch.zeros(3, channels, dtype=torch.float64)
    for store in stores:
        dataset = store.crops()
        for position in range(crops):
            sample = dataset[position]
            values = sample["image"].flatten(1).double()
            if "valid" in sample:
                values = values[:, sample["valid"].flatten()]
            count += values.shape[1]
            total += values.sum(1)
            squares += values.square().sum(1)
    mean = total / count.clamp(min=1)
    std = (squares / count.clamp(min=1) - mean.square()).clamp(min=0).sqrt()
    std = torch.where(std > 1e-6, std, 1.0)
    return [float(f"{m:.3g}") for m in mean.tolist()], [float(f"{s:.3g}") for s in std.tolist()]
