"""Frames of one DICOM file, decoded one by one by a decoder that survives damaged pixels; bright is high."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, get_decoder, iter_pixels
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from ssl_med.data.readers.dicom_header import HEADER_BYTES, frames_of, is_inverted, opened, parsed, refusing
from ssl_med.data.record import Unreadable

_SAFE = {RLELossless: ("pydicom",), JPEGBaseline8Bit: ("pillow",)}
_SAFE |= dict.fromkeys((JPEG2000Lossless, JPEG2000), ("pylibjpeg", "pillow"))
_SAFE |= dict.fromkeys((HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K), ("pylibjpeg",))
_SAFE |= dict.fromkeys((JPEGLSLossless, JPEGLSNearLossless), ("pyjpegls",))
"""Decoders that fuzzing did not crash. GDCM ends the whole process on a damaged JPEG: it works apart."""

_DEEP_COLOURS = ("RGB", "YBR_RCT", "YBR_ICT")
"""Colour that has its meaning in 16 bits too: RGB, and what JPEG 2000 turns into it while it decodes."""


def syntax_of(header: Dataset) -> UID:
    """Transfer syntax; empty where the file does not name one."""
    return UID(str(header.file_meta.get("TransferSyntaxUID", "")))


def is_packed(header: Dataset) -> bool:
    """The frames are compressed one by one."""
    syntax = syntax_of(header)
    return syntax.is_transfer_syntax and syntax.is_compressed


def pixel_bytes(header: Dataset) -> int:
    """Bytes of all frames once unpacked, as the header announces them."""
    samples, bits = int(header.get("SamplesPerPixel") or 1), int(header.get("BitsAllocated") or 8)
    half = header.get("PhotometricInterpretation") == "YBR_FULL_422" and not is_packed(header)
    values = frames_of(header) * int(header.Rows) * int(header.Columns) * samples
    return -(-(values * 2 // 3 if half else values) * bits // 8)


def plugin_for(header: Dataset) -> tuple[str, bool]:
    """Name of pydicom's plugin that decodes a file (empty: none is needed), and whether it must work apart.

    Raises:
        Unreadable: no decoder is installed, or none exists.
    """
    syntax = syntax_of(header)
    if not is_packed(header):
        return "", False
    try:
        available = get_decoder(syntax).available_plugins
    except NotImplementedError:
        raise Unreadable(f"pixels cannot be decoded, transfer syntax {spoken(syntax)}") from None
    safe = [plugin for plugin in _SAFE.get(syntax, ()) if plugin in available]
    if not (safe or available):
        raise Unreadable(f"pixels in {spoken(syntax)} need a decoder: pip install 'ssl_med[dicom]'")
    return (safe or available)[0], not safe


def spoken(syntax: UID) -> str:
    """Name of a transfer syntax, for a person."""
    return syntax.name if syntax.is_transfer_syntax else "unknown"  # a broken one could hold anything


def decoded(file: Path, header: Dataset, plugin: str) -> Iterator[np.ndarray]:
    """Stored values (rows, columns, c) of each frame, colour as RGB of 8 or 16 bits.

    Args:
        file: of one or more frames; ``header``: of it.
        plugin: of pydicom, from :func:`plugin_for`.

    Raises:
        Unreadable: truncated or damaged pixels, a kind of colour that is not read at its depth.
    """
    with (
        refusing("not a DICOM file, or a broken one"),
        opened(file, HEADER_BYTES + pixel_bytes(header)) as stream,
    ):
        dataset = parsed(stream, pixels=True)
    with refusing(f"pixels cannot be decoded, transfer syntax {spoken(syntax_of(dataset))}"):
        _check_surplus(dataset)
        for frame in iter_pixels(dataset, decoding_plugin=plugin):
            yield _shown(frame, dataset)


def _check_surplus(dataset: Dataset) -> None:
    """Plain pixels beyond the announced ones mean that a size in the header is wrong, and the image skewed."""
    if is_packed(dataset) or "PixelData" not in dataset:
        return
    surplus = dataset.PixelData[pixel_bytes(dataset) :]
    if len(surplus) > 1 and any(surplus):  # zeros are padding
        raise Unreadable(f"{len(surplus)} bytes more pixels than the header announces")


def _shown(frame: np.ndarray, dataset: Dataset) -> np.ndarray:
    """One frame as (rows, columns, c), bright is high."""
    photometric = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
    colours = 1 if photometric.startswith("MONOCHROME") else 3
    if photometric == "PALETTE COLOR":
        frame = apply_color_lut(frame, dataset)
        frame = (frame >> 8).astype(np.uint8) if frame.dtype == np.uint16 else frame
    elif is_inverted(dataset):
        frame = _inverted(frame, dataset)
    if colours == 3 and frame.dtype != np.uint8 and (frame.dtype != np.uint16 or photometric not in _DEEP_COLOURS):
        raise Unreadable(f"{photometric} colour of type {frame.dtype}, expected 8 bits, or RGB of 16 bits")
    return frame.reshape(int(dataset.Rows), int(dataset.Columns), colours)


def _inverted(frame: np.ndarray, dataset: Dataset) -> np.ndarray:
    if frame.dtype.kind == "f":
        return -frame
    highest = -1 if dataset.PixelRepresentation else 2 ** int(dataset.BitsStored) - 1
    if frame.max() > highest and not dataset.PixelRepresentation:
        raise Unreadable("values beyond BitsStored")
    return (highest - frame).astype(frame.dtype)
