"""Scores of found boxes: cases worked out by hand, plain loops, and MONAI's COCO metric and FROC as oracles."""

import math

import numpy as np
import pytest
import torch

from finetune.box_geometry import decode, generalised_iou, iou
from finetune.detection_metrics import FALSE_POSITIVES, IOUS, average_precision, froc, judge, summary, true_positives


def random_boxes(rng: np.random.Generator, axes: int, *shape: int) -> torch.Tensor:
    low = rng.uniform(0, 20, (*shape, axes))
    return torch.tensor(np.concatenate([low, low + rng.uniform(4, 12, (*shape, axes))], -1), dtype=torch.float32)


def random_cases(axes: int, seed: int = 0, images: int = 12, told: int = 9, classes: int = 2):
    """Found boxes, half of them near boxes of the reference, and the reference with lines that are no boxes."""
    rng = np.random.default_rng(seed)
    boxes, labels = random_boxes(rng, axes, images, 4), torch.tensor(rng.integers(-1, classes, (images, 4)))
    boxes[labels < 0] = 0
    found = random_boxes(rng, axes, images, told)
    moved = boxes[:, [0, 1, 2, 3, 0]] + torch.tensor(rng.normal(0, 1.0, (images, 5, 2 * axes)), dtype=torch.float32)
    real = labels[:, [0, 1, 2, 3, 0]] >= 0
    found[:, :5] = torch.where(real[..., None], moved, found[:, :5])
    found[..., axes:] = torch.maximum(found[..., axes:], found[..., :axes] + 1)
    score = torch.tensor(np.sort(rng.uniform(0, 1, (images, told)))[:, ::-1].copy(), dtype=torch.float32)
    kind = torch.tensor(rng.integers(0, classes, (images, told)))
    kind[:, :4] = torch.where(labels >= 0, labels, kind[:, :4])
    kind[rng.uniform(size=(images, told)) < 0.1] = -1
    order = torch.tensor(rng.permuted(np.tile(np.arange(told), (images, 1)), axis=1))
    found, kind = found.gather(1, order[..., None].expand_as(found)), kind.gather(1, order)
    return torch.cat([found, score[..., None], kind[..., None].float()], 2), boxes, labels


@pytest.mark.parametrize("axes", [2, 3])
def test_overlaps_are_those_of_monai(axes):
    from monai.data.box_utils import box_iou, box_pair_giou

    rng = np.random.default_rng(0)
    first, second = random_boxes(rng, axes, 30), random_boxes(rng, axes, 30)
    assert torch.allclose(iou(first, second), box_iou(first, second), atol=1e-6)
    assert torch.allclose(generalised_iou(first, second), box_pair_giou(first, second), atol=1e-5)
    stacked = iou(torch.stack([first, second]), first)
    assert torch.equal(stacked[1], iou(second, first))
    assert not iou(torch.zeros(1, 2 * axes), first).any()


@pytest.mark.parametrize("axes", [2, 3])
def test_moves_decode_as_in_monai(axes):
    from monai.apps.detection.utils.box_coder import BoxCoder

    rng = np.random.default_rng(1)
    anchors, boxes = random_boxes(rng, axes, 20), random_boxes(rng, axes, 20)
    theirs = BoxCoder((1.0,) * 2 * axes).encode_single(boxes, anchors)
    assert torch.allclose(decode(theirs, anchors), boxes, atol=1e-4)


@pytest.mark.parametrize("axes", [2, 3])
def test_map_is_that_of_monai(axes):
    from monai.apps.detection.metrics.coco import COCOMetric
    from monai.apps.detection.metrics.matching import matching_batch
    from monai.data.box_utils import box_iou

    found, boxes, labels = next(  # recalls that never meet one of the 101 points: theirs are rounded to float32
        cases
        for cases in (random_cases(axes, seed) for seed in range(100))
        if all(math.gcd(int((cases[2] == value).sum()), 10) == 1 for value in (0, 1))
    )
    metric = COCOMetric(["a", "b"], (0.1, 0.5), (0.5, 0.95, 0.05), (100,), verbose=False)
    told, real = found[..., -1] >= 0, labels >= 0
    matches = matching_batch(
        box_iou,
        metric.iou_thresholds,
        [row[keep, :-2].numpy() for row, keep in zip(found, told, strict=True)],
        [row[keep, -1].numpy().astype(int) for row, keep in zip(found, told, strict=True)],
        [row[keep, -2].numpy() for row, keep in zip(found, told, strict=True)],
        [row[keep].numpy() for row, keep in zip(boxes, real, strict=True)],
        [row[keep].numpy() for row, keep in zip(labels, real, strict=True)],
    )
    theirs = metric(matches)[0]
    cases = {name: value.numpy() for name, value in judge(found, boxes, labels, 2).items()}
    ours = summary(cases)
    assert 0.2 < ours["map_10"] < 0.95
    assert ours["map_10"] == pytest.approx(theirs["AP_IoU_0.10_MaxDet_100"], abs=1e-6)
    assert ours["map_50"] == pytest.approx(theirs["AP_IoU_0.50_MaxDet_100"], abs=1e-6)
    assert ours["map_50_95"] == pytest.approx(theirs["mAP_IoU_0.50_0.95_0.05_MaxDet_100"], abs=1e-6)
    assert ours["ap_10_0"] == pytest.approx(theirs["a_AP_IoU_0.10_MaxDet_100"], abs=1e-6)


def test_matching_by_hand():
    shared = torch.tensor([[[0.6, 0.7], [0.0, 0.9], [0.55, 0.0], [0.3, 0.3]]])
    hits = true_positives(shared, (0.1, 0.5, 0.65))
    # the best takes box 1, though the second overlaps it more; the third takes box 0
    assert hits[0].T.tolist() == [[True, False, True, False], [True, False, True, False], [True, False, False, False]]
    assert not true_positives(torch.zeros(2, 3, 0), IOUS).any()


def test_average_precision_by_hand():
    score, hit = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, False])
    # recalls up to 1/4: precision 1; up to 1/2: 2/3; beyond: 0; 26 and 25 of 101 points
    assert average_precision(score, hit, 4) == pytest.approx((26 + 25 * 2 / 3) / 101)
    assert average_precision(score[::-1], hit[::-1], 4) == average_precision(score, hit, 4)
    assert average_precision(np.zeros(0), np.zeros(0, bool), 3) == 0
    assert np.isnan(average_precision(score, hit, 0))


def plain_froc(found: torch.Tensor, boxes: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """LUNA16's rule in plain loops: one threshold after the other, one lesion after the other."""
    axes = boxes.shape[2] // 2
    hits, wrong = [], []  # score of the best hit of each lesion; scores of false positives
    for row, reference, names in zip(found, boxes, labels, strict=True):
        lesions = [box for box, name in zip(reference, names, strict=True) if name >= 0]
        best = [None] * len(lesions)
        for line in row:
            if line[-1] < 0:
                continue
            middle, inside = (line[:axes] + line[axes : 2 * axes]) / 2, []
            for number, box in enumerate(lesions):
                half = (box[axes:] - box[:axes]) / 2
                off = float((((middle - box[:axes] - half) / half) ** 2).sum())
                if off < 1:
                    inside.append((off, number))
            free = [number for _, number in sorted(inside) if best[number] is None]
            if free:
                best[free[0]] = float(line[-2])
            elif not inside:
                wrong.append(float(line[-2]))
        hits += best
    points = [(0.0, 0.0)]
    for threshold in sorted({s for s in [*hits, *wrong] if s is not None}, reverse=True):
        right = sum(score is not None and score >= threshold for score in hits)
        points.append((sum(score >= threshold for score in wrong) / len(found), right / len(hits)))
    return [_between(points, rate) for rate in FALSE_POSITIVES]


def _between(points: list[tuple[float, float]], rate: float) -> float:
    left = [point for point in points if point[0] <= rate][-1]
    right = next((point for point in points if point[0] > rate), None)
    if right is None:
        return left[1]
    return left[1] + (right[1] - left[1]) * (rate - left[0]) / (right[0] - left[0])


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_froc_is_that_of_plain_loops(axes, seed):
    found, boxes, labels = random_cases(axes, seed)
    scores = summary({name: value.numpy() for name, value in judge(found, boxes, labels, 2).items()})
    points = plain_froc(found, boxes, labels)
    assert [scores[f"sensitivity_at_{rate:g}"] for rate in FALSE_POSITIVES] == pytest.approx(points, abs=1e-6)
    assert scores["froc"] == pytest.approx(np.mean(points), abs=1e-6)
    assert points[0] < points[-1]


def test_the_curve_is_that_of_monai():
    from monai.metrics.froc import compute_froc_curve_data, compute_froc_score

    rng = np.random.default_rng(0)
    score, verdict = rng.uniform(0, 1, 80), rng.choice([1, 0, 0], 80)
    wrong = np.append(score[verdict == 0], -1.0)  # theirs leaves the lowest threshold out
    curve = compute_froc_curve_data(wrong, score[verdict == 1], 40, 10)
    theirs = compute_froc_score(*curve, eval_thresholds=FALSE_POSITIVES)
    assert froc(score, verdict, 10, 40).mean() == pytest.approx(theirs, abs=1e-9)


def test_a_second_hit_is_neither_right_nor_wrong():
    boxes, labels = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 0, 0]]]), torch.tensor([[0, -1]])
    lines = [[1, 1, 9, 9, 0.9, 0], [2, 2, 8, 8, 0.8, 0], [20, 20, 30, 30, 0.7, 0], [0, 0, 0, 0, 0, -1]]
    cases = judge(torch.tensor([lines]), boxes, labels, 1)
    assert cases["froc"].tolist() == [[1, -1, 0, 0]]
    assert cases["hits"][0, :, 0].tolist() == [1, 0, 0, 0]
    corner = torch.tensor([[[7.0, 7, 12, 12, 0.9, 0]]])  # centre in the corner of the box, outside the ellipsoid
    assert judge(corner, boxes, labels, 1)["froc"].tolist() == [[0]]
    told = {name: value.numpy() for name, value in cases.items()}
    assert summary(told)["sensitivity_at_0.125"] == 1
    assert summary(told)["map_10"] == 1


def test_perfect_nothing_and_no_reference():
    _, boxes, labels = random_cases(3)
    labels = labels.clamp(max=0)
    perfect = torch.cat([boxes, torch.ones(*labels.shape, 1), labels[..., None].float()], 2)
    scores = summary({n: v.numpy() for n, v in judge(perfect, boxes, labels, 1).items()})
    assert scores["map_10"] == scores["map_50_95"] == 1
    silent = torch.cat([torch.zeros_like(perfect[..., :-1]), torch.full((*labels.shape, 1), -1.0)], 2)
    scores = summary({n: v.numpy() for n, v in judge(silent, boxes, labels, 1).items()})
    assert scores["map_10"] == scores["froc"] == 0
    none = torch.full_like(labels, -1)
    scores = summary({n: v.numpy() for n, v in judge(perfect, boxes, none, 1).items()})
    assert np.isnan(scores["map_10"])
    assert np.isnan(scores["froc"])
    empty = judge(perfect, boxes[:, :0], labels[:, :0], 1)
    assert not empty["hits"].any()
    assert not empty["froc"].any()
