"""PNG, JPEG and TIFF pictures: 8 and 16 bit, grey or colour, never more than one page."""

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from ssl_med.data.readers.gate import DEFAULT_LIMITS, Limits, check_shape
from ssl_med.data.record import Image, Record, Unreadable

_FORMATS = ("PNG", "JPEG", "TIFF")
_AS_STORED = {"1", "L", "I", "F", "RGB"}
_GREY = {"LA", "La"}
_ORIENTATION = 0x0112
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, TypeError, KeyError, OverflowError, struct.error, zlib.error)
"""What Pillow raises on damaged files."""


def read(record: Record, limits: Limits = DEFAULT_LIMITS, palette: bool = True) -> Image:
    """Read a picture as (c, y, x) with one or three channels and spacing 1.0.

    One bit per pixel becomes 0 and 1, transparency is dropped, other colour systems become RGB.

    Args:
        record: its first file is read.
        limits: how large a picture may be.
        palette: turn palette pictures into RGB; False keeps the indices, which are the labels of a mask.

    Raises:
        Unreadable: not one of the formats, damaged, too large, or of several pages.
    """
    data = _bytes(record.files[0], limits)
    with _contained():
        with _open(data) as picture:
            _check(picture, limits)
        with _open(data) as picture:  # Pillow wants a fresh start after checking
            notes, array = _notes(picture), _array(picture, palette)
    return Image(np.moveaxis(array, -1, 0), (1.0, 1.0), warnings=notes)


def _check(picture: Pillow.Image, limits: Limits) -> None:
    itemsize = 4 if picture.mode in ("I", "F") else 2
    check_shape((len(picture.getbands()), picture.height, picture.width), itemsize, limits)
    pages = getattr(picture, "n_frames", 1)
    if pages > 1 and picture.format != "JPEG":  # phones put a preview behind the picture
        raise Unreadable(f"{pages} pages, expected one")
    if picture.format == "PNG":
        picture.verify()  # decoding alone does not look at the checksums


def _bytes(path: Path, limits: Limits) -> bytes:
    if path.stat().st_size > limits.size:
        raise Unreadable(f"file has {path.stat().st_size} bytes, the limit is {limits.size}")
    return path.read_bytes()


def _open(data: bytes) -> Pillow.Image:
    try:
        return Pillow.open(BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        raise Unreadable("not a PNG, JPEG or TIFF picture") from None


@contextmanager
def _contained() -> Iterator[None]:
    """Turn what Pillow raises into a refusal, without its words: they can hold a path."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken EXIF blocks and the like, which do not touch the pixels
            warnings.simplefilter("error", Pillow.DecompressionBombWarning)
            yield
    except (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning):
        raise Unreadable(f"more than {Pillow.MAX_IMAGE_PIXELS} pixels: refused as a decompression bomb") from None
    except _BROKEN as error:
        raise Unreadable(f"damaged or cut short ({type(error).__name__})") from None


def _notes(picture: Pillow.Image) -> tuple[str, ...]:
    deep = any(";16" in str(tile[3]) for tile in getattr(picture, "tile", ())) and picture.mode == "RGB"
    notes = ("16-bit colour read as 8 bit",) if deep else ()
    if picture.getexif().get(_ORIENTATION, 1) != 1:
        notes += ("EXIF rotation not applied",)
    return notes


def _array(picture: Pillow.Image, palette: bool) -> np.ndarray:
    mode = picture.mode
    if mode in _GREY:
        picture = picture.convert("L")
    elif mode not in _AS_STORED and not mode.startswith("I;16") and (palette or mode != "P"):
        picture = picture.convert("RGB")
    array = np.array(picture)
    return array if array.ndim == 3 else array[..., None]
