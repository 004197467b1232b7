"""Scores against scikit-learn, scipy and MONAI, and the rules for what is undefined."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as theirs

from finetune import metrics as ours
from finetune.segment import size_bands
from finetune.surface import surface_scores


def numbers(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("levels", [5, 1000])
def test_curves_are_those_of_sklearn_with_and_without_ties(levels) -> None:
    rng = numbers()
    positive = rng.random(80) < 0.3
    score = rng.integers(0, levels, 80) / levels + 0.2 * positive
    assert ours.auroc(score, positive) == pytest.approx(theirs.roc_auc_score(positive, score))
    assert ours.average_precision(score, positive) == pytest.approx(theirs.average_precision_score(positive, score))


def test_curves_that_do_not_exist_are_nan() -> None:
    for positive in (np.zeros(3, bool), np.ones(3, bool)):
        assert math.isnan(ours.auroc(np.arange(3.0), positive))
    assert math.isnan(ours.average_precision(np.arange(3.0), np.zeros(3, bool)))
    assert ours.average_precision(np.arange(3.0), np.ones(3, bool)) == 1
    assert math.isnan(ours.f1(np.zeros(3, bool), np.zeros(3, bool)))


def test_scores_of_classes_are_those_of_sklearn() -> None:
    rng = numbers(1)
    probability, label = rng.dirichlet([1, 1, 1, 1], 90), rng.integers(0, 4, 90)
    found, guess = ours.classes_found(probability, label), probability.argmax(1)
    assert found["f1"] == pytest.approx(theirs.f1_score(label, guess, average="macro"))
    assert found["balanced_accuracy"] == pytest.approx(theirs.balanced_accuracy_score(label, guess))
    assert found["auroc"] == pytest.approx(theirs.roc_auc_score(label, probability, multi_class="ovr"))
    assert found["average_precision"] == pytest.approx(theirs.average_precision_score(np.eye(4)[label], probability))
    assert found["negative_log_likelihood"] == pytest.approx(theirs.log_loss(label, probability))
    brier = sum(((label == k) - probability[:, k]) ** 2 for k in range(4)).mean()
    assert found["brier"] == pytest.approx(brier)


def test_calibration_error_is_that_of_torchmetrics() -> None:
    from torchmetrics.functional.classification import multiclass_calibration_error

    rng = numbers(2)
    probability, label = rng.dirichlet([0.5] * 3, 400), rng.integers(0, 3, 400)
    expected = multiclass_calibration_error(torch.tensor(probability), torch.tensor(label), 3, n_bins=15)
    assert ours.classes_found(probability, label)["calibration_error"] == pytest.approx(float(expected), abs=1e-6)


def test_calibration_by_hand() -> None:
    confidence, right = np.array([0.9, 0.9, 0.9, 0.9, 0.6, 0.6]), np.array([1, 1, 1, 0, 1, 1], bool)
    assert ours.calibration_error(confidence, right, 10) == pytest.approx(4 / 6 * 0.15 + 2 / 6 * 0.4)
    assert ours.calibration_error(np.array([1.0, 0.0]), np.array([True, False])) == 0


def test_quadratic_kappa_is_that_of_sklearn() -> None:
    rng = numbers(3)
    grade = rng.integers(0, 5, 70)
    guess = np.clip(grade + rng.integers(-1, 2, 70), 0, 4)
    expected = theirs.cohen_kappa_score(grade, guess, weights="quadratic")
    assert ours.quadratic_kappa(guess, grade, 5) == pytest.approx(expected)
    assert math.isnan(ours.quadratic_kappa(np.ones(3, int), np.ones(3, int), 5))


def test_scores_of_numbers_are_those_of_sklearn_and_scipy() -> None:
    from scipy.stats import pearsonr

    rng = numbers(4)
    truth = rng.normal(50, 10, 40)
    guess = truth + rng.normal(0, 5, 40)
    found = ours.numbers_found(guess, truth)
    assert found["r2"] == pytest.approx(theirs.r2_score(truth, guess))
    assert found["mean_absolute_error"] == pytest.approx(theirs.mean_absolute_error(truth, guess))
    assert found["pearson"] == pytest.approx(pearsonr(guess, truth).statistic)
    assert math.isnan(ours.numbers_found(np.full(40, 50.0), truth)["pearson"])
    assert math.isnan(ours.numbers_found(guess[:1], truth[:1])["r2"])


def test_findings_leave_the_unknown_out() -> None:
    rng = numbers(5)
    probability, labels = rng.random((60, 3)), rng.integers(-1, 2, (60, 3))
    labels[:, 2] = np.where(labels[:, 2] == 0, -1, labels[:, 2])  # never known to be absent: no AUROC
    found, known = ours.findings_found(probability, labels), labels >= 0
    areas = [theirs.roc_auc_score(labels[known[:, i], i], probability[known[:, i], i]) for i in (0, 1)]
    assert found["auroc"] == pytest.approx(np.mean(areas))
    assert math.isnan(found["auroc_2"])
    flat, truth = probability[known], labels[known]
    assert found["brier"] == pytest.approx(theirs.brier_score_loss(truth, flat))
    assert found["negative_log_likelihood"] == pytest.approx(theirs.log_loss(truth, flat))
    changed = np.where(known, probability, 1 - probability)
    assert ours.findings_found(changed, labels) == pytest.approx(found, nan_ok=True)


def blobs(shape: tuple[int, ...], seed: int) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(numbers(seed).normal(size=shape), 2) > 0.05


@pytest.mark.filterwarnings("ignore:monai.metrics.utils get_mask_edges")  # MONAI about itself
@pytest.mark.parametrize(("shape", "spacing"), [((24, 30), (1.0, 0.7)), ((12, 20, 18), (3.0, 1.0, 0.8))], ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_surface_scores_are_those_of_monai(shape, spacing, seed) -> None:
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.surface_dice import compute_surface_dice

    guess, truth = blobs(shape, seed), blobs(shape, seed + 10)
    pair = [torch.from_numpy(np.stack([~x, x]))[None].float() for x in (guess, truth)]
    distance = compute_hausdorff_distance(*pair, percentile=95, spacing=list(spacing))
    dice = compute_surface_dice(*pair, class_thresholds=[1.5], spacing=list(spacing))
    found = surface_scores(guess, truth, spacing, 1.5)
    assert found == pytest.approx((float(distance), float(dice)), rel=1e-5)


def test_a_shift_has_the_distance_of_the_shift() -> None:
    truth = np.zeros((20, 20), bool)
    truth[4:9, 4:9] = True
    guess = np.roll(truth, 3, axis=1)
    # of 16 surface voxels, the 5 of the far side are 3 columns of 2 mm away
    assert surface_scores(guess, truth, (1.0, 2.0), 5.9) == pytest.approx((6.0, 11 / 16))
    assert surface_scores(truth, truth, (1.0, 2.0), 0.0) == (0.0, 1.0)


def test_empty_structures_follow_the_stated_rules() -> None:
    full, empty = np.ones((3, 4), bool), np.zeros((3, 4), bool)
    assert all(
        math.isnan(score)
        for score in (*surface_scores(full, empty, (1, 1), 1), *surface_scores(empty, empty, (1, 1), 1))
    )
    assert surface_scores(empty, full, (2.0, 2.0), 1.0) == (10.0, 0.0)


def test_scores_of_a_segmentation_are_in_mm_and_by_size() -> None:
    from finetune import Segment
    from ssl_med.backbones import UNetEncoder

    task = Segment(UNetEncoder(2, 1, (4, 8), blocks=1), 2, [8, 8], [4, 8], tolerance=2.5).eval()
    mask = torch.zeros(3, 1, 12, 12, dtype=torch.int64)
    mask[0, 0, 2:6, 2:6] = 1
    mask[1, 0, 2:4, 2:4] = 1
    guess = mask.roll(1, -1)
    guess[1] = 0
    guess[2, 0, :2, :3] = 1
    spacing = torch.tensor([[1.0, 2.0]] * 3)
    cases = task.score(guess, {"image": mask.float(), "mask": mask, "spacing": spacing})
    assert cases["size_1"].tolist() == [32, 8, 0]
    assert cases["hd95_1"][:2].tolist() == pytest.approx([2.0, math.hypot(12, 24)])
    assert cases["surface_dice_1"][:2].tolist() == [1, 0]
    assert cases["dice_1"][:2].tolist() == [0.75, 0]
    assert [name for name, values in cases.items() if math.isnan(values[2])] == ["dice_1", "hd95_1", "surface_dice_1"]
    assert cases["extra_1"][2] == 12
    assert cases["extra_1"][:2].isnan().all()
    summary = task.summarise(cases)
    assert (summary["dice"], summary["surface_dice_1"], summary["extra_1"]) == (0.375, 0.5, 12)


def test_every_score_of_a_structure_is_told_by_its_size() -> None:
    from finetune import Segment
    from ssl_med.backbones import UNetEncoder

    task, sizes = Segment(UNetEncoder(2, 1, (4, 8), blocks=1), 2, [8, 8], [4, 8]), torch.arange(6.0)
    scores = {"dice_1": sizes / 10, "hd95_1": 10 - sizes, "surface_dice_1": sizes / 5}
    summary = task.summarise({"size_1": sizes, "extra_1": torch.full((6,), torch.nan), **scores})
    assert {name: value for name, value in summary.items() if name.endswith(("small", "large"))} == pytest.approx({
        "dice_1_small": 0.05, "dice_1_large": 0.45, "hd95_1_small": 9.5, "hd95_1_large": 5.5,
        "surface_dice_1_small": 0.1, "surface_dice_1_large": 0.9,
    })  # fmt: skip


def test_size_bands_are_thirds_of_what_is_there() -> None:
    nan = math.nan
    sizes = torch.tensor([5.0, 1.0, 0.0, 3.0, 6.0, 2.0, 4.0])
    dice = torch.tensor([0.9, 0.1, nan, 0.5, 1.0, 0.3, 0.7])
    assert size_bands("dice_1", dice, sizes) == pytest.approx(
        {"dice_1_small": 0.2, "dice_1_medium": 0.6, "dice_1_large": 0.95}
    )
    assert size_bands("dice_1", dice[:6], sizes[:6]) == {}
