"""What every image must pass before it may be used: limits on its header first, then geometry, then values."""

from dataclasses import dataclass, replace
from math import prod
from typing import Protocol, runtime_checkable

import numpy as np

from ssl_med.data.record import Image, Unreadable

_CHUNK = 1 << 22
"""Bytes read at a time: a stream that lies about its length costs no more memory than this beyond its honest part."""


@runtime_checkable
class Stream(Protocol):
    """An open file, gzip stream or member of a zip file."""

    def read(self, size: int = -1, /) -> bytes:
        """At most ``size`` bytes; none at the end."""
        ...


@dataclass(frozen=True)
class Limits:
    """How large an image may be, checked on the header before anything is allocated.

    Attributes:
        voxels: largest number of voxels, channels included.
        size: largest number of bytes after decompression.
    """

    voxels: int = 2**31
    size: int = 2**33


DEFAULT_LIMITS = Limits()
SPACINGS = (1e-6, 1e3)
"""Mm per voxel that can be true: from a nanometre (electron microscopes) to a metre. Others are a mistake of units."""


def check_shape(shape: tuple[int, ...], itemsize: int, limits: Limits) -> None:
    """Refuse a header whose array must not be allocated.

    Args:
        shape: all axes that would be allocated.
        itemsize: bytes per value.
        limits: what is allowed.

    Raises:
        Unreadable: an axis of size zero, or too many voxels or bytes.
    """
    if any(length <= 0 for length in shape):
        raise Unreadable(f"an axis of size zero: shape {tuple(shape)}")
    voxels = prod(shape)
    if voxels > limits.voxels:
        raise Unreadable(f"header claims {voxels} voxels, the limit is {limits.voxels}")
    if voxels * itemsize > limits.size:
        raise Unreadable(f"header claims {voxels * itemsize} bytes, the limit is {limits.size}")


def check_affine(affine: np.ndarray) -> None:
    """Refuse a voxel-to-world matrix (4 x 4) that is not finite or collapses an axis."""
    if not np.isfinite(affine).all():
        raise Unreadable("affine is not finite")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if lengths.min() <= 0 or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-6:
        raise Unreadable("affine has determinant zero: two axes point the same way or one has no length")


def read_exactly(stream: Stream, size: int) -> np.ndarray:
    """Read ``size`` bytes and prove that the stream ends there, which also checks the checksum of a packed stream.

    Args:
        stream: stands at the first of them.
        size: bytes that the header promises.

    Returns:
        The bytes, writable uint8 (size,).

    Raises:
        Unreadable: the stream is shorter or longer than promised.
    """
    data = np.empty(size, np.uint8)
    filled = 0
    while filled < size:
        chunk = stream.read(min(_CHUNK, size - filled))
        if not chunk:
            raise Unreadable(f"data cut short: {filled} of {size} bytes")
        data[filled : filled + len(chunk)] = np.frombuffer(chunk, np.uint8)
        filled += len(chunk)
    if stream.read(1):
        raise Unreadable(f"more data than the {size} bytes that the header announces")
    return data


def plain(array: np.ndarray) -> np.ndarray:
    """Values in the machine's byte order: integers as they are, truth values as uint8, any float as float32.

    Raises:
        Unreadable: complex numbers, text, objects.
    """
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.dtype.kind in "iu":
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype.kind != "f":
        raise Unreadable(f"values of type {array.dtype} are not intensities")
    with np.errstate(over="ignore"):  # what does not fit becomes infinite and is refused by `admit`
        return array.astype(np.float32, copy=False)


def admit(image: Image, constant: bool = False) -> Image:
    """Let an image pass, with plain values, or refuse it.

    Args:
        image: what a reader made.
        constant: whether one value everywhere is allowed, as in a mask without foreground.

    Raises:
        Unreadable: wrong rank, bad spacing or affine, values that are not finite, a constant image.
    """
    array = plain(image.array)
    space = array.shape[1:]
    if len(space) not in (2, 3):
        raise Unreadable(f"{len(space)} axes, expected 2 or 3")
    check_shape(array.shape, array.itemsize, Limits(2**62, 2**62))
    if len(image.spacing) != len(space) or not all(0 < step < float("inf") for step in image.spacing):
        raise Unreadable(f"spacing {tuple(image.spacing)} is not one positive finite length per axis")
    if not all(SPACINGS[0] <= step <= SPACINGS[1] for step in image.spacing):
        told = ", ".join(f"{step:.4g}" for step in image.spacing)
        raise Unreadable(f"spacing ({told}) mm cannot be true: expected {SPACINGS[0]:g} to {SPACINGS[1]:g} mm")
    if image.affine is not None:
        check_affine(image.affine)
    _check_values(array, constant)
    return replace(image, array=np.ascontiguousarray(array))


def _check_values(array: np.ndarray, constant: bool) -> None:
    if array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
        raise Unreadable(f"only {finite.mean():.4%} of the values are finite")
    channels = array.reshape(len(array), -1)
    if not constant and (channels.min(axis=1) == channels.max(axis=1)).all():
        raise Unreadable(f"constant image: every value is {channels[:, 0].tolist()}")
