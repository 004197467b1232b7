"""``ssl-med inspect``: read every image of a folder once and say what is in it, before anything is built on it."""

import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ssl_med.data.index import Layout, describe_layout, find_images
from ssl_med.data.readers import read, read_mask
from ssl_med.data.record import Image, Record, Unreadable

_MOST_VOXELS = 1 << 20
"""Percentiles of larger images are taken from evenly spaced voxels: exact enough to look at, and fast."""

_MOST_LINES = 20
"""Broken files that are printed one by one; all of them are in the answer."""


def inspect(
    data: str | Path,
    manifest: str | Path | None = None,
    columns: dict[str, str] | None = None,
    limit: int | None = None,
) -> dict[str, Any]:
    """Read all images of a folder one after the other, print what is in it, and return the same.

    Args:
        data: folder of images, or one file.
        manifest: table that names the images; by default the only CSV file of the folder that does.
        columns: meaning of the table's columns, see :func:`ssl_med.data.index.find_images`.
        limit: look at the first images only.

    Returns:
        Layout, counts, shapes (memory order), spacings (mm), intensities, labels, splits, masks, warnings and the
        broken files with their reasons; ready for JSON.

    Raises:
        UserError: no such folder, or a table that cannot be understood.
    """
    folder, table = Path(data), None if manifest is None else Path(manifest)
    layout, census = describe_layout(folder, table, columns), _Census()
    for record in islice(find_images(folder, table, columns), limit):
        census.add(record)
        _progress(f"\r{census.images} images read")
    _progress("\r\033[K")
    facts = {"layout": asdict(layout), **census.facts(layout)}
    facts["layout"] = {key: list(v) if isinstance(v, tuple) else v for key, v in facts["layout"].items()}
    print("\n".join(_lines(facts)))
    return facts


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(text, end="", file=sys.stderr, flush=True)


@dataclass
class _Census:
    """Running counts; of each image only a few numbers stay."""

    images: int = 0
    patients: set[str] = field(default_factory=set)
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    sizes: dict[str, list[tuple[tuple[int, ...], tuple[float, ...]]]] = field(default_factory=dict)
    intensities: list[tuple[float, ...]] = field(default_factory=list)
    masks: int = 0
    broken: list[dict[str, str]] = field(default_factory=list)

    def add(self, record: Record) -> None:
        self.images += 1
        self.patients.add(record.patient or record.name)
        self._count("splits", record.split or "none")
        self._count("labels", str(record.label))
        try:
            image = read(record)
            self._add_image(image)
            mask = read_mask(record, image)
        except Unreadable as error:
            self.broken.append({"name": record.name, "reason": str(error)})
            return
        if mask is not None:
            self.masks += 1
            for value in np.unique(mask).tolist():
                self._count("mask_values", str(value))

    def _add_image(self, image: Image) -> None:
        rank = f"{image.array.ndim - 1}D"
        self.sizes.setdefault(rank, []).append((image.array.shape[1:], image.spacing))
        self.intensities.append(_intensity(image.array))
        self._count("ranks", rank)
        self._count("channels", str(len(image.array)))
        self._count("types", image.array.dtype.name)
        self._count("modalities", image.modality or "unknown")
        for warning in image.warnings:
            self._count("warnings", warning)

    def _count(self, what: str, value: str) -> None:
        self.counts.setdefault(what, Counter())[value] += 1

    def facts(self, layout: Layout) -> dict[str, Any]:
        """Everything counted, as plain types."""
        counts = {what: dict(sorted(counter.items(), key=_natural)) for what, counter in self.counts.items()}
        names = layout.class_names
        labels = {_label_name(key, names): n for key, n in counts.pop("labels", {}).items()}
        kinds = ("ranks", "channels", "types", "modalities", "splits", "warnings")
        return {
            "images": self.images,
            "usable": self.images - len(self.broken),
            "patients": len(self.patients),
            **{kind: counts.get(kind, {}) for kind in kinds},
            "labels": labels,
            "masks": {"count": self.masks, "values": counts.get("mask_values", {})},
            "shapes": {rank: _spread([shape for shape, _ in sizes]) for rank, sizes in self.sizes.items()},
            "spacings": {rank: _spread([spacing for _, spacing in sizes]) for rank, sizes in self.sizes.items()},
            "intensity": self._intensity(),
            "broken": self.broken,
        }

    def _intensity(self) -> dict[str, float]:
        if not self.intensities:
            return {}
        values = np.array(self.intensities)
        low, high = np.median(values[:, 1]), np.median(values[:, 2])
        return {
            "min": float(values[:, 0].min()),
            "p0.5": float(low),
            "p99.5": float(high),
            "max": float(values[:, 3].max()),
        }


def _intensity(array: np.ndarray) -> tuple[float, ...]:
    """Minimum, 0.5th and 99.5th percentile, maximum."""
    flat = array.reshape(-1)
    low, high = np.percentile(flat[:: -(-flat.size // _MOST_VOXELS)], (0.5, 99.5))
    return float(flat.min()), float(low), float(high), float(flat.max())


def _natural(entry: tuple[str, int]) -> tuple[float, str]:
    """Numbers by size, words after them."""
    number = entry[0].lstrip("-")
    return (float(entry[0]) if number.isdigit() else float("inf"), entry[0])


def _label_name(key: str, names: tuple[str, ...]) -> str:
    number = int(key)
    if number < 0:
        return "unlabelled"
    return f"{number} {names[number]}" if number < len(names) else key


def _spread(values: list[tuple[Any, ...]]) -> dict[str, list[float]]:
    array = np.array(values, float)
    return {"min": array.min(0).tolist(), "median": np.median(array, 0).tolist(), "max": array.max(0).tolist()}


def _lines(facts: dict[str, Any]) -> list[str]:
    layout, broken = facts["layout"], facts["broken"]
    lines = [f"layout      {layout['name']}"]
    if layout["ignored_files"]:
        lines.append(f"ignored     {layout['ignored_files']} other files")
    lines += [f"note        {note}" for note in layout["notes"]]
    lines.append(f"images      {facts['images']}, usable {facts['usable']}, patients {facts['patients']}")
    for kind in ("ranks", "channels", "types", "modalities", "splits", "labels", "warnings"):
        if facts[kind]:
            lines.append(f"{kind:12}" + ", ".join(f"{value}: {count}" for value, count in facts[kind].items()))
    for kind, unit in (("shapes", "voxels"), ("spacings", "mm")):
        for rank, spread in facts[kind].items():
            words = ", ".join(f"{name} {_sizes(sizes)}" for name, sizes in spread.items())
            lines.append(f"{kind:12}{rank} {words} {unit}")
    if facts["intensity"]:
        lines.append("intensity   " + ", ".join(f"{name} {value:g}" for name, value in facts["intensity"].items()))
    if facts["masks"]["count"]:
        lines.append(f"masks       {facts['masks']['count']}, images with value {facts['masks']['values']}")
    lines += [f"broken      {entry['name']}: {entry['reason']}" for entry in broken[:_MOST_LINES]]
    if len(broken) > _MOST_LINES:
        kinds = Counter(entry["reason"] for entry in broken).most_common(_MOST_LINES)
        lines.append(f"broken      {len(broken)} in all, by reason:")
        lines += [f"            {count} x {reason}" for reason, count in kinds]
    return lines


def _sizes(values: list[float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
