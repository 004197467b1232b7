"""Where a store keeps its arrays: in files, or in the chunks of a streaming dataset. Both are asked in the same way."""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ssl_med.data.rows import Rows
from ssl_med.data.stored import StoredArray, StoredFile


@runtime_checkable
class Shelf(Protocol):
    """Opens one array of a store."""

    def __call__(self, part: str, name: str, seal: str, verify: bool) -> StoredArray:
        """Open the array of a row.

        Args:
            part: ``images``, ``masks`` or ``saliency``.
            name: id of the row.
            seal: of the array as the index knows it.
            verify: check hashes.

        Raises:
            Damaged: it is not there, or not what was written.
        """
        ...


class Files:
    """One file per array, ``<part>/<id>.<suffix>``.

    Args:
        folder: the store.
        suffix: ``b2nd`` or ``npy``.
    """

    def __init__(self, folder: Path, suffix: str) -> None:
        self.folder, self.suffix = folder, suffix

    def __call__(self, part: str, name: str, seal: str, verify: bool) -> StoredArray:
        """See :class:`Shelf`."""
        return StoredFile(self.folder / part / f"{name}.{self.suffix}", seal, verify)


def shelf_of(folder: Path, facts: dict[str, Any], rows: Rows) -> Shelf:
    """The shelf of a store by the format that its facts name."""
    if facts["format"] == "litdata":
        from ssl_med.data.streaming import Stream

        return Stream(facts["chunks"] or str(folder / "chunks"), rows)
    return Files(folder, facts["format"])
