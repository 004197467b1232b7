"""What is in a folder of images: running counts over its records, of bounded size however many there are."""

from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from ssl_med.data.census import Counts, Distinct, Spread
from ssl_med.data.layouts.base import Layout
from ssl_med.data.peek import peek, tells
from ssl_med.data.readers import read, read_mask
from ssl_med.data.record import Image, Record, SetAside, Unreadable

_MOST_VOXELS = 1 << 20
"""Percentiles of larger images are taken from evenly spaced voxels: exact enough to look at, and fast."""

_MOST_BROKEN = 1000
"""Broken files that are named in the answer; the reasons of all are counted."""


@dataclass
class Inventory:
    """Running counts; of each image only a few numbers stay, of many images only a sample of them."""

    images: int = 0
    voxels_of: int = 0
    masks: int = 0
    bad: int = 0
    aside: int = 0
    unsized: int = 0
    patients: Distinct = field(default_factory=Distinct)
    studies: Distinct = field(default_factory=Distinct)
    sites: Distinct = field(default_factory=Distinct)
    counts: Counts = field(default_factory=Counts)
    shapes: dict[str, Spread] = field(default_factory=partial(defaultdict, Spread))
    spacings: dict[str, Spread] = field(default_factory=partial(defaultdict, Spread))
    intensities: dict[str, Spread] = field(default_factory=partial(defaultdict, Spread))
    broken: list[dict[str, str]] = field(default_factory=list)

    def look(self, record: Record) -> bool:
        """Count what the index and the header say; whether the image is worth reading."""
        self._add_record(record)
        try:
            header = peek(record)
        except Unreadable as error:
            self._refuse(record, error)
            return False
        if header:
            self._add_sizes(header.shape, header.spacing, header.modality, header.sized)
        return True

    def read(self, record: Record, looked: bool = False) -> None:
        """Count what the voxels say."""
        if not looked:
            self._add_record(record)
        try:
            image = read(record)
            self._add_image(image, record, sizes=not looked or not tells(record))
            mask = read_mask(record, image)
        except Unreadable as error:
            self._refuse(record, error)
            return
        if mask is not None:
            self.masks += 1
            for value in np.unique(mask).tolist():
                self.counts.add("mask_values", str(value))

    def _add_record(self, record: Record) -> None:
        self.images += 1
        self.patients.add(record.patient or record.name)
        for facts, word in ((self.studies, record.study), (self.sites, record.site)):
            if word:
                facts.add(word)
        self.counts.add("splits", record.split or "none")
        self.counts.add("labels", str(record.label))

    def _refuse(self, record: Record, error: Unreadable) -> None:
        reason = str(error)
        if isinstance(error, SetAside):
            self.aside += 1
            self.counts.add("set_aside", reason.removeprefix("set aside: "))
            return
        self.bad += 1
        self.counts.add("broken", reason)
        if len(self.broken) < _MOST_BROKEN:
            self.broken.append({"name": record.name, "reason": reason})

    def _add_sizes(self, shape: tuple[int, ...], spacing: tuple[float, ...], modality: str, sized: bool) -> None:
        rank = f"{len(shape)}D"
        self.shapes[rank].add(shape)
        self.spacings[rank].add(spacing)
        self.unsized += not sized
        self.counts.add("ranks", rank)
        self.counts.add("modalities", modality or "unknown")

    def _add_image(self, image: Image, record: Record, sizes: bool) -> None:
        self.voxels_of += 1
        if sizes:
            sized = image.affine is not None or bool(record.spacing) or any(step != 1.0 for step in image.spacing)
            self._add_sizes(image.array.shape[1:], image.spacing, image.modality, sized)
        values = _intensity(image.array)
        for kind in ("all", image.modality or "unknown"):
            self.intensities[kind].add(values)
        self.counts.add("channels", str(len(image.array)))
        self.counts.add("types", image.array.dtype.name)
        for warning in image.warnings:
            self.counts.add("warnings", warning)

    def facts(self, layout: Layout) -> dict[str, Any]:
        """Everything counted, as plain types."""
        kinds = ("ranks", "channels", "types", "modalities", "splits", "warnings")
        ranges = {kind: _range(spread) for kind, spread in self.intensities.items()}
        names = layout.class_names
        return {
            "images": self.images,
            "usable": self.images - self.bad - self.aside,
            "voxels_of": self.voxels_of,
            "patients": len(self.patients),
            "patients_exact": self.patients.exact,
            "studies": len(self.studies),
            "sites": len(self.sites),
            **{kind: self.counts.facts(kind) for kind in kinds},
            "labels": {_label_name(key, names): n for key, n in self.counts.facts("labels").items()},
            "masks": {"count": self.masks, "values": self.counts.facts("mask_values")},
            "shapes": {rank: spread.facts() for rank, spread in self.shapes.items()},
            "spacings": {rank: spread.facts() for rank, spread in self.spacings.items()},
            "unsized": self.unsized,
            "intensity": ranges.pop("all", {}),
            "intensity_by_modality": ranges,
            "set_aside": self.counts.facts("set_aside"),
            "broken": self.broken,
            "broken_reasons": self.counts.facts("broken"),
        }


def _intensity(array: np.ndarray) -> tuple[float, ...]:
    """Minimum, 0.5th and 99.5th percentile, maximum."""
    flat = array.reshape(-1)
    low, high = np.percentile(flat[:: -(-flat.size // _MOST_VOXELS)], (0.5, 99.5))
    return float(flat.min()), float(low), float(high), float(flat.max())


def _range(spread: Spread) -> dict[str, float]:
    """Over images: the least minimum, the medians of the percentiles, the largest maximum."""
    facts = spread.facts()
    return {
        "min": facts["min"][0],
        "p0.5": facts["median"][1],
        "p99.5": facts["median"][2],
        "max": facts["max"][3],
    }


def _label_name(key: str, names: tuple[str, ...]) -> str:
    if key == "-1":
        return "unlabelled"
    return f"{key} {names[int(key)]}" if key.isdigit() and int(key) < len(names) else key
