"""Sources whose names are the backbone's own, up to what timm's feature wrappers change: ResNets, all of timm, ours."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ssl_med.backbones import Backbone, TimmBackbone, ViT
from ssl_med.weights.layouts.base import Layout, State, Translated, beside

_COMPUTED = ("relative_position_index", "attn_mask", "relative_coords_table")


class SameNames(Layout):
    """Names compared without the leading ``model.`` and with ``_`` for dots: ``stages.0.x`` is ``model.stages_0.x``.

    Args:
        into: the backbone whose names they are.
    """

    home = "the backbone whose names these are"

    def __init__(self, into: Backbone) -> None:
        self.into = into
        self.name = f"the names of {type(into).__name__}"
        self.own = {_plain(name): name for name in into.state_dict()}

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """Half of the backbone's names are there."""
        return 2 * len({_plain(name) for name in state} & set(self.own)) >= len(self.own)

    def accepts(self, into: Backbone) -> bool:
        """This one; our ViT has rules of its own."""
        return into is self.into and not isinstance(into, ViT)

    def translate(self, state: State, facts: Mapping[str, Any], into: Backbone) -> Translated:
        """Only the spelling changes."""
        result = Translated()
        for theirs, tensor in state.items():
            if _plain(theirs) in self.own:
                result.put(self.own[_plain(theirs)], theirs, tensor)
            elif reason := self._beside(theirs):
                result.left[theirs] = reason
            else:
                result.put(theirs, theirs, tensor)
        return result

    def _beside(self, name: str) -> str:
        if name.rpartition(".")[2] in _COMPUTED:
            return "computed, not learned"
        if isinstance(self.into, TimmBackbone) and name.startswith(("norm.", "global_pool.")):
            return "after the last feature map"
        return beside(name)


class ResNet(Layout):
    """ResNets of torchvision and timm, named for the error when they meet another backbone."""

    name = "a ResNet (torchvision, timm, MoCo)"
    home = "ssl_med.backbones.TimmBackbone"

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """Stem and first stage."""
        return {"conv1.weight", "layer1.0.conv1.weight"} <= set(state)

    def accepts(self, into: Backbone) -> bool:
        """One of timm."""
        return isinstance(into, TimmBackbone)

    def translate(self, state: State, facts: Mapping[str, Any], into: Backbone) -> Translated:
        """As any of timm."""
        return SameNames(into).translate(state, facts, into)


def _plain(name: str) -> str:
    while name.startswith("model."):
        name = name.removeprefix("model.")
    return name.replace(".", "_")
