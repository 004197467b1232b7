"""What a layout is: how somebody else names and orders the weights of an architecture we have too."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ssl_med.backbones import Backbone
from ssl_med.weights.adapt import Adapted

State = dict[str, Tensor]


@dataclass
class Translated:
    """A source in the names of our backbone; no shape has been changed yet.

    Attributes:
        tensors: by our names.
        origin: our name -> theirs.
        how: our name -> what was done to get it, where something was.
        left: their name -> why it is left out on purpose.
        heads: attention heads, where the source says so.
        eps: what its norms add to the variance, where it is known.
        grid: patches along each axis of its positions, where it is known.
        patch: voxels per patch, where a linear patch embedding hides it.
        positions: kind of positions, where the source is ours.
        prefix: tokens beside the patches.
        notes: sentences for the audit.
    """

    tensors: State = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    how: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    heads: int | None = None
    eps: float | None = None
    grid: tuple[int, ...] | None = None
    patch: tuple[int, ...] | None = None
    positions: str = ""
    prefix: int = 0
    notes: list[str] = field(default_factory=list)

    def put(self, name: str, theirs: str, value: Tensor | Adapted) -> None:
        """Add one tensor under our name."""
        value = value if isinstance(value, Adapted) else Adapted(value)
        self.tensors[name], self.origin[name] = value.tensor, theirs
        if value.how:
            self.how[name] = value.how


class Layout(ABC):
    """One foreign layout.

    Attributes:
        name: in words.
        home: the backbone it can be loaded into, in words.
    """

    name: str
    home: str

    @abstractmethod
    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """Whether names, without prefixes, are of this layout."""

    @abstractmethod
    def accepts(self, into: Backbone) -> bool:
        """Whether a backbone can be its home."""

    @abstractmethod
    def translate(self, state: State, facts: Mapping[str, Any], into: Backbone) -> Translated:
        """The source in our names.

        Args:
            state: tensors by their names, without prefixes.
            facts: see :class:`ssl_med.weights.sources.Source`.
            into: the backbone.

        Raises:
            UserError: a variant that has no home here.
        """


BESIDE = re.compile(
    r"^(head|heads|fc|fc_norm|classifier|classification_head|pooler|predictor|projector|projection\w*|proj_head|"
    r"dino_head|ibot_head|decoder\w*|mask_token|mask_embed|norm_pix_loss|contrastive_head|rotation_head|"
    r"rotation_pre|contrastive_pre|queue\w*|centre|center|head_dist|aux_\w+)(\.|$)"
)
"""Names that stand beside an encoder: heads, decoders, mask tokens and what training needed."""


def rename(
    state: Mapping[str, Tensor], rules: list[tuple[str, str]], skip: Callable[[str], str] | None = None
) -> Translated:
    """All tensors under new names.

    Args:
        state: tensors by their names.
        rules: regular expressions and replacements, applied one after the other.
        skip: why a name is left out on purpose; empty where it is not.
    """
    result = Translated()
    for theirs, tensor in state.items():
        reason = (skip(theirs) if skip else "") or beside(theirs)
        if reason:
            result.left[theirs] = reason
            continue
        name = theirs
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        result.put(name, theirs, tensor)
    return result


def beside(name: str) -> str:
    """Why a name is no part of an encoder; empty where it may be one."""
    return "no part of the encoder" if BESIDE.match(name) else ""
