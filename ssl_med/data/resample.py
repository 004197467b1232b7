"""Other grids for a volume: another spacing, another orientation; the store keeps both as they are unless asked.

Along each axis an output voxel is a weighted sum of source voxels, so the axes are done one after another. The weights
are those of a kernel centred on the output voxel: the box (order 0, nearest), the triangle (order 1, linear) or Keys'
cubic with a = -0.5 (order 3; Keys, IEEE Trans. ASSP 29, 1981). Against aliasing the kernel is made wider by the factor
of the reduction where the new voxels are larger than the old (orders 1 and 3, as ``antialias=True`` in torch and
Pillow), so no source voxel is skipped. Order 0 is for labels and does not average.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, no_type_check

import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

from ssl_med.compiled import compiled
from ssl_med.data.readers.gate import DEFAULT_LIMITS, check_shape
from ssl_med.data.record import Image, Unreadable
from ssl_med.errors import UserError

Order = Literal[0, 1, 3]
_SLAB = 1 << 20  # voxels


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.clip(1 - np.abs(x), 0, None)


def _keys(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near, far = 1 + x**2 * (1.5 * x - 2.5), 2 + x * (-4 + x * (2.5 - 0.5 * x))
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def taps(size: int, new_size: int, factor: float, order: Order) -> tuple[np.ndarray, np.ndarray]:
    """First source voxel (n,) and weights (n, k) of every output voxel along one axis.

    Args:
        size: source voxels.
        new_size: output voxels.
        factor: new voxel size / old; the first voxels of both grids begin at the same edge.
        order: of the interpolation.
    """
    centres = (np.arange(new_size) + 0.5) * factor - 0.5
    if order == 0:
        return np.clip(np.floor(centres + 0.5), 0, size - 1).astype(np.int64), np.ones((new_size, 1), np.float32)
    width = max(factor, 1.0)
    reach = (2 if order == 3 else 1) * width
    count = min(size, int(np.ceil(2 * reach)))
    # at the border the window moves inside: what it then reads beyond the kernel's reach has no weight
    first = np.clip(np.floor(centres - reach).astype(np.int64) + 1, 0, size - count)
    places = first[:, None] + np.arange(count)
    weights = (_keys if order == 3 else _triangle)((places - centres[:, None]) / width)
    return first, (weights / weights.sum(1, keepdims=True)).astype(np.float32)


@compiled(nogil=True, fastmath={"contract", "reassoc", "nsz"})
@no_type_check
def _along(source, first, weights, out):
    """``out[i, j, k]`` = sum over t of ``weights[j, t] * source[i, first[j] + t, k]``."""
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[i, j] = 0
            for t in range(weights.shape[1]):
                place, weight = first[j] + t, weights[j, t]
                if weight != 0:
                    for k in range(out.shape[2]):
                        out[i, j, k] += weight * np.float32(source[i, place, k])


@compiled(nogil=True, fastmath={"contract", "reassoc", "nsz"})
@no_type_check
def _along_rows(source, first, weights, out):
    """``out[i, j]`` = sum over t of ``weights[j, t] * source[i, first[j] + t]``: the axis that lies in memory."""
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[i, j] = weights[j, 0] * np.float32(source[i, first[j]])
        for t in range(1, weights.shape[1]):
            for j in range(out.shape[1]):
                out[i, j] += weights[j, t] * np.float32(source[i, first[j] + t])


def resample_array(array: np.ndarray, factors: tuple[float, ...], order: Order) -> np.ndarray:
    """Another grid over the same extent; the type stays, integers are rounded and kept in their range.

    Args:
        array: (c, \\*space).
        factors: new voxel size / old, along each axis of space.
        order: 0, 1 or 3.

    Returns:
        (c, \\*new_space), each new size rounded from size / factor, at least 1.
    """
    sizes = new_sizes(array.shape[1:], factors)
    plan = {
        axis: taps(array.shape[axis], size, factor, order)
        for axis, (size, factor) in enumerate(zip(sizes, factors, strict=True), 1)
        if factor != 1.0
    }
    if order == 0:
        for axis, (first, _) in plan.items():
            array = np.take(array, first, axis)
        return array
    outer = plan.pop(1, None)
    found = np.empty((len(array), *sizes), array.dtype)
    for slab in _slabs(found):
        if outer is None:
            part = _weighted_all(array[:, slab], plan)
        else:
            first, weights = outer[0][slab], outer[1][slab]
            begin, end = first[0], first[-1] + weights.shape[1]
            part = _weighted(_weighted_all(array[:, begin:end], plan), 1, first - begin, weights)
        _put(found, slab, part)
    return found


def _slabs(array: np.ndarray) -> Iterator[slice]:
    """The first axis of space in parts: floats of a whole volume would be memory that nobody has touched before, which
    costs more than the sums do.
    """
    width = max(1, _SLAB // max(1, array[:, :1].size))
    for start in range(0, array.shape[1], width):
        yield slice(start, min(start + width, array.shape[1]))


def _put(found: np.ndarray, slab: slice, values: np.ndarray) -> None:
    if found.dtype.kind in "iu":
        limits = np.iinfo(found.dtype)
        np.clip(np.rint(values, out=values), limits.min, limits.max, out=values)
    found[:, slab] = values


def _weighted_all(array: np.ndarray, plan: dict[int, tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    for axis, (first, weights) in plan.items():
        array = _weighted(array, axis, first, weights)
    return array


def new_sizes(space: tuple[int, ...], factors: tuple[float, ...]) -> tuple[int, ...]:
    """Voxels along each axis of the grid over the same extent; ``factors`` are new voxel size / old."""
    return tuple(max(1, round(size / factor)) for size, factor in zip(space, factors, strict=True))


def _weighted(array: np.ndarray, axis: int, first: np.ndarray, weights: np.ndarray) -> np.ndarray:
    shape = (*array.shape[:axis], len(first), *array.shape[axis + 1 :])
    before, after = int(np.prod(shape[:axis])), int(np.prod(shape[axis + 1 :]))
    source = np.ascontiguousarray(array)
    if after == 1:
        out = np.empty((before, len(first)), np.float32)
        _along_rows(source.reshape(before, -1), first, weights, out)
    else:
        out = np.empty((before, len(first), after), np.float32)
        _along(source.reshape(before, -1, after), first, weights, out)
    return out.reshape(shape)


def to_spacing(image: Image, spacing: tuple[float, ...], order: Order) -> Image:
    """The image with voxels of ``spacing`` mm, in memory order; 0 along an axis keeps it as it is.

    Raises:
        Unreadable: it would be larger than an image may be, see :class:`ssl_med.data.readers.gate.Limits`.
    """
    wanted = tuple(new or old for new, old in zip(spacing, image.spacing, strict=True))
    factors = tuple(new / old for new, old in zip(wanted, image.spacing, strict=True))
    shape = (len(image.array), *new_sizes(image.array.shape[1:], factors))
    try:
        check_shape(shape, max(4, image.array.itemsize), DEFAULT_LIMITS)  # it is interpolated as float32
    except Unreadable as error:
        told = str(error).removeprefix("header claims ")
        raise Unreadable(f"shape {shape} at a spacing of {wanted} mm: {told}") from None
    array = resample_array(image.array, factors, order)
    if image.affine is None:
        return replace(image, array=array, spacing=wanted)
    affine, along = image.affine.copy(), np.ones(3)
    along[: len(factors)] = factors[::-1]  # an image's third axis stays as it is
    affine[:3, 3] += affine[:3, :3] @ ((along - 1) / 2)  # the grids share their outer edge, not their first centre
    affine[:3, :3] *= along
    return replace(image, array=array, spacing=wanted, affine=affine)


def to_orientation(image: Image, codes: str) -> Image:
    """The volume with its axes x, y, z in memory turned to ``codes``, e.g. ``LPS``; 2D images stay as displayed.

    Raises:
        UserError: no three letters of L or R, P or A, I or S.
    """
    if image.affine is None or image.array.ndim != 4 or codes == "RAS":
        return image
    turn = ornt_transform(axcodes2ornt("RAS"), orientation(codes))
    voxels = np.stack([apply_orientation(channel.T, turn).T for channel in image.array])
    affine = image.affine @ inv_ornt_aff(turn, image.array.shape[:0:-1])
    places = [int(axis) for axis in np.argsort(turn[:, 0])]
    spacing = tuple(image.spacing[::-1][axis] for axis in places)[::-1]
    return replace(image, array=np.ascontiguousarray(voxels), spacing=spacing, affine=affine)


def nearest_onto(
    array: np.ndarray, spacing: tuple[float, ...], space: tuple[int, ...], new_spacing: tuple[float, ...]
) -> np.ndarray:
    """The nearest value of another grid at every voxel of this one; both begin at the same outer edge.

    Args:
        array: (c, \\*old_space).
        spacing: mm of its voxels.
        space: voxels of the grid that is wanted.
        new_spacing: mm of its voxels.
    """
    for axis, (size, old, new) in enumerate(zip(space, spacing, new_spacing, strict=True), 1):
        places = np.floor((np.arange(size) + 0.5) * (new / old))
        array = np.take(array, np.clip(places, 0, array.shape[axis] - 1).astype(np.int64), axis)
    return array


def from_orientation(array: np.ndarray, codes: str) -> np.ndarray:
    """A volume (c, z, y, x) that :func:`to_orientation` turned to ``codes``, in RAS again."""
    turn = ornt_transform(orientation(codes), axcodes2ornt("RAS"))
    return np.ascontiguousarray(np.stack([apply_orientation(channel.T, turn).T for channel in array]))


def orientation(codes: str) -> np.ndarray:
    """Nibabel's array for three axis codes.

    Raises:
        UserError: they are no orientation.
    """
    if (
        sorted(min(pair) for pair in ("LR", "PA", "IS") for c in codes if c in pair) != ["A", "I", "L"]
        or len(codes) != 3
    ):
        raise UserError(f"orientation {codes!r}: expected three letters, one of L R, one of P A and one of I S, as RAS")
    return axcodes2ornt(codes)
