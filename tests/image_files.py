"""Small image files with distinct values, written for the tests of the readers."""

import itertools
import struct
from pathlib import Path

import nibabel
import numpy as np
from nibabel.orientations import inv_ornt_aff, ornt_transform

from ssl_med.data.readers import reader_of
from ssl_med.data.record import Record

SHAPE = (4, 5, 6)
AXIS_CODES = [
    np.array(list(zip(axes, signs, strict=True)))
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def record(path: Path, **facts) -> Record:
    return Record(path.name, reader_of(path) or "nifti", (path,), **facts)


def volume(shape=SHAPE, dtype=np.int16) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.prod(shape)).reshape(shape).astype(dtype)


def nifti_bytes(array=None, affine=None) -> bytes:
    image = nibabel.Nifti1Image(volume() if array is None else array, np.eye(4) if affine is None else affine)
    return image.to_bytes()


def changed(data: bytes, offset: int, layout: str, *values) -> bytes:
    block = bytearray(data)
    struct.pack_into(layout, block, offset, *values)
    return bytes(block)


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def oblique() -> np.ndarray:
    a, b = 0.3, -0.2
    rotation = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    rotation = rotation @ np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([0.7, 0.9, 2.5])
    affine[:3, 3] = 12.5, -30.25, 7.0
    return affine


def assert_same_world(path: Path, image, source: np.ndarray, affine: np.ndarray) -> None:
    """Each value of a volume of distinct values lies at the same millimetre before and after."""
    z, y, x = np.indices(image.array.shape[1:]).reshape(3, -1)
    world = (image.affine @ np.stack([x, y, z, np.ones_like(x)]))[:3]
    place = {value: index for index, value in np.ndenumerate(source)}
    stored = np.array([(*place[value], 1) for value in image.array.reshape(-1)]).T
    np.testing.assert_allclose(world, (affine @ stored)[:3], atol=1e-4)


def turned_affine(code: np.ndarray, start: np.ndarray) -> np.ndarray:
    """RAS affine of a file of SHAPE that stores its axes in the order and direction of ``code``."""
    ras = np.array([[0, 1], [1, 1], [2, 1]])
    return start @ inv_ornt_aff(ornt_transform(ras, code), np.array(SHAPE))


def named(code: np.ndarray) -> str:
    """``0+2-1+``: a readable name of one of the AXIS_CODES."""
    return "".join(f"{int(axis)}{'+' if sign > 0 else '-'}" for axis, sign in code)
