import pytest
import torch
from monai.losses import DiceLoss
from torch.nn.functional import cross_entropy

from finetune.losses import dice_ce, labelled_ce


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
