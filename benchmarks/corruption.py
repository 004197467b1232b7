"""Models Genesis' corruptions: our batched chain beside the published law as a plain loop in NumPy, in one run.

    python -m benchmarks.corruption [--rounds 12] [--batch 6]

Goals: 40 times at 64 x 64 x 32 voxels, 25 times at 96^3, with 10,000 windows on both sides. Rounds alternate between
the two; each draws new random branches. One thread. Times are of the processor, which other programs disturb least.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from ssl_med.ops.random import sample_keys
from ssl_med.ops.streams import compiled_for
from ssl_med.tasks.models_genesis import published
from ssl_med.transforms import Compose, Corruptions, RepeatedFlip
from tests.references import genesis

SIZES = {(32, 64, 64): 40.0, (96, 96, 96): 25.0}


def measure(sides: dict[str, Callable[[int], object]], rounds: int, batch: int) -> dict[str, np.ndarray]:
    """Milliseconds per volume of each round, the sides in turn; the first round of each only warms up."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, run in sides.items():
            start = time.process_time()
            run(number)
            times[name].append((time.process_time() - start) / batch * 1e3)
    return {name: np.array(values[1:]) for name, values in times.items()}


def sides(space: tuple[int, ...], batch: int) -> dict[str, Callable[[int], object]]:
    """Both chains, from cubes in [0, 1] to float32 tensors of input and target."""
    cubes = np.clip(np.random.default_rng(0).normal(0.4, 0.2, (batch, 1, *space)), 0, 1)
    image, generator = torch.from_numpy(cubes.astype(np.float32)), np.random.default_rng(1)
    flip, corrupt = Compose([RepeatedFlip(faithful=True)]), Corruptions(published(faithful=True))

    def original(number: int) -> object:
        pairs = [genesis.pair(cube, generator, faithful=True) for cube in cubes]
        return [torch.from_numpy(np.stack(part)).float() for part in zip(*pairs, strict=True)]

    def ours(number: int) -> object:
        target = flip({"image": image, "key": sample_keys(number, torch.arange(batch))})
        return corrupt(target)

    def copies(number: int) -> object:
        return image.clone(), image.clone()

    return {"NumPy": original, "ours": ours, "two copies": copies}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--batch", type=int, default=6)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"compiled loops: {compiled_for(torch.empty(0))}; torch {torch.__version__}, one thread")
    print(f"{'voxels':>14} {'side':>10} {'median ms':>10} {'10 %':>8} {'90 %':>8} {'mean ms':>8}")
    for space, goal in SIZES.items():
        found = measure(sides(space, arguments.batch), arguments.rounds, arguments.batch)
        for name, values in found.items():
            low, middle, high = np.percentile(values, [10, 50, 90])
            size = "x".join(map(str, space))
            print(f"{size:>14} {name:>10} {middle:10.3f} {low:8.3f} {high:8.3f} {values.mean():8.3f}")
        ratios = found["NumPy"] / found["ours"]
        medians = np.median(found["NumPy"]) / np.median(found["ours"])
        spread = f"of rounds {ratios.min():.1f} to {ratios.max():.1f}"
        print(f"{'':>14} ratio of medians {medians:.1f}, {spread}, goal {goal:.0f}")


if __name__ == "__main__":
    main()
