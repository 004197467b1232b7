"""Boxes of many images in a table of their own: ``image, x, y[, z], w, h[, d], class``."""

import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssl_med.data.layouts.rows import SUFFIXES, header_of, rows_of
from ssl_med.errors import UserError

Line = tuple[float, ...]
"""Lowest corner, highest corner (x, y, or x, y, z), class."""

_CLASS = ("class", "label", "category")


class BoxTable:
    """The boxes of a table, by the name of their image.

    Args:
        path: CSV or parquet.

    Raises:
        UserError: columns or numbers are missing.
    """

    def __init__(self, path: Path) -> None:
        header = header_of(path)
        sides = [("x", "y", "z", "w", "h", "d"), ("x", "y", "w", "h")]
        self._sides = next((names for names in sides if set(names) <= set(header)), ())
        kind = next((name for name in _CLASS if name in header), "")
        if "image" not in header or not self._sides:
            raise UserError(
                f"{path.name} has the columns {', '.join(header)}, expected image, x, y, w, h, class, in volumes "
                "image, x, y, z, w, h, d, class"
            )
        rows = [row for row in rows_of(path) if any(row[name] for name in self._sides)]  # others: none in that image
        words = {row[kind] for row in rows} - {"-1"} if kind else set()
        self.class_names = () if all(word.isdigit() for word in words) else tuple(sorted(words))
        numbers = {word: number for number, word in enumerate(self.class_names)} | {"-1": -1}
        self._lines: dict[str, list[Line]] = defaultdict(list)
        for row in rows:
            entry = {**row, "class": numbers.get(row[kind], row[kind]) if kind else 0}
            self._lines[row["image"]].append(box_line(entry, path.name))

    @classmethod
    def find(cls, name: str, table: Path, folder: Path) -> "BoxTable | None":
        """The table of a name that ends like one, beside the table of images or in the folder of the data.

        Raises:
            UserError: there is none.
        """
        if not name.lower().endswith(SUFFIXES):
            return None
        path = next((p for p in (Path(name), folder / name, table.parent / name) if p.is_file()), None)
        if path is None:
            raise UserError(f"boxes={name}: no such table in {folder}")
        return cls(path)

    def of(self, image: str) -> list[Line]:
        """The boxes of an image, by its name as the table of images has it, or by the bare name of its file."""
        return self._lines.get(image) or self._lines.get(Path(image).name, [])


def box_line(entry: Any, where: str) -> Line:
    """One box of a list (x, y[, z], w, h[, d], class) or of an object with these names.

    Raises:
        UserError: numbers are missing, sides are not positive, or the class is no whole number.
    """
    if isinstance(entry, Mapping):
        names = "xyzwhd" if "z" in entry else "xywh"
        entry = [*(entry.get(name) for name in names), next((entry[n] for n in _CLASS if n in entry), 0)]
    try:
        numbers = [float(value) for value in entry]
    except (TypeError, ValueError):
        numbers = []
    axes = (len(numbers) - 1) // 2
    corner, sides, kind = numbers[:axes], numbers[axes:-1], numbers[-1:]
    whole = bool(kind) and kind[0].is_integer() and kind[0] >= -1
    if len(numbers) not in (5, 7) or not all(map(math.isfinite, numbers)) or min(sides) <= 0 or not whole:
        raise UserError(
            f"{where}: {entry} is no box: expected x, y, w, h, class or x, y, z, w, h, d, class with positive sides "
            "and a class 0, 1, 2 ..., or -1 where it is not known what is there"
        )
    return (*corner, *(a + side for a, side in zip(corner, sides, strict=True)), *kind)
