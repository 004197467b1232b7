"""What each parameter of a backbone costs to run: the weight of a hole in a loaded model."""

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ssl_med.backbones import Backbone, TimmBackbone, ViT

_CELLS = 2
"""Cells of the coarsest map along each axis of the counted image; normalisers want more than one."""


def example_image(backbone: Backbone) -> Tensor:
    """One image of zeros that the backbone takes: the size it was made for, else a few cells of its coarsest map."""
    if isinstance(backbone, TimmBackbone) and backbone.image_size:
        space: tuple[int, ...] = (backbone.image_size,) * 2
    elif isinstance(backbone, ViT) and backbone.grid:
        space = tuple(g * p for g, p in zip(backbone.grid, backbone.patch, strict=True))
    else:
        space = tuple(_CELLS * size for size in backbone.multiple())
    parameter = next(backbone.parameters())
    return torch.zeros(1, backbone.in_channels, *space, dtype=parameter.dtype, device=parameter.device)


@torch.no_grad()
def flops_by_parameter(backbone: Backbone) -> dict[str, float]:
    """Floating-point operations of one forward pass that each parameter takes part in, by name.

    Counted are matrix products and convolutions (``torch.utils.flop_counter``) of modules that own parameters; the
    count of a module is shared by its parameters in proportion to their sizes. Products of activations, such as those
    of attention, belong to no parameter and are not counted; norms and activations count nothing.

    Args:
        backbone: left as it is.
    """
    training, image = backbone.training, example_image(backbone)
    backbone.eval()
    spacing = torch.ones(1, backbone.spatial_dims, device=image.device)
    with FlopCounterMode(display=False) as counter:
        backbone(image, spacing)
    backbone.train(training)
    counts = {name: float(sum(kinds.values())) for name, kinds in counter.get_flop_counts().items()}
    shares: dict[str, float] = {}
    for name, module in backbone.named_modules():
        own = {f"{name}.{n}".lstrip("."): p.numel() for n, p in module.named_parameters(recurse=False)}
        spent = _own_count(counts, f"{type(backbone).__name__}.{name}".rstrip("."), module)
        shares |= {parameter: spent * size / sum(own.values()) for parameter, size in own.items()}
    return shares


def _own_count(counts: dict[str, float], path: str, module: nn.Module) -> float:
    """FLOPs of a module with weights and without inner modules; products inside a larger one have no weights."""
    return counts.get(path, 0.0) if not any(module.children()) else 0.0
