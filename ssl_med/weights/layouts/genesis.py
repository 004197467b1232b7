"""Models Genesis (Zhou et al., arXiv 2004.07882): the 3D U-Net's encoder."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ssl_med.backbones import Backbone, GenesisEncoder
from ssl_med.weights.layouts.base import Layout, State, Translated, rename


def _left(name: str) -> str:
    if name.endswith(("running_mean", "running_var", "num_batches_tracked")):
        return "moments that the original never uses"
    return "" if name.startswith("down_tr") else "no part of the encoder"


class Genesis(Layout):
    """Names of the original's ``UNet3D``."""

    name = "a U-Net of Models Genesis"
    home = "ssl_med.backbones.GenesisEncoder"

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """Its first stage."""
        return "down_tr64.ops.0.conv1.weight" in state

    def accepts(self, into: Backbone) -> bool:
        """Our encoder of the same arithmetic."""
        return isinstance(into, GenesisEncoder)

    def translate(self, state: State, facts: Mapping[str, Any], into: Backbone) -> Translated:
        """Same names."""
        result = rename(state, [], _left)
        result.notes.append("trained on CT of [-1000, 1000] HU as [0, 1]; its licence is non-commercial")
        result.notes.append("each image is normalised by its own moments, as the original does in a batch of one")
        return result
