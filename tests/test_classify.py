import math

import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score

from finetune import Classify
from ssl_med.backbones import UNetEncoder


def classify(axes: int = 2, classes: int = 3, window: int = 8, **changes) -> Classify:
    torch.manual_seed(0)
    task = Classify(UNetEncoder(axes, 1, (4, 8), blocks=1), classes, [window] * axes, **changes).eval()
    torch.nn.init.normal_(task.readout.last.weight)
    return task


def example(classes: int, count: int = 60) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    label = (torch.rand(count, generator=generator) ** 2 * classes).long()  # classes of unequal size
    logits = torch.randn(count, classes, generator=generator) + torch.nn.functional.one_hot(label, classes)
    return {"probability": logits.softmax(1), "label": label}


@pytest.mark.parametrize("classes", [2, 4])
def test_summary_is_that_of_sklearn(classes: int) -> None:
    cases = example(classes)
    probability, label = cases["probability"].double().numpy(), cases["label"].numpy()
    guess = probability.argmax(1)
    found = classify(classes=classes).summarise(cases)
    assert found["accuracy"] == pytest.approx(accuracy_score(label, guess), abs=1e-6)
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(label, guess), abs=1e-6)
    score = probability[:, 1] if classes == 2 else probability
    area = roc_auc_score(label, score, multi_class="ovr", average="macro")
    assert found["auroc"] == pytest.approx(area, abs=1e-5)


def test_unlabelled_cases_are_left_out() -> None:
    cases = example(3)
    extra = {
        "probability": torch.cat([cases["probability"], torch.eye(3)]),
        "label": torch.cat([cases["label"], torch.full((3,), -1)]),
    }
    assert classify().summarise(extra) == classify().summarise(cases)


def test_means_are_over_the_classes_that_occur() -> None:
    """As in sklearn: a class without a case in the test set has no recall and no curve."""
    cases = example(3)
    keep = cases["label"] < 2
    cases = {name: values[keep] for name, values in cases.items()}
    guess = cases["probability"].argmax(1)
    assert 2 in guess  # a mistake towards the class that does not occur
    recall = [float((guess[cases["label"] == value] == value).float().mean()) for value in (0, 1)]
    areas = [roc_auc_score(cases["label"] == value, cases["probability"][:, value]) for value in (0, 1)]
    summary = classify().summarise(cases)
    assert summary["balanced_accuracy"] == pytest.approx(sum(recall) / 2, abs=1e-6)
    assert summary["auroc"] == pytest.approx(sum(areas) / 2, abs=1e-6)


def test_one_class_alone_has_no_curve() -> None:
    cases = {"probability": torch.tensor([[0.9, 0.1], [0.2, 0.8]]), "label": torch.tensor([0, 0])}
    summary = classify(classes=2).summarise(cases)
    assert summary["accuracy"] == summary["balanced_accuracy"] == 0.5
    assert math.isnan(summary["auroc"])


def test_prediction_is_the_mean_over_windows_that_cover_the_image() -> None:
    task = classify()
    image = torch.randn(2, 1, 8, 20, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        parts = [task.logits(image[..., start : start + 8]).softmax(1) for start in (0, 6, 12)]
        found = task.predict({"image": image})
    assert torch.allclose(found, torch.stack(parts).mean(0), atol=1e-6)
    assert torch.allclose(found.sum(1), torch.ones(2))


def test_untrained_head_gives_every_class_the_same() -> None:
    torch.manual_seed(0)
    task = Classify(UNetEncoder(3, 1, (4, 8), blocks=1), 4, [8, 8, 8]).eval()
    with torch.no_grad():
        assert torch.equal(task.predict({"image": torch.randn(2, 1, 8, 8, 8)}), torch.full((2, 4), 0.25))


def test_smoothing_and_missing_labels_reach_the_loss(make_batch) -> None:
    batch = make_batch((8, 8))
    batch["label"] = torch.tensor([0, -1, 2, -1])
    for smoothing in (0.0, 0.3):
        task = classify(smoothing=smoothing)
        known = batch["label"] >= 0
        expected = torch.nn.functional.cross_entropy(
            task.logits(batch["image"])[known], batch["label"][known], label_smoothing=smoothing
        )
        assert task(batch, 0.0)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_frozen_backbone_keeps_its_batch_statistics():
    from ssl_med.backbones import TimmBackbone

    backbone = TimmBackbone("resnet18", in_channels=1)
    task = Classify(backbone, 2, [32, 32], frozen=True).train()
    before = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    task({"image": torch.randn(4, 1, 32, 32), "label": torch.tensor([0, 1, 0, 1])}, 0.0)
    assert task.readout.training
    assert not backbone.training
    assert all(torch.equal(buffer, before[name]) for name, buffer in backbone.named_buffers())
