"""From voxels as a file stores them to RAS order, with the affine that keeps every voxel at its millimetre."""

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from ssl_med.data.readers.gate import check_affine
from ssl_med.data.record import Image, Unreadable

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""DICOM, NRRD and ITK count towards left and posterior, NIfTI and this library towards right and anterior."""

NO_ORIENTATION = "no orientation in the header: left and right are a guess"


def canonical(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Permute and flip axes until they run closest to right, anterior, superior.

    Args:
        array: (x, y, z) or (x, y, z, c) as stored.
        affine: 4 x 4, stored voxel -> RAS world mm.

    Returns:
        The array in RAS order and the affine that leads from its voxels to the same world.
    """
    orientation = io_orientation(affine)
    return apply_orientation(array, orientation), affine @ inv_ornt_aff(orientation, array.shape[:3])


def placed(array: np.ndarray, affine: np.ndarray, warnings: tuple[str, ...] = (), modality: str = "") -> Image:
    """Make an image of stored voxels: volumes come out in RAS order, a single slice stays as it is stored.

    Args:
        array: (x, y, c), or (x, y, z, c).
        affine: 4 x 4, stored voxel -> RAS world mm.
        warnings: what a person should know.
        modality: as in :class:`~ssl_med.data.record.Image`.

    Raises:
        Unreadable: the affine is not finite or collapses an axis.
    """
    check_affine(affine)
    if array.ndim == 4 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim == 3:
        spacing = tuple(voxel_sizes(affine)[1::-1].tolist())
        return Image(array.transpose(2, 1, 0), spacing, affine, modality, warnings)
    array, turned = canonical(array, affine)
    spacing = tuple(voxel_sizes(turned)[::-1].tolist())
    return Image(array.transpose(3, 2, 1, 0), spacing, turned, modality, warnings, stored=affine)


def affine_from(steps: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Affine of a grid given by the way from voxel to voxel.

    Args:
        steps: (world, axes) mm, column i leads to the next voxel along axis i; world and axes are 2 or 3. A plane in
            space gets its unit normal as its third axis.
        origin: (world,) mm, centre of the first voxel.

    Returns:
        4 x 4, in the world of ``steps``.

    Raises:
        Unreadable: three axes in a plane world.
    """
    world, axes = steps.shape
    if axes > world:
        raise Unreadable(f"{axes} axes in a space of {world} dimensions")
    affine = np.eye(4)
    affine[:world, :axes] = steps
    affine[:world, 3] = origin
    if (world, axes) == (3, 2):
        normal = np.cross(steps[:, 0], steps[:, 1])
        length = np.linalg.norm(normal)
        affine[:3, 2] = normal / length if length > 0 else 0.0  # two parallel axes: refused by `check_affine`
    return affine
