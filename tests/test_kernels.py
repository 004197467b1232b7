"""The compiled kernels and their torch twins against scipy and torch, for volumes and images, inside and outside."""

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform, map_coordinates
from scipy.spatial.transform import Rotation
from scipy.stats import ks_2samp
from torch.nn import functional

from ssl_med.data import filling, kernels
from ssl_med.data.crops import (
    CropAffine,
    Region,
    boxes_inside,
    crop_centre,
    random_region,
    rotation,
    to_voxels,
    turned_region,
)
from ssl_med.data.intensity import Scale, Windows
from ssl_med.errors import UserError
from ssl_med.ops.random import Draws, sample_keys
from ssl_med.transforms import Affine

RANGE = (-900, 1100)
NO_SCALE = Scale(-1e6, 1e6, 0.0, 1.0)


def source(kind: str, shape: tuple[int, ...] = (2, 13, 17, 19)) -> np.ndarray:
    low, high = (0, 255) if kind == "uint8" else RANGE
    return np.random.default_rng(0).uniform(low, high, shape).astype(kind)


def region_of(voxels: np.ndarray, size: list[int], angle: float = 25.0, zoom: float = 0.8) -> Region:
    """A turned region about the middle of what was read."""
    axes = voxels.ndim - 1
    turn = Rotation.from_rotvec(np.deg2rad(angle) * np.array([1, 2, -1]) / 6**0.5).as_matrix()
    if axes == 2:
        cosine, sine = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
        turn = np.array([[cosine, -sine], [sine, cosine]])
    matrix = turn * zoom
    offset = (np.array(voxels.shape[1:]) - 1) / 2 - matrix @ ((np.array(size) - 1) / 2)
    return Region(size, [0] * axes, list(voxels.shape[1:]), [1.0] * axes, matrix, offset)


def filled(voxels: np.ndarray, region: Region, scale: Scale | Windows) -> tuple[np.ndarray, np.ndarray]:
    out = np.full((len(voxels) * len(scale.parts), *region.size), np.nan, np.float32)
    valid = filling.fill_image(out, voxels, region, scale)
    return out, np.ones((1, *region.size), bool) if valid is None else valid


@pytest.fixture(params=["compiled", "torch"])
def engine(request, monkeypatch):
    monkeypatch.setattr(filling, "compiled", lambda: request.param == "compiled")


@pytest.mark.parametrize("kind", ["int16", "uint8", "float32"])
def test_turned_crops_are_those_of_scipy(engine, kind):
    voxels = source(kind)
    region, scale = region_of(voxels, [16, 15, 18]), Scale(-500.0, 500.0, -500.0, 1 / 1000)
    found, valid = filled(voxels, region, scale)
    for channel, expected in enumerate(voxels.astype(np.float64)):
        raw = affine_transform(expected, region.matrix, region.offset, tuple(region.size), order=1, cval=np.nan)
        scaled = (np.clip(raw, -500, 500) + 500) / 1000
        assert np.array_equal(valid[0], ~np.isnan(raw))
        assert np.abs(found[channel] - np.nan_to_num(scaled, nan=scale.background)).max() < 1e-5
    assert 0.3 < valid.mean() < 0.95


def test_images_are_turned_like_volumes(engine):
    voxels = source("uint8", (3, 21, 24))
    region, scale = region_of(voxels, [18, 26]), Scale(0.0, 255.0, 0.0, 1 / 255)
    found, valid = filled(voxels, region, scale)
    places = np.einsum("ij,jyx->iyx", region.matrix, np.indices(region.size)) + region.offset[:, None, None]
    for channel in range(3):
        raw = map_coordinates(voxels[channel].astype(np.float64), places, order=1, cval=0)
        assert np.abs(found[channel] - raw / 255).max() < 1e-5
    assert valid.shape == (1, 18, 26)


def test_turned_crops_are_those_of_grid_sample():
    """The inner part, where torch's half-voxel border does not matter."""
    voxels = source("int16", (1, 24, 24, 24))
    region = region_of(voxels, [10, 10, 10], 40.0, 1.0)
    found, valid = filled(voxels, region, Scale(*map(float, RANGE), 0.0, 1 / 1000))
    assert valid.all()
    theta = torch.from_numpy(region.matrix[::-1, ::-1].copy() * 10 / 24)  # axes counted from the last, about the middle
    grid = functional.affine_grid(
        torch.cat([theta, torch.zeros(3, 1)], 1)[None], [1, 1, 10, 10, 10], align_corners=False
    )
    expected = functional.grid_sample(torch.from_numpy(voxels[None].astype(np.float64)), grid, align_corners=False)
    assert np.abs(found - expected[0].numpy() / 1000).max() < 1e-5


@pytest.mark.parametrize("space", [(13, 17, 19), (1, 17, 19), (17, 19)])
def test_without_a_turn_every_voxel_stays(engine, space):
    voxels = source("int16", (1, *space))
    region = Region(
        list(space), [0] * len(space), list(space), [1.0] * len(space), np.eye(len(space)), np.zeros(len(space))
    )
    found, valid = filled(voxels, region, NO_SCALE)
    assert np.array_equal(found, voxels.astype(np.float32))
    assert valid.all()
    assert np.array_equal(filling.fill_labels(voxels, region), voxels)


def test_labels_take_the_nearest_voxel_and_minus_one_outside(engine):
    voxels = np.random.default_rng(1).integers(0, 5, (1, 13, 17, 19)).astype(np.uint8)
    region = region_of(voxels, [16, 15, 18])
    found = filling.fill_labels(voxels, region)
    places = np.einsum("ij,jzyx->izyx", region.matrix, np.indices(region.size)) + region.offset[:, None, None, None]
    inside = ((places >= 0) & (places <= np.array([12, 16, 18]).reshape(3, 1, 1, 1))).all(0)
    nearest = voxels[0].astype(int)[
        tuple(np.rint(places).astype(int).clip(0, np.array([12, 16, 18]).reshape(3, 1, 1, 1)))
    ]
    assert np.array_equal(found[0], np.where(inside, nearest, -1))
    assert np.array_equal(inside, filled(voxels, region, NO_SCALE)[1][0])


@pytest.mark.parametrize("turned", [False, True])
def test_windows_become_channels(engine, turned):
    voxels, parts = source("int16"), (Scale(-800.0, 0.0, -800.0, 1 / 800), Scale(0.0, 400.0, 0.0, 1 / 400))
    region = region_of(voxels, [8, 8, 8]) if turned else Region([8] * 3, [0] * 3, [8] * 3, [1.0] * 3)
    voxels = voxels if turned else voxels[:, :8, :8, :8]
    found, _ = filled(voxels, region, Windows(parts))
    expected = [filled(voxels[c : c + 1], region, part)[0][0] for c in range(2) for part in parts]
    assert np.array_equal(found, np.stack(expected))
    if not turned:
        assert np.array_equal(found, Windows(parts)(voxels))


def test_straight_crops_are_scaled_as_the_scale_does_and_padded_with_air(engine):
    voxels, scale = source("int16", (1, 6, 7, 5)), Scale(-500.0, 500.0, 30.0, 1 / 77)
    found, valid = filled(voxels, Region([8, 7, 9], [0] * 3, [6, 7, 5], [1.0] * 3), scale)
    assert np.array_equal(found[:, :6, :7, :5], scale(voxels))
    assert (found[~valid] == np.float32(scale.background)).all()
    assert valid.sum() == voxels.size
    labels = filling.fill_labels(np.ones((1, 6, 7, 5), np.uint8), Region([8, 7, 9], [0] * 3, [6, 7, 5], [1.0] * 3))
    assert np.array_equal(labels, np.where(valid, 1, -1))


def test_what_is_read_is_enough():
    """The crop cut out of the window that was read is the crop cut out of the whole image."""
    image, rng = source("int16", (1, 40, 50, 60)), np.random.default_rng(3)
    for _ in range(12):
        turn = CropAffine(180.0, (0.7, 1.4)).matrix(rng, 3)
        region = random_region(rng, [40, 50, 60], [2.0, 1.0, 0.8], [12, 14, 16], turn=turn)
        window = tuple(slice(a, a + n) for a, n in zip(region.corner, region.read, strict=True))
        found, valid = filled(image[(slice(None), *window)], region, NO_SCALE)
        whole = Region(region.size, [0] * 3, [40, 50, 60], region.spacing, region.matrix, region.offset + region.corner)
        expected, inside = filled(image, whole, NO_SCALE)
        assert np.abs(found - expected).max() < 0.01  # of 2000: coordinates near 50 are coarser than near 0
        assert np.array_equal(valid, inside)
        assert np.prod(region.read) < image.size / 2 or not valid.all()


def test_crops_that_fit_show_no_empty_corner():
    rng, law = np.random.default_rng(0), CropAffine(180.0, (0.7, 1.4))
    for _ in range(200):
        turn = law.matrix(rng, 3)
        region = random_region(rng, [60, 60, 60], [1.0] * 3, [16] * 3, turn=turn)
        corners = np.stack(np.meshgrid(*[[0, 15]] * 3), -1).reshape(-1, 3) @ region.matrix.T + region.offset
        assert (corners > -1e-9).all()
        assert (corners < np.array(region.read) - 1 + 1e-9).all()


def test_turns_are_in_millimetres():
    """A quarter turn in the plane of thick and thin voxels swaps lengths in mm, not in voxels."""
    matrix = to_voxels(np.array([[0.0, -1.0], [1.0, 0.0]]), [4.0, 1.0], [4.0, 1.0])
    assert np.allclose(matrix, [[0, -0.25], [4, 0]])


@pytest.mark.parametrize("axes", [2, 3])
def test_the_law_is_that_of_the_transform(axes):
    """Angles, zooms and axes of the reader and of :class:`ssl_med.transforms.Affine` come from one distribution."""
    rng, law = np.random.default_rng(0), CropAffine(30.0, (0.7, 1.4))
    ours = np.stack([law.matrix(rng, axes) for _ in range(2000)])
    draws = Draws(sample_keys(0, torch.arange(2000)))
    theirs = Affine(30.0, (0.7, 1.4)).sample(torch.empty(2000, 1, *[1] * axes), draws)["matrix"].double().numpy()
    zoom = np.linalg.det(ours) ** (1 / axes)
    assert np.allclose(ours @ ours.transpose(0, 2, 1), zoom[:, None, None] ** 2 * np.eye(axes))
    for row, column in np.ndindex(axes, axes):
        assert ks_2samp(ours[:, row, column], theirs[:, row, column]).pvalue > 1e-3
    with pytest.raises(UserError, match="scale must be"):
        CropAffine(scale=(1.2, 0.8))


def test_rotations_are_those_of_scipy():
    axis, angle = np.array([1.0, -2.0, 0.5]), 0.7
    expected = Rotation.from_rotvec(axis / np.linalg.norm(axis) * angle).as_matrix()
    assert np.allclose(rotation(angle, axis), expected)


def test_the_wanted_voxel_is_shown_wherever_it_lies():
    rng, law = np.random.default_rng(0), CropAffine(180.0, (0.7, 1.4))
    for _ in range(300):
        space = [int(n) for n in rng.integers(3, 40, 3)]
        voxel = [int(rng.integers(n)) for n in space]
        matrix = law.matrix(rng, 3)
        centre = crop_centre(rng, space, [12, 10, 8], matrix, voxel)
        region = turned_region(space, [1.0] * 3, [12, 10, 8], [1.0] * 3, matrix, centre)
        place = np.linalg.solve(region.matrix, np.array(voxel) - region.corner - region.offset)
        assert (place > -1e-6).all()
        assert (place < np.array(region.size) - 1 + 1e-6).all()


def test_boxes_move_with_the_crop():
    boxes = np.array([[2, 3, 4, 6, 9, 12, 1], [0, 0, 0, 1, 1, 1, 2], [18, 18, 18, 20, 20, 20, 0]], float)
    found = boxes_inside(boxes, Region([10, 10, 10], [1, 2, 3], [10, 10, 10], [1.0] * 3), 2)
    assert [part.tolist() for part in found] == [[[1, 1, 1, 5, 7, 9], [0] * 6], [1, -1]]
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    region = turned_region([20] * 3, [1.0] * 3, [9, 9, 9], [1.0] * 3, turn, np.array([5.0, 6.0, 7.0]))
    labels = np.zeros((1, 20, 20, 20), np.uint8)
    labels[0, 2:6, 3:9, 4:12] = 1
    window = tuple(slice(a, a + n) for a, n in zip(region.corner, region.read, strict=True))
    shown = np.argwhere(filling.fill_labels(labels[(slice(None), *window)], region)[0] == 1)
    box, label = boxes_inside(boxes[:1], region, 1)
    assert np.allclose(box[0], [*shown.min(0), *(shown.max(0) + 1)])
    assert label.tolist() == [1]
    assert [part.tolist() for part in boxes_inside(np.empty((0, 7)), region, 3)] == [[[0.0] * 6] * 3, [-1] * 3]


def test_kernels_write_only_what_they_are_given():
    """A reused buffer keeps nothing of what was in it before."""
    voxels = source("int16", (1, 9, 9, 9))
    region = region_of(voxels, [12, 12, 12])
    out = np.full((1, 12, 12, 12), 7.0, np.float32)
    kernels.turned_linear(
        voxels, region.matrix, region.offset, filling.table(NO_SCALE, 1), out, np.empty((0, 0, 0, 0), bool)
    )
    assert np.array_equal(out, filled(voxels, region, NO_SCALE)[0])
