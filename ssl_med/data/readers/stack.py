"""Several files as the channels of one image, such as the four contrasts of an nnU-Net case."""

from dataclasses import replace

import numpy as np

from ssl_med.data.readers import read as read_one
from ssl_med.data.readers import reader_of
from ssl_med.data.readers.gate import DEFAULT_LIMITS, Limits, check_shape
from ssl_med.data.record import Image, Record, Unreadable


def read(record: Record, limits: Limits = DEFAULT_LIMITS) -> Image:
    """Read each file of a record with its own reader and stack them along the channel axis, in the order of the files.

    Args:
        record: its files are single images on one grid.
        limits: how large the whole stack may be.

    Raises:
        Unreadable: a channel cannot be read, has several channels itself, or lies on another grid than the first.
    """
    channels: list[Image] = []
    for number, file in enumerate(record.files):
        try:
            reader = reader_of(file)
            if reader is None:
                raise Unreadable("no reader for this kind of file")
            channel = read_one(Record(record.name, reader, (file,)), limits)
        except Unreadable as error:
            raise Unreadable(f"channel {number}: {error}") from None
        _check(channel, channels, number)
        if not channels:
            check_shape((len(record.files), *channel.array.shape[1:]), channel.array.itemsize, limits)
        channels.append(channel)
    array = np.concatenate([channel.array for channel in channels])
    warnings = tuple(dict.fromkeys(warning for channel in channels for warning in channel.warnings))
    return replace(channels[0], array=array, warnings=warnings)


def _check(channel: Image, before: list[Image], number: int) -> None:
    if len(channel.array) != 1:
        raise Unreadable(f"channel {number}: {len(channel.array)} channels in one file, expected 1")
    if not before:
        return
    first = before[0]
    if channel.array.shape != first.array.shape:
        raise Unreadable(f"channel {number}: shape {channel.array.shape[1:]}, the first has {first.array.shape[1:]}")
    if (channel.affine is None) != (first.affine is None):
        raise Unreadable(f"channel {number}: geometry in one file and none in the other")
    if channel.affine is not None and first.affine is not None:
        far_corner = np.array([*(1, *first.array.shape[1:])[:-4:-1], 1.0])  # x, y, z
        distance = np.abs(channel.affine - first.affine) @ far_corner
        if distance[:3].max() > 0.1 * min(first.spacing):
            raise Unreadable(f"channel {number}: affine differs from the first's by up to {distance[:3].max():.3g} mm")
