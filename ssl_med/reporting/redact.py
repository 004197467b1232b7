"""Paths of this machine stay out of a report, which is made to be sent around; they become ``(local path)``."""

import re
from typing import Any

HIDDEN_PATH = "(local path)"
HIDDEN_ADDRESS = "(address)"

_ADDRESS = re.compile(r"(?:\b[a-zA-Z][\w+.-]*:)//[^\s'\"<>]+")
# A path starts at ~/, ./, ../, a drive, \\host or /, where no word goes before it: "val/dice" and "GB/s" are not paths.
# Words that follow and hold a slash again belong to it, since folders may have spaces in their names.
_START = r"(?<![\w)\]%/\\.~-])(?:~[\w-]*[/\\]|\.{1,2}[/\\]|[A-Za-z]:[/\\]|\\\\|/)(?=[^\s/])"
_PATH = re.compile(_START + r"[^\s'\"<>,;]*(?:\s+[^\s'\"<>,;]*[/\\][^\s'\"<>,;]*)*")

_PLACES = {
    *(
        "data",
        "out",
        "store",
        "root",
        "folder",
        "directory",
        "dir",
        "file",
        "files",
        "path",
        "paths",
        "images",
        "source",
    ),
}
_PLACE_ENDINGS = ("_dir", "_folder", "_file", "_files", "_path", "_paths", "_root", "dirpath")
_NOT_PLACES = {"class_path"}  # a dotted name of code


def hide_paths(text: str) -> str:
    """The text with every absolute or home-relative path and every address replaced by a neutral word."""
    return _PATH.sub(HIDDEN_PATH, _ADDRESS.sub(HIDDEN_ADDRESS, text))


def hide_places(value: Any, key: str = "") -> Any:
    """A copy of a parsed config where no string tells a place on a disk or in a network.

    A string that holds a path anywhere is replaced as a whole, and so is every string under a key that names a place
    (``data``, ``out``, ``dirpath`` ...), since a relative folder may bear a patient's name too.
    """
    if isinstance(value, dict):
        return {hide_paths(str(name)): hide_places(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [hide_places(item, key) for item in value]
    if not isinstance(value, str):
        return value
    hidden = hide_paths(value)
    if HIDDEN_ADDRESS in hidden:
        return HIDDEN_ADDRESS
    return HIDDEN_PATH if value and (_names_a_place(key) or hidden != value) else value


def _names_a_place(key: str) -> bool:
    return key not in _NOT_PLACES and (key in _PLACES or key.endswith(_PLACE_ENDINGS))
