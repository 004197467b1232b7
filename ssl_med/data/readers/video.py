"""Films (``.mp4``, ``.avi``, ``.mov``) through PyAV, as one array with time first."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import numpy as np

from ssl_med.data.readers.gate import DEFAULT_LIMITS, Limits, check_shape
from ssl_med.data.record import Image, Record, Unreadable
from ssl_med.errors import UserError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_FORMATS = {".mp4": "mp4", ".mov": "mov", ".m4v": "mp4", ".avi": "avi"}
_GREY = ("gray", "gray8")
_BROKEN = (OSError, ValueError, EOFError, RuntimeError, OverflowError, MemoryError, IndexError, AssertionError)


def read(record: Record, limits: Limits = DEFAULT_LIMITS) -> Image:
    """Read the first film of a file as (c, t, y, x) uint8 with one channel where it is stored grey, three otherwise.

    The spacing is 1.0, along time too. Films are packed with loss and mostly without checksums: a flipped bit in them
    cannot always be known; what the decoder reports as broken is refused.

    Raises:
        UserError: PyAV is not installed.
        Unreadable: no film, cut short, damaged, or too many frames.
    """
    with _opened(record) as container:
        if not container.streams.video:
            raise Unreadable("no film in the file")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise Unreadable("film packed in a way that PyAV does not know")
        expected = _check(container, stream, limits)
    with _opened(record) as container:
        frames = _decoded(container, container.streams.video[0], expected, limits)
    if len(frames) < expected:
        raise Unreadable(f"film cut short: {len(frames)} of {expected} frames")
    return Image(np.ascontiguousarray(np.moveaxis(np.stack(frames), -1, 0)), (1.0, 1.0, 1.0))


@contextmanager
def _opened(record: Record) -> Iterator["InputContainer"]:
    try:
        import av
    except ImportError:
        raise UserError("films are read by PyAV, which is not installed: pip install 'ssl_med[video]'") from None
    av.logging.set_level(av.logging.PANIC)  # FFmpeg writes to the terminal, with the file's name
    path = record.files[0]
    if (name := _FORMATS.get(path.suffix.lower())) is None:
        raise Unreadable("not a film of type .mp4, .mov or .avi")
    try:
        with path.open("rb") as file, av.open(file, format=name, metadata_errors="ignore") as container:
            yield cast("InputContainer", container)
    except _BROKEN as error:
        raise Unreadable(f"film is damaged or cut short ({type(error).__name__})") from None


def _check(container: "InputContainer", stream: "VideoStream", limits: Limits) -> int:
    """Number of frames, counted by their packets, which costs no decoding."""
    height, width = stream.codec_context.height, stream.codec_context.width
    check_shape((3, max(stream.frames, 1), height, width), 1, limits)
    packets = 0
    for packet in container.demux(stream):
        packets += packet.size > 0
        check_shape((3, max(packets, 1), height, width), 1, limits)
        if packet.is_corrupt:
            raise Unreadable(f"film is damaged at frame {packets}")
    if packets == 0:
        raise Unreadable("a film without frames")
    if stream.frames > packets:
        raise Unreadable(f"film cut short: {packets} of {stream.frames} frames")
    return packets


def _decoded(container: "InputContainer", stream: "VideoStream", expected: int, limits: Limits) -> list[np.ndarray]:
    size = stream.codec_context.height, stream.codec_context.width
    stream.codec_context.options = {"max_pixels": str(min(limits.voxels, 2**31 - 1)), "err_detect": "explode"}
    stream.codec_context.thread_count = 1
    frames = []
    for frame in container.decode(stream):
        if len(frames) == expected or (frame.height, frame.width) != size or frame.is_corrupt:
            raise Unreadable(f"film is damaged at frame {len(frames)}")
        frames.append(_pixels(frame))
    return frames


def _pixels(frame: "VideoFrame") -> np.ndarray:
    if frame.format.name in _GREY:
        return frame.to_ndarray(format="gray")[..., None]
    return frame.to_ndarray(format="rgb24")
