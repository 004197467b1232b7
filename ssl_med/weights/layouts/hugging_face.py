"""Hugging Face's ViT, ViTMAE, DeiT and Dinov2, from a folder or in memory: separate query, key and value."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ssl_med.backbones import Backbone, ViT
from ssl_med.weights.adapt import fuse
from ssl_med.weights.layouts.base import Layout, State, Translated, rename
from ssl_med.weights.layouts.timm_vit import count_tokens, refuse_gated

_BLOCK = r"^(?:encoder\.)?layers?\.(\d+)\."
RULES = [
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^layernorm\.", "norm."),
    (_BLOCK, r"blocks.\1."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(?:attention\.)?(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.(q|k|v)_proj\.", r".attn.\1_proj."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
]
_SPLIT = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"))
_EPS = {"vit": 1e-12, "vit_mae": 1e-12, "deit": 1e-12, "dinov2": 1e-6, "dinov2_with_registers": 1e-6}


class HuggingFaceViT(Layout):
    """``ViTModel``, ``ViTMAEModel``, ``Dinov2Model`` and ``Dinov2WithRegistersModel`` of transformers."""

    name = "a ViT of Hugging Face's transformers"
    home = "ssl_med.backbones.ViT"

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """Its embeddings, and blocks of one of its two namings."""
        blocks = any(re.match(_BLOCK + "attention", name) for name in state)
        return "embeddings.patch_embeddings.projection.weight" in state and blocks

    def accepts(self, into: Backbone) -> bool:
        """Our ViT."""
        return isinstance(into, ViT)

    def translate(self, state: State, facts: Mapping[str, Any], into: Backbone) -> Translated:
        """Rename, fuse the projections, and read what ``config.json`` says."""
        result = rename(state, RULES, lambda name: "no part of the encoder" if name.endswith("mask_token") else "")
        for names in _SPLIT:
            _fuse(result, names)
        refuse_gated(result.tensors, self.name)
        count_tokens(result)
        config = facts.get("config") or {}
        result.heads = config.get("num_attention_heads")
        result.eps = config.get("layer_norm_eps", _EPS.get(str(config.get("model_type"))))
        if config.get("hidden_act", "gelu") != "gelu":
            result.notes.append(f"its MLPs have {config['hidden_act']}, the backbone's have gelu")
        return result


def _fuse(result: Translated, names: tuple[str, str, str]) -> None:
    """Three projections to one, weights and biases."""
    for query in [name for name in result.tensors if f".attn.{names[0]}." in name]:
        trio = [query.replace(f".{names[0]}.", f".{name}.") for name in names]
        if not all(name in result.tensors for name in trio):
            continue
        origins = ", ".join(result.origin.pop(name) for name in trio)
        fused = fuse(*[result.tensors.pop(name) for name in trio])
        result.put(query.replace(f".{names[0]}.", ".qkv."), origins, fused)
