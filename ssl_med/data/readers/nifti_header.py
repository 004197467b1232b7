"""The header of a NIfTI file or of an Analyze pair, checked before the first voxel is allocated."""

import struct
from dataclasses import dataclass

import numpy as np
from nibabel.imageglobals import LoggingOutputSuppressor
from nibabel.nifti1 import Nifti1Header, Nifti1PairHeader
from nibabel.nifti2 import Nifti2Header, Nifti2PairHeader
from nibabel.spatialimages import HeaderDataError
from nibabel.spm2analyze import Spm2AnalyzeHeader
from nibabel.spm99analyze import SpmAnalyzeHeader

from ssl_med.data.readers.gate import Limits, Stream, check_affine, check_shape
from ssl_med.data.readers.geometry import NO_ORIENTATION
from ssl_med.data.record import SetAside, Unreadable

_MILLIMETRES = {"unknown": 1.0, "mm": 1.0, "meter": 1e3, "micron": 1e-3}


@dataclass(frozen=True)
class Source:
    """What the header of a file says, checked.

    Attributes:
        header: of nibabel.
        shape: (x, y) or (x, y, z).
        affine: of the file as stored, mm.
        skip: bytes between the header and the first voxel; of a pair, from the start of its ``.img``.
        warnings: what a person should know.
    """

    header: SpmAnalyzeHeader
    shape: tuple[int, ...]
    affine: np.ndarray
    skip: int
    warnings: tuple[str, ...]

    @property
    def dtype(self) -> np.dtype:
        """Type of the stored values."""
        return self.header.get_data_dtype()


def read_header(stream: Stream, limits: Limits, pair: bool = False) -> Source:
    """Read and check a header; the stream then stands behind it.

    Args:
        stream: stands at the start of the file.
        limits: how large an image may be.
        pair: a ``.hdr`` file whose voxels lie in an ``.img``, NIfTI or the older Analyze 7.5.

    Raises:
        Unreadable: another kind of file, or a header that is broken or claims too much.
    """
    start = stream.read(348)
    size = next((n for n in (348, 540) if start[:4] in (struct.pack("<i", n), struct.pack(">i", n))), None)
    if size is None:
        raise Unreadable("not a NIfTI file")
    block = start + stream.read(size - 348)
    if len(block) < size:
        raise Unreadable("header cut short")
    header, warnings = _checked(block, _header_class(block, pair))
    shape = _space(header)
    check_shape(shape, header.get_data_dtype().itemsize, limits)
    affine, units = _affine(header)
    return Source(header, shape, affine, _skipped(header, size, pair, limits), warnings + units)


def _skipped(header: SpmAnalyzeHeader, size: int, pair: bool, limits: Limits) -> int:
    offset = header["vox_offset"]
    if not np.isfinite(offset):
        raise Unreadable("data offset is not finite")
    first = 0 if pair else size + 4  # four bytes say whether extensions follow
    offset = int(offset) or first
    if not first <= offset <= limits.size:
        raise Unreadable(f"data offset {offset} is impossible")
    return offset - (0 if pair else size)


def _header_class(block: bytes, pair: bool) -> type[SpmAnalyzeHeader]:
    place, single, double = (344, b"n+1", b"ni1") if len(block) == 348 else (4, b"n+2", b"ni2")
    magic = block[place : place + 3]
    if magic not in (single, double):
        if pair and len(block) == 348:
            return Spm2AnalyzeHeader
        raise Unreadable("not a NIfTI file")
    if pair != (magic == double):
        found = "one .nii file, expected a .hdr/.img pair" if pair else ".hdr/.img pair, expected one .nii file"
        raise Unreadable(f"header of a {found}")
    if pair:
        return Nifti1PairHeader if len(block) == 348 else Nifti2PairHeader
    return Nifti1Header if len(block) == 348 else Nifti2Header


def _checked(block: bytes, header_class: type[SpmAnalyzeHeader]) -> tuple[SpmAnalyzeHeader, tuple[str, ...]]:
    raw = header_class(block, check=False)
    if not 1 <= raw["dim"][0] <= 7:
        raise Unreadable(f"{raw['dim'][0]} axes in the header")
    _check_pixdim(raw)
    _check_type(raw)
    try:
        with LoggingOutputSuppressor():  # what nibabel mends is told in Image.warnings instead
            return header_class(block, check=True), _complaints(header_class, block)
    except HeaderDataError as error:
        raise Unreadable(f"broken NIfTI header: {error}") from None


def _check_type(raw: SpmAnalyzeHeader) -> None:
    try:
        dtype = raw.get_data_dtype()
    except (HeaderDataError, KeyError):
        raise Unreadable(f"unknown data type {raw['datatype']} in the header") from None
    if dtype.itemsize == 0:
        raise Unreadable(f"data type {raw['datatype']} in the header holds no intensities")
    if raw["bitpix"] != dtype.itemsize * 8:
        raise Unreadable(f"header disagrees with itself: {raw['bitpix']} bits for {dtype}")


def _complaints(header_class: type[SpmAnalyzeHeader], block: bytes) -> tuple[str, ...]:
    return tuple(f"NIfTI header: {line}" for line in header_class.diagnose_binaryblock(block).splitlines())


def _check_pixdim(raw: SpmAnalyzeHeader) -> None:
    """Spacing of zero is only harmless where an sform replaces it; nibabel would mend it to 1 mm."""
    if "sform_code" in raw and int(raw["sform_code"]) > 0:
        return
    axes = min(3, int(raw["dim"][0]))
    steps = np.array(raw["pixdim"], np.float64)[1 : axes + 1]
    if not (np.isfinite(steps).all() and (steps > 0).all()):
        raise Unreadable(f"spacing {tuple(steps.tolist())} is not positive and finite")


def _space(header: SpmAnalyzeHeader) -> tuple[int, ...]:
    axes = int(header["dim"][0])
    shape = [int(length) for length in header["dim"][1 : axes + 1]]
    if min(shape) <= 0:
        raise Unreadable(f"an axis of size zero: shape {tuple(shape)}")
    while len(shape) > 2 and shape[-1] == 1:
        shape.pop()
    if len(shape) == 4:
        raise SetAside("time series, 4 axes")
    if len(shape) not in (2, 3):
        raise Unreadable(f"{len(shape)} axes, expected 2 or 3")
    return tuple(shape)


def _affine(header: SpmAnalyzeHeader) -> tuple[np.ndarray, tuple[str, ...]]:
    if not isinstance(header, Nifti1Header):  # Analyze: SPM's origin where there is one, first axis towards the left
        affine = np.array(header.get_best_affine(), np.float64)
        check_affine(affine)
        return affine, (NO_ORIENTATION,)
    try:
        affine = np.array(header.get_best_affine(), np.float64)
        unit = str(header.get_xyzt_units()[0])
    except (HeaderDataError, KeyError, ValueError):
        raise Unreadable("header holds no usable affine") from None
    check_affine(affine)
    warnings: tuple[str, ...] = ()
    if int(header["sform_code"]) <= 0 and int(header["qform_code"]) <= 0:
        warnings = (NO_ORIENTATION,)
    if _MILLIMETRES[unit] != 1.0:
        affine[:3] *= _MILLIMETRES[unit]
        warnings += (f"lengths given in {unit}, turned into mm",)
    return affine, warnings
