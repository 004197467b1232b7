"""``ssl-med inspect``: look at every image of a folder once and say what is in it, before anything is built on it."""

import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from ssl_med.data.census import Reservoir
from ssl_med.data.index import Kind, plan
from ssl_med.data.inventory import Inventory
from ssl_med.data.record import Record
from ssl_med.verbs.prepare import tiling_of

_MOST_LINES = 20
"""Broken files that are printed one by one."""


def inspect(
    data: str | Path,
    manifest: str | Path | None = None,
    columns: dict[str, str] | None = None,
    limit: int | None = None,
    layout: Kind = "auto",
    sample: int | None = None,
    tile: int = 512,
    tile_mpp: float = 0.5,
    tissue: float = 0.25,
) -> dict[str, Any]:
    """Look at all images of a folder one after the other, print what is in it, and return the same.

    Memory does not grow with the number of images. Names of files are printed for broken ones only.

    Args:
        data: folder of images, or one file.
        manifest: table or datalist that names the images; by default the only one of the folder that does.
        columns: meaning of the table's columns, see :func:`ssl_med.data.index.find_images`.
        limit: look at the first images only.
        layout: what the folders of a tree mean, see :func:`ssl_med.data.index.find_images`.
        sample: read the voxels of so many images only, chosen at random with a fixed seed; of all others the headers.
        tile, tile_mpp, tissue: how slides are cut, see :func:`ssl_med.verbs.prepare.prepare`.

    Returns:
        Layout, counts, shapes (memory order), spacings (mm), intensities, labels, splits, masks, warnings and the
        broken files with their reasons; ready for JSON.

    Raises:
        UserError: no such folder, or a table that cannot be understood.
    """
    table = None if manifest is None else Path(manifest)
    understood = plan(Path(data), table, columns, layout, tiling=tiling_of(tile, tile_mpp, tissue))
    census, progress = Inventory(), _Progress(0 if limit else understood.layout.files)
    chosen: Reservoir[Record] = Reservoir(sample or 0)
    for record in islice(understood.records(), limit):
        if sample is None:
            census.read(record)
        elif census.look(record):
            chosen.add(record)
        progress.step(len(record.files) if record.item is None else 1)
    for record in chosen.in_order():
        census.read(record, looked=True)
    progress.close()
    facts = {"layout": _plain(asdict(understood.layout)), **census.facts(understood.layout)}
    print("\n".join(_lines(facts)))
    return facts


def _plain(facts: dict[str, Any]) -> dict[str, Any]:
    names = {str(value): name for value, name in facts["mask_names"].items()}
    return {key: list(v) if isinstance(v, tuple) else v for key, v in facts.items()} | {"mask_names": names}


class _Progress:
    """Files done, and the time left where their number is known: often on a terminal, every half minute in a log."""

    def __init__(self, files: int) -> None:
        self.files, self.done = files, 0
        self._began = self._told = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def step(self, files: int) -> None:
        self.done += files
        now = time.monotonic()
        if now - self._told < (0.2 if self._terminal else 30.0):
            return
        self._told = now
        left = (self.files - self.done) * (now - self._began) / self.done
        words = f"{self.done}/{self.files} files, about {left:.0f} s left" if left >= 0 else f"{self.done} images"
        print(f"\r{words}\033[K" if self._terminal else words, end="" if self._terminal else "\n", file=sys.stderr)
        sys.stderr.flush()

    def close(self) -> None:
        if self._terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    layout = facts["layout"]
    yield f"layout      {layout['name']}"
    yield from (f"note        {note}" for note in layout["notes"])
    yield f"images      {facts['images']}, usable {facts['usable']}, voxels read of {facts['voxels_of']}"
    about = "" if facts["patients_exact"] else "about "
    yield f"patients    {about}{facts['patients']}, studies {facts['studies']}, sites {facts['sites']}"
    for kind in ("ranks", "channels", "types", "modalities", "splits", "labels", "warnings"):
        if facts[kind]:
            yield f"{kind:12}" + ", ".join(f"{value}: {count}" for value, count in facts[kind].items())
    yield from _size_lines(facts)
    if facts["masks"]["count"]:
        names = ", ".join(f"{value} {name}" for value, name in layout["mask_names"].items())
        told = f" ({names})" if names else ""
        yield f"masks       {facts['masks']['count']}, images with value {facts['masks']['values']}{told}"
    yield from (f"set aside   {count} x {reason}" for reason, count in facts["set_aside"].items())
    yield from _broken_lines(facts)


def _size_lines(facts: dict[str, Any]) -> Iterator[str]:
    for kind, unit in (("shapes", "voxels"), ("spacings", "mm")):
        for rank, spread in facts[kind].items():
            words = ", ".join(f"{name} {_sizes(sizes)}" for name, sizes in spread.items())
            yield f"{kind:12}{rank} {words} {unit}"
    if facts["unsized"]:
        told = f"no pixel size in the files of {facts['unsized']} images"
        yield f"{'':12}{told}: shown as 1 mm; a table may give it in a column spacing"
    modalities = facts["intensity_by_modality"]
    for modality, values in (modalities if len(modalities) > 1 else {"": facts["intensity"]}).items():
        if values:
            words = ", ".join(f"{name} {value:g}" for name, value in values.items())
            yield f"intensity   {modality}: {words}" if modality else f"intensity   {words}"


def _broken_lines(facts: dict[str, Any]) -> Iterator[str]:
    yield from (f"broken      {entry['name']}: {entry['reason']}" for entry in facts["broken"][:_MOST_LINES])
    total = sum(facts["broken_reasons"].values())
    if total > _MOST_LINES:
        yield f"broken      {total} in all, by reason:"
        for reason, count in Counter(facts["broken_reasons"]).most_common(_MOST_LINES):
            yield f"            {count} x {reason}"


def _sizes(values: list[float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
