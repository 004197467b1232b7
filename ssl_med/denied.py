"""Released versions that must not run, and the refusal of ``import ssl_med`` beside them."""

import operator
import os
import sys
from pathlib import Path
from typing import NamedTuple


class Advisory(NamedTuple):
    """Released versions that must not run."""

    package: str
    versions: str
    number: str
    what: str


_LIGHTNING = ("GHSA-w37p-236h-pfx3", "malware that steals credentials on import")
DENIED = (
    Advisory("lightning", ">=2.6.2,<=2.6.3", *_LIGHTNING),
    Advisory("pytorch-lightning", ">=2.6.2,<=2.6.3", *_LIGHTNING),
    Advisory("pytorch-lightning", "<=2.6.0", "CVE-2026-31221", "checkpoints that run code"),
    Advisory("torch", "<2.6", "CVE-2025-32434", "checkpoints that run code in spite of weights_only=True"),
    Advisory("torch", "<2.10", "CVE-2026-24747", "checkpoints that corrupt memory in spite of weights_only=True"),
    Advisory("monai", "<1.6", "GHSA-89gg-p5r5-q6r4", "pickles that run code"),
    Advisory("pydicom", "<3.0.2", "CVE-2026-32711", "DICOMDIR files that reach outside their folder"),
)
LEAST_PYTHON = (3, 11)


def refuse_denied() -> None:
    """Stop the import beside a version that must not run; ``ssl-med doctor`` may go on, and says so too.

    Raises:
        ImportError: this Python is too old, or a package of :data:`DENIED` is installed; nothing of it was imported.
    """
    if sys.argv[1:2] == ["doctor"]:
        return
    if sys.version_info < LEAST_PYTHON:
        raise ImportError("ssl_med needs Python 3.11 or newer: make an environment with one")
    found = _installed({advisory.package for advisory in DENIED})
    for package, versions, number, what in DENIED:
        version = found.get(package)
        if version and _within(version, versions):
            raise ImportError(
                f"ssl_med does not run beside {package} {version} ({number}: {what}); "
                f"pip install --upgrade {package}; `ssl-med doctor` lists all that is wrong"
            )


def _within(version: str, versions: str) -> bool:
    """Whether a released version fits, by its numbers alone: ``packaging`` would double the time of the import."""
    for bound in versions.split(","):
        number = bound.lstrip("<>=")
        compare = {"<": operator.lt, "<=": operator.le, ">=": operator.ge}[bound.removesuffix(number)]
        if not compare(_numbers(version), _numbers(number)):
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.partition("+")[0].split(".") if part.isdigit())


def _installed(packages: set[str]) -> dict[str, str]:
    """Versions by package, from the names of their folders: ``importlib.metadata`` would triple the time likewise."""
    found: dict[str, str] = {}
    for place in map(Path, sys.path):
        readable = place.is_dir() and os.access(place, os.R_OK)
        for name in os.listdir(place) if readable else ():  # noqa: PTH208  names are enough, paths take longer
            package, dash, version = name.removesuffix(".dist-info").partition("-")
            package = package.lower().replace("_", "-")
            if dash and package in packages and name.endswith(".dist-info"):
                found.setdefault(package, version)  # the first on the path is the one that is imported
    return found
