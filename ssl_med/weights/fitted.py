"""How a person wants weights adapted, and what came of it."""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from ssl_med.weights.adapt import Adapted, Channels, Inflation


@dataclass(frozen=True)
class Wishes:
    """How to adapt.

    Attributes:
        channels: law for another number of input channels, see :func:`ssl_med.weights.adapt.channels`.
        inflate: law from 2D to 3D and back, see :func:`ssl_med.weights.adapt.change_rank`; None refuses it.
        axes: ``reversed`` where the source was trained on volumes (x, y, z).
        grid: patches along each axis of the source's positions, where they are no square or cube.
        drop: names of the source, with ``*`` for any letters, that may be left out although they change the features.
    """

    channels: Channels = "sum"
    inflate: Inflation | None = None
    axes: Literal["same", "reversed"] = "same"
    grid: tuple[int, ...] | None = None
    drop: Sequence[str] = ()

    def may_drop(self, *names: str) -> bool:
        """Any of the names was asked to be left out."""
        return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in self.drop)


@dataclass
class Fitted:
    """Tensors in the backbone's shapes.

    Attributes:
        tensors: by the backbone's names.
        how: name -> how it was changed; absent where it was not.
        origin: name -> the source's name.
        unplaced: the source's name -> why it finds no place; each changes the features, so each is refused or dropped.
        notes: sentences for the audit.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    how: dict[str, str] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    unplaced: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def put(self, name: str, theirs: str, *steps: Adapted, before: str = "") -> None:
        """A tensor that fits, with all that was done to it.

        Args:
            name: ours.
            theirs: the source's.
            steps: in order; the last holds the tensor.
            before: what was done before.
        """
        said = "; ".join(text for text in (before, *[step.how for step in steps]) if text)
        self.tensors[name], self.origin[name] = steps[-1].tensor, theirs
        if said:
            self.how[name] = said
