"""Broken files of every format, read one by one: ``python -m benchmarks.fuzz --files 10000``.

Prints what became of them, by format. ``crash`` and ``wrong`` must be 0; ``unconfirmed`` are files whose damage the
format cannot know and no other decoder opens, or films, which have no second decoder.
"""

import argparse
import logging
import resource
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from formats import SEEDS
from malformed import LIMITS, case, judge

VERDICTS = ("refused", "unharmed", "agrees", "unconfirmed", "wrong", "crash")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=10_000, help="how many broken files")
    parser.add_argument("--seed", type=int, default=1, help="what the damage is drawn from")
    parser.add_argument("--show", type=int, default=10, help="how many wrong or crashed cases to name")
    settings = parser.parse_args()
    logging.disable(logging.CRITICAL)
    start, before = time.perf_counter(), _resident()
    counts, peak, shown = _run(settings.files, settings.seed, settings.show)
    print(f"{'format':20}" + "".join(f"{verdict:>13}" for verdict in VERDICTS))
    for name in (*SEEDS, "all"):
        print(f"{name:20}" + "".join(f"{counts[name][verdict]:13}" for verdict in VERDICTS))
    print(
        f"{settings.files} files in {time.perf_counter() - start:.0f} s; most memory of one read {peak / 2**20:.1f} MiB"
    )
    print(f"of a limit of {LIMITS.size / 2**20:.1f} MiB; the process grew by {(_resident() - before) / 2**20:.0f} MiB")
    for line in shown:
        print(line)
    sys.exit(bool(counts["all"]["wrong"] or counts["all"]["crash"]))


def _run(files: int, seed: int, show: int) -> tuple[dict[str, Counter], int, list[str]]:
    counts, peak, shown = defaultdict(Counter), 0, []
    for number in range(files):
        broken = case(seed, number)
        with tempfile.TemporaryDirectory() as folder:
            outcome = judge(broken, Path(folder))
        counts[broken.seed][outcome.verdict] += 1
        counts["all"][outcome.verdict] += 1
        peak = max(peak, outcome.peak)
        if outcome.verdict in ("wrong", "crash") and len(shown) < show:
            shown.append(f"{outcome.verdict}: case {number}, {broken.seed}, {broken.damage}: {outcome.reason}")
    return counts, peak, shown


def _resident() -> int:
    """Most bytes that the process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
