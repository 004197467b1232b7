"""``python -m benchmarks.worlds [case ...]``: every task on 2 and 4 processes, copied (DDP) and in shards (FSDP2).

Compared with the same task on one process, in double precision, after some steps; prints a Markdown table. Ends with 1
if anything differs by more than 1e-9. A case is a name such as ``MAE-ViT-2d``, or the beginning of one.
"""

import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import benchmarks.faults  # noqa: F401  the machinery is that of the tests, which it puts on the path
from benchmarks.measure import machine, table

# isort: split
from trainings import ALL, STEPS, average, in_double, task_of, trained, worst
from worlds import together

WORLDS = [(strategy, world) for strategy in ("ddp", "fsdp") for world in (2, 4)]
ALLOWED = 1e-9


def trained_all(names: Sequence[str], strategy: str, world: int, folder: Path) -> list[dict[str, dict]]:
    """What every process of a world found, for each case."""
    return together(world, folder, lambda rank: {n: trained(n, rank, world, strategy) for n in names}, seconds=1800)


def apart(name: str, parts: Sequence[dict[str, dict]], expected: dict) -> tuple[float, float]:
    """Largest difference of the losses, and of weights and buffers against the furthest that training moved one."""
    start = {n: v for n, v in task_of(name).state_dict().items() if v.is_floating_point()}
    moved = max(float((expected["state"][n] - v).abs().max()) for n, v in start.items())
    states = [part[name]["state"] for part in parts]
    return worst(average(parts, name), expected["losses"]), max(worst(s, expected["state"]) for s in states) / moved


def by_task(found: dict[str, list[tuple[float, float]]]) -> list[list[str]]:
    """A row for each task: the worse of 2D and 3D, losses and weights."""
    tasks: dict[str, list[list[tuple[float, float]]]] = {}
    for name, row in found.items():
        tasks.setdefault(name.split("-")[0], []).append(row)
    largest = {task: np.array(rows).max(0) for task, rows in tasks.items()}
    return [[task, *[f"{losses:.0e}, {weights:.0e}" for losses, weights in row]] for task, row in largest.items()]


def main() -> None:
    chosen = [name for name in ALL if not sys.argv[1:] or name.startswith(tuple(sys.argv[1:]))]
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with in_double(), tempfile.TemporaryDirectory(prefix="worlds") as folder:
        expected = {name: trained(name) for name in chosen}
        found = [trained_all(chosen, *world, Path(folder, "-".join(map(str, world)))) for world in WORLDS]
        rows = {name: [apart(name, parts, expected[name]) for parts in found] for name in chosen}
    print(f"{machine()}, {STEPS} steps of 8 samples, float64; differences of losses, of weights\n")
    print(table(["task", *[f"{strategy} on {world}" for strategy, world in WORLDS]], by_task(rows)))
    largest = max(number for row in rows.values() for pair in row for number in pair)
    print(f"\n{len(chosen)} cases; the largest difference is {largest:.1e}")
    sys.exit(largest > ALLOWED)


if __name__ == "__main__":
    main()
