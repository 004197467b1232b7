"""MONAI's SwinUNETR, plain, as published by its authors (``module.``), and as VoCo's."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ssl_med.backbones import Backbone, MonaiBackbone
from ssl_med.weights.layouts.base import Layout, State, Translated, rename
from ssl_med.weights.layouts.monai_vit import AXES

RULES = [(r"\.mlp\.fc([12])\.", r".mlp.linear\1."), ("^", "network.")]
_MORE = ("encoder", "decoder", "out.", "conv.", "norm.", "swinViT.", "swin_vit.")


def _outside(name: str) -> str:
    return "no part of the Swin transformer" if name.startswith(_MORE) else ""


class MonaiSwin(Layout):
    """The Swin transformer of SwinUNETR; its convolutional skip encoders and its decoder are left out."""

    name = "a Swin transformer of MONAI's SwinUNETR (also VoCo)"
    home = "ssl_med.backbones.MonaiBackbone('SwinUNETR')"

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """Its stages."""
        return {"patch_embed.proj.weight", "layers1.0.blocks.0.attn.qkv.weight"} <= set(state)

    def accepts(self, into: Backbone) -> bool:
        """MONAI's own network behind our promise."""
        return isinstance(into, MonaiBackbone) and into.name == "SwinUNETR"

    def translate(self, state: State, facts: Mapping[str, Any], into: Backbone) -> Translated:
        """Rename what older files call ``fc1`` and ``fc2``."""
        result = rename(state, RULES, _outside)
        if any(name.startswith("network.layers1c") for name in result.tensors) and not getattr(into, "swin_v2", False):
            result.notes.append("the source is a SwinUNETR-v2: build MonaiBackbone(swin_v2=True)")
        if into.spatial_dims == 3:
            result.notes.append(AXES.replace("axes='reversed' turns them", "show it volumes with axes in that order"))
        return result
