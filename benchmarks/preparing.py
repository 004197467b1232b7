"""Decoding and preparing a CT of 512 x 512 x 200 voxels beside others: ``python -m benchmarks.preparing [--rounds 3]``.

1. A whole .nii.gz to an array. 2. Decode, orient, resample to 1.5 x 1.5 x 2 mm, write (ours checks, measures and hashes
too). 3. One process against two, and a local Dask cluster. 4. Crops with the page cache of the file dropped before
each. CPU milliseconds on one thread for 1 and 2, each way in a process of its own; wall time for 3 and 4.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.loading import CROP, SHAPE, as_ct, make_store, nnssl_layout, scaled
from benchmarks.measure import interleaved_apart, machine, table
from ssl_med.data import ingest
from ssl_med.data.dataset import CropDataset
from ssl_med.data.heap import keep_memory
from ssl_med.data.index import describe_layout, find_images
from ssl_med.data.prepare import build_store
from ssl_med.data.readers import read
from ssl_med.data.settings import Settings
from ssl_med.data.store import Store

SPACING = (1.5, 1.5, 2.0)
"""Mm along x, y, z."""
Work = dict[str, Callable[[], object]]


def decoding(path: Path) -> Work:
    """A compressed NIfTI file to voxels in memory."""
    import nibabel
    import SimpleITK
    from monai.transforms.io.array import LoadImage

    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    record, load = next(iter(find_images(path.parent))), LoadImage(image_only=True)

    def ours() -> None:
        keep_memory()  # as `ssl-med prepare` does
        read(record)

    work: Work = {
        "ssl_med (checked)": ours,
        "MONAI LoadImage": lambda: load(path),
        "nibabel, float32": lambda: nibabel.load(path).get_fdata(dtype=np.float32),  # pyright: ignore
        "nibabel, int16": lambda: np.asanyarray(nibabel.load(path).dataobj),  # pyright: ignore
        "SimpleITK, int16": lambda: SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))),
    }
    if find_spec("torchio"):
        import torchio

        work["torchio ScalarImage"] = lambda: torchio.ScalarImage(path).data.float()
    return work


def preparing(path: Path, folder: Path, order: int) -> Work:
    """From the file to what training reads, at one order of interpolation."""
    import SimpleITK
    from monai.transforms.compose import Compose
    from monai.transforms.croppad.dictionary import CropForegroundd
    from monai.transforms.intensity.dictionary import ScaleIntensityRanged
    from monai.transforms.io.dictionary import LoadImaged
    from monai.transforms.spatial.dictionary import Orientationd, Spacingd

    records, names = list(find_images(path.parent)), list(describe_layout(path.parent).class_names)
    settings: Any = Settings(spacing=SPACING[::-1], order=order)  # pyright: ignore[reportArgumentType]
    count = iter(range(10**6))

    def ours() -> None:
        keep_memory()  # as the command does
        ingest._digest.cache_clear()  # the bytes of a file are hashed once per process
        build_store(records, folder / f"store{next(count)}", names, settings=settings, say=lambda text: None)

    modes: Any = {"mode": "bilinear"} if order == 1 else {"mode": 3}
    chain = Compose(
        [
            LoadImaged("image", ensure_channel_first=True),
            Orientationd("image", axcodes="RAS"),
            Spacingd("image", pixdim=SPACING, **modes),
            ScaleIntensityRanged("image", -1000, 1000, 0, 1, clip=True),
            CropForegroundd("image", source_key="image"),
        ]
    )

    def simple_itk() -> None:
        image = SimpleITK.ReadImage(str(path), SimpleITK.sitkFloat32)
        size = [round(n * s / t) for n, s, t in zip(image.GetSize(), image.GetSpacing(), SPACING, strict=True)]
        kind = SimpleITK.sitkLinear if order == 1 else SimpleITK.sitkBSpline
        frame = (image.GetOrigin(), SPACING, image.GetDirection(), -1024.0)
        moved = SimpleITK.Resample(image, size, SimpleITK.Transform(), kind, *frame)
        np.save(folder / "itk.npy", SimpleITK.GetArrayFromImage(moved))

    work: Work = {
        "ssl_med": ours,
        "MONAI chain + torch.save": lambda: torch.save(chain({"image": str(path)})["image"], folder / "monai.pt"),
        "SimpleITK + np.save": simple_itk,
    }
    if find_spec("torchio"):
        import torchio

        kind = "linear" if order == 1 else "bspline"
        move = torchio.Compose([torchio.ToCanonical(), torchio.Resample(SPACING, image_interpolation=kind)])
        work["torchio + np.save"] = lambda: np.save(folder / "torchio.npy", move(torchio.ScalarImage(path)).data)
    return work


def engines(source: Path, folder: Path) -> str:
    """Wall time of ``ssl-med prepare`` of the same scans with one process, two, and a local Dask cluster of two."""
    ways = {"one process": ["--workers", "1"], "two processes": ["--workers", "2"]}
    if find_spec("distributed"):
        ways["local Dask cluster of two"] = ["--engine", "dask", "--workers", "2"]
    lines: list[list[object]] = []
    for name, options in ways.items():
        command = [sys.executable, "-m", "ssl_med.cli", "prepare", source, "--out", folder / name, *options]
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        lines.append([name, time.perf_counter() - began])
    return table(["engine", f"seconds for {len(list(source.iterdir()))} scans"], lines)


def drop(path: Path) -> None:
    """Make the system forget what it has read of a file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cold(store: Store, folder: Path, crops: int) -> str:
    """Wall milliseconds of single crops of files that are not in the page cache, in turns."""
    volumes = [np.ascontiguousarray(store.read(row)[0]) for row in store.rows]
    np.save(folder / "0.npy", volumes[0])
    theirs = nnssl_layout(folder / "nnssl", volumes[:1])
    dataset = CropDataset(store, as_ct(store), [CROP] * 3, "auto", 0)
    rng, times = np.random.default_rng(0), {}
    ways: dict[str, tuple[list[Path], Callable[[int, Any], object]]] = {
        "ssl_med": ([p for p in (store.folder / "images").rglob("*") if p.is_file()], lambda n, w: dataset[n]),
        ".npy int16, memory map": (
            [folder / "0.npy"],
            lambda n, w: scaled(np.load(folder / "0.npy", mmap_mode="r")[w]),
        ),
        "nnssl layout": ([folder / "nnssl" / "0.b2nd"], lambda n, w: theirs(0, w)),
    }
    for number in range(crops):
        window = tuple(slice(c, c + CROP) for c in (int(rng.integers(n - CROP + 1)) for n in SHAPE))
        for name, (files, read_crop) in ways.items():
            for file in files:
                drop(file)
            began = time.perf_counter()
            read_crop(number, window)
            times.setdefault(name, []).append((time.perf_counter() - began) * 1e3)
    ours = float(np.median(times["ssl_med"]))
    lines = [[k, float(np.median(v)), f"{min(v):.3g} to {max(v):.3g}", np.median(v) / ours] for k, v in times.items()]
    return table(["way", "ms a cold crop, median", "spread", "times ssl_med"], lines)


def ratios(work: Work, rounds: int) -> str:
    found = interleaved_apart(work, rounds)
    first = next(iter(found.values()))[0]
    lines = [[k, m, f"{low:.0f} to {high:.0f}", m / first] for k, (m, low, high) in found.items()]
    return table(["way", "CPU ms, median", "spread", "times ssl_med"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scans", type=int, default=8, help="of the comparison of engines")
    parser.add_argument("--orders", type=int, nargs="*", default=[1, 3], help="of the interpolation")
    parser.add_argument("--only", nargs="*", default=["decode", "prepare", "engines", "cold"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = make_store(folder, 1)
        path = next((folder / "in").glob("*.nii.gz"))
        if "decode" in arguments.only:
            print(f"\n### A whole .nii.gz\n\n{ratios(decoding(path), arguments.rounds)}", flush=True)
        for order in arguments.orders if "prepare" in arguments.only else []:
            found = ratios(preparing(path, folder, order), arguments.rounds)
            print(f"\n### Preparing, interpolation of order {order}\n\n{found}", flush=True)
        if "cold" in arguments.only:
            print(f"\n### Cold crops\n\n{cold(store, folder, 24)}", flush=True)
        if "engines" in arguments.only:
            for number in range(1, arguments.scans):
                (folder / "in" / f"copy_{number}.nii.gz").write_bytes(path.read_bytes())
            print(f"\n### Engines\n\n{engines(folder / 'in', folder)}", flush=True)


if __name__ == "__main__":
    main()
