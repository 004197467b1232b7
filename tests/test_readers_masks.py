"""Voxel labels lie on the grid of their image and keep their numbers."""

import numpy as np
import pytest
from image_files import SHAPE, nifti_bytes, record, volume, written
from PIL import Image as Pillow

from ssl_med.data.readers import read_mask
from ssl_med.data.record import Unreadable


def test_mask_lies_on_the_grid_of_its_image(tmp_path):
    image = written(tmp_path / "image.nii", nifti_bytes())
    labels = (volume() > 60).astype(np.float32) * 2
    flipped = nifti_bytes(labels[::-1], np.array([[-1.0, 0, 0, 3], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    mask = read_mask(record(image, mask=written(tmp_path / "mask.nii", flipped)))
    assert mask is not None
    assert mask.dtype == np.int16
    np.testing.assert_array_equal(mask[0], labels.transpose())
    assert read_mask(record(image)) is None


@pytest.mark.parametrize(
    ("array", "affine", "reason"),
    [
        (volume((4, 5, 7)), np.eye(4), "mask: shape"),
        (volume(), np.diag([1, 1, 1.5, 1]), "mask: affine differs from the image's by up to 2.5 mm"),
        (volume().astype(np.float32) / 2, np.eye(4), "mask: values are not whole numbers"),
        (np.full(SHAPE, np.nan, np.float32), np.eye(4), "mask: only 0"),
    ],
)
def test_wrong_mask_says_why(tmp_path, array, affine, reason):
    image = written(tmp_path / "image.nii", nifti_bytes())
    mask = written(tmp_path / "mask.nii", nifti_bytes(array, affine))
    with pytest.raises(Unreadable, match=reason):
        read_mask(record(image, mask=mask))


def test_picture_masks_keep_their_labels(tmp_path):
    labels = volume((6, 4), np.uint8) % 3
    Pillow.fromarray(volume((6, 4), np.uint8)).save(tmp_path / "image.png")
    palette = Pillow.frombytes("P", (4, 6), labels.tobytes())
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    palette.save(tmp_path / "mask.png")
    mask = read_mask(record(tmp_path / "image.png", mask=tmp_path / "mask.png"))
    assert mask is not None
    np.testing.assert_array_equal(mask[0], labels)
    Pillow.fromarray(labels > 0).save(tmp_path / "bits.png")
    bits = read_mask(record(tmp_path / "image.png", mask=tmp_path / "bits.png"))
    assert bits is not None
    np.testing.assert_array_equal(bits[0], labels > 0)
