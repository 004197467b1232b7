"""Local pixel shuffling of Models Genesis (arXiv 1908.06912), without a loop over its ten thousand windows in Python.

The law: windows of random size and place are drawn one after the other; the voxels of each, *taken from the untouched
image*, are written back in random order. A later window overwrites an earlier one, so a voxel shows what the last
window over it (its owner) gave it, and nothing else matters. Hence the same distribution, voxel by voxel and jointly,
comes from: the windows all at once; for every voxel the owner, the largest number of a window that covers it; for every
window a uniformly random permutation of its voxels, of which each voxel reads its own entry. The compiled loop for the
CPU writes the windows in turn, the tensor form for other devices finds owners; both use the same numbers and agree bit
for bit.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ssl_med.ops.constants import constant
from ssl_med.ops.streams import LCG_FACTOR, LCG_TERM, below, compiled_for, logical_shift, number

_COLUMNS = 64
"""Steps of the permutation whose numbers are made together: fewer calls, bounded memory."""

_MEMORY = 2**28
"""Entries of permutations held at once (1 GiB); larger batches are done in parts."""


def local_shuffle_(
    image: Float[Tensor, "b c z y x"],
    keys: Int[Tensor, " b"],
    limits: Int[Tensor, "b 3"],
    windows: Int[Tensor, " b"],
    chosen: Bool[Tensor, " b"],
    bounds: tuple[int, int] | None = None,
) -> Float[Tensor, "b c z y x"]:
    """Shuffle the voxels of each chosen image inside small windows; all channels move together.

    ``image`` may be overwritten; what counts is the answer.

    Args:
        image: float32 volumes; images have z = 1.
        keys: random key per image.
        limits: largest side of a window along each axis, in voxels; sides are uniform in 1 .. limit.
        windows: number of windows per image.
        chosen: the others stay as they are.
        bounds: windows of an image and voxels of a window, or more, where the host knows them: it need not wait for the
            device then.
    """
    if compiled_for(image):
        from ssl_med.ops import corruption_kernels

        image = image.contiguous()
        corruption_kernels.shuffle(*(part.numpy() for part in (image, keys, limits, windows, chosen)))
        return image
    most, largest = bounds or torch.stack([windows.max(), limits.prod(1).max()]).tolist()
    together = max(1, _MEMORY // (most * largest))
    parts = zip(keys.split(together), limits.split(together), windows.split(together), strict=True)
    source = torch.cat([shuffle_sources(image.shape[2:], *part, most=most, largest=largest) for part in parts])
    moved = image.flatten(2).gather(2, source[:, None].expand(-1, image.shape[1], -1)).reshape(image.shape)
    return torch.where(chosen[:, None, None, None, None], moved, image)


def shuffle_sources(
    space: torch.Size | tuple[int, int, int],
    keys: Int[Tensor, " b"],
    limits: Int[Tensor, "b 3"],
    windows: Int[Tensor, " b"],
    most: int,
    largest: int,
) -> Int[Tensor, "b v"]:
    """Number of the voxel that each voxel reads after the shuffling, by tensors alone.

    Args:
        space: voxels along z, y, x.
        keys, limits, windows: as for :func:`local_shuffle_`.
        most: windows of an image, or more.
        largest: voxels of a window, or more.
    """
    window = torch.arange(most, device=keys.device)
    key = number(keys[:, None], window[None])
    sides = 1 + torch.stack([below(number(key, window.new_tensor(a)), limits[:, a, None]) for a in range(3)])
    corners = torch.stack([below(number(key, window.new_tensor(3 + a)), space[a] - sides[a] + 1) for a in range(3)])
    volume = torch.where(window < windows[:, None], sides.prod(0), 0)
    owner = _owners(space, sides, corners, volume, largest)
    order = _permutations(number(key, window.new_tensor(6)), volume, largest)
    voxel = torch.arange(owner.shape[1], device=keys.device)
    place = torch.stack(torch.unravel_index(voxel, space))[:, None]
    mine = owner.clamp(min=0)
    corner, side = (part.gather(2, mine.expand(3, -1, -1)) for part in (corners, sides))
    z, y, x = place - corner
    entry = (z * side[1] + y) * side[2] + x
    entry = torch.where(owner >= 0, entry, 0)
    rows = mine + torch.arange(len(keys), device=keys.device)[:, None] * most
    entry = order.reshape(-1)[entry * order.shape[1] + rows].long()
    z, y, x = (corner[a] + part for a, part in enumerate(_unravel(entry, side)))
    return torch.where(owner >= 0, (z * space[1] + y) * space[2] + x, voxel)


def _unravel(entry: Tensor, side: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Axis offsets of a voxel number within boxes of given sides (3, ...)."""
    return entry // (side[1] * side[2]), entry // side[2] % side[1], entry % side[2]


def _owners(
    space: torch.Size | tuple[int, int, int], sides: Tensor, corners: Tensor, volume: Tensor, largest: int
) -> Tensor:
    """The last window over each voxel, (b, v); -1 where there is none."""
    count, most = volume.shape
    size = space[0] * space[1] * space[2]
    owner = torch.full((count, size + 1), -1, dtype=torch.int64, device=volume.device)  # the last cell takes the rest
    window = torch.arange(most, device=volume.device)[:, None].expand(most, _COLUMNS).reshape(1, -1)
    for start in range(0, largest, _COLUMNS):
        entry = torch.arange(start, start + _COLUMNS, device=volume.device)
        z, y, x = (corners[a, ..., None] + part for a, part in enumerate(_unravel(entry, sides[..., None])))
        voxel = torch.where(entry < volume[..., None], (z * space[1] + y) * space[2] + x, size)
        owner.scatter_reduce_(1, voxel.flatten(1), window.expand(count, -1), "amax")
    return owner[:, :size]


def _permutations(state: Tensor, volume: Tensor, largest: int) -> Tensor:
    """A random permutation of 0 .. volume - 1 per window, in column ``b * windows + w`` of (largest, windows)."""
    state, volume = state.reshape(-1), volume.reshape(-1)
    order = torch.zeros(largest, len(state), dtype=torch.int32, device=state.device)
    factors, terms = _jumps(largest)
    for start in range(0, largest, _COLUMNS):
        steps = torch.arange(start, min(start + _COLUMNS, largest), device=state.device)
        jump, term = (constant(part, state.device)[start : start + _COLUMNS] for part in (factors, terms))
        bits = logical_shift(state * jump[:, None] + term[:, None], 32)
        drawn = logical_shift(bits * (steps[:, None] + 1), 32)
        places = torch.where(steps[:, None] < volume, drawn, steps[:, None])  # past the window's end: nothing moves
        for step, place in zip(range(start, largest), places, strict=False):
            order[step] = order.gather(0, place[None])[0]
            order.scatter_(0, place[None], torch.full_like(order[:1], step))
    return order


def _jumps(steps: int) -> tuple[list[int], list[int]]:
    """Factor and term that take the generator 1 .. steps steps ahead, as signed 64-bit integers."""
    factors, terms, factor, term = [], [], 1, 0
    for _ in range(steps):
        factor, term = factor * LCG_FACTOR % 2**64, (term * LCG_FACTOR + LCG_TERM) % 2**64
        factors.append(factor)
        terms.append(term)
    wrap = [[(value + 2**63) % 2**64 - 2**63 for value in part] for part in (factors, terms)]
    return wrap[0], wrap[1]
