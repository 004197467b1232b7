"""nnU-Net v2 and nnssl: the encoders of the ResEnc and of the plain U-Net."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ssl_med.backbones import Backbone, PlainEncoder, ResidualEncoder
from ssl_med.errors import UserError
from ssl_med.weights.layouts.base import Layout, State, Translated, rename


def _twice(name: str) -> str:
    if ".all_modules." in name:
        return "the same tensor under a second name"
    return "" if name.startswith(("stem.", "stages.")) else "no part of the encoder"


class ResEncUNet(Layout):
    """Names of ``dynamic_network_architectures``' ``ResidualEncoder``, which are also those of ours."""

    name = "a ResEnc U-Net of nnU-Net or nnssl"
    home = "ssl_med.backbones.ResidualEncoder"

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """A stem and stages of residual blocks."""
        return {"stem.convs.0.conv.weight", "stages.0.blocks.0.conv1.conv.weight"} <= set(state)

    def accepts(self, into: Backbone) -> bool:
        """Our encoder of the same arithmetic."""
        return isinstance(into, ResidualEncoder)

    def translate(self, state: State, facts: Mapping[str, Any], into: Backbone) -> Translated:
        """Same names; the adaptation plan of nnssl goes into the notes."""
        if any(re.search(r"\.conv3\.|\.squeeze_excitation\.", name) for name in state):
            raise UserError(f"{self.name} with bottlenecks or squeeze-and-excitation: {self.home} has neither")
        return _same_names(state, facts)


class PlainUNet(Layout):
    """Names of ``dynamic_network_architectures``' ``PlainConvEncoder``, which are also those of ours."""

    name = "a plain U-Net of nnU-Net"
    home = "ssl_med.backbones.PlainEncoder"

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """Stages of stacked convolutions."""
        return "stages.0.0.convs.0.conv.weight" in state

    def accepts(self, into: Backbone) -> bool:
        """Our encoder of the same arithmetic."""
        return isinstance(into, PlainEncoder)

    def translate(self, state: State, facts: Mapping[str, Any], into: Backbone) -> Translated:
        """Same names; the adaptation plan of nnssl goes into the notes."""
        return _same_names(state, facts)


def _same_names(state: State, facts: Mapping[str, Any]) -> Translated:
    result = rename(state, [], _twice)
    plan = facts.get("adaptation_plan") or {}
    if named := (plan.get("architecture_plans") or {}).get("arch_class_name"):
        result.notes.append(f"adaptation plan: pretrained as {named}")
    for key in ("recommended_downstream_patchsize", "pretrain_num_input_channels"):
        if key in plan:
            result.notes.append(f"adaptation plan: {key} {plan[key]}")
    return result


class Primus(Layout):
    """nnU-Net's Primus, which has no home here."""

    name = "a Primus transformer of nnU-Net or nnssl (rotary and learned positions at once, gated MLPs, inner norms)"
    home = "none: take the ResEnc variant, which is published beside it"

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """The Eva blocks in it."""
        return any(re.match(r"eva\.blocks\.0\.", name) for name in state)

    def accepts(self, into: Backbone) -> bool:
        """None."""
        return False

    def translate(self, state: State, facts: Mapping[str, Any], into: Backbone) -> Translated:
        """Never called: no backbone is accepted."""
        raise UserError(f"{self.name} has no home")
