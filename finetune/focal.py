"""The focal loss of dense detection."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


def sigmoid_focal(
    logits: Float[Tensor, "*rows"], truth: Tensor, alpha: float = 0.25, gamma: float = 2.0
) -> Float[Tensor, "*rows"]:
    """``-a (1 - p)^gamma log p`` where the truth is 1, ``-(1 - a) p^gamma log(1 - p)`` where it is 0.

    Lin et al., arXiv 1708.02002; nothing is summed.

    Args:
        logits: one for each class of each cell.
        truth: 1 or 0, same shape.
        alpha: weight of what is there.
        gamma: how much less counts what is right already.
    """
    truth = truth.to(logits)
    cross_entropy = binary_cross_entropy_with_logits(logits, truth, reduction="none")
    wrong = torch.where(truth > 0, 1 - logits.sigmoid(), logits.sigmoid())
    return torch.where(truth > 0, alpha, 1 - alpha) * wrong**gamma * cross_entropy
