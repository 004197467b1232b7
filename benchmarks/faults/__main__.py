"""Inject faults into runs and print what was lost: ``python -m benchmarks.faults [F2 F7 ...] [--full]``.

Without ``--full`` every drill is held a few times, in minutes; with it as often as the table asks for, in hours.
Ends with 1 if anything was lost.
"""

import argparse
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

from benchmarks.faults import places, saves, stops, worlds
from benchmarks.faults.drill import Place
from benchmarks.measure import machine, table

DRILLS = {
    "F1": stops.kills,
    "F2": saves.kills_inside,
    "F3": saves.full_disk,
    "F4": places.full_logs,
    "F5": saves.edits,
    "F6": saves.kills_inside,
    "F7": stops.terms,
    "F8": stops.requeues,
    "F9": stops.second_signals,
    "F10": worlds.rank_killed,
    "F11": worlds.rank_hangs,
    "F28": stops.repeats,
    "F35": places.no_network,
    "F36": stops.pause,
    "F37": places.odd_places,
    "F38": places.two_jobs,
    "F39": places.drift,
    "F40": worlds.shards_killed,
}
HEAD = ("fault", "injected", "survived", "lost", "figure", "seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("faults", nargs="*", choices=[[], *DRILLS], help="which; default: all")
    parser.add_argument("--full", action="store_true", help="the full counts")
    settings = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    warnings.simplefilter("ignore")
    lines, lost = [], 0
    with tempfile.TemporaryDirectory(prefix="faults") as folder:
        place = Place(Path(folder))
        for drill in dict.fromkeys(DRILLS[name] for name in settings.faults or DRILLS):
            began = time.monotonic()
            row = drill(place, settings.full)
            lost += row.lost
            lines.append([*row.cells(), round(time.monotonic() - began)])
            print("  ".join(str(cell) for cell in lines[-1]), file=sys.stderr, flush=True)
    print(f"{machine()}\n\n{table(HEAD, lines)}")
    sys.exit(bool(lost))


if __name__ == "__main__":
    main()
