"""What the header of an image says, without its voxels: shape, spacing, modality. For counting large folders."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from nibabel.affines import voxel_sizes

from ssl_med.data.readers import spacing_from
from ssl_med.data.readers.gate import DEFAULT_LIMITS, check_affine
from ssl_med.data.record import Record, SetAside, Unreadable


@dataclass(frozen=True)
class Header:
    """As the image would come out of :func:`ssl_med.data.readers.read`.

    Attributes:
        shape: along space, memory order.
        spacing: mm per voxel along ``shape``; 1.0 where unknown.
        modality: empty where unknown.
        sized: the spacing is known.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    modality: str = ""
    sized: bool = True


def peek(record: Record) -> Header | None:
    """The header of an image; None where nothing short of reading it tells the shape (films, slides, rows of arrays).

    Raises:
        SetAside: sound, but not of a kind that is wanted.
        Unreadable: the file is missing or empty, or its header is broken.
    """
    if record.aside:
        raise SetAside(f"set aside: {record.aside}")
    for file in record.files:
        if not file.is_file():
            raise Unreadable("file is missing")
        if file.stat().st_size == 0:
            raise Unreadable("empty file")
    look = _LOOKS.get(record.reader)
    try:
        header = look(record) if look else None
    except OSError as error:
        raise Unreadable(f"cannot be opened: {error.strerror or type(error).__name__}") from None
    if header is None or header.sized or not record.spacing:
        return header
    return replace(header, spacing=spacing_from(record, header.spacing), sized=True)


def tells(record: Record) -> bool:
    """Whether there is a header to look at for the reader and the kind of file of a record."""
    return record.reader in _LOOKS and record.files[0].suffix.lower() != ".npz"


def _nifti(record: Record) -> Header:
    from ssl_med.data.readers.nifti_header import read_header
    from ssl_med.data.readers.packed import opened

    with opened(record.files[0]) as stream:
        source = read_header(stream, DEFAULT_LIMITS)
    return _placed(source.shape, source.affine, record.modality)


def _analyze(record: Record) -> Header:
    from ssl_med.data.readers.analyze import voxel_file
    from ssl_med.data.readers.nifti_header import read_header
    from ssl_med.data.readers.packed import opened

    with opened(record.files[0]) as stream:
        source = read_header(stream, DEFAULT_LIMITS, pair=True)
    voxel_file(record.files[0])
    return _placed(source.shape, source.affine, record.modality)


def _nrrd(record: Record) -> Header:
    from ssl_med.data.readers.nrrd import grid_of_file, voxel_file

    shape, affine = grid_of_file(record.files[0])
    voxel_file(record.files[0])
    return _placed(shape, affine, record.modality)


def _metaimage(record: Record) -> Header:
    from ssl_med.data.readers.metaimage import grid_of, voxel_file

    shape, affine, modality = grid_of(record.files[0])
    voxel_file(record.files[0])
    return _placed(shape, affine, modality or record.modality)


def _array(record: Record) -> Header | None:
    from ssl_med.data.readers.array import shape_of

    if not tells(record):
        return None
    shape = shape_of(record.files[0])
    return Header(shape, (1.0,) * len(shape), record.modality, sized=False)


def _dicom(record: Record) -> Header:
    from ssl_med.data.readers.dicom_geometry import is_film, planes_of, stack
    from ssl_med.data.readers.dicom_header import check_headers, modality_of, quiet, read_header, refusing

    with quiet():
        headers = [read_header(file) for file in record.files]
        with refusing("header holds values that break the standard"):
            check_headers(headers, DEFAULT_LIMITS)
            planes = [plane for header in headers for plane in planes_of(header)]
    rows, columns = int(headers[0].Rows), int(headers[0].Columns)
    modality = modality_of(headers[0]) or record.modality
    spacing = tuple(np.nan_to_num(planes[0].spacing, nan=1.0).tolist())
    sized = any(step != 1.0 for step in spacing)
    if is_film(headers[0]):
        return Header((len(planes), rows, columns), (1.0, *spacing), modality, sized)  # time is counted in frames
    if record.item is not None or len(planes) == 1:
        return Header((rows, columns), spacing, modality, sized or stack(planes[:1]).affine is not None)
    affine = stack(planes).affine
    if affine is None:
        raise Unreadable("several slices without position")
    return _oriented((columns, rows, len(planes)), affine, modality)


def _raster(record: Record) -> Header:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(record.files[0]) as picture:
            return Header((picture.height, picture.width), (1.0, 1.0), record.modality, sized=False)
    except (UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Unreadable(f"damaged picture ({type(error).__name__})") from None


def _placed(shape: tuple[int, ...], affine: np.ndarray, modality: str) -> Header:
    """As :func:`ssl_med.data.readers.geometry.placed`: volumes in RAS order, a single slice as it is stored."""
    check_affine(affine)
    if len(shape) == 2 or shape[2] == 1:
        return Header(shape[1::-1], tuple(voxel_sizes(affine)[1::-1].tolist()), modality)
    return _oriented(shape, affine, modality)


def _oriented(shape: tuple[int, ...], affine: np.ndarray, modality: str) -> Header:
    """Sizes (x, y, z) as stored to memory order (z, y, x) in RAS."""
    from nibabel.orientations import io_orientation

    order = np.argsort(io_orientation(affine)[:, 0])
    sizes, spacing = np.array(shape)[order], voxel_sizes(affine)[order]
    return Header(tuple(sizes[::-1].tolist()), tuple(spacing[::-1].tolist()), modality)


_LOOKS: dict[str, Callable[[Record], Header | None]] = {
    "nifti": _nifti,
    "analyze": _analyze,
    "nrrd": _nrrd,
    "metaimage": _metaimage,
    "dicom": _dicom,
    "raster": _raster,
    "array": _array,
}
