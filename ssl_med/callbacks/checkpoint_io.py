"""Checkpoints on disk, files or folders: a kill, a full disk or a flipped bit cannot take the last whole one away."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO
from torch import Tensor
from torch.distributed.tensor import DTensor

from ssl_med.errors import UserError

SEAL = "hashes.json"
"""In a checkpoint that is a folder: the hash of every file of it."""


class AtomicCheckpointIO(CheckpointIO):
    """Write beside the target, flush to disk, record the hash, rename; the file that was there stays until then.

    A name that is overwritten is whole at any moment: while it changes, its record holds the old hash and the new one.

    Lightning stages in the system's temporary folder and moves from there, which on another file system is a plain copy
    that a kill leaves truncated.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save one checkpoint.

        Raises:
            OSError: there is no room for it or it cannot be written; the old files are untouched.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        check_room(path.parent, size_of(checkpoint))
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            _take_name(temporary, path, sha256_of(temporary))
        finally:
            temporary.unlink(missing_ok=True)  # there only if the save failed

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Load tensors and plain values only, never objects; the hash is compared first.

        Raises:
            UserError: the content is not what was saved, or is in shards.
        """
        path = Path(path)
        if not is_whole(path):
            raise UserError(f"{path} is damaged: its content is not what was saved; resume from another checkpoint")
        if path.is_dir():
            raise UserError(
                f"{path} is in shards: go on with the trainer.strategy that wrote it, on any number of devices"
            )
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint and its hash; a folder disappears from its name first, then from the disk."""
        path = Path(path)
        if path.is_dir():
            aside = path.rename(path.with_name(f".{path.name}.old.tmp"))
            shutil.rmtree(aside)
        path.unlink(missing_ok=True)
        _hash_file(path).unlink(missing_ok=True)


def size_of(state: Any) -> int:
    """Bytes of the tensors in nested dictionaries and lists; memory that several share counts once.

    A sharded tensor counts with the shards of all processes, which go into the same folder.
    """
    sizes = {}
    for tensor in _tensors(state):
        if isinstance(tensor, DTensor):
            sizes[id(tensor)] = tensor.numel() * tensor.element_size()
        else:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(sizes.values())


def _tensors(state: Any) -> Iterable[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict | list | tuple):
        for part in state.values() if isinstance(state, dict) else state:
            yield from _tensors(part)


def check_room(folder: Path, needed: int) -> None:
    """Look before writing: a disk that fills up while a checkpoint is written may take other files along.

    Raises:
        OSError: less is free than the checkpoint and a hundredth more need.
    """
    free = shutil.disk_usage(folder).free
    if free < needed * 1.01:
        raise OSError(errno.ENOSPC, f"{needed / 2**20:.1f} MiB are needed and {free / 2**20:.1f} MiB are free")


def seal_folder(temporary: Path, path: Path, hashes: dict[str, str]) -> None:
    """Turn a folder that has been written into a checkpoint: hashes last inside it, then its name.

    Args:
        temporary: the folder, beside ``path``.
        path: the name it gets; a checkpoint that has it already is put aside first.
        hashes: SHA-256 of every file by its path in the folder, see :func:`hashes_of`.
    """
    seal = temporary / SEAL
    with seal.open("w") as file:
        json.dump(hashes, file)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(temporary)
    AtomicCheckpointIO().remove_checkpoint(path)
    temporary.replace(path)
    _sync_folder(path.parent)


def hashes_of(folder: Path, prefix: str = "") -> dict[str, str]:
    """SHA-256 of the files of a folder whose names begin with ``prefix``, each flushed to disk first."""
    found = {}
    for file in sorted(p for p in folder.rglob(f"{prefix}*") if p.is_file() and p.name != SEAL):
        _sync(file)
        found[str(file.relative_to(folder))] = sha256_of(file)
    return found


def point_to(path: Path) -> None:
    """Make ``last.ckpt`` another name of a checkpoint, in one step; a copy where the file system has no hard links."""
    last, temporary = path.with_name("last.ckpt"), path.with_name(".last.ckpt.tmp")
    temporary.unlink(missing_ok=True)
    if path.is_dir():
        temporary.symlink_to(path.name, target_is_directory=True)
        temporary.replace(last)
        return
    try:
        os.link(path, temporary)
    except OSError:
        shutil.copyfile(path, temporary)
        _sync(temporary)
    _take_name(temporary, last, _hash_file(path).read_text().split()[-1])


def _take_name(temporary: Path, path: Path, digest: str) -> None:
    """Give a file its name; until it has it the record also holds the hash of the file that had the name before."""
    record = _hash_file(path)
    before = record.read_text().split() if record.is_file() else []
    _write_record(record, [*before, digest])
    temporary.replace(path)
    _sync_folder(path.parent)
    if before:
        _write_record(record, [digest])


def _write_record(record: Path, digests: list[str]) -> None:
    temporary = record.with_name(f".{record.name}.tmp")
    with temporary.open("w") as file:
        file.write("\n".join(digests))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(record)
    _sync_folder(record.parent)


def keep_newest(folder: Path, count: int) -> None:
    """Remove all but the newest checkpoints."""
    for old in checkpoints_in(folder)[:-count]:
        AtomicCheckpointIO().remove_checkpoint(old)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed saves left; only for the process that holds the run's lock."""
    orphans = [record for record in folder.glob("*.sha256") if not record.with_suffix("").exists()]
    for leftover in [*folder.glob(".*.tmp"), *orphans]:
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints of a run by their steps, oldest first, whole or not."""
    return sorted(folder.glob("step=*.ckpt"))


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint of a run whose content is what was saved; only reads, so the run may be going on."""
    for path in reversed(checkpoints_in(folder)):
        if is_whole(path):
            return path
    return None


def is_whole(path: Path) -> bool:
    """The hash, or every hash of a folder, is the one that was recorded; not of one that is removed meanwhile."""
    try:
        if path.is_dir():
            return json.loads((path / SEAL).read_text()) == _present(path)
        return sha256_of(path) in _hash_file(path).read_text().split()
    except FileNotFoundError:
        return False


def _present(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != SEAL)
    return {str(file.relative_to(folder)): sha256_of(file) for file in files}


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
