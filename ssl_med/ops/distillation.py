"""Losses between the probabilities of a teacher and the logits of a student, and what they say about the teacher."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def view_distillation(
    targets: Float[Tensor, "t b k"], logits: Float[Tensor, "v b k"], temperature: float
) -> Float[Tensor, ""]:
    """Mean cross-entropy of every student view against every teacher view but its own (DINO, arXiv 2104.14294, eq. 3).

    With two teacher views and 2 + 8 student views these are 18 terms. Each target meets the sum of all student views,
    so the work grows with the number of views and not of pairs.

    Args:
        targets: probabilities of the t teacher views, which are the first t student views.
        logits: of the v student views.
        temperature: of the student.
    """
    log_share = (logits.float() / temperature).log_softmax(-1)
    others = log_share.sum(0) - log_share[: len(targets)]
    terms = len(targets) * (len(logits) - 1)
    return -(targets * others).sum(-1).mean(-1).sum() / terms


def patch_distillation(
    targets: Float[Tensor, "b h k"],
    logits: Float[Tensor, "b h k"],
    weight: Float[Tensor, "b h"],
    temperature: float,
) -> Float[Tensor, ""]:
    """Cross-entropy at the hidden patches, averaged over those of an image and then over images (iBOT, 2111.07832).

    Args:
        targets: probabilities of the teacher.
        logits: of the student.
        weight: 1 for patches that count, 0 for those that do not.
        temperature: of the student.
    """
    cross = -(targets * (logits.float() / temperature).log_softmax(-1)).sum(-1)
    return ((cross * weight).sum(1) / weight.sum(1).clamp(min=1)).mean()


def teacher_signs(targets: Float[Tensor, "rows k"]) -> dict[str, Tensor]:
    """What tells a living teacher from a collapsed one.

    Returns:
        ``teacher_entropy``: mean entropy of the rows, 0 to ln k; ln k when every row is uniform.
        ``teacher_kl``: divergence of the mean row from the uniform one, 0 to ln k; ln k when one prototype takes all.
        ``teacher_information``: entropy of the mean row less the mean entropy of the rows: what the teacher's answer
            tells of the image. 0 when it says the same of all images, whichever way it collapsed.
        ``prototypes_in_use``: prototypes that are the likeliest of some row.
        ``ln_prototypes``: ln k, to compare with.
    """
    k = targets.shape[-1]
    entropy, entropy_of_mean = torch.special.entr(targets).sum(-1).mean(), torch.special.entr(targets.mean(0)).sum()
    return {
        "teacher_entropy": entropy,
        "teacher_kl": math.log(k) - entropy_of_mean,
        "teacher_information": entropy_of_mean - entropy,
        "prototypes_in_use": torch.bincount(targets.argmax(-1), minlength=k).gt(0).sum().float(),
        "ln_prototypes": torch.full((), math.log(k), device=targets.device),
    }
