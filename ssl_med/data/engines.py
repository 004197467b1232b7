"""One function over many records: in this process, in several, or on a Dask cluster. A lost worker costs one record.

An engine is called with the work, the items and what to say of an item whose worker died; it yields results as they
come, and never holds more than a few items ahead of them.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context
from typing import Any, TypeVar

from ssl_med.data.heap import keep_memory
from ssl_med.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
Engine = Callable[[Callable[[Any], Any], Iterable[Any], Callable[[Any], Any]], Iterator[Any]]

PATIENCE = 60  # seconds until a scheduler must have answered
_AHEAD = 4  # items per worker that are handed out before the first comes back


def engine_of(name: str = "processes", workers: int = 1, scheduler: str = "") -> Engine:
    """The engine of a name.

    Args:
        name: ``processes`` or ``dask``.
        workers: processes on this machine; for Dask without a scheduler the workers of a cluster on this machine.
        scheduler: address of a Dask scheduler, ``tcp://host:8786``, or a scheduler file.

    Raises:
        UserError: no such engine, or Dask is not installed.
    """
    if name == "dask":
        return _Dask(workers, scheduler)
    if name != "processes" or scheduler:
        raise UserError(f"engine {name!r} with scheduler {scheduler!r}: expected processes, or dask with a scheduler")
    return _here if workers <= 1 else _Processes(workers)


def _here(work: Callable[[Item], Result], items: Iterable[Item], lost: Callable[[Item], Result]) -> Iterator[Result]:
    yield from map(work, items)


class _Processes:
    """Processes of this machine. When one is killed, all items that were in hand are tried again, each alone."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def __call__(
        self, work: Callable[[Item], Result], items: Iterable[Item], lost: Callable[[Item], Result]
    ) -> Iterator[Result]:
        items = iter(items)
        while True:
            suspects: list[Item] = []
            yield from self._until_broken(work, items, suspects)
            if not suspects:
                return
            yield from self._one_by_one(work, suspects, lost)

    def _until_broken(
        self, work: Callable[[Item], Result], items: Iterator[Item], suspects: list[Item]
    ) -> Iterator[Result]:
        with ProcessPoolExecutor(self.workers, get_context("spawn"), keep_memory) as pool:
            waiting: dict[Future, Item] = {}
            while True:
                for item in islice(items, _AHEAD * self.workers - len(waiting)):
                    try:
                        waiting[pool.submit(work, item)] = item
                    except BrokenProcessPool:
                        suspects.append(item)
                        break
                if not waiting:
                    return
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    item = waiting.pop(future)
                    try:
                        yield future.result()
                    except BrokenProcessPool:
                        suspects.append(item)
                if suspects:  # the pool is gone, and with it all that was in hand
                    finished = [f for f in waiting if f.done() and f.exception() is None]
                    suspects += [item for future, item in waiting.items() if future not in finished]
                    yield from (future.result() for future in finished)
                    return

    def _one_by_one(
        self, work: Callable[[Item], Result], suspects: list[Item], lost: Callable[[Item], Result]
    ) -> Iterator[Result]:
        while suspects:
            with ProcessPoolExecutor(1, get_context("spawn"), keep_memory) as pool:
                while suspects:
                    item = suspects.pop(0)
                    try:
                        yield pool.submit(work, item).result()
                    except BrokenProcessPool:
                        yield lost(item)
                        break


class _Dask:
    """Workers of a Dask cluster; they see the same folders under the same names.

    Dask suspects all tasks that a killed worker had been given. These are tried again at the end, each alone.
    """

    def __init__(self, workers: int, scheduler: str) -> None:
        try:
            import distributed
        except ImportError:
            raise UserError("engine dask needs dask.distributed: python -m pip install 'ssl_med[cluster]'") from None
        self.distributed, self.workers, self.scheduler = distributed, workers, scheduler

    def _client(self) -> Any:
        if not self.scheduler:
            cluster = self.distributed.LocalCluster(
                n_workers=max(1, self.workers), threads_per_worker=1, dashboard_address="127.0.0.1:0"
            )
            return cluster, self.distributed.Client(cluster)
        by_file = self.scheduler.endswith(".json")
        try:
            if by_file:
                return None, self.distributed.Client(scheduler_file=self.scheduler, timeout=PATIENCE)
            return None, self.distributed.Client(self.scheduler, timeout=PATIENCE)
        except (OSError, ValueError) as error:
            raise UserError(f"no Dask scheduler answers at {self.scheduler}: {error}") from None

    def __call__(
        self, work: Callable[[Item], Result], items: Iterable[Item], lost: Callable[[Item], Result]
    ) -> Iterator[Result]:
        cluster, client = self._client()
        try:
            yield from self._all(client, work, iter(items), lost)
        finally:
            client.close()
            if cluster is not None:
                cluster.close()

    def _all(
        self, client: Any, work: Callable[[Item], Result], items: Iterator[Item], lost: Callable[[Item], Result]
    ) -> Iterator[Result]:
        ahead = _AHEAD * max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
        given = {client.submit(work, item, pure=False): item for item in islice(items, ahead)}
        finished, suspects = self.distributed.as_completed(given), []
        for future in finished:
            item = given.pop(future)
            try:
                yield future.result()
            except self.distributed.KilledWorker:
                suspects.append(item)
            for following in islice(items, 1):
                added = client.submit(work, following, pure=False)
                given[added] = following
                finished.add(added)
        for item in suspects:
            try:
                yield client.submit(work, item, pure=False).result()
            except self.distributed.KilledWorker:
                yield lost(item)
