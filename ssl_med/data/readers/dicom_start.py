"""Where a DICOM file begins: behind its preamble, or, in files of old software, with its first element."""

import re

PREAMBLE = 132
"""Bytes: 128 that mean nothing, then ``DICM``."""

_EXPLICIT = re.compile(rb"(?:\x02\x00[\x00-\x02]|\x08\x00[\x00-\x70])\x00(?:AE|CS|DA|DT|LO|OB|SH|TM|UI|UL)", re.DOTALL)
_IMPLICIT = re.compile(rb"\x08\x00(?:\x00\x00\x04|[\x01-\x18]\x00[\x02-\xfe])\x00\x00\x00", re.DOTALL)


def has_preamble(head: bytes) -> bool:
    """Whether the first bytes of a file are a preamble of DICOM."""
    return head[128:PREAMBLE] == b"DICM"


def is_dicom(head: bytes) -> bool:
    """Whether the first bytes of a file (``PREAMBLE`` of them) are DICOM, with or without a preamble.

    Without one, the first element is of group 0002, which is explicit, or one of the first of group 0008, explicit or
    implicit, in little endian.
    """
    return has_preamble(head) or bool(_EXPLICIT.match(head) or _IMPLICIT.match(head))
