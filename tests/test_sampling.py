"""Compiled loops of the views on a CPU: affine reading and filters against torch, and images that are passed over."""

import math

import pytest
import torch
from torch.nn import functional

from ssl_med.ops import filters, sampling
from ssl_med.ops.random import Draws, sample_keys
from ssl_med.ops.sampling import read_affine, sampling_grid
from ssl_med.transforms import Affine, GaussianBlur, GaussianNoise, OneOf
from ssl_med.transforms.base import Transform, spread


def turned(rows: int, count: int, seed: int, reach: float = 0.6) -> torch.Tensor:
    """Rotations with scale and shift, (rows, n, n + 1), some of which look past the image."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, count, count, generator=generator)
    turn = torch.linalg.qr(noise).Q * (0.5 + torch.rand(rows, 1, 1, generator=generator))
    return torch.cat([turn, reach * torch.randn(rows, count, 1, generator=generator)], -1)


def outside(x: torch.Tensor, padding: str) -> torch.Tensor | None:
    """What :func:`read_affine` is told of the outside."""
    return torch.zeros(x.shape[:2]) if padding == "zeros" else None


@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize(("space", "size"), [((9, 7), (6, 11)), ((5, 8, 7), (6, 5, 9)), ((1, 8, 7), (2, 5, 9))])
def test_compiled_reading_is_linear_interpolation_as_torch_does_it(space, size, padding) -> None:
    x, matrix = torch.randn(2, 3, *space), turned(6, len(space), 0)
    expected = torch.cat(
        [
            functional.grid_sample(x[row // 3 : row // 3 + 1], grid[None], padding_mode=padding, align_corners=False)
            for row, grid in enumerate(sampling_grid(matrix, size))
        ]
    )
    got = read_affine(x, matrix, size, "bilinear", outside(x, padding))
    assert got.shape == (6, 3, *size)
    assert torch.allclose(got, expected, atol=2e-5)
    inside = (expected != 0).float().mean()
    assert inside > 0.2  # the maps look at the image, not past it


@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_compiled_nearest_reading_keeps_labels(padding) -> None:
    labels, matrix = torch.randint(0, 9, (3, 1, 8, 7, 6)), turned(3, 3, 1, 0.3)
    grid = sampling_grid(matrix, (5, 6, 7))
    expected = functional.grid_sample(
        labels.float(), grid, mode="nearest", padding_mode=padding, align_corners=False
    ).long()
    got = read_affine(labels, matrix, (5, 6, 7), "nearest", outside(labels, padding))
    assert got.dtype == torch.int64
    assert torch.equal(got, expected)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_identity_mirror_and_quarter_turn_are_exact(mode) -> None:
    x = torch.randn(2, 2, 6, 6)
    quarter = torch.tensor([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
    for turn, expected in ((torch.eye(2, 3), x), (torch.diag(torch.tensor([1.0, -1.0])), x.flip(3)), (quarter, None)):
        matrix = functional.pad(turn, (0, 3 - turn.shape[1]))[None].expand(2, -1, -1)
        got = read_affine(x, matrix, (6, 6), mode, outside(x, "zeros"))
        wanted = torch.rot90(x, 1, (2, 3)) if expected is None else expected
        assert torch.allclose(got, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("numba", [True, False])
def test_the_fill_stands_outside_and_is_mixed_in_at_the_edge(monkeypatch, numba) -> None:
    if not numba:
        monkeypatch.setattr(sampling, "compiled_for", lambda x: False)
    x, fill = torch.zeros(2, 2, 4, 4), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    half = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.25]])[None].expand(2, -1, -1)  # half a voxel to the right
    got = read_affine(x, half, (4, 4), "bilinear", fill)
    assert torch.allclose(got[..., :3], torch.zeros(2, 2, 4, 3))
    assert torch.allclose(got[..., 3], fill[..., None].expand(2, 2, 4) / 2)
    far = torch.tensor([[1.0, 0.0, 9.0], [0.0, 1.0, 0.0]])[None].expand(2, -1, -1)
    assert torch.equal(read_affine(x, far, (4, 4), "nearest", fill), fill[..., None, None].expand(2, 2, 4, 4))


def test_a_gradient_and_the_path_without_numba_go_through_torch(monkeypatch) -> None:
    x, matrix = torch.randn(2, 1, 6, 5), turned(4, 2, 2)
    compiled = read_affine(x, matrix, (4, 4), "bilinear")
    wanted = x.clone().requires_grad_(True)
    read_affine(wanted, matrix, (4, 4), "bilinear").sum().backward()
    assert wanted.grad is not None
    assert math.isclose(float(wanted.grad.sum()), 4 * 4 * 4, rel_tol=1e-4)  # the weights of every voxel read sum to 1
    monkeypatch.setattr(sampling, "compiled_for", lambda x: False)
    assert torch.allclose(read_affine(x, matrix, (4, 4), "bilinear"), compiled, atol=2e-5)


def test_the_compiled_path_is_taken_on_a_cpu(monkeypatch) -> None:
    def refuse(*arguments: object, **named: object) -> None:
        raise AssertionError("grid_sample was asked")

    monkeypatch.setattr(functional, "grid_sample", refuse)
    assert read_affine(torch.ones(1, 1, 4, 4), torch.eye(2, 3)[None], (4, 4), "bilinear").sum() == 16


@pytest.mark.parametrize("space", [(12, 9), (5, 12, 9)])
def test_compiled_blur_is_the_sum_of_shifted_copies(monkeypatch, space) -> None:
    x, sigma = torch.randn(3, 2, *space), torch.tensor([0.0, 0.4, 1.5])
    compiled = filters.gaussian_blur(x, sigma)
    monkeypatch.setattr(filters, "compiled_for", lambda x: False)
    assert torch.allclose(compiled, filters.gaussian_blur(x, sigma), atol=1e-6)
    assert torch.equal(compiled[0], x[0])


@pytest.mark.parametrize("make", [GaussianNoise, GaussianBlur, Affine])
def test_passing_over_images_changes_nothing_for_the_others(make: type[Transform]) -> None:
    batch = {"image": torch.randn(16, 1, 8, 8), "spacing": torch.ones(16, 2), "key": sample_keys(1, torch.arange(16))}
    some, every = make(probability=0.5)(batch)["image"], make(probability=1.0)(batch)["image"]
    chosen = Draws(batch["key"]).child(1).bernoulli(0.5)
    assert 2 < int(chosen.sum()) < 14
    assert torch.allclose(some, torch.where(spread(chosen, every), every, batch["image"]), atol=1e-6)


def test_one_of_gives_each_image_what_it_chose_and_only_that() -> None:
    batch = {"image": torch.randn(12, 1, 8, 8), "key": sample_keys(2, torch.arange(12))}
    members: list[Transform] = [GaussianNoise((1.0, 1.0)), GaussianBlur((1.0, 1.0))]
    one_of = OneOf(members)
    got, draws = one_of(batch)["image"], Draws(batch["key"]).child(0)
    chosen = draws.integers(2)
    for number, member in enumerate(members):
        alone = member.transform(batch["image"], member.sample(batch["image"], draws.child(number)), "image")
        rows = chosen == number
        assert rows.any()
        assert torch.allclose(got[rows], alone[rows], atol=1e-6)
