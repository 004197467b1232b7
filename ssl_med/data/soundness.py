"""Are the stored files of an image still what was written? For a `prepare` that is asked to look."""

from pathlib import Path

from ssl_med.data.rows import Row
from ssl_med.data.seal import check_run
from ssl_med.data.stored import Damaged, StoredFile


def files_of_row(folder: Path, row: Row, suffix: str) -> dict[Path, str]:
    """The stored files of a row, each with the seal that the index knows."""
    parts = [("images", row.seal, True), ("masks", row.mask_seal, row.has_mask)]
    parts.append(("saliency", row.saliency_seal, bool(row.saliency_seal)))
    return {folder / part / f"{row.id}.{suffix}": seal for part, seal, there in parts if there}


def is_sound(path: Path, seal: str) -> bool:
    """Every byte of a stored file is what was written; all of it is read."""
    try:
        file = StoredFile(path, seal)
        for number in range(file.seal.chunks):
            check_run(file.bytes, file.seal, number, number)
    except Damaged:
        return False
    return True
