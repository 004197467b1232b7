"""Heads, the tasks on them, and what they make of targets."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from finetune import Classify, Mixing, MultiLabel, Ordinal, Regress
from finetune.heads import AttentiveHead, make_head
from finetune.mixing import beta_quantiles
from finetune.ordinal import median_grade
from ssl_med.backbones import UNetEncoder
from ssl_med.errors import UserError
from ssl_med.tasks import Plan
from ssl_med.types import Features


def unet(axes: int = 2) -> UNetEncoder:
    torch.manual_seed(0)
    return UNetEncoder(axes, 1, (4, 8), blocks=1)


def awake(task):
    """With a head that answers something."""
    torch.manual_seed(1)
    torch.nn.init.normal_(task.readout.last.weight)
    return task.eval()


@pytest.mark.parametrize("kind", ["linear", "attentive", "mlp"])
@pytest.mark.parametrize("axes", [2, 3])
def test_heads_answer_zero_before_and_learn(kind, axes, make_batch) -> None:
    batch = make_batch((8,) * axes)
    task = Classify(unet(axes), 3, [8] * axes, head=kind)
    assert (task.logits(batch["image"]) == 0).all()
    for _ in range(2):
        task(batch, 0.0)["loss"].backward()
        with torch.no_grad():
            for p in task.parameters():
                p -= 0.1 * p.grad
    assert task.logits(batch["image"]).abs().min() > 0


def test_pooling_of_a_vit_is_class_token_mean_or_both(tiny_vit) -> None:
    backbone, image = tiny_vit(2, registers=1).eval(), torch.randn(2, 1, 8, 8)
    features = backbone(image)
    encoded = backbone.encode(backbone.tokenize(image))
    torch.testing.assert_close(features.token, encoded[:, 0])
    torch.testing.assert_close(features.pooled, encoded[:, 2:].mean(1))
    for pooling, vector in (
        ("class", features.token),
        ("mean", features.pooled),
        ("both", torch.cat([features.token, features.pooled], 1)),
    ):
        head = make_head("linear", backbone, 3, pooling)
        torch.nn.init.normal_(head.last.weight)
        torch.testing.assert_close(head(features), head.last(head.norm(vector)))


def test_what_cannot_be_pooled_is_refused(tiny_vit) -> None:
    with pytest.raises(UserError, match="UNetEncoder has none"):
        make_head("linear", unet(), 2, "class")
    with pytest.raises(UserError, match="class token"):
        make_head("mlp", tiny_vit(2, class_token=False), 2, "both")
    with pytest.raises(UserError, match="pools by itself"):
        make_head("attentive", tiny_vit(2), 2, "class")


def test_attentive_head_is_torchs_attention_with_one_query() -> None:
    torch.manual_seed(0)
    head, cells = AttentiveHead(unet(), 3, heads=2), torch.randn(2, 8, 3, 4)
    torch.nn.init.normal_(head.last.weight)
    torch.nn.init.normal_(head.query)
    theirs = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([torch.eye(8), head.key_value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([torch.zeros(8), head.key_value.bias]))
        theirs.out_proj.weight.copy_(torch.eye(8))
        theirs.out_proj.bias.zero_()
    tokens = head.cells(cells.flatten(2).transpose(1, 2))
    found = theirs(head.query.expand(2, 1, 8), tokens, tokens)[0][:, 0]
    answer = head(Features(torch.zeros(2, 8), [cells]))
    torch.testing.assert_close(answer, head.last(head.norm(found)))


def test_classes_are_counted_in_the_labelled_training_images() -> None:
    plan = Plan(6, 2, 10, targets=np.array([0, 2, 2, -1, 2, 0]))
    settings = {"classes": 4, "balance": "logit_adjustment"}
    assert Classify.choose(settings, plan)["class_counts"].value == [2, 0, 3, 0]
    assert Classify.choose({"classes": 4}, plan) == {}
    with pytest.raises(UserError, match="2 counts for 3 classes"):
        Classify(unet(), 3, [8, 8], class_counts=[1, 2])


def test_logit_adjustment_moves_the_logits_in_training_only(make_batch) -> None:
    batch = make_batch((8, 8))
    task = awake(Classify(unet(), 2, [8, 8], smoothing=0.0, balance="logit_adjustment", class_counts=[3, 1]))
    logits = task.logits(batch["image"])
    expected = cross_entropy(logits + torch.tensor([0.75, 0.25]).log(), batch["label"])
    torch.testing.assert_close(task(batch, 0.0)["loss"], expected)
    torch.testing.assert_close(task.predict(batch), logits.softmax(1))


def test_class_weights_are_those_of_sklearn(make_batch) -> None:
    from sklearn.utils.class_weight import compute_class_weight

    batch, labels = make_batch((8, 8)), np.array([0] * 6 + [1] * 2)
    task = awake(Classify(unet(), 2, [8, 8], smoothing=0.1, balance="class_weights", class_counts=[6, 2]))
    weights = torch.tensor(compute_class_weight("balanced", classes=np.arange(2), y=labels), dtype=torch.float32)
    torch.testing.assert_close(task.weights, weights)
    expected = cross_entropy(task.logits(batch["image"]), batch["label"], weights, label_smoothing=0.1)
    torch.testing.assert_close(task(batch, 0.0)["loss"], expected)


def test_unknown_findings_count_nowhere(make_batch) -> None:
    batch = make_batch((8, 8))
    batch["labels"] = torch.tensor([[1, -1], [0, 1], [-1, -1], [1, 0]])
    task = awake(MultiLabel(unet(), 2, [8, 8], balance=True, positive_weight=[2.0, 0.5]))
    logits, known = task.logits(batch["image"]), batch["labels"] >= 0
    weight = torch.tensor([2.0, 0.5])
    each = binary_cross_entropy_with_logits(logits, batch["labels"].float(), pos_weight=weight, reduction="none")
    torch.testing.assert_close(task(batch, 0.0)["loss"], each[known].mean())
    torch.testing.assert_close(task.predict(batch), logits.sigmoid())
    batch["labels"] = torch.full((4, 2), -1)
    loss = task(batch, 0.0)["loss"]
    loss.backward()
    assert loss == 0


def test_weights_of_findings_are_the_odds_of_their_absence() -> None:
    targets = np.array([[1, 0, -1], [0, 0, -1], [0, 1, 1], [0, -1, 1]])
    chosen = MultiLabel.choose({"balance": True}, Plan(4, 2, 10, targets=targets))
    assert chosen["positive_weight"].value == [3.0, 2.0, 0.01]
    assert MultiLabel.choose({}, Plan(4, 2, 10, targets=targets)) == {}


def test_grades_are_a_cumulative_model_with_ordered_thresholds(make_batch) -> None:
    batch = make_batch((8, 8))
    batch["label"] = torch.tensor([0, 3, -1, 2])
    task = awake(Ordinal(unet(), 4, [8, 8]))
    torch.nn.init.normal_(task.gaps)
    logits = task.logits(batch["image"])
    assert (logits.diff(dim=1) < 0).all()
    above = torch.tensor([[0, 0, 0], [1, 1, 1], [1, 1, 0]]).float()  # of the labelled cases
    each = binary_cross_entropy_with_logits(logits[[0, 1, 3]], above, reduction="none")
    torch.testing.assert_close(task(batch, 0.0)["loss"], each.sum(1).mean())
    probability = task.predict(batch)
    assert (probability > 0).all()
    torch.testing.assert_close(probability.sum(1), torch.ones(4))
    torch.testing.assert_close(probability[:, 0], 1 - logits[:, 0].sigmoid())
    cases = task.score(probability, batch)
    assert torch.equal(median_grade(cases["probability"]), (logits.sigmoid() > 0.5).sum(1))


def test_grade_is_the_median() -> None:
    task = Ordinal(unet(), 3, [8, 8])
    probability = torch.tensor([[0.4, 0.3, 0.3], [0.6, 0.2, 0.2], [0.1, 0.3, 0.6]])  # a mode would say 0, 0, 2
    cases = task.score(probability, {"image": torch.zeros(3, 1, 8, 8), "label": torch.tensor([1, 0, -1])})
    assert median_grade(cases["probability"]).tolist() == [1, 0, 2]
    summary = task.summarise(cases)
    assert summary["mean_absolute_error"] == 0
    assert summary["quadratic_kappa"] == 1
    votes = {"probability": torch.tensor([[0.4, 0.6, 0.0], [0.2, 0.2, 0.6]]).double(), "label": torch.tensor([0, 2])}
    assert task.summarise(votes)["mean_absolute_error"] == 0.5  # neighbours vote without the task, and tell no grade
    with pytest.raises(UserError, match="3 or more"):
        Ordinal(unet(), 2, [8, 8])


@pytest.mark.parametrize("loss", ["mse", "huber"])
def test_numbers_are_standardised_by_the_training_images(make_batch, loss) -> None:
    targets = np.array([10.0, 14.0, math.nan, 12.0, 20.0])
    chosen = {name: choice.value for name, choice in Regress.choose({}, Plan(5, 2, 9, targets=targets)).items()}
    assert chosen == pytest.approx({"mean": 14.0, "spread": math.sqrt(14)})
    batch = make_batch((8, 8))
    batch["value"] = torch.tensor([10.0, math.nan, 30.0, 14.0])
    task = Regress(unet(), [8, 8], loss=loss, **chosen)
    assert torch.allclose(task.predict(batch), torch.full((4, 1), 14.0))
    task = awake(task)
    guess, wanted = task.logits(batch["image"])[[0, 2, 3], 0], (batch["value"][[0, 2, 3]] - 14) / math.sqrt(14)
    function = torch.nn.functional.mse_loss if loss == "mse" else torch.nn.functional.huber_loss
    found = task(batch, 0.0)["loss"]
    torch.testing.assert_close(found, function(guess, wanted))
    found.backward()
    assert all(torch.isfinite(p.grad).all() for p in task.parameters())
    with torch.no_grad():
        cases = task.score(task.predict(batch), batch)
    assert task.summarise(cases)["mean_absolute_error"] == pytest.approx(
        (guess - wanted).detach().abs().mean().item() * math.sqrt(14), rel=1e-4
    )
    with pytest.raises(UserError, match="spread must be above 0"):
        Regress(unet(), [8, 8], spread=0.0)


def test_mixing_repeats_and_leaves_the_unlabelled_alone(make_batch) -> None:
    batch = make_batch((8, 8), count=8)
    targets = torch.eye(3)[torch.arange(8) % 3]
    targets[[2, 5]] = 0
    mixing = Mixing()
    image, mixed = mixing(batch, targets)
    again = mixing(batch, targets)
    assert torch.equal(image, again[0])
    assert torch.equal(mixed, again[1])
    untouched = [1, 2, 4, 5]  # without a label, or before such a neighbour
    assert torch.equal(image[untouched], batch["image"][untouched])
    assert torch.equal(mixed[untouched], targets[untouched])
    torch.testing.assert_close(mixed.sum(1), targets.sum(1))
    touched = [0, 3, 6, 7]
    assert all(not torch.equal(image[i], batch["image"][i]) for i in touched)
    other = {**batch, "key": batch["key"] + 1}
    assert not torch.equal(mixing(other, targets)[0], image)


@pytest.mark.parametrize("space", [(6, 9), (4, 5, 6)], ids=str)
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_targets_are_mixed_as_the_images_are(kind, space) -> None:
    """Images of one value each: the mean of the mixed image tells the true shares."""
    from ssl_med.ops.random import sample_keys

    count = 64
    values = torch.arange(count, dtype=torch.float32)
    batch = {"image": values.view(-1, 1, *[1] * len(space)).expand(-1, 2, *space), "key": sample_keys(3, values.long())}
    other = {"mixup": {"cutmix": 0.0}, "cutmix": {"mixup": 0.0}}[kind]
    image, mixed = Mixing(**other)(batch, torch.eye(count))
    torch.testing.assert_close(image.flatten(1).mean(1), mixed @ values, rtol=1e-4, atol=1e-4)
    own = mixed.diagonal()
    assert 0.3 < own.mean() < (0.9 if kind == "cutmix" else 0.7)  # boxes are rounded down and cut at the border
    inside = {len(one.unique()) for one in image}
    assert inside == {1} if kind == "mixup" else inside <= {1, 2}


def test_shares_are_beta_distributed() -> None:
    from scipy.stats import beta, kstest

    mixing = Mixing(mixup=0.4, cutmix=2.0)
    uniform = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    for cut, a in ((False, 0.4), (True, 2.0)):
        shares = mixing._share(uniform, torch.full((4000,), cut)).numpy()
        assert kstest(shares, beta(a, a).cdf).pvalue > 0.01
    assert torch.allclose(beta_quantiles(1.0), torch.linspace(0, 1, 1025), atol=1e-6)
    with pytest.raises(UserError, match="one must be above 0"):
        Mixing(0.0, 0.0)


def test_mixing_reaches_the_loss_of_a_classifier(make_batch) -> None:
    batch = make_batch((8, 8))
    task = awake(Classify(unet(), 2, [8, 8], smoothing=0.0, mixing=Mixing()))
    image, targets = task.mixing(task.views(batch)[0], torch.eye(2)[batch["label"]])
    torch.testing.assert_close(task(batch, 0.0)["loss"], cross_entropy(task.logits(image), targets))
