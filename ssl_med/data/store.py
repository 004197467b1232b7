"""The store: images ready for fast random crops, as compressed chunks with their content hashes.

Layout of the folder::

    store.json          version, axes, channels, classes
    index.parquet       one row per image, no identifiers
    images/<id>.b2nd    voxels as scanned (integers stay integers), (c, *space)
    masks/<id>.b2nd     voxel labels, (1, *space)
    private/            mode 0700: the key of the hashes, where each id came from, what was refused and why
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ssl_med.data.intensity import Policy, Scale, Statistics, scale_of
from ssl_med.errors import UserError
from ssl_med.files import write_json

VERSION = 1
_CHUNK = {2: 512, 3: 64}
_BLOCK = {2: 128, 3: 32}


@dataclass(frozen=True)
class Row:
    """One image of a store.

    Attributes:
        id: keyed hash of where it came from.
        patient, study, site: keyed hashes; empty where unknown.
        split: ``train``, ``val``, ``test``; ``label``: class, -1 = unlabelled; ``modality``: as read.
        shape: (c, \\*space); ``spacing``: mm along space; ``affine``: 16 numbers, or none for images without geometry.
        dtype: of the stored voxels.
        has_mask: voxel labels are stored; ``mask_values``: which.
        foreground: flat indices of up to 256 labelled voxels per class, for crops that must contain them.
        sha256: of the stored voxels' bytes.
        low, high, mean, sd, minimum, maximum: see :class:`ssl_med.data.intensity.Statistics`.
    """

    id: str
    patient: str
    study: str
    site: str
    split: str
    label: int
    modality: str
    shape: list[int]
    spacing: list[float]
    affine: list[float]
    dtype: str
    has_mask: bool
    mask_values: list[int]
    foreground: list[int]
    sha256: str
    low: float
    high: float
    mean: float
    sd: float
    minimum: float
    maximum: float

    def scale(self, policy: Policy) -> Scale:
        """How this image's voxels are scaled under a policy."""
        found = Statistics(self.low, self.high, self.mean, self.sd, self.minimum, self.maximum)
        return scale_of(policy, self.modality, self.dtype, found)


def write_array(path: Path, array: np.ndarray) -> None:
    """Write (c, \\*space) as lz4 + bitshuffle chunks, through a temporary file, so that a path is whole or absent."""
    import blosc2

    rank = array.ndim - 1
    chunks = (array.shape[0], *(min(_CHUNK[rank], s) for s in array.shape[1:]))
    blocks = (array.shape[0], *(min(_BLOCK[rank], s) for s in chunks[1:]))
    params = {"codec": blosc2.Codec.LZ4, "clevel": 5, "filters": [blosc2.Filter.BITSHUFFLE], "nthreads": 1}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.b2nd")
    temporary.unlink(missing_ok=True)
    voxels: Any = np.ascontiguousarray(array)
    blosc2.asarray(voxels, urlpath=str(temporary), mode="w", chunks=chunks, blocks=blocks, cparams=params)
    temporary.replace(path)


def content_hash(array: np.ndarray) -> str:
    """SHA-256 of type, shape and voxels: equal for equal images wherever they came from."""
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


class Store:
    """A prepared folder of images, opened for reading.

    Args:
        folder: what ``ssl-med prepare`` wrote.

    Raises:
        UserError: the folder is no store, or of another version.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        head = self.folder / "store.json"
        if not head.is_file():
            raise UserError(f"{self.folder} is not a store: it has no store.json; make one with `ssl-med prepare`")
        self.facts: dict[str, Any] = json.loads(head.read_text())
        if self.facts["version"] != VERSION:
            raise UserError(
                f"{self.folder} is a store of version {self.facts['version']}, this is {VERSION}: prepare anew"
            )
        self.rows = _read_rows(self.folder / "index.parquet")
        self.spatial_dims: int = self.facts["spatial_dims"]
        self.channels: int = self.facts["channels"]
        self.class_names: list[str] = self.facts["class_names"]

    def __len__(self) -> int:
        return len(self.rows)

    def read(
        self, row: Row, part: str = "images", start: list[int] | None = None, size: list[int] | None = None
    ) -> np.ndarray:
        """Voxels (c, \\*size) from corner ``start``; the whole image without them. Only the chunks touched are read.

        Masks painted black and white (0 and 255) read as 0 and 1.
        """
        import blosc2

        array: Any = blosc2.open(str(self.folder / part / f"{row.id}.b2nd"), mode="r", dparams={"nthreads": 1})
        if start is None or size is None:
            voxels = np.asarray(array[:])
        else:
            window = tuple(slice(a, a + s) for a, s in zip(start, size, strict=True))
            voxels = np.asarray(array[(slice(None), *window)])
        return (voxels > 0).astype(voxels.dtype) if part == "masks" and self.facts.get("painted") else voxels

    def fingerprint(self) -> str:
        """Hash of the content of all images, in order: names the data without saying where it lies."""
        return hashlib.sha256("".join(row.sha256 for row in self.rows).encode()).hexdigest()[:16]

    def summary(self, rows: list[Row]) -> dict[str, Any]:
        """Counts that may be published: images, patients, modalities, splits, labels."""
        modalities: dict[str, int] = {}
        for row in rows:
            modalities[row.modality or "unknown"] = modalities.get(row.modality or "unknown", 0) + 1
        return {
            "fingerprint": self.fingerprint(),
            "images": len(rows),
            "patients": len({row.patient for row in rows}),
            "spatial_dims": self.spatial_dims,
            "channels": self.channels,
            "modalities": modalities,
        }


def _read_rows(path: Path) -> list[Row]:
    import pyarrow.parquet as pq

    return [Row(**line) for line in pq.read_table(path).to_pylist()]


def write_index(folder: Path, rows: list[Row], facts: dict[str, Any]) -> None:
    """Write ``index.parquet`` and, last of all, ``store.json``: a folder without it is not a store."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    lists = {list[int]: pa.list_(pa.int64()), list[float]: pa.list_(pa.float64())}
    schema = pa.schema([(f.name, (kinds | lists)[f.type]) for f in fields(Row)])
    temporary = folder / ".index.parquet"
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows], schema=schema), temporary)
    temporary.replace(folder / "index.parquet")
    write_json(folder / "store.json", {"version": VERSION, **facts})
