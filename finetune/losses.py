"""Losses of segmentation that leave unlabelled voxels out, and of classes that leave unlabelled cases out."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, logsigmoid, one_hot

from ssl_med.ops import ranks

VoxelLoss = Literal["dice_ce", "dice_focal", "tversky", "tversky_ce", "focal", "ce"]
_SMOOTH = 1e-5


def dice_ce(
    logits: Float[Tensor, "b k *space"], mask: Int[Tensor, "b 1 *space"], batch_dice: bool = False
) -> Float[Tensor, ""]:
    """Soft Dice over the classes above 0 plus cross-entropy over all (nnU-Net's sum); voxels of label -1 count nowhere.

    As MONAI's ``DiceCELoss(include_background=False, softmax=True, to_onehot_y=True, batch=batch_dice)``.
    """
    return soft_dice(logits, mask, batch_dice) + voxel_focal(logits, mask)


def soft_dice(
    logits: Float[Tensor, "b k *space"], mask: Int[Tensor, "b 1 *space"], batch_dice: bool = False
) -> Float[Tensor, ""]:
    """``1 - (2 sum(p g) + s) / (sum(p) + sum(g) + s)``, s = 1e-5, mean over images and the classes above 0.

    A class that an image does not have costs nearly 1 as soon as some of it is predicted and 0 only if none is (MONAI's
    rule); with ``batch_dice`` the sums run over the batch, so that this holds for classes absent from all its images.
    """
    overlap, guess, truth = _sums(logits, mask, batch_dice)
    return (1 - (2 * overlap + _SMOOTH) / (guess + truth + _SMOOTH)).mean()


def tversky(
    logits: Float[Tensor, "b k *space"],
    mask: Int[Tensor, "b 1 *space"],
    alpha: float = 0.3,
    beta: float = 0.7,
    batch_dice: bool = False,
) -> Float[Tensor, ""]:
    """``1 - (tp + s) / (tp + alpha fp + beta fn + s)``, a Dice that forgives false positives (arXiv 1706.05721).

    As MONAI's ``TverskyLoss(include_background=False, softmax=True, to_onehot_y=True)``; absent classes as in
    :func:`soft_dice`.

    Args:
        logits, mask: of a batch.
        alpha: weight of false positives.
        beta: of false negatives; above alpha for small structures.
        batch_dice: sum over the batch.
    """
    overlap, guess, truth = _sums(logits, mask, batch_dice)
    below = overlap + alpha * (guess - overlap) + beta * (truth - overlap)
    return (1 - (overlap + _SMOOTH) / (below + _SMOOTH)).mean()


def _sums(logits: Tensor, mask: Tensor, whole_batch: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of p g, of p and of g over known voxels, for each image (or all) and each class above 0."""
    known = mask >= 0
    truth = one_hot(mask[:, 0].clamp(min=0), logits.shape[1]).movedim(-1, 1) * known
    guess = logits.float().softmax(1) * known
    axes = tuple(range(2, logits.ndim)) if not whole_batch else (0, *range(2, logits.ndim))
    sums = torch.stack([(guess * truth).sum(axes), guess.sum(axes), truth.sum(axes)])
    if whole_batch:
        sums = ranks.total(sums)
    return sums[0][..., 1:], sums[1][..., 1:], sums[2][..., 1:]


def voxel_focal(
    logits: Float[Tensor, "b k *space"], mask: Int[Tensor, "b 1 *space"], gamma: float = 0.0
) -> Float[Tensor, ""]:
    """``(1 - p)^gamma`` times cross-entropy, mean over known voxels (arXiv 1708.02002); cross-entropy for gamma 0."""
    target = mask[:, 0]
    loss = cross_entropy(logits.float(), target, ignore_index=-1, reduction="none")
    if gamma:
        loss = loss * (-torch.expm1(-loss.clamp(min=1e-7))) ** gamma
    return loss.sum() / _per_process((target >= 0).sum())


def voxel_loss(kind: VoxelLoss, logits: Tensor, mask: Tensor, batch_dice: bool = False) -> dict[str, Tensor]:
    """The parts of a loss by name, each already in the sum's weight of 1.

    Args:
        kind: ``dice_ce`` and ``dice_focal`` (gamma 2) are sums, ``tversky`` has alpha 0.3 and beta 0.7.
        logits: (b, k, \\*space).
        mask: (b, 1, \\*space), -1 where unknown.
        batch_dice: sums of Dice and Tversky run over the batch.
    """
    parts: dict[str, Tensor] = {}
    if kind.startswith("dice"):
        parts["dice"] = soft_dice(logits, mask, batch_dice)
    if kind.startswith("tversky"):
        parts["tversky"] = tversky(logits, mask, batch_dice=batch_dice)
    if kind.endswith("ce") and kind != "dice":
        parts["cross_entropy"] = voxel_focal(logits, mask)
    if kind.endswith("focal"):
        parts["focal"] = voxel_focal(logits, mask, gamma=2.0)
    return parts


def labelled_ce(logits: Float[Tensor, "b k"], label: Int[Tensor, " b"], smoothing: float = 0.0) -> Float[Tensor, ""]:
    """Cross-entropy over the cases with a label of 0 or more; 0 if there is none."""
    return class_loss(logits, hard_targets(label, logits.shape[1]), smoothing)


def hard_targets(label: Int[Tensor, " b"], classes: int) -> Float[Tensor, "b k"]:
    """One-hot rows; a label of -1 gives a row of zeros, which counts nowhere."""
    return (one_hot(label.clamp(min=0), classes) * (label >= 0)[:, None]).float()


def class_loss(
    logits: Float[Tensor, "b k"],
    targets: Float[Tensor, "b k"],
    smoothing: float = 0.0,
    gamma: float = 0.0,
    weights: Float[Tensor, " k"] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy of soft targets t: ``-sum_k w_k t_k (1 - p_k)^gamma log p_k``, over the sum of ``w_k t_k``.

    With hard targets and gamma 0 that is torch's cross-entropy with weights and label smoothing; gamma above 0 is the
    focal loss (Lin et al., arXiv 1708.02002).

    Args:
        logits: of each case.
        targets: rows that sum to 1; rows of zeros are unlabelled.
        smoothing: share of each target that is spread evenly over all classes.
        gamma: of the focal factor.
        weights: of the classes.
    """
    logs = log_softmax(logits.float(), -1)
    known = targets.sum(-1, keepdim=True)
    soft = (1 - smoothing) * targets + smoothing * known / targets.shape[1]
    scale = torch.ones_like(logs[0]) if weights is None else weights.float()
    factor = (-torch.expm1(logs.clamp(max=-1e-7))) ** gamma if gamma else 1.0
    return -(scale * soft * factor * logs).sum() / _per_process((scale * targets).sum())


def log_prior(counts: Sequence[int]) -> Float[Tensor, " k"]:
    """Logarithms of the shares of the classes; a class without a case counts as one with a single case."""
    filled = torch.tensor([max(count, 1) for count in counts], dtype=torch.float32)
    return (filled / filled.sum()).log()


def inverse_frequency(counts: Sequence[int]) -> Float[Tensor, " k"]:
    """n / (k n_c), as scikit-learn's ``balanced``; classes without a case count as having one."""
    filled = torch.tensor([max(count, 1) for count in counts], dtype=torch.float32)
    return sum(counts) / (len(counts) * filled)


def finding_loss(
    logits: Float[Tensor, "b k"],
    labels: Int[Tensor, "b k"],
    gamma_positive: float = 0.0,
    gamma_negative: float = 0.0,
    margin: float = 0.0,
    positive_weight: Float[Tensor, " k"] | None = None,
) -> Float[Tensor, ""]:
    """Binary cross-entropy of each known finding, mean over them; -1 is unknown and counts nowhere.

    ``-(1 - p)^g+ log p`` for findings that are there, ``-q^g- log(1 - q)`` with ``q = max(p - margin, 0)`` for those
    that are not: with both gammas 2 the focal loss without its alpha (arXiv 1708.02002), with 0, 4 and a margin of 0.05
    the asymmetric loss (Ridnik et al., arXiv 2009.14119; theirs is a sum, so lower rates suit it).

    Args:
        logits: of each finding.
        labels: 1, 0, or -1 for unknown.
        gamma_positive, gamma_negative, margin: see above.
        positive_weight: factor on the findings that are there.
    """
    logits = logits.float()
    there, absent = labels == 1, labels == 0
    positive = -logsigmoid(logits) * torch.sigmoid(-logits) ** gamma_positive
    if margin:
        shifted = (torch.sigmoid(logits) - margin).clamp(min=0)
        negative = -torch.log1p(-shifted) * shifted**gamma_negative
    else:
        negative = -logsigmoid(-logits) * torch.sigmoid(logits) ** gamma_negative
    if positive_weight is not None:
        positive = positive * positive_weight
    return (positive * there + negative * absent).sum() / _per_process((there | absent).sum())


def _per_process(count: Tensor) -> Tensor:
    """What is known on one process in the mean of all: trainers average the losses of processes that know unevenly."""
    return ranks.mean(count.float()).clamp(min=1e-12)
