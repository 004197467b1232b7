"""Decoders that may crash on damaged pixels, in a process of their own: a crash there is a refused image here."""

import os
import resource
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np

from ssl_med.data.readers.dicom_frames import decoded, plugin_for
from ssl_med.data.readers.dicom_header import quiet, read_header
from ssl_med.data.readers.gate import DEFAULT_LIMITS
from ssl_med.data.record import Unreadable

_FRAME, _REASON, _END = b"f", b"r", b"e"

_SECONDS = 60
"""Of processor time that decoding may take, and one more for each MiB of the files."""

_BYTES = DEFAULT_LIMITS.size + 2**32
"""Of address space: the largest image that is admitted, and room for the libraries."""


def decoded_apart(files: Sequence[Path]) -> Iterator[np.ndarray]:
    """The frames of some files, as :func:`~ssl_med.data.readers.dicom_frames.decoded` gives them.

    One process for all files of an image: starting it costs about half a second.

    Raises:
        Unreadable: as there, or the decoder crashed.
    """
    command = [sys.executable, "-m", __name__]
    paths = os.pathsep.join(filter(None, sys.path))
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # decoders write what they please
        env={**os.environ, "PYTHONPATH": paths},
    ) as process:
        assert process.stdin
        assert process.stdout
        try:
            process.stdin.write(b"\0".join(os.fsencode(file.absolute()) for file in files))
            process.stdin.close()
            while (kind := process.stdout.read(1)) == _FRAME:
                yield _array(process.stdout)
            if kind == _REASON:
                raise Unreadable(process.stdout.read().decode())
            if kind != _END:
                raise Unreadable("pixels are damaged: their decoder crashed")
        finally:
            process.kill()  # a reader that stops early leaves nothing running


def _write(array: np.ndarray, stream: IO[bytes]) -> None:
    packed = BytesIO()
    np.lib.format.write_array(packed, array, allow_pickle=False)
    stream.write(_FRAME + struct.pack("<Q", packed.tell()) + packed.getbuffer())


def _array(stream: IO[bytes]) -> np.ndarray:
    try:
        (size,) = struct.unpack("<Q", stream.read(8))
        return np.lib.format.read_array(BytesIO(stream.read(size)), allow_pickle=False)
    except (ValueError, EOFError, struct.error):
        raise Unreadable("pixels are damaged: their decoder crashed") from None


def _confine(files: Sequence[Path]) -> None:
    """Let this process be killed, or run out of memory, where a damaged stream keeps its decoder busy for ever."""
    seconds = _SECONDS + sum(file.stat().st_size for file in files) // 2**20
    for kind, wanted in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, _BYTES)):
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def main() -> None:
    """Decode the files named on the standard input, separated by zeros, to the standard output."""
    files = [Path(os.fsdecode(name)) for name in sys.stdin.buffer.read().split(b"\0")]
    out = sys.stdout.buffer
    try:
        _confine(files)
        with quiet():
            for file in files:
                header = read_header(file)
                for frame in decoded(file, header, plugin_for(header)[0]):
                    _write(frame, out)
    except Unreadable as reason:
        out.write(_REASON + str(reason).encode())
    except MemoryError:
        out.write(_REASON + b"pixels need more memory than their decoder may take")
    else:
        out.write(_END)
    out.flush()


if __name__ == "__main__":
    main()
