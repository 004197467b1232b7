"""NIfTI-1 and NIfTI-2 volumes, read to the last byte into RAS order, and the way back to the source's own grid."""

from math import prod
from pathlib import Path
from typing import cast

import numpy as np
from nibabel.nifti1 import Nifti1Header, Nifti1Image
from nibabel.nifti2 import Nifti2Header, Nifti2Image
from nibabel.orientations import apply_orientation, io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError

from ssl_med.data.readers.gate import DEFAULT_LIMITS, Limits, Stream, read_exactly
from ssl_med.data.readers.geometry import canonical as canonical
from ssl_med.data.readers.geometry import placed
from ssl_med.data.readers.nifti_header import Source, read_header
from ssl_med.data.readers.packed import opened, skip
from ssl_med.data.record import Image, Record, Unreadable

_RAS = np.array([[0, 1], [1, 1], [2, 1]])
_GEOMETRY = ("pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y")
_GEOMETRY += ("qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units")


def read(record: Record, limits: Limits = DEFAULT_LIMITS) -> Image:
    """Read a ``.nii`` or ``.nii.gz`` file; the content, not the name, says whether it is packed.

    Volumes come out in RAS order. A file with two axes, or with one slice as its third axis, is a 2D image and stays
    as it is stored.

    Raises:
        Unreadable: not NIfTI, cut short, damaged, too large, a time series, or without sound geometry.
    """
    with opened(record.files[0]) as stream:
        source = read_header(stream, limits)
        return image_of(stream, source)


def image_of(stream: Stream, source: Source) -> Image:
    """Read the voxels that a header announces, to the last byte.

    Raises:
        Unreadable: cut short, too long, or values that are no intensities.
    """
    skip(stream, source.skip)
    raw = read_exactly(stream, prod(source.shape) * source.dtype.itemsize)
    return placed(_scaled(raw, source), source.affine, source.warnings)


def restore(array: np.ndarray, source_file: Path, limits: Limits = DEFAULT_LIMITS) -> Nifti1Image:
    """Bring a volume from the library's order back to the grid, orientation and geometry of the file it came from.

    Args:
        array: (z, y, x) as :func:`read` gives it without the channel axis, (y, x) for a 2D file; any plain type.
        source_file: the NIfTI file that was read. Of its header only the geometry is copied, no text.

    Returns:
        An image ready for ``nibabel.save``.

    Raises:
        Unreadable: the source is not a NIfTI file, or its grid has another shape.
    """
    with opened(source_file) as stream:
        source = read_header(stream, limits)
    expected = source.shape[::-1]
    if len(source.shape) == 3:
        orientation = io_orientation(source.affine)
        expected = tuple(source.shape[int(axis)] for axis in np.argsort(orientation[:, 0]))[::-1]
    if array.shape != expected:
        raise Unreadable(f"prediction has shape {array.shape}, the source's grid is {expected} in (z, y, x) order")
    stored = array.transpose()
    if len(source.shape) == 3:
        stored = apply_orientation(stored, ornt_transform(_RAS, orientation))
    header = cast(Nifti1Header, source.header)  # restored are NIfTI files only
    return _with_geometry(np.ascontiguousarray(stored).reshape(_stored_shape(source)), header)


def _stored_shape(source: Source) -> tuple[int, ...]:
    axes = min(3, int(source.header["dim"][0]))
    return (*source.shape, 1)[:axes] if len(source.shape) == 2 else source.shape


def _with_geometry(stored: np.ndarray, header: Nifti1Header) -> Nifti1Image:
    fresh = type(header)()
    fresh.set_data_dtype(stored.dtype)
    fresh.set_data_shape(stored.shape)
    for field in _GEOMETRY:
        fresh[field] = header[field]
    image_class = Nifti2Image if isinstance(header, Nifti2Header) else Nifti1Image
    return image_class(stored, None, fresh)


def _scaled(raw: np.ndarray, source: Source) -> np.ndarray:
    """Bytes -> (\\*space, c): the stored type where the header scales nothing, float32 otherwise."""
    stored = raw.view(source.dtype).reshape(source.shape, order="F")
    if stored.dtype.names:
        return np.stack([stored[name] for name in stored.dtype.names[:3]], axis=-1)  # colour; alpha is dropped
    if stored.dtype.kind not in "iuf":
        raise Unreadable(f"values of type {stored.dtype} are not intensities")
    try:
        slope, intercept = source.header.get_slope_inter()
    except HeaderDataError:
        raise Unreadable("scale or intercept of the header is not finite") from None
    if slope is None or intercept is None or (slope, intercept) == (1.0, 0.0):
        return stored[..., None]
    with np.errstate(over="ignore"):
        return (stored.astype(np.float64) * slope + intercept).astype(np.float32)[..., None]
