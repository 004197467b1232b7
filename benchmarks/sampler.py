"""Start-up, memory and order with a manifest of a million images: ``python -m benchmarks.sampler [--rows 1000000]``.

1,000 real files stand behind the rows (every file is many of them). Each figure comes from a process of its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from benchmarks.measure import machine, private_mib, table
from ssl_med.data.arrays import write_array
from ssl_med.data.intensity import statistics
from ssl_med.data.rows import Row
from ssl_med.data.sampler import StepBatches
from ssl_med.data.store import content_hash, write_index


def make_store(folder: Path, rows: int, files: int) -> None:
    """A store of small volumes whose index names each of them many times over."""
    made = [_file(folder, number) for number in range(files)]
    every = (replace(made[number % files], patient=f"{number // 2:x}") for number in range(rows))
    write_index(folder, every, {"spatial_dims": 3, "channels": 1, "class_names": [], "format": "b2nd"})


def _file(folder: Path, number: int) -> Row:
    voxels = np.random.default_rng(number).integers(-1000, 1000, (1, 24, 24, 24)).astype(np.int16)
    name = f"{number:016x}"
    seal = write_array(folder / "images" / f"{name}.b2nd", voxels)
    found = vars(statistics(voxels))
    facts = {"spacing": [1.0] * 3, "affine": [], "dtype": "int16", "has_mask": False, "mask_values": []}
    texts = {"patient": "", "study": "", "site": "", "split": "train", "modality": ("CT", "MR")[number % 2]}
    return Row(
        id=name, label=-1, shape=[1, 24, 24, 24], sha256=content_hash(voxels), seal=seal, **texts, **facts, **found
    )


def start(folder: Path, draws: int) -> dict[str, float]:
    """Open the store as a training would, with weights, and take samples: seconds and MiB."""
    from ssl_med.data.module import StoreData

    before, began = private_mib(), time.perf_counter()
    data = StoreData(str(folder), 16, 8, weights={"CT": 1, "MR": 2}, crops_per_image=4)
    dataset = data.crops()
    dataset.__getitems__([0])
    seconds, opened = time.perf_counter() - began, private_mib()
    for position in range(100):
        dataset[position]
    warm, began = private_mib(), time.perf_counter()
    for position in range(draws):
        dataset.order(position)
    row_us = (time.perf_counter() - began) / draws * 1e6
    for position in range(draws // 100):
        dataset[position * 97]
    return {
        "seconds to the first sample": seconds,
        "private MiB of the manifest": opened - before,
        "private MiB of the process": private_mib(),
        f"MiB more after {draws} draws": private_mib() - warm,
        "microseconds a draw of the order": row_us,
    }


def same_order(steps: int = 3) -> int:
    """How many world sizes from 1 to 1024 give the order of one process."""
    equal = 0
    for world in range(1, 1025):
        ranks = [list(islice(StepBatches(world, 0, rank, world), steps)) for rank in range(world)]
        together = [position for step in range(steps) for rank in ranks for position in rank[step]]
        equal += together == list(range(world * steps))
    return equal


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--store", help="measure this store and answer as JSON: what the command asks itself")
    arguments = parser.parse_args()
    if arguments.store:
        print(json.dumps(start(Path(arguments.store), arguments.draws)))
        return
    with tempfile.TemporaryDirectory() as name:
        make_store(Path(name), arguments.rows, arguments.files)
        command = [sys.executable, "-m", "benchmarks.sampler", "--draws", str(arguments.draws), "--store", name]
        answers = [
            json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            for _ in range(arguments.repeats)
        ]
    lines = []
    for what in answers[0]:
        values = [answer[what] for answer in answers]
        lines.append([what, float(np.median(values)), f"{min(values):.3g} to {max(values):.3g}"])
    print(
        f"{machine()}, {arguments.rows} rows on {arguments.files} files\n\n{table(['what', 'median', 'spread'], lines)}"
    )
    print(f"\nThe order is that of one process at {same_order()} of the 1024 world sizes from 1 to 1024.")


if __name__ == "__main__":
    main()
