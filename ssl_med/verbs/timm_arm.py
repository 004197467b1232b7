"""An arm on a network of timm, such as a ResNet with ImageNet's weights, beside arms of another architecture."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from ssl_med.errors import UserError

PREFIX = "timm:"


def timm_source(source: str) -> tuple[str, str]:
    """Name of the network, and file of its weights (empty for random ones), of ``timm:NAME[:FILE]``."""
    name, _, file = source.removeprefix(PREFIX).partition(":")
    return name, file


def timm_recipe(name: str, channels: int, crop: int | Sequence[int]) -> dict[str, Any]:
    """The recipe of a backbone of timm; nothing is downloaded.

    Args:
        name: of timm's registry.
        channels: of the images.
        crop: voxels along each axis, for networks that are made for one size.

    Raises:
        UserError: no such network, or one that needs a square where the crop is none.
    """
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 3)
        raise UserError(f"timm has no {name!r}" + (f"; did you mean {', '.join(near)}?" if near else ""))
    settings: dict[str, Any] = {"name": name, "in_channels": channels}
    config = timm.get_pretrained_cfg(name)
    if config is not None and config.fixed_input_size:
        sides = {crop} if isinstance(crop, int) else set(crop)
        if len(sides) > 1:
            raise UserError(f"timm's {name} takes squares, data.crop is {crop}")
        settings["image_size"] = sides.pop()
    return {"class_path": "ssl_med.backbones.TimmBackbone", "init_args": settings}


def check_timm(source: str, card: Mapping[str, Any]) -> str:
    """Build the network and fill it once, and say how it compares with the architecture of the other arms.

    Args:
        source: ``timm:NAME[:FILE]``.
        card: of the export that the other arms begin with.

    Raises:
        UserError: volumes, no such network, or weights that do not fit.
    """
    from ssl_med.backbones import Backbone
    from ssl_med.recipe import build
    from ssl_med.weights import load_weights

    (name, file), facts, own = timm_source(source), card["input"], card["parts"]["backbone"]
    if facts["spatial_dims"] != 2:
        raise UserError(f"timm's networks are for pictures, the other arms are for {facts['spatial_dims']}D images")
    backbone = build(timm_recipe(name, facts["channels"], facts["crop"]), Backbone, "backbone")
    filled = (
        f"weights of somebody else fill {load_weights(file, backbone).share:.1%} of" if file else "random weights in"
    )
    size = sum(weight.numel() for weight in backbone.parameters())
    other = f"{own['class_path'].rpartition('.')[2]} with {own['parameters'] / 1e6:.1f} M"
    return (
        f"{filled} timm's {name}, {size / 1e6:.1f} M parameters: another architecture than that of the other arms "
        f"({other}), scratch among them, so a difference to them is not one of the weights alone"
    )
