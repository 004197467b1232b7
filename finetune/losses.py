"""Losses that leave unlabelled voxels and cases out."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot


def dice_ce(logits: Float[Tensor, "b k *space"], mask: Int[Tensor, "b 1 *space"]) -> Float[Tensor, ""]:
    """Soft Dice over the classes above 0 plus cross-entropy over all (nnU-Net's sum); voxels of label -1 count nowhere.

    Dice is taken per image and class, ``1 - (2 sum(p g) + s) / (sum(p) + sum(g) + s)`` with s = 1e-5, as MONAI's
    ``DiceCELoss(include_background=False, softmax=True, to_onehot_y=True)``.
    """
    logits, target = logits.float(), mask[:, 0]
    entropy = cross_entropy(logits, target, ignore_index=-1, reduction="sum") / (target >= 0).sum().clamp(min=1)
    known = (target >= 0)[:, None]
    truth = one_hot(target.clamp(min=0), logits.shape[1]).movedim(-1, 1) * known
    guess = logits.softmax(1) * known
    axes = tuple(range(2, logits.ndim))
    overlap, size = (guess * truth).sum(axes), guess.sum(axes) + truth.sum(axes)
    dice = 1 - (2 * overlap + 1e-5) / (size + 1e-5)
    return entropy + dice[:, 1:].mean()


def labelled_ce(logits: Float[Tensor, "b k"], label: Int[Tensor, " b"], smoothing: float = 0.0) -> Float[Tensor, ""]:
    """Cross-entropy over the cases with a label of 0 or more; 0 if there is none."""
    loss = cross_entropy(logits.float(), label, ignore_index=-1, reduction="sum", label_smoothing=smoothing)
    return loss / (label >= 0).sum().clamp(min=1).to(torch.float32)
