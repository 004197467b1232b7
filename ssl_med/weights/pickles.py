"""Torch files, read for their tensors alone: nothing in a file can name code that then runs."""

import re
from pathlib import Path
from typing import Any

import torch

from ssl_med.errors import UserError


class Ignored:
    """Stands where a file holds an object that is no tensor; it takes everything and does nothing.

    The names in :data:`HARMLESS` become this class, so not even the harmless originals are ever called.
    """

    def __init__(self, *args: object, **options: object) -> None:
        pass

    def __new__(cls, *args: object, **options: object) -> "Ignored":
        """Whatever the file wanted it to be made of is dropped."""
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """The state is dropped too."""


HARMLESS = (
    "argparse.Namespace",  # settings in the checkpoints of MAE, DINO and MoCo v3
    "numpy.core.multiarray.scalar",  # scores in nnU-Net's
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "numpy.dtypes.Float32DType",
    "numpy.dtypes.Float64DType",
    "numpy.dtypes.Int64DType",
    "_codecs.encode",  # bytes of those scalars in old files
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
)
"""Names that checkpoints in use hold beside their tensors; they are passed over, anything else is refused."""

_WANTED = re.compile(r"GLOBAL (\S+)")


def load_tensors(path: Path) -> Any:
    """What ``torch.load(weights_only=True)`` finds in a ``.pt``, ``.pth``, ``.ckpt``, ``.tar`` or ``.bin`` file.

    Raises:
        UserError: the file is damaged, or holds objects; the first class that it wanted is named.
    """
    names: Any = [(Ignored, name) for name in HARMLESS]
    with torch.serialization.safe_globals(names):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a crafted file can fail anywhere in the reader; all of it means the same
            raise UserError(_refusal(path, error)) from error


def _refusal(path: Path, error: Exception) -> str:
    found = _WANTED.search(str(error))
    if found:
        return (
            f"{path} holds more than tensors: it wants {found[1].rstrip('.,')}, which could run code, so it was not "
            "opened. Where you trust its origin, save its state dict as safetensors on a machine you can spare"
        )
    reason = re.sub(r"\s+", " ", str(error)).split(". ")[0][:160] or type(error).__name__
    return f"{path} cannot be read as plain tensors ({reason}); save its state dict as safetensors"
