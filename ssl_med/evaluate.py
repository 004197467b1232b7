"""How good is it: scores of a fine-tuned task on whole images, and probes of a frozen backbone."""

from collections.abc import Iterable
from itertools import product
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ssl_med.backbones import Backbone
from ssl_med.data.module import StoreData
from ssl_med.errors import UserError
from ssl_med.recipe import build, recipe
from ssl_med.tasks.base import SupervisedTask
from ssl_med.types import Batch


def best_device() -> torch.device:
    """Where a loaded model should run: the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def to_device(batch: Batch, device: torch.device) -> Batch:
    """All tensors of a batch on a device."""
    return cast(Batch, {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()})


@torch.no_grad()
def evaluate(task: SupervisedTask, loader: Iterable[Batch]) -> tuple[dict[str, float], dict[str, Any]]:
    """Predict and score every image of a loader.

    Returns:
        The summary, and per case its id and scores (tensors with the cases as first axis).
    """
    was_training, device = task.training, next(task.parameters()).device
    task.eval()
    collected: dict[str, list[Tensor]] = {}
    ids: list[str] = []
    for batch in loader:
        batch = to_device(batch, device)
        for name, values in task.score(task.predict(batch), batch).items():
            collected.setdefault(name, []).append(values.cpu())
        ids += batch["id"]  # pyright: ignore[reportTypedDictNotRequiredAccess]
    task.train(was_training)
    cases = {name: torch.cat(values) for name, values in collected.items()}
    return task.summarise(cases), {"id": ids, **cases}


def tiles(space: tuple[int, ...], window: tuple[int, ...]) -> list[tuple[slice, ...]]:
    """Windows that cover an image, evenly placed; the image is at least one window along each axis."""
    starts = []
    for size, length in zip(space, window, strict=True):
        count = -(-size // length)
        starts.append(sorted({round(s) for s in np.linspace(0, size - length, count)}))
    return [tuple(slice(s, s + n) for s, n in zip(corner, window, strict=True)) for corner in product(*starts)]


@torch.no_grad()
def embed_images(backbone: Backbone, loader: DataLoader, window: list[int]) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Pooled features of whole images: the mean over windows of the training's size that cover the image.

    Returns:
        features (n, embed_dim), ids, labels (n,).
    """
    device, features, ids, labels = next(backbone.parameters()).device, [], [], []
    for batch in loader:
        image, spacing = batch["image"].to(device), batch["spacing"].to(device)
        parts = [backbone(image[(..., *tile)], spacing).pooled for tile in tiles(tuple(image.shape[2:]), tuple(window))]
        features.append(torch.stack(parts).mean(0).float().cpu().numpy())
        ids += batch["id"]
        labels.append(batch["label"].numpy())
    return np.concatenate(features), ids, np.concatenate(labels)


@torch.no_grad()
def embed_patches(
    backbone: Backbone, data: StoreData, split: str, crops: int, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Features of the cells of the coarsest map, and the commonest voxel label inside each (unlabelled cells left out).

    Args:
        backbone: in evaluation mode.
        data: with masks.
        split: whose images.
        crops: number of crops to look at.
        most: largest number of cells kept, evenly spread.
    """
    dataset, device = data.crops(split), next(backbone.parameters()).device
    features, labels = [], []
    for first in range(0, crops, data.batch_size):
        count = min(data.batch_size, crops - first)
        batch = dataset.collate([dataset[position] for position in range(first, first + count)])
        cells = backbone(batch["image"].to(device), batch["spacing"].to(device)).maps[-1]  # pyright: ignore
        features.append(cells.flatten(2).transpose(1, 2).flatten(0, 1).float().cpu())
        labels.append(cell_labels(batch["mask"], backbone.strides[-1]))  # pyright: ignore
    label = torch.cat(labels)
    keep = (label >= 0).nonzero()[:, 0]
    keep = keep[torch.linspace(0, len(keep) - 1, min(most, len(keep))).long()]
    return torch.cat(features)[keep].numpy(), label[keep].numpy()


def cell_labels(mask: Tensor, stride: tuple[int, ...]) -> Tensor:
    """The commonest label (0 and up) inside each cell of a map, flat over batch and cells; -1 where none is known."""
    from ssl_med.ops.patches import patchify

    inside = patchify(mask.float(), stride)  # labels are small: exact in float32
    counts = torch.stack([(inside == value).sum(-1) for value in range(int(mask.max()) + 1)], -1)
    return torch.where(counts.sum(-1) > 0, counts.argmax(-1), -1).flatten()


def probe_scores(train: np.ndarray, train_y: np.ndarray, test: np.ndarray, test_y: np.ndarray) -> dict[str, float]:
    """Balanced accuracy of a 20-nearest-neighbour vote and of logistic regression on frozen features.

    The vote is weighted by exp(cosine / 0.07) (Wu et al., arXiv 1805.01978, as in DINO); the regression sees features
    standardised by the training set.

    Raises:
        UserError: the training cases are all of one class.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(np.unique(train_y)) < 2:
        raise UserError(f"probe: all {len(train_y)} training cases have label {train_y[:1]}; two classes are needed")
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, class_weight="balanced", tol=1e-3))
    guess = linear.fit(train, train_y).predict(test)
    return {
        "knn": float(balanced_accuracy_score(test_y, knn_vote(train, train_y, test))),
        "linear": float(balanced_accuracy_score(test_y, guess)),
    }


def knn_vote(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, neighbours: int = 20, temperature: float = 0.07
) -> np.ndarray:
    """Label of each test row by a weighted vote of its nearest training rows in cosine similarity."""
    unit_train = train / np.linalg.norm(train, axis=1, keepdims=True).clip(1e-12)
    unit_test = test / np.linalg.norm(test, axis=1, keepdims=True).clip(1e-12)
    classes = np.unique(labels)
    votes = np.empty(len(test), labels.dtype)
    for first in range(0, len(test), 1024):  # bounds the similarity matrix
        similarity = unit_test[first : first + 1024] @ unit_train.T
        near = np.argpartition(-similarity, min(neighbours, len(train)) - 1, 1)[:, :neighbours]
        weight = np.exp(np.take_along_axis(similarity, near, 1) / temperature)
        score = np.stack([(weight * (labels[near] == c)).sum(1) for c in classes], 1)
        votes[first : first + 1024] = classes[score.argmax(1)]
    return votes


def probe(backbone: Backbone, data: StoreData, test_split: str, crops: int = 64, most: int = 4000) -> dict[str, float]:
    """kNN and linear scores of a frozen backbone on the labels of a store.

    With image labels each image is a case; with masks each cell of the coarsest map is one (a dense probe).

    Args:
        backbone: any; it is put into evaluation mode for the time.
        data: with ``targets`` set.
        test_split: whose images are tested; the training split trains.
        crops: crops looked at per split in a dense probe.
        most: cells kept per split in a dense probe.
    """
    was_training = backbone.training
    backbone.eval()
    if data.targets == "mask":
        parts = [
            *embed_patches(backbone, data, "train", crops, most),
            *embed_patches(backbone, data, test_split, crops, most),
        ]
    else:
        parts = []
        for split in ("train", test_split):
            features, _, labels = embed_images(backbone, data.whole(split, backbone.multiple()), data.crop)
            parts += [features, labels]
    backbone.train(was_training)
    return probe_scores(*parts)


def random_twin(backbone: Backbone, seed: int = 0) -> Backbone:
    """The same backbone with random weights: what every probe is compared with."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        twin = build(recipe(backbone), Backbone, "backbone")
    return twin.to(next(backbone.parameters()).device)
