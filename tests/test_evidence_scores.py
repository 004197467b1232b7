"""Weighted scores against sklearn and against the tasks' own summaries on repeated cases."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score

from finetune import Classify, Segment
from ssl_med.evidence.scores import contributions, recomputed, score_of


@pytest.fixture
def classified():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 60)
    logits = rng.normal(0, 1, (60, 3)).round(1) + np.eye(3)[label]  # rounding makes ties
    label[:4] = -1
    return {"probability": np.exp(logits) / np.exp(logits).sum(1, keepdims=True), "label": label}


@pytest.fixture
def segmented():
    rng = np.random.default_rng(1)
    values = {f"dice_{k}": rng.random(30) for k in (1, 2)}
    values["dice_2"][rng.random(30) < 0.4] = np.nan
    return values


@pytest.fixture
def weights():
    return np.random.default_rng(2).multinomial(60, np.full(60, 1 / 60), 20).astype(float)


def repeated(values, row):
    places = np.repeat(np.arange(len(row)), row.astype(int))
    return {name: value[places] for name, value in values.items()}


def test_class_scores_agree_with_sklearn_on_repeated_cases(classified, weights):
    found = {name: score_of(name)(classified, weights) for name in ("accuracy", "balanced_accuracy", "auroc")}
    for place, row in enumerate(weights):
        cases = repeated(classified, row)
        known = cases["label"] >= 0
        label, probability = cases["label"][known], cases["probability"][known]
        areas = [roc_auc_score(label == k, probability[:, k]) for k in range(3)]
        assert found["accuracy"][place] == pytest.approx(accuracy_score(label, probability.argmax(1)))
        assert found["balanced_accuracy"][place] == pytest.approx(balanced_accuracy_score(label, probability.argmax(1)))
        assert found["auroc"][place] == pytest.approx(np.mean(areas))


def summaries_of(task):
    return lambda values: task.summarise({name: torch.as_tensor(value) for name, value in values.items()})


def test_class_scores_are_those_of_the_task(tiny_vit, classified, weights):
    summarise = summaries_of(Classify(tiny_vit(), 3, [16, 16]))
    for name in ("accuracy", "balanced_accuracy", "auroc"):
        own, slow = score_of(name)(classified, weights), recomputed(summarise, name)(classified, weights)
        assert own == pytest.approx(slow, abs=1e-5), name


def test_dice_is_that_of_the_task(tiny_vit, segmented, weights):
    summarise = summaries_of(Segment(tiny_vit(), 3, [16, 16], widths=[4, 4, 4]))
    some = weights[:, :30]
    for name in ("dice", "dice_1", "dice_2"):
        own, slow = score_of(name)(segmented, some), recomputed(summarise, name)(segmented, some)
        assert own == pytest.approx(slow, abs=1e-5), name


def test_absent_classes_and_empty_resamples(classified):
    only = (classified["label"] == 1).astype(float)[None]
    right = (classified["probability"].argmax(1) == 1)[classified["label"] == 1].mean()
    assert score_of("balanced_accuracy")(classified, only)[0] == pytest.approx(right)
    assert np.isnan(score_of("auroc")(classified, only)[0])
    assert np.isnan(score_of("accuracy")(classified, np.zeros((1, 60)))[0])
    assert score_of("my_own") is None


@pytest.mark.parametrize("name", ["accuracy", "balanced_accuracy", "dice", "dice_2"])
def test_contributions_sum_to_the_score(classified, segmented, name):
    values = segmented if name.startswith("dice") else classified
    count = len(next(iter(values.values())))
    assert contributions(name, values).sum() == pytest.approx(score_of(name)(values, np.ones((1, count)))[0])
    assert contributions("auroc", classified) is None
