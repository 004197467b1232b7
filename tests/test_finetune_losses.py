from typing import get_args

import pytest
import torch
from monai.losses import DiceLoss
from torch.nn.functional import cross_entropy

from finetune.losses import (
    VoxelLoss,
    class_loss,
    dice_ce,
    finding_loss,
    hard_targets,
    inverse_frequency,
    labelled_ce,
    log_prior,
    soft_dice,
    tversky,
    voxel_focal,
    voxel_loss,
)


def example(*space: int, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, classes, *space, generator=generator)
    return logits.requires_grad_(), torch.randint(0, classes, (2, 1, *space), generator=generator)


def value(loss: torch.Tensor) -> float:
    return loss.detach().item()


@pytest.mark.parametrize("space", [(7, 5), (4, 5, 6)])
@pytest.mark.parametrize("classes", [2, 4])
def test_dice_ce_is_the_sum_of_monai_and_torch(space: tuple[int, ...], classes: int) -> None:
    logits, mask = example(*space, classes=classes)
    soft = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, smooth_nr=1e-5, smooth_dr=1e-5)
    expected = soft(logits, mask) + cross_entropy(logits, mask[:, 0])
    assert value(dice_ce(logits, mask)) == pytest.approx(value(expected), rel=1e-5)


def test_dice_ce_of_absent_classes_is_that_of_monai() -> None:
    logits, mask = example(6, 6, classes=4)
    mask = mask.clamp(max=1)  # classes 2 and 3 are absent
    soft = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, smooth_nr=1e-5, smooth_dr=1e-5)
    expected = soft(logits, mask) + cross_entropy(logits, mask[:, 0])
    assert value(dice_ce(logits, mask)) == pytest.approx(value(expected), rel=1e-5)


def test_unlabelled_voxels_count_nowhere() -> None:
    """The loss is that of the labelled part alone, and the rest has no gradient."""
    logits, mask = example(6, 8)
    mask[..., 5:] = -1
    loss = dice_ce(logits, mask)
    loss.backward()
    assert (logits.grad[..., 5:] == 0).all()
    assert (logits.grad[..., :5] != 0).all()
    assert value(loss) == pytest.approx(value(dice_ce(logits[..., :5], mask[..., :5])), rel=1e-5)


def test_nothing_labelled_is_finite_and_without_gradient() -> None:
    logits, mask = example(4, 4)
    loss = dice_ce(logits, torch.full_like(mask, -1))
    loss.backward()
    assert torch.isfinite(loss)
    assert (logits.grad == 0).all()


def test_perfect_prediction_costs_nothing() -> None:
    _, mask = example(6, 6)
    sure = 100.0 * torch.nn.functional.one_hot(mask[:, 0], 3).movedim(-1, 1).float()
    assert value(dice_ce(sure, mask)) == pytest.approx(0, abs=1e-5)
    assert value(dice_ce(-sure, mask)) > 10


def test_half_precision_is_summed_in_single() -> None:
    logits, mask = example(64, 64)
    half = dice_ce(logits.detach().bfloat16(), mask)
    assert half.dtype == torch.float32
    assert value(half) == pytest.approx(value(dice_ce(logits.detach().bfloat16().float(), mask)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_labelled_ce_is_the_mean_over_the_labelled(smoothing: float) -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    label = torch.tensor([0, -1, 2, 1, -1, 2])
    expected = cross_entropy(logits[label >= 0], label[label >= 0], label_smoothing=smoothing)
    loss = labelled_ce(logits, label, smoothing)
    loss.backward()
    assert value(loss) == pytest.approx(value(expected), rel=1e-6)
    assert (logits.grad[label < 0] == 0).all()


def test_labelled_ce_of_no_label_is_zero() -> None:
    assert value(labelled_ce(torch.randn(3, 2), torch.full((3,), -1))) == 0


def test_batch_dice_is_that_of_monai() -> None:
    logits, mask = example(7, 5, classes=4)
    soft = DiceLoss(
        include_background=False, to_onehot_y=True, softmax=True, smooth_nr=1e-5, smooth_dr=1e-5, batch=True
    )
    assert value(soft_dice(logits, mask, batch_dice=True)) == pytest.approx(value(soft(logits, mask)), rel=1e-5)
    assert value(soft_dice(logits, mask, batch_dice=True)) != pytest.approx(value(soft_dice(logits, mask)), rel=1e-4)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("most", [3, 1])
def test_tversky_is_that_of_monai(whole: bool, most: int) -> None:
    from monai.losses import TverskyLoss

    logits, mask = example(4, 5, 6, classes=4)
    mask = mask.clamp(max=most)  # 1: classes 2 and 3 are absent
    settings = {"include_background": False, "to_onehot_y": True, "softmax": True, "batch": whole}
    theirs = TverskyLoss(alpha=0.3, beta=0.7, smooth_nr=1e-5, smooth_dr=1e-5, **settings)
    assert value(tversky(logits, mask, batch_dice=whole)) == pytest.approx(value(theirs(logits, mask)), rel=1e-5)


def test_voxel_focal_is_that_of_monai() -> None:
    from monai.losses import FocalLoss

    logits, mask = example(7, 5, classes=4)
    theirs = FocalLoss(gamma=2.0, to_onehot_y=True, use_softmax=True, reduction="sum")(logits, mask) / len(
        mask
    )  # a mean over voxels
    assert value(voxel_focal(logits, mask, 2.0)) == pytest.approx(value(theirs), rel=1e-5)
    assert value(voxel_focal(logits, mask)) == pytest.approx(value(cross_entropy(logits, mask[:, 0])), rel=1e-6)


def test_empty_masks_cost_nothing_unless_something_is_predicted() -> None:
    """The stated rule: a class that is not there costs 0 if nothing of it is predicted, and nearly 1 else."""
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.int64)
    sure = torch.full((1, 2, 8, 8), -50.0)
    for loss in (soft_dice, tversky):
        for found, expected in ((0, 0.0), (1, 1.0)):
            logits = sure.clone()
            logits[:, found] = 50.0
            assert value(loss(logits, mask)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", get_args(VoxelLoss))
def test_every_voxel_loss_leaves_unlabelled_voxels_out(kind: str) -> None:
    logits, mask = example(6, 8)
    mask[..., 5:] = -1
    loss = sum(voxel_loss(kind, logits, mask).values())
    loss.backward()
    assert (logits.grad[..., 5:] == 0).all()
    assert (logits.grad[..., :5] != 0).any()
    cut = sum(voxel_loss(kind, logits[..., :5], mask[..., :5]).values())
    assert value(loss) == pytest.approx(value(cut), rel=1e-5)


def test_voxel_losses_have_the_parts_of_their_names() -> None:
    logits, mask = example(4, 4)
    names = {kind: set(voxel_loss(kind, logits, mask)) for kind in get_args(VoxelLoss)}
    assert names == {
        "dice_ce": {"dice", "cross_entropy"},
        "dice_focal": {"dice", "focal"},
        "tversky": {"tversky"},
        "tversky_ce": {"tversky", "cross_entropy"},
        "focal": {"focal"},
        "ce": {"cross_entropy"},
    }


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_class_loss_is_that_of_torch(smoothing: float) -> None:
    logits, label = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, -1, 0])
    weights, known = torch.tensor([0.5, 1.0, 3.0]), label >= 0
    expected = cross_entropy(logits[known], label[known], weights, label_smoothing=smoothing)
    found = class_loss(logits, hard_targets(label, 3), smoothing, weights=weights)
    assert value(found) == pytest.approx(value(expected), rel=1e-5)
    soft = torch.rand(6, 3).softmax(1)
    assert value(class_loss(logits, soft)) == pytest.approx(value(cross_entropy(logits, soft)), rel=1e-5)


def test_focal_class_loss_by_hand() -> None:
    logits, label = torch.randn(5, 3, dtype=torch.float64).float(), torch.tensor([0, 1, 2, -1, 1])
    p = logits.softmax(1)[[0, 1, 2, 4], [0, 1, 2, 1]]
    expected = (-((1 - p) ** 2) * p.log()).mean()
    assert value(class_loss(logits, hard_targets(label, 3), gamma=2.0)) == pytest.approx(value(expected), rel=1e-5)


def test_priors_and_weights_of_an_absent_class_are_finite() -> None:
    assert torch.allclose(log_prior([3, 0, 4]).exp(), torch.tensor([3.0, 1.0, 4.0]) / 8)
    assert inverse_frequency([3, 0, 3]).tolist() == pytest.approx([2 / 3, 2.0, 2 / 3])


def test_focal_finding_loss_is_that_of_torchvision() -> None:
    from torchvision.ops import sigmoid_focal_loss

    logits, labels = torch.randn(6, 3), torch.randint(0, 2, (6, 3))
    theirs = sigmoid_focal_loss(logits, labels.float(), alpha=-1, gamma=2, reduction="mean")
    assert value(finding_loss(logits, labels, 2.0, 2.0)) == pytest.approx(value(theirs), rel=1e-5)


def test_asymmetric_loss_by_its_formula() -> None:
    logits, labels = torch.randn(40, 3), torch.randint(-1, 2, (40, 3))
    p = logits.sigmoid()
    q = (p - 0.05).clamp(min=0)
    each = torch.where(labels == 1, -p.log(), -(q**4) * (1 - q).log())
    expected = each[labels >= 0].mean()
    assert value(finding_loss(logits, labels, 0.0, 4.0, 0.05)) == pytest.approx(value(expected), rel=1e-5)


def test_sure_answers_have_finite_gradients() -> None:
    for gamma in (0.0, 2.0):
        logits = torch.tensor([[60.0, -60.0], [-60.0, 60.0]], requires_grad=True)
        loss = class_loss(logits, torch.eye(2), gamma=gamma)
        loss = loss + finding_loss(logits, torch.eye(2).long(), gamma, gamma)
        loss = loss + voxel_focal(logits[:, :, None, None], torch.zeros(2, 1, 1, 1, dtype=torch.int64), gamma)
        loss.backward()
        assert torch.isfinite(logits.grad).all()
