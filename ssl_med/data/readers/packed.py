"""Streams of packed bytes, opened without an image library: each proves its checksum when it is read to the end."""

import bz2
import gzip
import io
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from isal import igzip, isal_zlib

from ssl_med.data.readers.gate import Stream
from ssl_med.data.record import Unreadable

_CHUNK = 1 << 16
_ISAL_ERROR = cast("type[Exception]", isal_zlib.error)  # its stub calls the class an exception
_DAMAGE = (gzip.BadGzipFile, _ISAL_ERROR, EOFError, struct.error)


@contextmanager
def opened(file: Path) -> Iterator[Stream]:
    """Open a file; its first bytes, not its name, say whether it is packed by gzip.

    Raises:
        Unreadable: while the block runs, where the packed bytes turn out cut short or damaged.
    """
    with file.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if not packed:
            yield raw
            return
        with gunzipped(raw) as stream:
            yield stream


class Bounded(io.BufferedReader):
    """A file that never sets aside more memory for a read than it has bytes left, whatever a broken header asks for.

    Args:
        file: is opened, and closed with the stream.
    """

    def __init__(self, file: Path) -> None:
        super().__init__(io.FileIO(file))
        self._size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file."""
        if size is None or size < 0:
            return super().read()
        return super().read(max(0, min(size, self._size - self.tell())))


@contextmanager
def gunzipped(raw: BinaryIO) -> Iterator[Stream]:
    """Unpack gzip from where the file stands."""
    try:
        with igzip.IGzipFile(fileobj=raw, mode="rb") as stream:
            yield stream
    except _DAMAGE as error:
        reason = "cut short" if isinstance(error, EOFError) else "damaged or wrong checksum"
        raise Unreadable(f"gzip stream is {reason}") from None


@contextmanager
def bunzipped(raw: BinaryIO) -> Iterator[Stream]:
    """Unpack bzip2 from where the file stands."""
    try:
        with bz2.BZ2File(raw) as stream:
            yield stream
    except EOFError:
        raise Unreadable("bzip2 stream is cut short") from None
    except (OSError, ValueError) as error:
        raise Unreadable(f"bzip2 stream is damaged ({type(error).__name__})") from None


class Inflated:
    """Unpack one zlib or gzip stream that must end where its file ends.

    Args:
        raw: stands at the first packed byte.
    """

    def __init__(self, raw: BinaryIO) -> None:
        self.raw = raw
        self._unpack = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # 32: zlib or gzip, by the first bytes
        self._waiting = b""

    def read(self, size: int = -1, /) -> bytes:
        """At most ``size`` unpacked bytes, so that a bomb never unfolds; none at the proven end."""
        if size <= 0:
            raise ValueError("a packed stream is read by a positive number of bytes")
        while not self._unpack.eof:
            packed = self._waiting or self.raw.read(_CHUNK)
            if not packed:
                raise Unreadable("zlib stream is cut short")
            found = self._inflate(packed, size)
            if found:
                return found
        if self._unpack.unused_data or self.raw.read(1):
            raise Unreadable("bytes after the end of the zlib stream")
        return b""

    def _inflate(self, packed: bytes, size: int) -> bytes:
        try:
            found = self._unpack.decompress(packed, size)
        except zlib.error:
            raise Unreadable("zlib stream is damaged or wrong checksum") from None
        self._waiting = self._unpack.unconsumed_tail
        return found


def skip(stream: Stream, count: int) -> None:
    """Read over bytes, in pieces: a packed stream cannot seek.

    Raises:
        Unreadable: the stream ends before.
    """
    while count > 0:
        chunk = stream.read(min(count, 1 << 20))
        if not chunk:
            raise Unreadable("header cut short")
        count -= len(chunk)
