"""timm's ViT, whose names are also those of MAE, DINO and MoCo v3; and of our own ViT."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ssl_med.backbones import Backbone, ViT
from ssl_med.errors import UserError
from ssl_med.weights.adapt import Adapted
from ssl_med.weights.layouts.base import Layout, State, Translated, rename


class TimmViT(Layout):
    """Names of timm's ``VisionTransformer``: patches, position table with or without rows of tokens, fused qkv."""

    name = "a ViT in timm's names (timm, DINO, MoCo v3, MAE's encoder, ssl_med)"
    home = "ssl_med.backbones.ViT"
    eps: float | None = 1e-6
    rules: list[tuple[str, str]] = [(r"^(blocks\.\d+)\.gamma_([12])$", r"\1.ls\2.gamma")]

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """A patch embedding and blocks with fused projections."""
        return {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= set(state)

    def accepts(self, into: Backbone) -> bool:
        """Our ViT."""
        return isinstance(into, ViT)

    def translate(self, state: State, facts: Mapping[str, Any], into: Backbone) -> Translated:
        """Nearly the same names; gated MLPs have no home."""
        result = rename(state, self.rules)
        refuse_gated(result.tensors, self.name)
        _join_biases(result)
        result.eps, result.heads = facts.get("norm_eps", self.eps), facts.get("heads")
        result.grid = tuple(facts["grid"]) if facts.get("grid") else None
        result.patch = tuple(facts["patch"]) if facts.get("patch") else None
        result.positions = "" if facts.get("positions") == "learned" else str(facts.get("positions", ""))
        count_tokens(result)
        return result


def refuse_gated(tensors: State, name: str) -> None:
    """Refuse SwiGLU, whose two halves our MLP does not have.

    Raises:
        UserError: as said.
    """
    inner, outer = tensors.get("blocks.0.mlp.fc1.weight"), tensors.get("blocks.0.mlp.fc2.weight")
    split = any(re.match(r"blocks\.0\.mlp\.(w12|w1|weights_in|fc1_g)\.", key) for key in tensors)
    if split or (inner is not None and outer is not None and inner.shape[0] == 2 * outer.shape[1]):
        raise UserError(
            f"the source is {name} with gated MLPs (SwiGLU); ssl_med's ViT has plain ones, so they have no home. "
            "Take the variant without (DINOv2: small, base or large), or load it with timm as a TimmBackbone"
        )


def _join_biases(result: Translated) -> None:
    """BEiT keeps biases of queries and values only."""
    for name in [n for n in result.tensors if n.endswith(".attn.q_bias")]:
        stem = name.removesuffix("q_bias")
        if f"{stem}v_bias" not in result.tensors:
            continue
        query, value = result.tensors.pop(name), result.tensors.pop(f"{stem}v_bias")
        fused = torch.cat([query, torch.zeros_like(query), value])
        result.put(f"{stem}qkv.bias", f"{name}, {stem}v_bias", Adapted(fused, "biases of q and v, zero for k"))


def count_tokens(result: Translated) -> None:
    """How many tokens stand beside the patches."""
    registers = result.tensors.get("reg_token")
    result.prefix = int("cls_token" in result.tensors) + (0 if registers is None else registers.shape[1])
