"""Functions compiled by numba and kept on disk for the next process, where there is a place to keep them."""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

from numba import njit

_LOG = logging.getLogger(__name__)


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """As ``numba.njit(cache=True, **options)``; where no folder for the cache can be written, without a cache.

    Installations that only root may write to and homes that are read-only (containers, clusters) have no such folder.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
        _warn()
        return njit(**options)(function)

    return decorate


@cache
def _warn() -> None:
    """Once per process, without the path that numba's message holds."""
    _LOG.warning(
        "compiled functions cannot be kept on disk, so every process compiles them again: "
        "set NUMBA_CACHE_DIR to a folder that can be written"
    )
