"""MAE's full model (He et al., arXiv 2111.06377): timm's names with a decoder beside them."""

from collections.abc import Mapping

from torch import Tensor

from ssl_med.weights.layouts.timm_vit import TimmViT


class OfficialMAE(TimmViT):
    """Encoder of the official MAE; its decoder is left out.

    Its fixed sine-cosine table has the last axis first, unlike ours, so it goes into ``positions='learned'``.
    """

    name = "an official MAE with its decoder"

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """timm's names and a decoder."""
        return super().recognises(state) and "decoder_embed.weight" in state
