"""How fast crops come from stored CT scans, beside what others offer: ``python -m benchmarks.loading [--rounds 5]``.

Synthetic 512 x 512 x 200 int16 scans, crops of 96^3 as float32 between 0 and 1, page cache warm, one thread. Ours come
in batches of four in one buffer, as a loader asks for them; the peers' crops are not stacked. The peers (MONAI, zarr,
nnssl's layout: float32, blosc2 zstd-8, and plain ``.npy``) run in turns with ours in the same process.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

from benchmarks.measure import folder_mb, interleaved, machine, private_mib, table
from ssl_med.data.crops import CropAffine
from ssl_med.data.dataset import CropDataset
from ssl_med.data.index import describe_layout, find_images
from ssl_med.data.prepare import build_store
from ssl_med.data.rows import Rows
from ssl_med.data.store import Store

SHAPE, CROP, BATCH = (200, 512, 512), 96, 4
Read = Callable[[int, tuple[int, ...]], np.ndarray]


def scan(seed: int) -> np.ndarray:
    """A CT-like volume (z, y, x): an ellipse of tissue with organs, noise of 12 HU, and air around."""
    rng = np.random.default_rng(seed)
    z, y, x = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in SHAPE)]
    volume = np.full(SHAPE, -1000, np.float32)
    body = (y / 0.75) ** 2 + (x / 0.9) ** 2 + 0 * z < 1
    volume[body] = 40
    for _ in range(12):
        centre, radius = rng.uniform(-0.6, 0.6, 3), rng.uniform(0.1, 0.35, 3)
        inside = sum(((a - c) / r) ** 2 for a, c, r in zip((z, y, x), centre, radius, strict=True)) < 1
        volume[inside & body] = rng.choice([-850, -90, 60, 130, 400])
    volume += 12 * rng.standard_normal(SHAPE, dtype=np.float32)
    return volume.astype(np.int16)


def scaled(voxels: np.ndarray) -> np.ndarray:
    """HU from -1000 to 1000 as 0 to 1."""
    out = voxels.astype(np.float32)
    out += 1000
    out *= 1 / 2000
    return np.clip(out, 0, 1, out=out)


def make_store(folder: Path, count: int) -> Store:
    """Scans as .nii.gz, prepared as a user would; marked as CT, which NIfTI cannot say."""
    (folder / "in").mkdir()
    for number in range(count):
        image = nibabel.Nifti1Image(scan(number).transpose(2, 1, 0), np.diag([0.8, 0.8, 1.5, 1.0]))
        nibabel.save(image, folder / "in" / f"scan_{number}.nii.gz")
    names = list(describe_layout(folder / "in").class_names)
    build_store(list(find_images(folder / "in")), folder / "store", names, say=lambda text: None)
    return Store(folder / "store")


def as_ct(store: Store) -> Rows:
    """The rows of a store with the modality that NIfTI lost."""
    return Rows.of([replace(row, modality="CT") for row in store.rows])


def npy(folder: Path, volumes: list[np.ndarray]) -> Read:
    folder.mkdir()
    for number, volume in enumerate(volumes):
        np.save(folder / f"{number}.npy", volume)
    maps = [np.load(folder / f"{number}.npy", mmap_mode="r") for number in range(len(volumes))]
    return lambda i, window: scaled(maps[i][window])  # pyright: ignore[reportArgumentType, reportCallIssue]


def nnssl_layout(folder: Path, volumes: list[np.ndarray]) -> Read:
    """Float32 after preprocessing, zstd-8, blocks and chunks near the patch; opened anew for every crop."""
    import blosc2

    folder.mkdir()
    for number, volume in enumerate(volumes):
        blosc2.asarray(
            scaled(volume),  # pyright: ignore[reportArgumentType]
            urlpath=str(folder / f"{number}.b2nd"),
            chunks=(80, 64, 64),  # what nnU-Net's rule gives for this scan and patch
            blocks=(16, 16, 16),
            cparams={"codec": blosc2.Codec.ZSTD, "clevel": 8, "nthreads": 1},
        )

    def read(i: int, window: tuple[int, ...]) -> np.ndarray:
        file: Any = blosc2.open(str(folder / f"{i}.b2nd"), mode="r", dparams={"nthreads": 1}, mmap_mode="r")
        return np.ascontiguousarray(file[window])

    return read


def zarr_sharded(folder: Path, volumes: list[np.ndarray]) -> Read:
    import zarr

    zarr.config.set({"async.concurrency": 1, "threading.max_workers": 1})
    arrays: list[Any] = []
    for number, volume in enumerate(volumes):
        path = str(folder / f"{number}.zarr")
        compressors = zarr.codecs.ZstdCodec(level=3)
        array: Any = zarr.create_array(
            path, shape=SHAPE, chunks=(64,) * 3, shards=(256,) * 3, dtype="int16", compressors=compressors
        )
        array[:] = volume
        arrays.append(zarr.open_array(path, mode="r"))
    return lambda i, window: scaled(np.asarray(arrays[i][window]))


def monai_cache(folder: Path, turned: bool) -> Any:
    """MONAI's pipeline with the scans in memory."""
    from monai.data.dataset import CacheDataset
    from monai.transforms import Compose, EnsureTyped, LoadImaged, RandAffined, RandSpatialCropd, ScaleIntensityRanged

    size = (CROP,) * 3
    steps: list[Any] = [
        LoadImaged("image", ensure_channel_first=True),
        ScaleIntensityRanged("image", -1000, 1000, 0, 1, clip=True),
        EnsureTyped("image"),
        RandSpatialCropd("image", size, random_size=False),
    ]
    if turned:
        ranges: Any = {"rotate_range": (0.5,) * 3, "scale_range": (0.2,) * 3}
        steps.append(RandAffined("image", prob=1, mode="bilinear", cache_grid=True, spatial_size=size, **ranges))
    items = [{"image": str(path)} for path in sorted(folder.glob("*.nii.gz"))]
    return CacheDataset(items, Compose(steps), progress=False, num_workers=1)


def crop_reads(folder: Path, store: Store, crops: int) -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """One callable per way to read the same number of crops, and MB on disk of each scan."""
    volumes = [np.ascontiguousarray(store.read(row)[0]) for row in store.rows]
    rng = np.random.default_rng(0)
    corners = [[int(rng.integers(n - CROP + 1)) for n in SHAPE] for _ in range(crops)]
    places = [(n % len(volumes), tuple(slice(c, c + CROP) for c in corner)) for n, corner in enumerate(corners)]
    rows, unchecked = as_ct(store), Store(store.folder, verify=False)
    ours = {
        "ssl_med": CropDataset(store, rows, [CROP] * 3, "auto", 0),
        "ssl_med, no hash check": CropDataset(unchecked, rows, [CROP] * 3, "auto", 0),
    }
    peers: dict[str, Callable[[Path, list[np.ndarray]], Read]] = {
        ".npy int16, memory map": npy,
        "nnssl layout (blosc2 zstd-8 float32)": nnssl_layout,
        "zarr v3 sharded int16 zstd": zarr_sharded,
    }
    reads: dict[str, Callable[[], object]] = {
        name: lambda d=dataset: batches(d, crops) for name, dataset in ours.items()
    }
    sizes = dict.fromkeys(ours, folder_mb(store.folder / "images") / len(volumes))
    for number, (name, build) in enumerate(peers.items()):
        read = build(folder / f"peer{number}", volumes)
        reads[name] = lambda r=read: [r(*place) is None for place in places]
        sizes[name] = folder_mb(folder / f"peer{number}") / len(volumes)
    inside = np.ascontiguousarray(volumes[0][:CROP, :CROP, :CROP])
    reads["limit: in memory, cast and scale"] = lambda: [scaled(inside) is None for _ in range(crops)]
    return reads, sizes


def batches(dataset: CropDataset, crops: int) -> None:
    """Crops as a loader asks for them: so many at once, written into one buffer."""
    for first in range(0, crops, BATCH):
        dataset.__getitems__(list(range(first, min(first + BATCH, crops))))


def report(found: dict[str, tuple[float, float, float]], crops: int, first: str, sizes: dict[str, float]) -> str:
    lines = []
    for name, spread in found.items():
        median, low, high = (ms / crops for ms in spread)
        ratio = spread[0] / found[first][0]
        size = sizes.get(name, "")
        lines.append([name, median, f"{low:.3g} to {high:.3g}", f"{ratio:.2f}", size])
    return table(["way", "CPU ms a crop, median", "spread", f"times {first}", "MB a scan"], lines)


def memory_of_a_scan(folder: Path, store: Store) -> str:
    """Private memory that a scan takes once crops of it have been read, or once it is cached."""
    opened = Store(store.folder)
    dataset = CropDataset(opened, as_ct(opened), [CROP] * 3, "auto", 0)
    for position in range(8):  # buffers of a crop's size are held by the process, however many scans there are
        dataset.__getitems__([position])
    before = private_mib()
    for position in range(8, 8 + 4 * len(store)):
        dataset.__getitems__([position])
    ours = (private_mib() - before) / len(store)
    before = private_mib()
    cached = monai_cache(folder, turned=False)
    peer = (private_mib() - before) / len(cached)
    return table(["way", "private MiB a scan"], [["ssl_med", ours], ["MONAI CacheDataset", peer]])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scans", type=int, default=1)
    parser.add_argument("--crops", type=int, default=16, help="per round")
    arguments = parser.parse_args()
    crops = arguments.crops
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = make_store(folder, arguments.scans)
        print(f"{machine()}\n\n## Private memory\n\n{memory_of_a_scan(folder / 'in', store)}\n", flush=True)
        plain, turned = monai_cache(folder / "in", False), monai_cache(folder / "in", True)
        reads, sizes = crop_reads(folder, store, crops)
        few = max(1, crops // 4)  # MONAI takes long: fewer crops, counted as such
        reads["MONAI CacheDataset + RandSpatialCrop"] = lambda: [plain[n % len(plain)] and None for n in range(few)]
        found = interleaved(reads, arguments.rounds)
        monai = "MONAI CacheDataset + RandSpatialCrop"
        found[monai] = tuple(ms * crops / few for ms in found[monai])  # pyright: ignore[reportArgumentType]
        print(f"## 96^3 crops\n\n{report(found, crops, 'ssl_med', sizes)}\n", flush=True)
        dataset = CropDataset(store, as_ct(store), [CROP] * 3, "auto", 0, affine=CropAffine(28.6, (0.8, 1.25)))
        pipelines = {
            "ssl_med": lambda: batches(dataset, few),
            "MONAI CacheDataset + RandAffine": lambda: [turned[n % len(turned)] and None for n in range(few)],
        }
        print(f"## With rotation and scale\n\n{report(interleaved(pipelines, arguments.rounds), few, 'ssl_med', {})}")


if __name__ == "__main__":
    main()
