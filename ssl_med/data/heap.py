"""Memory of large arrays, kept by the process instead of given back to the system after every image."""

import ctypes

_TRIM, _MAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h
_MOST = (1 << 31) - 1


def keep_memory() -> bool:
    """Let this process use memory again that it has had before: fresh pages cost a fifth of preparing a CT.

    For processes of our own only, since the memory stays with the process until it ends. Where the C library is not
    glibc nothing happens.

    Returns:
        Whether it is so now.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(set_option(_MAP, 1 << 30)) and bool(set_option(_TRIM, _MOST))
