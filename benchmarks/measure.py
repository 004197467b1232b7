"""Candidates measured in turns in one run, so that whatever else the machine does hits all of them alike."""

import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

Spread = tuple[float, float, float]
"""Median, smallest, largest."""


def interleaved(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Spread]:
    """CPU milliseconds of each candidate over ``rounds`` turns, after one to warm up."""

    def timed(run: Callable[[], object]) -> float:
        began = time.process_time()
        run()
        return (time.process_time() - began) * 1e3

    return interleaved_times({name: partial(timed, run) for name, run in candidates.items()}, rounds)


def interleaved_times(candidates: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Spread]:
    """Of candidates that say themselves how long they took: median, least and most, after one turn to warm up."""
    found: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, run in candidates.items():
            took = run()
            if number:
                found[name].append(took)
    return {name: (float(np.median(times)), min(times), max(times)) for name, times in found.items()}


def interleaved_apart(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Spread]:
    """As :func:`interleaved`, each candidate in a process of its own.

    Where large arrays come and go it matters what others have left of a process's memory, and nobody runs two libraries
    for one job in one process.
    """
    with ExitStack() as ends:
        turns = {name: ends.enter_context(_apart(run)) for name, run in candidates.items()}
        return interleaved_times(turns, rounds)


@contextmanager
def _apart(run: Callable[[], object]) -> Iterator[Callable[[], float]]:
    context = get_context("fork")  # what is to be run need not be sent
    here, there = context.Pipe()

    def turns() -> None:
        while there.recv():
            began = time.process_time()
            run()
            there.send((time.process_time() - began) * 1e3)

    child = context.Process(target=turns, daemon=True)
    child.start()
    there.close()  # a child that dies is an error then, not a wait for ever

    def turn() -> float:
        here.send(True)
        return here.recv()

    yield turn
    here.send(False)
    child.join()


def private_mib() -> float:
    """Memory of this process that nobody else could use: its pages without those of mapped files."""
    gc.collect()
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Dirty", "Swap:"))) / 1024


def folder_mb(folder: Path) -> float:
    """Size of the files in a folder, in MB."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def table(head: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """A Markdown table; numbers with three significant digits."""
    texts = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in [list(head), ["---"] * len(head), *texts])


def machine() -> str:
    """What the figures depend on, without a name of the machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), "unknown processor")
    return f"{model}, {len(os.sched_getaffinity(0))} core(s) used, load {os.getloadavg()[0]:.1f}"
