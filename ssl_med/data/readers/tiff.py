"""TIFF files: one page is a picture, pages of one size are the slices of a volume.

Pillow decodes what it keeps at full depth; several 16-bit channels, doubles and 32-bit counts go through ``tifffile``.
"""

import re
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import count
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image as Pillow
from PIL import TiffImagePlugin, UnidentifiedImageError

from ssl_med.data.readers.gate import Limits, check_shape
from ssl_med.data.record import Image, Unreadable

_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_REDUCED = 1 | 4
"""NewSubfileType: a smaller copy, or a transparency mask, of another page."""

_SUBFILE, _BITS, _PHOTOMETRIC, _DESCRIPTION, _ORIENTATION, _FORMAT = 254, 258, 262, 270, 274, 339
_COLOURS = {(0, 1), (1, 1), (2, 3), (5, 4)}
"""PhotometricInterpretation and channels without transparency: white is zero, black is zero, RGB, CMYK."""

_INK_SET = 332

_WITHOUT_CODECS = (1, 8, 32946)  # none and deflate; tifffile asks imagecodecs for the rest
_MAX_PAGES = 1 << 16

Decoder = Callable[[Pillow.Image, bool], np.ndarray]


class _Page(NamedTuple):
    size: tuple[int, ...]
    kind: str  # of its values
    channels: int
    itemsize: int
    number: int


def is_tiff(start: bytes) -> bool:
    """Whether a file that starts with these four bytes is a TIFF or BigTIFF."""
    return start in _MAGICS


def turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn pixels (y, x, c) upright.

    Args:
        array: as stored.
        orientation: the number of EXIF and TIFF 6.0 that says where the first row and column are seen.
    """
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array[:, ::-1] if orientation in (2, 3, 6, 7) else array


def read(stream: BinaryIO, limits: Limits, palette: bool, decode: Decoder) -> Image:
    """Read all pages that are no smaller copies of another.

    Args:
        stream: the file.
        limits: how large all pages together may be.
        palette: as in :func:`ssl_med.data.readers.raster.read`.
        decode: what turns an opened picture into (y, x, c).

    Raises:
        Unreadable: pages that are not one stack, too large, damaged.
    """
    stream.seek(0)
    try:
        warnings.filterwarnings("error", "Truncated File Read", UserWarning)  # Pillow would leave out the other pages
        with Pillow.open(stream, formats=("TIFF",)) as picture:
            assert isinstance(picture, TiffImagePlugin.TiffImageFile)
            if not _is_rounded(picture):
                return _by_pillow(picture, limits, palette, decode)
    except UserWarning:
        raise Unreadable("damaged or cut short: the list of its pages is broken") from None
    except UnidentifiedImageError:
        pass  # a kind of pixel that Pillow does not know
    stream.seek(0)
    return _by_tifffile(stream, limits)


def _is_rounded(picture: TiffImagePlugin.TiffImageFile) -> bool:
    """Whether Pillow would lose bits: several deep channels, or unsigned counts of 32 bits."""
    bits = picture.tag_v2.get(_BITS, (1,))
    return max(bits) > 8 and (len(bits) > 1 or (bits[0] == 32 and picture.tag_v2.get(_FORMAT, (1,))[0] == 1))


def _by_pillow(picture: TiffImagePlugin.TiffImageFile, limits: Limits, palette: bool, decode: Decoder) -> Image:
    pages, orientations = [], set()
    for number in _pages_of(picture):
        if _PHOTOMETRIC not in picture.tag_v2:
            raise Unreadable("a page does not say whether zero is black or white")  # Pillow would guess
        if not picture.tag_v2.get(_SUBFILE, 0) & _REDUCED:
            itemsize = 4 if picture.mode in ("I", "F") else 2
            channels = 1 if picture.mode in ("1", "L", "I", "F") or picture.mode.startswith("I;") else 3
            kind = f"{picture.mode} {picture.tag_v2.get(_BITS)}"  # Pillow calls deep colour RGB too
            pages.append(_Page(picture.size, kind, channels, itemsize, number))
            orientations.add(picture.tag_v2.get(_ORIENTATION, 1))
    picture.seek(0)
    _check(pages, str(picture.tag_v2.get(_DESCRIPTION, "")), limits)
    arrays = []
    for page in pages:
        picture.seek(page.number)
        white = picture.tag_v2.get(_PHOTOMETRIC) == 0 and picture.mode.startswith("I;16")
        array = decode(picture, palette)  # Pillow turns a TIFF upright by itself
        arrays.append(np.iinfo(array.dtype).max - array if white else array)
    return _stacked(arrays, orientations - {1} != set())


def _pages_of(picture: TiffImagePlugin.TiffImageFile) -> Iterator[int]:
    """Go from page to page; asking Pillow for their number first would read them all twice."""
    for number in count():
        try:
            picture.seek(number)
        except EOFError:
            return
        yield _allowed(number)


def _by_tifffile(stream: BinaryIO, limits: Limits) -> Image:
    import tifffile  # a slow import that few files need

    with tifffile.TiffFile(stream) as file:
        _allowed(len(file.pages))
        listed: Any = file.pages  # TiffPage or TiffFrame, which know the same of themselves
        found = [page for page in map(listed.__getitem__, range(len(listed))) if not page.subfiletype & _REDUCED]
        pages = [_page(page, number) for number, page in enumerate(found)]
        _check(pages, found[0].description if found else "", limits)
        arrays = [_decoded(page) for page in found]
        orientation = found[0].tags.valueof(_ORIENTATION, 1)
    return _stacked([turned(array, orientation) for array in arrays], orientation != 1)


def _page(page, number: int) -> _Page:
    if page.axes not in ("YX", "YXS", "SYX") or page.dtype is None:
        raise Unreadable("a page that is no picture")
    colours = page.samplesperpixel - len(page.extrasamples)
    if _PHOTOMETRIC not in page.tags or (int(page.photometric), colours) not in _COLOURS:
        raise Unreadable("a page of other colours than grey, RGB or CMYK, or one that does not say which")
    inks = int(page.photometric) == 5
    if inks and (page.tags.valueof(_INK_SET, 1) != 1 or page.dtype.kind != "u"):
        raise Unreadable("a page of inks that are not cyan, magenta, yellow and black")
    if page.compression not in _WITHOUT_CODECS and find_spec("imagecodecs") is None:
        raise Unreadable("this compression needs the package imagecodecs: pip install 'ssl_med[slides]'")
    if 0 in page.databytecounts:
        raise Unreadable("a page without all of its pixels")
    tile = (page.tilelength * page.tilewidth) if page.is_tiled else 1
    check_shape((tile,), page.dtype.itemsize, Limits(2**28, 2**30))
    kind = f"{page.dtype}, {page.photometric}"
    return _Page(
        (page.imagewidth, page.imagelength), kind, 3 if inks else page.samplesperpixel, page.dtype.itemsize, number
    )


def _decoded(page) -> np.ndarray:
    array = page.asarray()
    array = np.moveaxis(array, 0, -1) if page.axes == "SYX" else array.reshape(*array.shape[:2], -1)
    if page.photometric == 0 and array.dtype.kind == "u":
        array = np.iinfo(array.dtype).max - array
    if page.photometric == 5:
        return _from_inks(array[..., :4])
    colour = page.photometric == 2
    return array[..., :3] if colour else array[..., : array.shape[-1] - len(page.extrasamples) or 1]


def _from_inks(array: np.ndarray) -> np.ndarray:
    """Cyan, magenta, yellow and black (y, x, 4) to RGB as Pillow does it, without a colour profile."""
    most = np.iinfo(array.dtype).max
    light = most - array.astype(np.float64)
    return np.rint(light[..., :3] * light[..., 3:] / most).astype(array.dtype)


def _allowed(pages: int) -> int:
    if pages > _MAX_PAGES:
        raise Unreadable(f"{pages} pages, the limit is {_MAX_PAGES}")
    return pages


def _check(pages: list[_Page], description: str, limits: Limits) -> None:
    if not pages:
        raise Unreadable("no page that is a whole picture")
    first = pages[0]
    for page in pages:
        if page.size != first.size:
            raise Unreadable(f"pages of {first.size} and of {page.size} pixels are not one stack")
        if (page.kind, page.channels) != (first.kind, first.channels):
            raise Unreadable("pages of several kinds of pixels are not one stack")
    check_shape((first.channels, len(pages), *first.size), first.itemsize, limits)
    _check_axes(description, len(pages))


def _check_axes(description: str, pages: int) -> None:
    """ImageJ and OME write channels and times as pages too, which must not become slices."""
    if description.startswith("ImageJ="):
        told = {
            key: int(count) for key, count in re.findall(r"(channels|frames|images)=(\d{1,9})\s", description + "\n")
        }
        counts = told.get("channels", 1), told.get("frames", 1)
        if told.get("images", pages) != pages:
            raise Unreadable(f"ImageJ stack of {told['images']} images with {pages} pages")
    else:
        found = [re.search(rf'Size{axis}="(\d{{1,9}})"', description) for axis in "CT"]
        samples = re.search(r'SamplesPerPixel="(\d{1,9})"', description)
        counts = tuple(int(match[1]) if match else 1 for match in found)
        counts = counts[0] // max(1, int(samples[1]) if samples else 1), counts[1]
    if max(counts) > 1 and pages > 1:
        raise Unreadable(f"{pages} pages of {counts[0]} channels and {counts[1]} times, expected slices alone")


def _stacked(arrays: list[np.ndarray], is_turned: bool) -> Image:
    notes = ("EXIF rotation applied",) if is_turned else ()
    if len(arrays) == 1:
        return Image(np.moveaxis(arrays[0], -1, 0), (1.0, 1.0), warnings=notes)
    if len({array.shape for array in arrays}) > 1:
        raise Unreadable("pages turned in several ways are not one stack")
    return Image(np.moveaxis(np.stack(arrays), -1, 0), (1.0, 1.0, 1.0), warnings=notes)
