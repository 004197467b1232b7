"""Boxes on the way from a table to a store: corners in one frame become corners in another.

A box is a line of lowest corner, highest corner and class, corners along space in memory order (z, y, x). Corners are
faces in voxels: the voxel 3 alone goes from 3 to 4, so a box keeps its place when voxels change their size.
"""

import itertools
from typing import Literal

import numpy as np

from ssl_med.data.record import Image, Record, Unreadable


def moved(boxes: np.ndarray, matrix: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """The straight boxes that enclose boxes mapped by ``matrix @ corner + offset``.

    Args:
        boxes: (m, 2n) lowest and highest corners.
        matrix: (n, n).
        offset: (n,).
    """
    axes = len(offset)
    ends = boxes.reshape(-1, 2, axes)
    picks = np.array(list(itertools.product((0, 1), repeat=axes)))
    corners = ends[:, picks, np.arange(axes)] @ matrix.T + offset
    return np.concatenate([corners.min(1), corners.max(1)], 1)


def stored_boxes(record: Record, read: Image, kept: Image) -> list[float]:
    """Boxes of a record in voxels of the image as it is stored, clipped to it.

    Args:
        record: its ``frame`` says what its boxes are given in.
        read: its image as it was read.
        kept: the same on the grid of the store.

    Raises:
        Unreadable: numbers that make no boxes, or a box outside the image.
    """
    if not record.boxes:
        return []
    axes = len(read.spacing)
    if len(record.boxes) % (2 * axes + 1) or not np.isfinite(record.boxes).all():
        raise Unreadable(f"boxes: {len(record.boxes)} numbers do not make boxes of {axes} axes and a class each")
    lines = np.array(record.boxes, np.float64).reshape(-1, 2 * axes + 1)
    corners = lines[:, :-1]
    if record.frame != "read":
        corners = moved(_flipped(corners), *_into(read, record.frame))
    corners = moved(corners, *_between(read, kept))
    size = np.tile(np.array(kept.array.shape[1:], float), 2)
    clipped = np.clip(corners, 0, size)
    if (clipped[:, :axes] >= clipped[:, axes:]).any():
        raise Unreadable(
            "boxes: one lies outside the image or has no extent: is the frame (voxels or mm) the right one?"
        )
    return np.concatenate([clipped, lines[:, -1:]], 1).ravel().tolist()


def given_back(boxes: np.ndarray, read: Image, kept: Image, frame: Literal["file", "mm"]) -> np.ndarray:
    """Boxes in voxels of a stored image as the file counts them, or in mm of its world: :func:`stored_boxes` undone.

    In an oblique scan a box of mm is the straight one around it.

    Args:
        boxes: (m, 2n) lowest and highest corners along space (z, y, x).
        read: the image as it was read.
        kept: the same on the grid that the boxes are in.
        frame: what they are to be given in, see :class:`ssl_med.data.record.Record`.

    Returns:
        (m, 2n) lowest and highest corners along x, y(, z).
    """
    matrix, offset = _into(read, frame)
    back = np.linalg.inv(matrix)
    return _flipped(moved(moved(boxes, *_between(kept, read)), back, -back @ offset))


def _flipped(corners: np.ndarray) -> np.ndarray:
    """Axes in opposite order: x, y, z <-> z, y, x."""
    return corners.reshape(len(corners), 2, -1)[..., ::-1].reshape(len(corners), -1)


def _into(image: Image, frame: str) -> tuple[np.ndarray, np.ndarray]:
    """The map of corners from a frame to the voxels of the image as it was read."""
    axes = len(image.spacing)
    if image.affine is None or axes < 3:  # pictures are stored as they are shown
        scale = 1 / np.array(image.spacing) if frame == "mm" else np.ones(axes)
        return np.diag(scale), np.zeros(axes)
    world = np.eye(4) if frame == "mm" else image.affine if image.stored is None else image.stored
    return _corner_map(np.linalg.inv(image.affine) @ world, centres=frame == "file")


def _between(old: Image, new: Image) -> tuple[np.ndarray, np.ndarray]:
    """The map of corners between two grids over the same image."""
    axes = len(old.spacing)
    if old.affine is not None and new.affine is not None and axes == 3:
        return _corner_map(np.linalg.inv(new.affine) @ old.affine)
    return np.diag(np.array(old.spacing) / np.array(new.spacing)), np.zeros(axes)


def _corner_map(matrix: np.ndarray, centres: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """A 4 x 4 map of x, y, z to voxel indices as one of z, y, x to faces.

    Args:
        matrix: leads to indices, where whole numbers are centres of voxels.
        centres: it begins at such indices too; False where it begins at mm.
    """
    linear, offset = matrix[:3, :3], matrix[:3, 3]
    offset = offset + 0.5 - (linear @ np.full(3, 0.5) if centres else 0.0)
    return linear[::-1, ::-1], offset[::-1]
