"""Every vectorised score against the task's own on resamples that are written out, ties, unknowns and gaps included."""

from typing import Any

import numpy as np
import pytest
import torch

from finetune import Classify, Detect, MultiLabel, Ordinal, Regress
from finetune.detection_metrics import FALSE_POSITIVES, IOUS, judge
from ssl_med.evidence.scores import Score, contributions, limits, recomputed, score_of

CASES = 24


def resamples(cases: int, count: int = 40) -> np.ndarray:
    """As they are, resampled, without single ones, and of a few only, so that classes and lesions are missing."""
    rng = np.random.default_rng(9)
    few = rng.multinomial(3, np.full(cases, 1 / cases), count)
    drawn = rng.multinomial(cases, np.full(cases, 1 / cases), count)
    return np.concatenate([np.ones((1, cases)), drawn, few, 1.0 - np.eye(cases)])


def chances(rng: np.random.Generator, classes: int) -> np.ndarray:
    made = rng.integers(1, 6, (CASES, classes)) / 1.0  # whole numbers: many ties
    return made / made.sum(1, keepdims=True)


def classes_known() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    label = np.r_[[-1, -1, 3], rng.integers(0, 3, CASES - 3)]
    return {"probability": chances(rng, 4), "label": label}


def findings_known() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    labels = rng.integers(-1, 2, (CASES, 5))
    labels[:, 2], labels[:, 3], labels[0] = -1, 1, -1  # never known; always there; nothing known of a case
    labels[:, 4] = np.where(np.arange(CASES) == 5, 1, np.minimum(labels[:, 4], 0))
    return {"probability": rng.integers(0, 11, (CASES, 5)) / 10, "labels": labels}


def numbers_known() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    value = rng.normal(1e4, 3.0, CASES)
    value[[2, 3, 4]], value[7] = value[2], np.nan
    return {"prediction": value + rng.normal(0, 2, CASES), "value": value} | {"prediction": np.full(CASES, 9.0) + value}


def boxes_known(classes: int = 2, grid: int = 4) -> dict[str, np.ndarray]:
    """Scores of a few levels only: ties within images, between them, and between hits and misses."""
    rng, told = np.random.default_rng(grid), 6
    corner = rng.integers(0, 12, (CASES, told, 2)).astype(float)
    found = np.concatenate(
        [
            *(corner, corner + rng.integers(3, 6, (CASES, told, 2))),
            np.sort(rng.integers(1, grid + 1, (CASES, told, 1)) / grid, 1)[:, ::-1],
            rng.integers(-1, classes, (CASES, told, 1)),
        ],
        2,
    )
    boxes = np.concatenate([corner[:, ::2] + rng.integers(0, 2, (CASES, 3, 2)), corner[:, ::2] + 4], 2)
    labels = np.where(rng.random((CASES, 3)) < 0.5, rng.integers(0, classes, (CASES, 3)), -1)
    labels[:8] = -1
    judged = judge(torch.tensor(found).float(), torch.tensor(boxes).float(), torch.tensor(labels), classes)
    return {name: value.numpy() for name, value in judged.items()}


def nothing_found() -> dict[str, np.ndarray]:
    values = boxes_known()
    return values | {"class": np.full_like(values["class"], -1), "hits": values["hits"] * 0, "froc": values["froc"] * 0}


def score_known(name: str) -> Score:
    score = score_of(name)
    assert score is not None
    return score


SENSITIVITIES = [f"sensitivity_at_{rate:g}" for rate in FALSE_POSITIVES]
OF_CLASSES = ["balanced_accuracy", "accuracy", "auroc", "average_precision", "f1", "calibration_error", "brier"]
OF_CLASSES += ["negative_log_likelihood"]
KINDS = {
    "classes": (Classify, classes_known, OF_CLASSES),
    "findings": (MultiLabel, findings_known, [*OF_CLASSES[2:], "auroc_0", "auroc_4"]),
    "grades": (Ordinal, classes_known, ["quadratic_kappa", "mean_absolute_error", "negative_log_likelihood"]),
    "numbers": (Regress, numbers_known, ["r2", "mean_absolute_error", "pearson"]),
    "boxes": (Detect, boxes_known, ["map_10", "map_50", "map_50_95", "froc", "ap_10_0", "ap_10_1", *SENSITIVITIES]),
    "untied boxes": (Detect, lambda: boxes_known(1, 10**6), ["map_10", "map_50", "map_50_95", "froc"]),
    "no boxes": (Detect, nothing_found, ["map_10", "froc"]),
}


def slow_form(kind: Any, values: dict[str, np.ndarray], name: str):
    """The task's own summary; it is a method of no weights, so that none are made here."""
    task = object.__new__(kind)
    torch.nn.Module.__init__(task)
    task.classes = 4
    return recomputed(lambda cases: task.summarise({n: torch.as_tensor(v) for n, v in cases.items()}), name)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, (*_, names) in KINDS.items() for name in names])
@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value encountered")
def test_the_fast_form_is_the_task_s_own(kind, name):
    task, make, _ = KINDS[kind]
    values, fast = make(), score_of(name)
    weights = resamples(CASES)
    assert fast is not None
    if kind in ("classes", "grades"):  # the task cannot say anything of cases that are all unknown
        weights = weights[weights[:, values["label"] >= 0].any(1)]
    own, slow = fast(values, weights), slow_form(task, values, name)(values, weights)
    assert own == pytest.approx(slow, abs=1e-9, nan_ok=True)
    assert np.isfinite(own).sum() > 40 or kind == "no boxes"
    low, high = limits(name)
    assert low <= np.nanmin(own) <= np.nanmax(own) <= high
    added = contributions(name, values)
    assert added is None or added.sum() == pytest.approx(own[0], abs=1e-9)


@pytest.mark.parametrize("kind", [Classify, MultiLabel, Ordinal, Regress, Detect])
def test_no_shipped_head_has_a_slow_main_score(kind):
    assert score_of(kind.metric) is not None


def test_the_ious_stand_where_the_scores_look_for_them():
    assert (IOUS[0], IOUS[1], IOUS[10], len(IOUS)) == (0.1, 0.5, 0.95, 11)


def test_findings_that_are_not_known_by_nan_count_nowhere_too():
    values = findings_known()
    other = {**values, "labels": np.where(values["labels"] < 0, np.nan, values["labels"])}
    weights = resamples(CASES)
    for name in ("auroc", "average_precision", "brier"):
        score = score_known(name)
        assert score(values, weights) == pytest.approx(score(other, weights), nan_ok=True)


def test_scores_that_are_not_known_have_no_fast_form_and_no_limits():
    assert score_of("dice_by_moonlight") is not None  # a task may keep such a column; without it the cases say so
    with pytest.raises(KeyError):
        score_known("dice_by_moonlight")(classes_known(), resamples(CASES))
    with pytest.raises(KeyError):
        score_known("sensitivity_at_3")(boxes_known(), resamples(CASES))
    assert score_of("own") is None
    assert limits("own") == (-np.inf, np.inf)
    assert np.isnan(score_known("r2")({"prediction": np.ones(3), "value": np.full(3, 0.1)}, np.ones((1, 3)))[0])
