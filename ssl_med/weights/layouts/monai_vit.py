"""MONAI's ViT, alone or inside UNETR and ViTAutoEnc, in 2D and 3D."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ssl_med.backbones import Backbone, ViT
from ssl_med.weights.layouts.base import Layout, State, Translated, rename
from ssl_med.weights.layouts.timm_vit import count_tokens

RULES = [
    (r"^patch_embedding\.patch_embeddings\.(?:1\.)?", "patch_embed.proj."),
    (r"^patch_embedding\.position_embeddings$", "pos_embed"),
    (r"^patch_embedding\.cls_token$", "cls_token"),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.linear([12])\.", r".mlp.fc\1."),
]


def _unused(name: str) -> str:
    return "a norm that MONAI's blocks own but do not use" if ".norm_cross_attn." in name else ""


class MonaiViT(Layout):
    """``monai.networks.nets.ViT``; the first layer may be a convolution or a linear layer (``perceptron``)."""

    name = "a ViT of MONAI (ViT, UNETR)"
    home = "ssl_med.backbones.ViT"

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """Its patch embedding and its blocks."""
        embeds = any(name.startswith("patch_embedding.patch_embeddings.") for name in state)
        return embeds and "blocks.0.attn.qkv.weight" in state

    def accepts(self, into: Backbone) -> bool:
        """Our ViT."""
        return isinstance(into, ViT)

    def translate(self, state: State, facts: Mapping[str, Any], into: Backbone) -> Translated:
        """Rename; queries, keys and values are fused in our order already."""
        result = rename(state, RULES, _unused)
        result.eps = 1e-5
        result.notes.append(AXES)
        count_tokens(result)
        return result


AXES = (
    "MONAI's readers give volumes as (x, y, z), ours are (z, y, x): where these weights were trained on such volumes, "
    "axes='reversed' turns them"
)
