"""What it costs that all processes agree at every step: ``python -m benchmarks.agreement [--worlds 2 4]``.

Every step of a run ends with :meth:`ssl_med.callbacks.signals.Agreement.most`. Here it is called again and again by
processes that have nothing else to do, in turns with a bare ``barrier`` and with the all-reduce of the gradients of a
ViT-S (22 million float32), which a step of several processes pays anyway.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

import benchmarks.faults  # noqa: F401  the machinery is that of the tests, which it puts on the path
from benchmarks.measure import machine, table
from ssl_med.callbacks.signals import Agreement

# isort: split
from worlds import together

GRADIENTS = 22_000_000
"""Parameters of a ViT-S."""


def timed(rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every call, as one process sees them."""
    agreement = Agreement()
    agreement.begin(None)
    gradients = torch.ones(GRADIENTS)
    calls: dict[str, Callable[[], object]] = {
        "agreement": lambda: agreement.most(0, 0, 1),
        "barrier": dist.barrier,
        "gradients of a ViT-S": lambda: dist.all_reduce(gradients),
    }
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            for _ in range(1 if "gradients" in name else 20):
                began = time.perf_counter()
                call()
                if number:
                    found[name].append((time.perf_counter() - began) * 1e3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--rounds", type=int, default=20)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for world in asked.worlds:
            found = together(world, Path(folder, str(world)), lambda rank: timed(asked.rounds))[0]
            for name, times in found.items():
                low, middle, high = np.percentile(times, [5, 50, 95])
                lines.append([world, name, float(middle), f"{low:.3g} to {high:.3g}"])
    print(f"{machine()}\n\n{table(['processes', 'call', 'ms, median', '5 to 95 %'], lines)}")


if __name__ == "__main__":
    main()
