"""Other grids: weights as torch computes them, and every voxel stays where it is in the world."""

import itertools

import nibabel
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from ssl_med.data import resample
from ssl_med.data.record import Image
from ssl_med.data.resample import resample_array, to_orientation, to_spacing
from ssl_med.errors import UserError


def picture(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)


@pytest.mark.parametrize(("order", "mode"), [(1, "bilinear"), (3, "bicubic")])
@pytest.mark.parametrize("size", [(24, 60), (10, 15), (7, 45)])
def test_weights_are_those_of_torch_with_antialiasing(order, mode, size):
    image = picture((20, 30))
    expected = torch.nn.functional.interpolate(torch.from_numpy(image)[None], size, mode=mode, antialias=True)[0]
    found = resample_array(image, tuple(a / b for a, b in zip((20, 30), size, strict=True)), order)
    assert np.abs(found - expected.numpy()).max() < 1e-5


def test_three_axes_are_those_of_torch():
    """Enlarged, so that torch's trilinear interpolation (which has no antialiasing) does the same."""
    image = picture((5, 6, 7))
    expected = torch.nn.functional.interpolate(torch.from_numpy(image)[None], (10, 9, 7), mode="trilinear")[0]
    assert np.abs(resample_array(image, (0.5, 6 / 9, 1.0), 1) - expected.numpy()).max() < 1e-5


def test_order_0_takes_the_nearest_voxel():
    labels = np.random.default_rng(0).integers(0, 9, (1, 8, 9, 10)).astype(np.int16)
    found = resample_array(labels, (2.0, 0.5, 1.0), 0)
    assert found.dtype == np.int16
    assert np.array_equal(found[:, :, ::2], labels[:, 1::2])
    assert np.array_equal(found[:, :, 1::2], labels[:, 1::2])


def test_integers_are_rounded_and_kept_in_range():
    image = np.array([[[0, 255, 0, 255, 255, 255, 0, 0]]], np.uint8).repeat(4, 1)
    found = resample_array(image, (1.0, 0.5), 3)  # cubic weights overshoot
    exact = resample_array(image.astype(np.float64), (1.0, 0.5), 3)
    assert found.dtype == np.uint8
    assert exact.max() > 255
    assert np.array_equal(found, np.clip(np.rint(exact), 0, 255))


def ramp(affine: np.ndarray, shape: tuple[int, int, int]) -> Image:
    """A volume whose three channels are the world coordinates of its voxels."""
    x, y, z = np.meshgrid(*map(np.arange, shape), indexing="ij")
    world = np.einsum("ij,jxyz->ixyz", affine[:3], np.stack([x, y, z, np.ones_like(x)]).astype(float))
    spacing = tuple(float(s) for s in np.linalg.norm(affine[:3, :3], axis=0)[::-1])
    return Image(world.transpose(0, 3, 2, 1), spacing, affine)


def error_of(image: Image, border: int) -> float:
    """Largest distance in mm between what a voxel says of its place and where the affine puts it."""
    inside = tuple(slice(border, n - border) for n in image.array.shape[1:])
    expected = ramp(image.affine, image.array.shape[:0:-1]).array
    return float(np.abs(image.array - expected)[(slice(None), *inside)].max())


def test_another_spacing_leaves_every_voxel_in_its_place():
    turn = np.array([[0.8, -0.6, 0, 4], [0.6, 0.8, 0, -3], [0, 0, 1, 7], [0, 0, 0, 1]]) @ np.diag([1.0, 1.5, 3.0, 1])
    image = ramp(turn, (16, 17, 18))
    finer = to_spacing(image, (1.2, 0, 0.7), 1)
    assert finer.spacing == pytest.approx((1.2, 1.5, 0.7))
    assert finer.array.shape == (3, 45, 17, 23)
    assert error_of(finer, 2) < 1e-4
    coarser = to_spacing(image, (6.0, 0, 2.0), 1)
    assert coarser.array.shape == (3, 9, 17, 8)
    assert error_of(coarser, 1) < 1e-4


@pytest.mark.parametrize("codes", ["".join(p) for p in itertools.permutations("LPS")] + ["RAS", "LAS", "IRP", "SAL"])
def test_another_orientation_leaves_every_voxel_in_its_place(codes):
    image = ramp(np.diag([1.0, 2.0, 3.0, 1]) + np.array([[0, 0, 0, 5.0]] * 3 + [[0] * 4]), (5, 6, 7))
    found = to_orientation(image, codes)
    assert "".join(nibabel.aff2axcodes(found.affine)) == codes
    assert error_of(found, 0) < 1e-9
    assert found.spacing == pytest.approx(tuple(np.linalg.norm(found.affine[:3, :3], axis=0)[::-1]))
    reference = nibabel.Nifti1Image(image.array[0].T, image.affine)
    turn = ornt_transform(io_orientation(reference.affine), axcodes2ornt(codes))
    assert np.array_equal(found.array[0].T, reference.as_reoriented(turn).get_fdata())


@pytest.mark.parametrize("codes", ["RA", "RAR", "XYZ", "RASS", "ras"])
def test_what_is_no_orientation_is_refused(codes):
    with pytest.raises(UserError, match="expected three letters"):
        to_orientation(ramp(np.eye(4), (2, 2, 2)), codes)


def test_a_picture_with_an_affine_moves_in_its_plane_and_keeps_its_orientation():
    affine = np.diag([1.0, 2.0, 5.0, 1]) + np.array([[0, 0, 0, 5.0]] * 3 + [[0] * 4])
    image = Image(ramp(affine, (16, 12, 1)).array[:, 0], (2.0, 1.0), affine)
    found = to_spacing(image, (1.0, 2.0), 1)
    assert (found.array.shape, found.spacing) == ((3, 24, 8), (1.0, 2.0))
    assert np.array_equal(found.affine[:, 2], affine[:, 2])
    volume = Image(found.array[:, None], (5.0, 1.0, 2.0), found.affine)
    expected = ramp(volume.affine, (8, 24, 1)).array[:, 0]
    assert np.abs(found.array - expected)[:, 2:-2, 2:-2].max() < 1e-4
    assert to_orientation(image, "LPS") is image


@pytest.mark.parametrize("factors", [(1.3, 0.7, 2.0), (1.0, 1.5, 0.8), (2.5, 1.0, 1.0), (0.4, 3.0, 1.0)])
@pytest.mark.parametrize("kind", ["int16", "float32"])
@pytest.mark.parametrize("order", [1, 3])
def test_slabs_do_not_show(monkeypatch, factors, kind, order):
    array = (np.random.default_rng(0).random((2, 23, 19, 17)) * 1000).astype(kind)
    whole = resample_array(array, factors, order)
    for voxels in (1, 2000):  # a plane at a time, and a few of them with a rest
        monkeypatch.setattr(resample, "_SLAB", voxels)
        assert np.array_equal(resample_array(array, factors, order), whole)
