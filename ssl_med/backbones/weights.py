"""Weights from elsewhere, with an audit of every parameter: nothing loads in silence."""

from dataclasses import dataclass, field

from torch import Tensor

from ssl_med.backbones.vit import ViT, resize_positions
from ssl_med.errors import UserError


@dataclass
class Audit:
    """What became of each parameter.

    Attributes:
        loaded: names taken as they were.
        adapted: name -> how it was changed to fit.
        missing: parameters of the model that found no source.
        unexpected: names of the source that found no place.
        share: part of the model's parameters that was loaded or adapted, 0 to 1.
    """

    loaded: list[str] = field(default_factory=list)
    adapted: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    share: float = 0.0

    def __str__(self) -> str:
        lines = [
            f"loaded {len(self.loaded)}, adapted {len(self.adapted)}, missing {len(self.missing)}, "
            f"unexpected {len(self.unexpected)}: {self.share:.1%} of the parameters"
        ]
        lines += [f"  adapted {name}: {how}" for name, how in self.adapted.items()]
        lines += [f"  missing {name}" for name in self.missing]
        return "\n".join([*lines, *[f"  unexpected {name}" for name in self.unexpected]])


def load_timm_vit(backbone: ViT, state: dict[str, Tensor], at_least: float = 0.95) -> Audit:
    """Load the state dict of a timm ViT (2D) into ours.

    The strided convolution becomes our linear layer over patch voxels, the class token's position is added to it, the
    position table is resized, classifier weights are left out; all of it stands in the audit.

    Args:
        backbone: a 2D ViT with ``positions='learned'`` for timm's usual models.
        state: timm's state dict.
        at_least: share of the backbone's parameters that must be filled.

    Raises:
        UserError: fewer parameters than that were filled; nothing is changed then.
    """
    audit, filled, own = Audit(), {}, backbone.state_dict()
    for name, tensor in _split_positions(state).items():
        if name.startswith(("head.", "fc_norm.")) or name not in own:
            audit.unexpected.append(name)
            continue
        value, how = _fit(name, tensor, backbone)
        if value.shape != own[name].shape:
            audit.unexpected.append(f"{name} {tuple(tensor.shape)} does not fit {tuple(own[name].shape)}")
            continue
        filled[name] = value
        if how:
            audit.adapted[name] = how
        else:
            audit.loaded.append(name)
    audit.missing = [name for name in own if name not in filled]
    total = sum(t.numel() for t in own.values())
    audit.share = sum(own[name].numel() for name in filled) / total
    if audit.share < at_least:
        raise UserError(f"weights cover {audit.share:.1%} of the backbone, at least {at_least:.0%} is asked\n{audit}")
    backbone.load_state_dict({**own, **filled})
    return audit


def _split_positions(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm gives the class token a row of the position table; ours has none, so the row moves into the token."""
    table = state.get("pos_embed")
    if table is None or "cls_token" not in state or float(table.shape[1] ** 0.5).is_integer():
        return state
    return {**state, "cls_token": state["cls_token"] + table[:, :1], "pos_embed": table[:, 1:]}


def _fit(name: str, tensor: Tensor, backbone: ViT) -> tuple[Tensor, str]:
    """The tensor in our layout, and how it was changed ('' if it was not)."""
    if name == "patch_embed.proj.weight" and tensor.ndim > 2:
        how, have, want = "convolution to linear, channels last inside a patch", tensor.shape[1], backbone.in_channels
        if have != want:  # a grey image shown to the summed weights gives what the old ones gave it in every channel
            tensor = (tensor.sum(1, keepdim=True) / want).expand(-1, want, *[-1] * (tensor.ndim - 2))
            how += f"; {have} channels summed, spread over {want}"
        return tensor.movedim(1, -1).flatten(1), how
    if name == "pos_embed" and backbone.grid:
        side = round(tensor.shape[1] ** 0.5)
        if (side, side) != backbone.grid:
            return resize_positions(tensor, (side, side), backbone.grid), f"table {side}x{side} to {backbone.grid}"
    return tensor, ""
