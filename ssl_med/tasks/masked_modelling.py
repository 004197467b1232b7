"""What the tasks share that hide voxels and predict them: the signs of a living one, and what to say of a dead one."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ssl_med.ops import ranks
from ssl_med.tasks.base import PretextTask
from ssl_med.types import Batch

_CONSTANT = 1e-6
"""Variance up to which a patch counts as constant: what is hidden there teaches nothing."""
_WARM, _HALF = 0.1, 0.5
_FAR_WORSE, _WORSE = 3.0, 1.5
"""Factors on the error of predicting nothing that are worth a word after these shares of the training."""
_FALLING = 0.98
"""Of the error at the look before: a training that has yet to come below predicting nothing is on its way."""


class Errors(NamedTuple):
    """Of hidden voxels.

    Attributes:
        masked: the loss of the prediction.
        blank: that of predicting nothing.
        constant: share of the hidden patches that are constant.
    """

    masked: Float[Tensor, ""]
    blank: Float[Tensor, ""]
    constant: Float[Tensor, ""]


class MaskedModelling(PretextTask):
    """A task that predicts hidden voxels; it says how well it does beside predicting nothing."""

    remembered = ("_progress", "_before")
    _progress = 0.0
    _before = float("inf")

    @abstractmethod
    def errors(self, batch: Batch) -> Errors:
        """How well the hidden voxels of a batch are predicted."""

    def after_step(self, progress: float) -> None:
        """Remembers how far the training is, for :meth:`verdict`."""
        self._progress = progress

    @torch.no_grad()
    def vital_signs(self, batch: Batch) -> dict[str, Tensor]:
        """Error of the prediction, that of predicting nothing, and the share of constant patches."""
        errors = self.errors(batch)
        return {"masked_error": errors.masked, "blank_error": errors.blank, "constant_patches": errors.constant}

    def verdict(self, signs: Mapping[str, float]) -> str:
        """A sentence if the prediction is far worse than none after the warm-up, or no better in the second half."""
        error, blank = signs["masked_error"], signs["blank_error"]
        falling, self._before = error < _FALLING * self._before, error
        late = self._progress >= _HALF
        bad = error >= (_WORSE if late else _FAR_WORSE) * blank or (late and error >= blank and not falling)
        if self._progress < _WARM or not bad:
            return ""
        return (
            f"the hidden patches are not predicted: error {error:.3f}, and {blank:.3f} from predicting nothing; lower "
            "learner.lr, train longer, or look whether the images are constant"
        )


def patch_moments(
    patches: Float[Tensor, "b n p"], weight: Float[Tensor, "b n p"]
) -> tuple[Float[Tensor, "b n 1"], Float[Tensor, "b n 1"]]:
    """Mean and unbiased variance of each patch over its voxels of weight 1; variance 0 for fewer than two voxels."""
    count = weight.sum(-1, keepdim=True)
    mean = (patches * weight).sum(-1, keepdim=True) / count.clamp(min=1)
    return mean, ((patches - mean) ** 2 * weight).sum(-1, keepdim=True) / (count - 1).clamp(min=1)


def constant_share(variance: Float[Tensor, "b n"], real: Bool[Tensor, "b n"]) -> Float[Tensor, ""]:
    """Share of the patches marked in ``real`` that are constant, over the images of all processes."""
    constant = ranks.total(((variance <= _CONSTANT) & real).sum())
    return constant / ranks.total(real.sum()).clamp(min=1)
