"""NIfTI-1 and NIfTI-2 volumes, read to the last byte into RAS order, and the way back to the source's own grid."""

import gzip
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.imageglobals import LoggingOutputSuppressor
from nibabel.nifti1 import Nifti1Header, Nifti1Image
from nibabel.nifti2 import Nifti2Header, Nifti2Image
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError

from ssl_med.data.readers.gate import DEFAULT_LIMITS, Limits, Stream, check_affine, check_shape, read_exactly
from ssl_med.data.record import Image, Record, Unreadable

_RAS = np.array([[0, 1], [1, 1], [2, 1]])
_MILLIMETRES = {"unknown": 1.0, "mm": 1.0, "meter": 1e3, "micron": 1e-3}
_GEOMETRY = ("pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y")
_GEOMETRY += ("qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units")


@dataclass(frozen=True)
class _Source:
    """What the header of a file says, checked."""

    header: Nifti1Header
    shape: tuple[int, ...]  # (x, y) or (x, y, z)
    affine: np.ndarray  # of the file as stored, mm
    offset: int  # bytes before the first voxel
    warnings: tuple[str, ...]

    @property
    def dtype(self) -> np.dtype:
        return self.header.get_data_dtype()


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


def read(record: Record, limits: Limits = DEFAULT_LIMITS) -> Image:
    """Read a ``.nii`` or ``.nii.gz`` file; the content, not the name, says whether it is packed.

    Volumes come out in RAS order. A file with two axes, or with one slice as its third axis, is a 2D image and stays
    as it is stored.

    Raises:
        Unreadable: not NIfTI, cut short, damaged, too large, a time series, or without sound geometry.
    """
    with _stream(record.files[0]) as stream:
        source = _source(stream, limits)
        raw = read_exactly(stream, prod(source.shape) * source.dtype.itemsize)
    array = _scaled(raw, source)
    if len(source.shape) == 2:
        spacing = tuple(voxel_sizes(source.affine)[1::-1].tolist())
        return Image(np.moveaxis(array, -1, 0).swapaxes(1, 2), spacing, source.affine, warnings=source.warnings)
    array, affine = canonical(array, source.affine)
    spacing = tuple(voxel_sizes(affine)[::-1].tolist())
    return Image(array.transpose(3, 2, 1, 0), spacing, affine, warnings=source.warnings)


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
    with _stream(source_file) as stream:
        source = _source(stream, limits)
    expected = source.shape[::-1]
    if len(source.shape) == 3:
        orientation = io_orientation(source.affine)
        expected = tuple(source.shape[int(axis)] for axis in np.argsort(orientation[:, 0]))[::-1]
    if array.shape != expected:
        raise Unreadable(f"prediction has shape {array.shape}, the source's grid is {expected} in (z, y, x) order")
    stored = array.transpose()
    if len(source.shape) == 3:
        stored = apply_orientation(stored, ornt_transform(_RAS, orientation))
    return _with_geometry(np.ascontiguousarray(stored).reshape(_stored_shape(source)), source.header)


def _stored_shape(source: _Source) -> tuple[int, ...]:
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


@contextmanager
def _stream(file: Path) -> Iterator[Stream]:
    with file.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if not packed:
            yield raw
            return
        try:
            with gzip.open(raw) as stream:
                yield stream
        except (gzip.BadGzipFile, zlib.error, EOFError, struct.error) as error:
            reason = "cut short" if isinstance(error, EOFError) else "damaged or wrong checksum"
            raise Unreadable(f"gzip stream is {reason}") from None


def _source(stream: Stream, limits: Limits) -> _Source:
    """Read and check everything before the first voxel; the stream then stands at the data."""
    start = stream.read(348)
    size = next((n for n in (348, 540) if start[:4] in (struct.pack("<i", n), struct.pack(">i", n))), None)
    if size is None:
        raise Unreadable("not a NIfTI file")
    block = start + stream.read(size - 348)
    if len(block) < size:
        raise Unreadable("header cut short")
    header_class = Nifti1Header if size == 348 else Nifti2Header
    header, warnings = _checked(block, header_class)
    shape = _space(header)
    check_shape(shape, header.get_data_dtype().itemsize, limits)
    offset = int(header["vox_offset"]) or size + 4
    if not size + 4 <= offset <= limits.size:
        raise Unreadable(f"data offset {offset} is impossible")
    _skip(stream, offset - size)
    affine, units = _affine(header)
    return _Source(header, shape, affine, offset, warnings + units)


def _checked(block: bytes, header_class: type[Nifti1Header]) -> tuple[Nifti1Header, tuple[str, ...]]:
    raw = header_class(block, check=False)
    magic = bytes(raw["magic"].tobytes())[:3]
    if magic not in (b"n+1", b"n+2"):
        pair = magic in (b"ni1", b"ni2")
        raise Unreadable("header of a .hdr/.img pair, expected one .nii file" if pair else "not a NIfTI file")
    if not 1 <= raw["dim"][0] <= 7:
        raise Unreadable(f"{raw['dim'][0]} axes in the header")
    _check_pixdim(raw)
    _check_type(raw)
    try:
        with LoggingOutputSuppressor():  # what nibabel mends is told in Image.warnings instead
            return header_class(block, check=True), _complaints(header_class, block)
    except HeaderDataError as error:
        raise Unreadable(f"broken NIfTI header: {error}") from None


def _check_type(raw: Nifti1Header) -> None:
    try:
        dtype = raw.get_data_dtype()
    except (HeaderDataError, KeyError):
        raise Unreadable(f"unknown data type {raw['datatype']} in the header") from None
    if dtype.itemsize == 0:
        raise Unreadable(f"data type {raw['datatype']} in the header holds no intensities")
    if raw["bitpix"] != dtype.itemsize * 8:
        raise Unreadable(f"header disagrees with itself: {raw['bitpix']} bits for {dtype}")


def _complaints(header_class: type[Nifti1Header], block: bytes) -> tuple[str, ...]:
    return tuple(f"NIfTI header: {line}" for line in header_class.diagnose_binaryblock(block).splitlines())


def _check_pixdim(raw: Nifti1Header) -> None:
    """Spacing of zero is only harmless where an sform replaces it; nibabel would mend it to 1 mm."""
    axes = min(3, int(raw["dim"][0]))
    steps = np.array(raw["pixdim"], np.float64)[1 : axes + 1]
    if int(raw["sform_code"]) <= 0 and not (np.isfinite(steps).all() and (steps > 0).all()):
        raise Unreadable(f"spacing {tuple(steps.tolist())} is not positive and finite")


def _space(header: Nifti1Header) -> tuple[int, ...]:
    axes = int(header["dim"][0])
    shape = [int(length) for length in header["dim"][1 : axes + 1]]
    if min(shape) <= 0:
        raise Unreadable(f"an axis of size zero: shape {tuple(shape)}")
    while len(shape) > 2 and shape[-1] == 1:
        shape.pop()
    if len(shape) == 4:
        raise Unreadable("time series, 4 axes")
    if len(shape) not in (2, 3):
        raise Unreadable(f"{len(shape)} axes, expected 2 or 3")
    return tuple(shape)


def _skip(stream: Stream, count: int) -> None:
    while count > 0:
        chunk = stream.read(min(count, 1 << 20))
        if not chunk:
            raise Unreadable("header cut short")
        count -= len(chunk)


def _affine(header: Nifti1Header) -> tuple[np.ndarray, tuple[str, ...]]:
    try:
        affine = np.array(header.get_best_affine(), np.float64)
        unit = str(header.get_xyzt_units()[0])
    except (HeaderDataError, KeyError, ValueError):
        raise Unreadable("header holds no usable affine") from None
    check_affine(affine)
    warnings: tuple[str, ...] = ()
    if int(header["sform_code"]) <= 0 and int(header["qform_code"]) <= 0:
        warnings = ("no orientation in the header: left and right are a guess",)
    if _MILLIMETRES[unit] != 1.0:
        affine[:3] *= _MILLIMETRES[unit]
        warnings += (f"lengths given in {unit}, turned into mm",)
    return affine, warnings


def _scaled(raw: np.ndarray, source: _Source) -> np.ndarray:
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
