"""What every transform promises, for images and volumes."""

import inspect
from typing import cast

import numpy as np
import pytest
import torch

import ssl_med.transforms
from ssl_med.ops.random import sample_keys
from ssl_med.recipe import build, recipe
from ssl_med.transforms import (
    Affine,
    BiasField,
    Brightness,
    Compose,
    Contrast,
    Flip,
    Gamma,
    GaussianBlur,
    GaussianNoise,
    PairedViews,
    RandomResizedCrop,
    Rotate90,
    SingleView,
    Transform,
    Views,
)
from ssl_med.types import Batch

SPACES = {"2d": (18, 18), "3d": (10, 10, 10)}
VOXEL_KEYS = ("image", "saliency", "mask", "valid")


def concrete(cls: type) -> list[type[Transform]]:
    """All subclasses of the library, at any depth, that can be built."""
    found = [cls] if not inspect.isabstract(cls) else []
    for child in cls.__subclasses__():
        found += concrete(child)
    return sorted({c for c in found if c.__module__.startswith("ssl_med.")}, key=lambda c: c.__name__)


TRANSFORMS = concrete(Transform)


def example(space: tuple[int, ...], count: int = 6, seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(count, 3, *space, generator=generator)
    return {
        "image": image,
        "saliency": torch.rand(count, 1, *space, generator=generator),
        "mask": torch.randint(0, 5, (count, 1, *space), generator=generator) * 7,
        "valid": torch.rand(count, 1, *space, generator=generator) > 0.2,
        "spacing": torch.full((count, len(space)), 0.7),
        "label": torch.arange(count),
        "key": sample_keys(seed, torch.arange(count)),
        "id": [f"{i:02x}" for i in range(count)],
    }


def rows(batch: Batch, chosen: list[int]) -> Batch:
    picked = {key: [value[i] for i in chosen] if key == "id" else value[chosen] for key, value in batch.items()}
    return cast(Batch, picked)


def assert_same(first: Batch, second: Batch) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]) if isinstance(value, torch.Tensor) else value == second[key], key


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest) -> tuple[int, ...]:
    return SPACES[request.param]


@pytest.fixture(params=TRANSFORMS, ids=lambda cls: cls.__name__)
def transform(request: pytest.FixtureRequest) -> Transform:
    return request.param()


def test_finds_the_transforms() -> None:
    assert {name for name in ssl_med.transforms.__all__ if name in {c.__name__ for c in TRANSFORMS}} >= {
        "Affine", "BiasField", "Brightness", "Contrast", "Flip", "Gamma", "GaussianBlur", "GaussianNoise",
        "RandomResizedCrop", "Rotate90",
    }  # fmt: skip


def test_same_key_same_bits(transform: Transform, space: tuple[int, ...]) -> None:
    assert_same(transform(example(space)), transform(example(space)))


def test_other_keys_other_result(transform: Transform, space: tuple[int, ...]) -> None:
    batch = example(space)
    first, second = transform(batch), transform({**batch, "key": sample_keys(2, torch.arange(6))})
    assert not torch.equal(first["image"], second["image"])


@pytest.mark.parametrize("chosen", [[4], [5, 2, 0], [3, 3, 1, 4, 2, 0, 5]])
def test_a_sample_does_not_depend_on_its_batch(transform: Transform, space: tuple[int, ...], chosen: list[int]) -> None:
    batch = example(space)
    assert_same(transform(rows(batch, chosen)), rows(transform(batch), chosen))


def test_input_is_untouched(transform: Transform, space: tuple[int, ...]) -> None:
    batch = example(space)
    transform(batch)
    assert_same(batch, example(space))


def test_kinds_shapes_and_values(transform: Transform, space: tuple[int, ...]) -> None:
    batch = example(space)
    changed = transform(batch)
    for key in VOXEL_KEYS:
        assert changed[key].shape == batch[key].shape
        assert changed[key].dtype == batch[key].dtype
    assert changed["image"].isfinite().all()
    assert changed["saliency"].isfinite().all()
    assert set(changed["mask"].unique().tolist()) <= set(batch["mask"].unique().tolist())
    assert torch.equal(changed["key"], batch["key"])
    assert changed["id"] == batch["id"]


def test_an_image_is_enough(transform: Transform, space: tuple[int, ...]) -> None:
    whole = example(space)
    alone = transform({"image": whole["image"], "key": whole["key"]})
    assert set(alone) == {"image", "key"}
    torch.testing.assert_close(alone["image"], transform(whole)["image"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_images(transform: Transform, space: tuple[int, ...], dtype: torch.dtype) -> None:
    batch = example(space)
    changed = transform({**batch, "image": batch["image"].to(dtype)})["image"]
    assert changed.dtype == dtype
    torch.testing.assert_close(changed.float(), transform(batch)["image"], rtol=0.05, atol=0.1)


def test_autocast_changes_nothing(transform: Transform, space: tuple[int, ...]) -> None:
    batch = example(space)
    with torch.autocast("cpu", torch.bfloat16):
        inside = transform(batch)
    assert_same(inside, transform(batch))


@pytest.mark.parametrize("constant", [0.0, -1000.0])
def test_constant_images_stay_finite(transform: Transform, space: tuple[int, ...], constant: float) -> None:
    batch = example(space)
    assert transform({**batch, "image": torch.full_like(batch["image"], constant)})["image"].isfinite().all()


@pytest.mark.parametrize(
    "cls", [c for c in TRANSFORMS if "probability" in inspect.signature(c).parameters], ids=lambda c: c.__name__
)
def test_probability_zero_is_identity(cls: type[Transform], space: tuple[int, ...]) -> None:
    batch = example(space)
    assert_same(cls(probability=0.0)(batch), batch)
    assert not torch.equal(cls(probability=1.0)(batch)["image"], batch["image"])


# ---- what makes one out of several


def test_compose_is_one_after_the_other_with_streams_of_their_own() -> None:
    batch: Batch = {"image": torch.zeros(3, 1, 8, 8), "key": sample_keys(0, torch.arange(3))}
    noise = GaussianNoise(sd=(1.0, 1.0))
    twice = Compose([noise, noise])(batch)
    once = Compose([noise])(batch)
    assert torch.equal(twice["key"], batch["key"])
    second = twice["image"] - once["image"]
    assert abs(np.corrcoef(second.flatten(), once["image"].flatten())[0, 1]) < 0.25


def test_views_are_independent_and_repeatable() -> None:
    batch: Batch = {
        "image": torch.zeros(4, 1, 16, 16),
        "label": torch.arange(4),
        "key": sample_keys(0, torch.arange(4)),
    }
    views = PairedViews([GaussianNoise(sd=(1.0, 1.0))])
    first, second = views(batch)
    assert abs(np.corrcoef(first["image"].flatten(), second["image"].flatten())[0, 1]) < 0.1
    assert torch.equal(first["label"], second["label"])
    assert not torch.equal(first["key"], second["key"])  # a mask drawn on a view is the view's own
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip((first, second), views(batch), strict=True))
    assert torch.equal(SingleView([GaussianNoise(sd=(1.0, 1.0))])(batch)[0]["image"], first["image"])
    assert batch["image"].abs().max() == 0


def test_paired_views_may_have_two_lists() -> None:
    batch: Batch = {"image": torch.zeros(4, 1, 4, 4), "key": sample_keys(0, torch.arange(4))}
    views = PairedViews([], second=[Brightness(offset=(1.0, 1.0))])
    first, second = views(batch)
    assert first["image"].max() == 0
    assert second["image"].min() == 1
    assert recipe(views)["init_args"]["transforms"] == []
    assert recipe(views)["init_args"]["second"][0]["class_path"] == "ssl_med.transforms.Brightness"


def test_recipes_rebuild_transforms() -> None:
    """Every constructor keeps its arguments, and its annotations suffice to build it from a config."""
    chosen = [RandomResizedCrop(size=[8, 8]), Flip(axes=[0]), Rotate90(planes=[(0, 1)]), Affine(shear=0.1), Gamma()]
    views = PairedViews([*chosen, BiasField()], second=[Contrast(), GaussianNoise(probability=0.5), GaussianBlur()])
    assert recipe(build(recipe(views), Views)) == recipe(views)


def test_batches_without_keys_draw_from_torch() -> None:
    batch: Batch = {"image": torch.zeros(2, 1, 8, 8)}
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(PairedViews([GaussianNoise()])(batch)[1]["image"])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
