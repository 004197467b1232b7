"""The numbers of DICOM images: lengths checked first, then frames rescaled and stacked in order."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from ssl_med.data.readers.dicom_apart import decoded_apart
from ssl_med.data.readers.dicom_frames import decoded, is_packed, pixel_bytes, plugin_for
from ssl_med.data.readers.dicom_geometry import Plane
from ssl_med.data.readers.dicom_header import is_deflated
from ssl_med.data.record import Unreadable

_MOST_PACKED = 1000
"""No picture that is not constant packs better; one that claims to is a bomb."""

_BOMB_FLOOR = 1 << 26
"""Bytes that a picture may unpack to however small its file is."""


def check_lengths(files: Sequence[Path], headers: Sequence[Dataset]) -> None:
    """Compare what headers announce with how long their files are, before anything is allocated.

    Raises:
        Unreadable: a file too short for its pixels, or one that would unpack to very much more than it is.
    """
    for file, header in zip(files, headers, strict=True):
        announced, length = pixel_bytes(header), file.stat().st_size
        if not (is_packed(header) or is_deflated(file)) and announced > length:
            raise Unreadable(f"pixels cut short: header announces {announced} bytes, the file has {length}")
        if announced > max(_BOMB_FLOOR, _MOST_PACKED * length):
            raise Unreadable(f"header announces {announced} bytes of pixels in a file of {length}")


def values_of(
    files: Sequence[Path],
    headers: Sequence[Dataset],
    planes: Sequence[Plane],
    indices: Sequence[int],
    order: np.ndarray,
) -> np.ndarray:
    """Decode, rescale and stack the frames of one image.

    Args:
        files: of the image; ``headers``: of each.
        planes: of all frames of all files, in their order.
        indices: the frames that are wanted.
        order: of the wanted frames along the normal.

    Returns:
        (slices, rows, columns, c): the stored integers where nothing is rescaled, int16 or int32 where the rescaled
        ones are whole, float32 otherwise.

    Raises:
        Unreadable: truncated or damaged pixels, more or fewer frames than announced, no decoder.
    """
    wanted = {index: int(place) for index, place in zip(indices, np.argsort(order), strict=True)}
    rescales = {planes[index].rescale for index in indices}
    stored = rescales == {(1.0, 0.0)}
    whole = all(float(number).is_integer() for rescale in rescales for number in rescale)
    volume, number = np.empty(0), -1
    for number, frame in enumerate(_frames(files, headers)):
        if number not in wanted:
            continue
        if volume.size == 0:
            dtype = frame.dtype if stored else np.int32 if whole and frame.dtype.kind in "iu" else np.float32
            volume = np.empty((len(wanted), *frame.shape), dtype)
        _put(volume, wanted[number], frame, planes[number].rescale)
    if number + 1 != len(planes):
        raise Unreadable(f"{number + 1} frames of pixels where the header announces {len(planes)}")
    return volume if stored or volume.dtype.kind == "f" else _narrow(volume)


def _put(volume: np.ndarray, place: int, frame: np.ndarray, rescale: tuple[float, ...]) -> None:
    if frame.shape != volume.shape[1:]:
        raise Unreadable(f"slices of shape {frame.shape} and {volume.shape[1:]} in one series")
    if rescale != (1.0, 0.0):
        frame = frame * np.float64(rescale[0]) + rescale[1]
    if volume.dtype.kind in "iu":
        limits = np.iinfo(volume.dtype)
        if frame.min() < limits.min or frame.max() > limits.max:
            raise Unreadable("values beyond the range of their type")
    with np.errstate(over="ignore"):  # what does not fit becomes infinite and is refused by the gate
        volume[place] = frame


def _narrow(volume: np.ndarray) -> np.ndarray:
    small = volume.min() >= -(2**15) and volume.max() < 2**15
    return volume.astype(np.int16) if small else volume


def _frames(files: Sequence[Path], headers: Sequence[Dataset]) -> Iterator[np.ndarray]:
    """All frames of all files; files that need a decoder which may crash are decoded apart, all together."""
    plugins = [plugin_for(header) for header in headers]
    if any(apart for _, apart in plugins):
        yield from decoded_apart(files)
        return
    for file, header, (plugin, _) in zip(files, headers, plugins, strict=True):
        yield from decoded(file, header, plugin)
