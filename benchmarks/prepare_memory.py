"""Peak memory of prepare's bookkeeping over many files: ``python -m benchmarks.prepare_memory --files 200000``.

Files are not read: the work on one is replaced by an answer of the usual size, so what is measured is what prepare
itself holds. The numbers are those of the whole process, with its imports told apart.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ssl_med.data import prepare
from ssl_med.data.ingest import Job, source_of
from ssl_med.data.journal import Outcome
from ssl_med.data.record import Record
from ssl_med.data.rows import Row


def peak() -> float:
    """Largest resident memory so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def records(count: int, folder: Path) -> Iterator[Record]:
    for number in range(count):
        name = f"hospital_{number % 7}/patient_{number // 4:07d}/study_{number % 4}/series_0001/image.nii.gz"
        yield Record(
            name, "nifti", (folder / name,), mask=folder / name.replace("image", "mask"), patient=f"{number // 4}"
        )


def answer(job: Job, folder: Path, key: bytes, settings: object) -> Outcome:
    name = f"{hash(job.record.name) & (1 << 64) - 1:016x}"
    shape, spacing = [1, 200, 512, 512], [1.5, 0.7, 0.7]
    statistics = (-1000.0, 1200.0, -400.0, 500.0, -1024.0, 3071.0)
    row = Row(
        *(name, job.record.patient, "", "", "", -1, "CT", shape, spacing, [1.0] * 16, "int16", True, [0, 1]),
        *("0" * 64, *statistics),
    )
    return Outcome(source_of(job.record), job.record.name, row, content="0" * 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=200_000)
    count = parser.parse_args().files
    prepare.prepare_one = answer
    prepare._Build._is_stored = lambda self, outcome: outcome.row is not None
    with tempfile.TemporaryDirectory() as place:
        folder, before, began = Path(place), peak(), time.perf_counter()
        found = records(count, folder) if hasattr(prepare, "Spool") else list(records(count, folder))
        counts = prepare.build_store(found, folder / "store", [], say=lambda text: None)
        seconds = time.perf_counter() - began
        print(f"{counts['images']} images: {peak() - before:.0f} MB above {before:.0f} MB of imports, {seconds:.0f} s")


if __name__ == "__main__":
    main()
