import math

import numpy as np
import pytest
import torch

from finetune import Segment
from ssl_med.backbones import UNetEncoder


def segment(axes: int = 2, classes: int = 3, window: int = 8, **changes) -> Segment:
    torch.manual_seed(0)
    return Segment(UNetEncoder(axes, 1, (4, 8), blocks=1), classes, [window] * axes, widths=[4, 8], **changes).eval()


def masks(*space: int, classes: int = 3, count: int = 3) -> torch.Tensor:
    return torch.randint(0, classes, (count, 1, *space), generator=torch.Generator().manual_seed(0))


def reading(task: Segment, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Replace the network by one that reads the answer off the image, and note the windows it is given."""
    windows: list[tuple[int, ...]] = []

    def logits(image: torch.Tensor, spacing: torch.Tensor | None = None) -> torch.Tensor:
        windows.append(tuple(image.shape[2:]))
        return torch.nn.functional.one_hot(image[:, 0].long(), task.classes).movedim(-1, 1).float()

    monkeypatch.setattr(task, "logits", logits)
    return windows


@pytest.mark.parametrize("space", [(8, 8), (19, 30), (9, 12, 8)], ids=str)
def test_a_perfect_model_predicts_the_mask(space: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    task, mask = segment(len(space)), masks(*space)
    windows = reading(task, monkeypatch)
    batch = {"image": mask.float(), "mask": mask, "spacing": torch.ones(3, len(space))}
    found = task.predict(batch)
    assert torch.equal(found, mask)
    assert set(windows) == {tuple(task.window)}
    scores = task.score(found, batch)
    best = {"dice": 1, "surface_dice": 1, "hd95": 0}
    for name, value in best.items():
        assert all((scores[f"{name}_{label}"] == value).all() for label in (1, 2)), name
    assert task.summarise(scores)["dice"] == 1


def test_spacing_goes_with_each_image(monkeypatch: pytest.MonkeyPatch) -> None:
    task, seen = segment(), []

    def logits(image: torch.Tensor, spacing: torch.Tensor) -> torch.Tensor:
        seen.append(spacing)
        return torch.zeros(len(image), 3, *image.shape[2:])

    monkeypatch.setattr(task, "logits", logits)
    task.predict({"image": torch.zeros(2, 1, 8, 20), "spacing": torch.tensor([[1.0, 2.0], [3.0, 4.0]])})
    assert {tuple(row) for row in seen[0].tolist()} == {(1.0, 2.0)}
    assert {tuple(row) for row in seen[-1].tolist()} == {(3.0, 4.0)}


@pytest.mark.filterwarnings("ignore:invalid value encountered in divide")
@pytest.mark.parametrize("space", [(9, 7), (5, 6, 4)], ids=str)
def test_scores_are_those_of_monai(space: tuple[int, ...]) -> None:
    from monai.metrics.meandice import compute_dice
    from monai.networks.utils import one_hot

    mask, guess = masks(*space, classes=4), masks(*space, classes=4).flip(0).roll(1, -1)
    mask[0][mask[0] == 3] = 0  # absent from the first image
    expected = compute_dice(one_hot(guess, 4), one_hot(mask, 4), include_background=False, ignore_empty=True)
    scores = segment(len(space), 4).score(guess, {"image": guess.float(), "mask": mask})
    found = torch.stack([scores[f"dice_{value}"] for value in (1, 2, 3)], 1)
    assert np.allclose(found.numpy(), expected.numpy(), atol=1e-6, equal_nan=True)
    assert math.isnan(float(found[0, 2]))


def test_unlabelled_voxels_are_no_mistakes() -> None:
    mask = masks(8, 8)
    guess = mask.clone()
    guess[..., 4:] = (guess[..., 4:] + 1) % 3
    known = mask.clone()
    known[..., 4:] = -1
    scores = segment().score(guess, {"image": guess.float(), "mask": known})
    assert all((scores[f"{name}_{label}"] == 1).all() for name in ("dice", "surface_dice") for label in (1, 2))
    assert all((scores[f"hd95_{label}"] == 0).all() for label in (1, 2))


def test_summary_is_the_mean_over_cases_then_classes() -> None:
    nan = float("nan")
    cases = {"dice_1": torch.tensor([0.5, 1.0, nan]), "dice_2": torch.tensor([nan, nan, 0.25])}
    assert segment().summarise(cases) == {"dice": 0.5, "dice_1": 0.75, "dice_2": 0.25}


def test_class_absent_everywhere_is_left_out_of_the_mean() -> None:
    nan = float("nan")
    summary = segment().summarise({"dice_1": torch.tensor([0.5, 1.0]), "dice_2": torch.tensor([nan, nan])})
    assert summary["dice"] == 0.75
    assert math.isnan(summary["dice_2"])


def test_pictures_show_image_reference_and_prediction(make_batch) -> None:
    task, batch = segment(classes=2), make_batch((8, 12))
    pictures = task.pictures(batch)
    assert list(pictures) == ["input", "reference", "prediction"]
    assert torch.equal(pictures["reference"], batch["mask"].float())
    assert set(pictures["prediction"].unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("decoder", [None, "linear"])
def test_no_class_is_out_of_reach_at_the_start(axes: int, decoder: str | None) -> None:
    """Features that are the same positive number everywhere speak for no class."""
    head = segment(axes, decoder=decoder).head
    even = torch.full([1, head.in_channels, *[2] * axes], 7.0)
    torch.testing.assert_close(head(even), torch.zeros(1, 3, *[2] * axes), atol=1e-5, rtol=0)
    assert head.weight.std() > 0.01
