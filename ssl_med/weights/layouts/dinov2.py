"""DINOv2 (Oquab et al., arXiv 2304.07193), and 3D models of its code such as 3DINO."""

from collections.abc import Mapping

from torch import Tensor

from ssl_med.weights.layouts.timm_vit import TimmViT


class OfficialDINOv2(TimmViT):
    """DINOv2's names: registers under their own, blocks in chunks (``blocks.0.11.``) where it was trained in shards."""

    name = "a ViT of DINOv2's code (DINOv2, 3DINO)"
    rules = [(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."), (r"^register_tokens$", "reg_token")]

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """Registers or a mask token of DINOv2, or blocks in chunks."""
        chunked = any(name.startswith("blocks.0.0.attn.qkv") for name in state)
        plain = "blocks.0.attn.qkv.weight" in state and bool({"register_tokens", "mask_token"} & set(state))
        return "patch_embed.proj.weight" in state and "decoder_embed.weight" not in state and (chunked or plain)
