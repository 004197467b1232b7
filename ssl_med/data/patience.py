"""Loader processes that hang or die: reading in limited time, and words for a process that was killed."""

import re
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, get_worker_info

from ssl_med.errors import Interrupted

Made = TypeVar("Made")


class Stalled(Exception):
    """A sample was not read in time."""


class Desk:
    """What each loader process is reading; the training can look at it even when the process is gone.

    Args:
        workers: loader processes.
    """

    def __init__(self, workers: int) -> None:
        self._places = torch.full((workers + 1,), -1, dtype=torch.int64).share_memory_()
        self.since = 0.0
        """When the sample at work was begun, in this process."""

    def begin(self, position: int) -> None:
        """Note the sample that is about to be read; -1 for none."""
        worker = get_worker_info()
        self._places[0 if worker is None else worker.id + 1] = position
        self.since = time.monotonic()

    def position(self, worker: int) -> int:
        """What a loader process was reading last; -1 for nothing."""
        return int(self._places[worker + 1])


class _Helper:
    """A thread that does one work after another, and none any more once nobody holds this."""

    def __init__(self) -> None:
        self._works: SimpleQueue[tuple[Callable[[], Any], Future] | None] = SimpleQueue()
        self._thread = threading.Thread(target=_do, args=(self._works,), name="reader", daemon=True)
        self._thread.start()

    def is_there(self) -> bool:
        """False in a process that was forked from the one that has the thread."""
        return self._thread.is_alive()

    def give(self, work: Callable[[], Made]) -> Future[Made]:
        """Have it done."""
        future: Future[Made] = Future()
        self._works.put((work, future))
        return future

    def __del__(self) -> None:
        self._works.put(None)


def _do(works: SimpleQueue) -> None:
    while (given := works.get()) is not None:
        work, future = given
        try:
            future.set_result(work())
        except BaseException as error:  # carried to the thread that waits, which raises it
            future.set_exception(error)
        del given, work, future  # buffers that nobody holds are used again


_own = threading.local()


def _helper() -> _Helper:
    """The one of this thread."""
    found: _Helper | None = getattr(_own, "helper", None)
    if found is None or not found.is_there():
        found = _own.helper = _Helper()
    return found


def in_time(work: Callable[[], Made], desk: Desk, seconds: float) -> Made:
    """What ``work`` gives, as long as no sample of it takes longer than ``seconds``.

    The work is done in a thread: one that hangs in a file system cannot be ended, only left behind. One that does not
    is used again, for the memory it reads into.

    Raises:
        Stalled: a sample took longer; the thread may go on and write where it was told to.
    """
    desk.since = time.monotonic()
    made = _helper().give(work)  # not held by this frame: an error, and its frames with it, may be kept for long
    while not wait([made], max(desk.since + seconds - time.monotonic(), 0.01)).done:
        if time.monotonic() - desk.since > seconds:
            _own.helper = None
            raise Stalled(f"reading took longer than {seconds:g} s")
    return made.result()


class RememberingLoader(DataLoader):
    """A loader that knows its processes even after the trainer, which tidies up first, has let go of them."""

    processes: Sequence[Any] = ()

    def __iter__(self) -> Any:
        iterator = super().__iter__()
        self.processes = getattr(iterator, "_workers", ())
        return iterator


def explain(error: Exception, loader: RememberingLoader | None) -> Interrupted | None:
    """A sentence for the death of a loader process, with its cause and the image it was reading; None for other errors.

    Args:
        error: what torch's loader raised.
        loader: over a dataset with ``at_work``, see :class:`~ssl_med.data.dataset.CropDataset`.
    """
    found = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", str(error))
    if loader is None or found is None:
        return None
    dead = {int(number) for number in found[1].split(",")}
    workers = loader.processes
    number, code = next(((i, w.exitcode) for i, w in enumerate(workers) if w.pid in dead), (None, None))
    if number is None:
        return None
    dataset: Any = loader.dataset
    image = dataset.at_work(number) or "no image"
    return Interrupted(
        f"loader process {number + 1} of {len(workers)} {_cause(code)} while it read {image}; the run goes on from its "
        "last checkpoint when the command is repeated; if it was the memory, use fewer data.num_workers or a smaller "
        "data.prefetch, or ask for more memory"
    )


def _cause(code: int | None) -> str:
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    if -code != signal.SIGKILL:
        return f"was ended by {name}"
    return f"was killed ({name}: mostly the system, which is out of memory{_kills()})"


def _kills() -> str:
    """How often this container's memory limit has killed a process; empty where the system does not count."""
    events = Path("/sys/fs/cgroup/memory.events")
    lines = events.read_text().splitlines() if events.is_file() else []
    counts = [int(line.split()[1]) for line in lines if line.startswith("oom_kill ")]
    return f"; {counts[0]} killed for memory here so far" if counts and counts[0] else ""
