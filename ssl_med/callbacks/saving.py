"""Saves that do not stop a training: a failure is kept and told, and writing may go on beside the steps."""

import logging
import threading
from pathlib import Path
from typing import Any

from pytorch_lightning.plugins.io import CheckpointIO
from torch import Tensor

from ssl_med.callbacks.checkpoint_io import AtomicCheckpointIO, checkpoints_in, keep_newest, point_to

LOG = logging.getLogger("ssl_med")


class Saving(CheckpointIO):
    """What a trainer saves through: :class:`AtomicCheckpointIO`, then the pointer, then the oldest goes.

    A save that fails for want of space or of a working disk is told once and counted; nothing is raised, because the
    other processes of the run do not know of it and would wait for this one for ever.

    Args:
        keep: number of checkpoints that stay, at least two.
        background: copy the state to the memory of the CPU and write it in a thread; the next save waits for the one
            before. It costs a second copy of the state.

    Raises:
        ValueError: fewer than two are to be kept.
    """

    def __init__(self, keep: int = 2, background: bool = False) -> None:
        if keep < 2:
            raise ValueError(f"keep at least two checkpoints, so that one is whole at any moment; got {keep}")
        self.keep, self.background = keep, background
        self.failures = 0
        """Saves that failed, since the last that did not."""
        self._files = AtomicCheckpointIO()
        self._thread: threading.Thread | None = None
        self._defect: BaseException | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save one checkpoint, or begin to."""
        self.wait()
        if not self.background:
            self._write(checkpoint, Path(path))
            return
        self._thread = threading.Thread(target=self._write_aside, args=(copied(checkpoint), Path(path)))
        self._thread.start()

    def _write_aside(self, checkpoint: dict[str, Any], path: Path) -> None:
        try:
            self._write(checkpoint, path)
        except BaseException as defect:  # of the code, not of the disk: it ends the run, in the thread of the run
            self._defect = defect

    def _write(self, checkpoint: dict[str, Any], path: Path) -> None:
        try:
            self._files.save_checkpoint(checkpoint, path)
            self.saved(path)
        except (OSError, RuntimeError) as error:  # torch's zip writer answers a full disk with RuntimeError
            self.failed(path, error)

    def saved(self, path: Path) -> None:
        """A checkpoint is whole: it becomes the last one, and the oldest goes."""
        if path.name.startswith("step="):
            point_to(path)
            keep_newest(path.parent, self.keep)
        self.failures = 0

    def failed(self, path: Path, error: BaseException) -> None:
        """A checkpoint could not be written: say so, count it, keep what there is."""
        self.failures += 1
        older = [found.stem for found in checkpoints_in(path.parent)]
        rest = f"{older[-1]} is there to resume from" if older else "there is none to resume from"
        LOG.error(
            "CHECKPOINT NOT WRITTEN: %s (%s; failure %d in a row). Training goes on; %s",
            path.stem,
            error,
            self.failures,
            rest,
        )

    def wait(self) -> None:
        """Until no save is under way.

        Raises:
            Exception: what went wrong in the thread and is no matter of the disk.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raise here what went wrong in the thread."""
        if self._defect is not None:
            defect, self._defect = self._defect, None
            raise defect

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """See :meth:`AtomicCheckpointIO.load_checkpoint`."""
        return self._files.load_checkpoint(path, map_location, weights_only)

    def remove_checkpoint(self, path: Any) -> None:
        """See :meth:`AtomicCheckpointIO.remove_checkpoint`."""
        self._files.remove_checkpoint(path)

    def teardown(self) -> None:
        """The run ends: what is being written is written first."""
        self.wait()


def copied(state: Any) -> Any:
    """A state that later steps do not change, in the memory of the CPU."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {name: copied(value) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(copied(value) for value in state)
    return state
