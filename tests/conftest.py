"""Shapes in annotations are checked while the tests run; one torch thread; small models to share."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch

CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"  # an int is a float, as in PEP 484
jaxtyping.install_import_hook(["ssl_med", "finetune"], CHECKER)  # before anything imports them
sys.path.insert(0, str(Path(__file__).parent))  # tests/references is a package of the tests
torch.set_num_threads(1)


@pytest.fixture
def double() -> Iterator[None]:
    """Weights, images and losses of the test are double."""
    from double import in_double

    with in_double():
        yield


@pytest.fixture
def tiny_vit() -> Callable:
    """``tiny_vit(spatial_dims, **changes)``: a ViT of two blocks with patches of 4 voxels, its weights seeded."""
    from ssl_med.backbones import ViT

    def make(spatial_dims: int = 2, **changes: object) -> ViT:
        torch.manual_seed(0)
        settings = {"patch": 4, "embed_dim": 24, "depth": 2, "heads": 2, "taps": 2, **changes}
        return ViT(spatial_dims, **settings)

    return make


@pytest.fixture
def make_batch() -> Callable:
    """``make_batch(space, count=4, channels=1)``: images with structure (a bright box on noise), spacing and keys."""
    from ssl_med.ops.random import sample_keys

    def make(space: tuple[int, ...], count: int = 4, channels: int = 1, seed: int = 0) -> dict:
        generator = torch.Generator().manual_seed(seed)
        image = 0.3 * torch.randn(count, channels, *space, generator=generator)
        mask = torch.zeros(count, 1, *space, dtype=torch.int64)
        box = tuple(slice(size // 4, size // 2 + 1) for size in space)
        mask[(..., *box)] = 1
        corners = [*(side.start for side in box), *(side.stop for side in box)]
        return {
            "image": image + 2.0 * mask,
            "mask": mask,
            "spacing": torch.full((count, len(space)), 1.5),
            "label": torch.arange(count) % 2,
            "labels": torch.stack([torch.arange(count) % 2, torch.arange(count) // 2 % 2], 1),
            "value": torch.arange(count) / 4 - 0.5,
            "boxes": torch.tensor([corners, [0] * len(corners)], dtype=torch.float32).repeat(count, 1, 1),
            "box_labels": torch.tensor([[0, -1], [1, -1]]).repeat(count, 1)[:count],
            "key": sample_keys(seed, torch.arange(count)),
            "id": [f"{i:02x}" for i in range(count)],
        }

    return make
