"""Native exports with known weights, to be written for other libraries."""

from pathlib import Path

import torch
from torch import nn

from ssl_med.exports import export

FACTS = {
    "training": {"task": "ssl_med.tasks.MAE", "steps": 3},
    "data": {"fingerprint": "0123456789abcdef", "images": 4, "patients": 4, "modalities": {"CT": 4}},
}


def native(part: nn.Module, folder: Path, crop: list[int], **more: object) -> Path:
    """An export whose every weight is random and far from its initial value, so that none may be missed."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in part.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    backbone = getattr(part, "backbone", part)
    facts = {
        "spatial_dims": len(crop),
        "channels": backbone.in_channels,
        "crop": crop,
        "intensity": "ct",
        "median_spacing_mm": [1.0] * len(crop),
        "fixed_spacing_mm": None,
        "prepared": {"spacing": None, "orientation": "RAS"},
        "class_names": [],
        **more,
    }
    name = "task" if hasattr(part, "backbone") else "backbone"
    return export({name: part.eval()}, folder, {**FACTS, "input": facts})


def image_of(count: int, channels: int, crop: list[int]) -> torch.Tensor:
    """Random images, the same for the same shape."""
    return torch.randn(count, channels, *crop, generator=torch.Generator().manual_seed(2))


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference; shapes must agree."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float((ours - theirs).abs().max())
