"""Volumes in two files, ``.hdr`` and ``.img``: NIfTI pairs and the older Analyze 7.5."""

from pathlib import Path

from ssl_med.data.readers.gate import DEFAULT_LIMITS, Limits
from ssl_med.data.readers.nifti import image_of
from ssl_med.data.readers.nifti_header import read_header
from ssl_med.data.readers.packed import opened
from ssl_med.data.record import Image, Record, Unreadable

_VOXELS = (".img", ".img.gz", ".IMG")


def read(record: Record, limits: Limits = DEFAULT_LIMITS) -> Image:
    """Read a pair by its ``.hdr`` file; the ``.img`` of the same name, packed or not, lies beside it.

    Analyze 7.5 does not know left from right: as in SPM its first axis is taken to run left, with a warning.

    Raises:
        Unreadable: no such pair, cut short, too large, a time series, or without sound geometry.
    """
    with opened(record.files[0]) as stream:
        source = read_header(stream, limits, pair=True)
    with opened(voxel_file(record.files[0])) as stream:
        return image_of(stream, source)


def voxel_file(header: Path) -> Path:
    """The file that holds the voxels.

    Raises:
        Unreadable: there is none.
    """
    found = [file for suffix in _VOXELS if (file := header.with_name(header.stem + suffix)).is_file()]
    if not found:
        raise Unreadable("the .img file of the pair is missing")
    return found[0]
