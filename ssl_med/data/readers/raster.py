"""PNG, JPEG and TIFF pictures: 1, 8 and 16 bit, grey or colour; the pages of a TIFF are the slices of a volume."""

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from ssl_med.data.readers import jpeg12, png16, tiff
from ssl_med.data.readers.gate import DEFAULT_LIMITS, Limits, check_shape
from ssl_med.data.readers.packed import Bounded
from ssl_med.data.record import Image, Record, Unreadable

_FORMATS = ("PNG", "JPEG", "TIFF")
_AS_STORED = {"1", "L", "I", "F", "RGB"}
_GREY = {"LA", "La"}
_ORIENTATION = 0x0112
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, TypeError, KeyError, IndexError, OverflowError)
_BROKEN += (AttributeError, RuntimeError, AssertionError, ZeroDivisionError, struct.error, zlib.error)
"""What Pillow and tifffile raise on damaged files."""


def read(record: Record, limits: Limits = DEFAULT_LIMITS, palette: bool = True) -> Image:
    """Read a picture as (c, y, x) with spacing 1.0, or the pages of a TIFF as (c, z, y, x).

    One bit per pixel becomes 0 and 1, transparency is dropped, other colour systems become RGB, 16 bits stay 16 bits,
    and the rotation that a camera wrote into the file is applied. The pixels of a JPEG and of an uncompressed or LZW
    TIFF carry no checksum: a flipped bit in them cannot always be known.

    Args:
        record: its first file is read.
        limits: how large a picture may be.
        palette: turn palette pictures into RGB; False keeps the indices, which are the labels of a mask.

    Raises:
        Unreadable: not one of the formats, damaged, too large, or of pages that are not one stack.
    """
    with Bounded(record.files[0]) as stream, contained():
        if tiff.is_tiff(stream.read(4)):
            return tiff.read(stream, limits, palette, decoded)
        size = stream.seek(0, 2)
        if size > limits.size:
            raise Unreadable(f"file has {size} bytes, the limit is {limits.size}")
        frame = jpeg12.frame_of(stream)
        if frame is not None and frame[0] > 8:
            return Image(np.moveaxis(jpeg12.decode(stream, frame, limits), -1, 0), (1.0, 1.0))
        with _open(stream) as picture:
            _check(picture, limits)
        with _open(stream) as picture:  # Pillow wants a fresh start after checking
            deep = png16.is_deep_colour(picture)  # asked first: Pillow forgets it once it has loaded the pixels
            array = decoded(picture, palette)
            orientation = picture.getexif().get(_ORIENTATION, 1)
        if deep:
            array = png16.decode(stream)
    notes = ("EXIF rotation applied",) if orientation in range(2, 9) else ()
    return Image(np.moveaxis(tiff.turned(array, orientation), -1, 0), (1.0, 1.0), warnings=notes)


def decoded(picture: Pillow.Image, palette: bool) -> np.ndarray:
    """Pixels (y, x, c) of an opened picture with one or three channels."""
    mode = picture.mode
    if mode in _GREY:
        picture = picture.convert("L")
    elif mode not in _AS_STORED and not mode.startswith("I;16") and (palette or mode != "P"):
        picture = picture.convert("RGB")
    array = np.array(picture)
    return array if array.ndim == 3 else array[..., None]


def _check(picture: Pillow.Image, limits: Limits) -> None:
    itemsize = 4 if picture.mode in ("I", "F") else 2
    check_shape((len(picture.getbands()), picture.height, picture.width), itemsize, limits)
    if picture.format == "PNG":
        pages = getattr(picture, "n_frames", 1)
        if pages > 1:
            raise Unreadable(f"animation of {pages} pictures, expected one")
        picture.verify()  # decoding alone does not look at the checksums


def _open(stream: BinaryIO) -> Pillow.Image:
    stream.seek(0)
    try:
        return Pillow.open(stream, formats=_FORMATS)
    except UnidentifiedImageError:
        raise Unreadable("not a PNG, JPEG or TIFF picture") from None


@contextmanager
def contained() -> Iterator[None]:
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
