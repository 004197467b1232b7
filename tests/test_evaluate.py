"""Scores: votes beside an explicit loop, probes on features whose answer is known, tiles that leave nothing out."""

import math

import numpy as np
import pytest
import torch
from stores import pictures, store_of

from ssl_med.data.module import StoreData
from ssl_med.errors import UserError
from ssl_med.evaluate import cell_labels, embed_images, evaluate, knn_vote, probe, probe_scores, random_twin, tiles
from ssl_med.tasks import SupervisedTask


def test_the_vote_is_that_of_an_explicit_loop():
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(60, 5)), rng.normal(size=(25, 5))
    labels = rng.integers(0, 4, 60)
    for neighbours, temperature in ((20, 0.07), (3, 0.5), (100, 1.0)):
        expected = []
        for row in test:
            cosines = [float(row @ other / math.dist(row, [0] * 5) / math.dist(other, [0] * 5)) for other in train]
            near = sorted(range(60), key=lambda i: -cosines[i])[:neighbours]
            votes = [sum(math.exp(cosines[i] / temperature) for i in near if labels[i] == c) for c in range(4)]
            expected.append(votes.index(max(votes)))
        assert knn_vote(train, labels, test, neighbours, temperature).tolist() == expected


def test_the_vote_of_many_rows_is_made_in_parts():
    rng = np.random.default_rng(0)
    train, labels, test = rng.normal(size=(40, 3)), rng.integers(0, 2, 40), rng.normal(size=(2500, 3))
    whole = knn_vote(train, labels, test)
    assert np.array_equal(whole[2000:], knn_vote(train, labels, test[2000:]))


def test_features_that_separate_score_one_and_noise_does_not():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    clear = np.eye(3)[labels] * 5 + rng.normal(size=(300, 3))[:, :3] * 0.1
    assert probe_scores(clear[:200], labels[:200], clear[200:], labels[200:]) == {"knn": 1.0, "linear": 1.0}
    noise = rng.normal(size=(300, 3))
    scores = probe_scores(noise[:200], labels[:200], noise[200:], labels[200:])
    assert max(scores.values()) < 0.6


def test_one_class_cannot_be_probed():
    with pytest.raises(UserError, match="two classes are needed"):
        probe_scores(np.ones((5, 2)), np.zeros(5, int), np.ones((2, 2)), np.zeros(2, int))


@pytest.mark.parametrize(("space", "window"), [((7,), (7,)), ((10, 9), (4, 9)), ((17, 8, 33), (16, 8, 16))])
def test_tiles_cover_everything_evenly(space, window):
    seen = np.zeros(space, int)
    found = tiles(space, window)
    for tile in found:
        assert seen[tile].shape == window
        seen[tile] += 1
    assert seen.min() >= 1
    assert len(found) == math.prod(-(-s // w) for s, w in zip(space, window, strict=True))


def test_cells_take_their_commonest_label():
    mask = torch.full((1, 1, 4, 4), -1)
    mask[..., :2, :2] = torch.tensor([[0, 2], [2, 1]])
    mask[..., :2, 2:] = torch.tensor([[1, -1], [-1, -1]])
    mask[..., 2:, :2] = 0
    assert cell_labels(mask, (2, 2)).tolist() == [2, 1, 0, -1]


def test_the_random_twin(tiny_vit):
    backbone = tiny_vit(2)
    with torch.no_grad():
        backbone.patch_embed.proj.weight += 1  # trained
    state = torch.random.get_rng_state()
    first, again, other = random_twin(backbone), random_twin(backbone), random_twin(backbone, 1)
    assert torch.equal(torch.random.get_rng_state(), state)
    shapes = [{name: v.shape for name, v in module.state_dict().items()} for module in (backbone, first)]
    assert shapes[0] == shapes[1]
    weights = [module.patch_embed.proj.weight for module in (first, again, other, backbone)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[3])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    store_of(pictures(folder / "in", 30), folder / "store")
    return StoreData(str(folder / "store"), 16, 4, targets="label")


class Brightness(SupervisedTask):
    """Knows that a picture of class 0 is dark on its left."""

    metric = "accuracy"

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, batch, progress):
        return {"loss": self.weight.sum()}

    def predict(self, batch):
        assert not self.training
        image, valid = batch["image"], batch["valid"]
        left, right = (image[..., side] for side in (slice(0, 20), slice(20, 40)))
        assert valid[..., :40, :40].all()
        return (left.flatten(1).mean(1) > right.flatten(1).mean(1)).long()[:, None]

    def score(self, prediction, batch):
        return {"hit": prediction[:, 0] == batch["label"]}

    def summarise(self, cases):
        return {"accuracy": float(cases["hit"].float().mean())}


def test_evaluate_goes_through_all_cases_in_order(data):
    task = Brightness().train()
    scores, cases = evaluate(task, data.whole("train", (8, 8)))
    assert scores == {"accuracy": 1.0}
    assert cases["id"] == [row.id for row in data.rows("train")]
    assert cases["hit"].shape == (len(cases["id"]),)
    assert task.training


def test_features_of_images_are_the_mean_over_windows(data, tiny_vit):
    backbone = tiny_vit(2).eval()
    features, ids, labels = embed_images(backbone, data.whole("val", (8, 8)), [16, 16])
    rows = data.rows("val")
    assert ids == [row.id for row in rows]
    assert labels.tolist() == [row.label for row in rows]
    image = torch.from_numpy(rows[1].scale("auto")(data.store.read(rows[1])))[None]
    with torch.no_grad():
        parts = [backbone(image[..., y : y + 16, x : x + 16]).pooled for y in (0, 12, 24) for x in (0, 12, 24)]
    assert np.allclose(features[1], torch.stack(parts).mean(0)[0], atol=1e-5)


def test_a_probe_of_raw_pixels_knows_the_ramp(data, tiny_vit):
    backbone = tiny_vit(2).train()
    scores = probe(backbone, data, "test")
    assert scores["linear"] > 0.8
    assert backbone.training
