"""Columns that say what can be learned of an image beside one class: findings, a number, boxes; and its subgroups."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ssl_med.data.layouts.box_table import BoxTable, Line, box_line
from ssl_med.errors import UserError

Facts = dict[str, Any]
"""Fields of a record."""

FIELDS = ("labels", "value", "boxes", "boxes_mm")
PREFIXES = ("label:", "group:")
_YES = {"1", "true", "yes", "y", "positive", "pos", "present"}
_NO = {"0", "false", "no", "n", "negative", "neg", "absent"}
_UNKNOWN = {"", "-1", "-1.0", "nan", "none", "null", "n/a", "na", "unknown", "uncertain", "u", "?"}
_MOST_GROUPS = 50


def is_target(field: str) -> bool:
    """Whether a field of ``--columns`` is one that is understood here."""
    return field in FIELDS or any(field.startswith(prefix) and field != prefix for prefix in PREFIXES)


@dataclass(frozen=True)
class Targets:
    """Which columns of a table say what.

    Attributes:
        table: its name, for errors.
        findings: name of each finding -> its column.
        value: column of a number; empty without one.
        boxes: column of boxes as JSON; empty without one.
        side: boxes in a table of their own.
        frame: of the boxes, see :class:`ssl_med.data.record.Record`.
        groups: name of each kind of subgroup -> its column.
    """

    table: str
    findings: Mapping[str, str]
    value: str = ""
    boxes: str = ""
    side: BoxTable | None = None
    frame: Literal["file", "mm"] = "file"
    groups: Mapping[str, str] = field(default_factory=dict)

    @property
    def finding_names(self) -> tuple[str, ...]:
        """Names of the findings in their order."""
        return tuple(self.findings)

    @property
    def box_names(self) -> tuple[str, ...]:
        """Names of the classes of boxes; none where they are numbers."""
        return () if self.side is None else self.side.class_names

    def of(self, row: Mapping[str, str], image: str, where: str) -> Facts:
        """What a row says of its image.

        Args:
            row: column -> text.
            image: the image as the row names it.
            where: the row is, for errors.

        Raises:
            UserError: a cell that is no finding, number or list of boxes.
        """
        facts: Facts = {}
        if self.findings:
            facts["labels"] = tuple(finding(row[name], f"{where}, {name!r}") for name in self.findings.values())
        if self.value:
            facts["value"] = number_of(row[self.value], f"{where}, {self.value!r}")
        if self.boxes or self.side:
            lines = self.side.of(image) if self.side else boxes_of(row[self.boxes], f"{where}, {self.boxes!r}")
            if lines is not None:  # an image that a table of boxes does not name was looked at too
                facts["boxes"] = tuple(number for line in lines for number in line)
                facts["boxed"] = True
            facts["frame"] = self.frame
        if self.groups:
            found = ((name, group_of(name, row[column] or "")) for name, column in self.groups.items())
            facts["groups"] = tuple((name, group) for name, group in found if group)
        return facts

    def check_groups(self, seen: Mapping[str, Iterable[str]]) -> None:
        """Refuse a column of groups that is one of identifiers.

        Args:
            seen: the values of each column of groups.

        Raises:
            UserError: more than 50 different groups.
        """
        for name in self.groups:
            if len(set(seen[name])) > _MOST_GROUPS:
                raise UserError(
                    f"{self.table}: column {self.groups[name]!r} holds more than {_MOST_GROUPS} different "
                    f"values, too many for subgroups ({name!r}) and perhaps names of persons: choose another column"
                )


def targets_of(table: Path, header: list[str], columns: Mapping[str, str], folder: Path) -> Targets:
    """Understand the columns that a person named, and those named ``label:NAME`` and ``group:NAME``.

    Args:
        table: the file.
        header: names of its columns.
        columns: field -> column; ``labels`` takes several, ``a|b|c``; ``boxes`` a column of JSON or a table of its own.
        folder: of the data.

    Raises:
        UserError: no such column or file.
    """
    own = {name: name for name in header if name.startswith(PREFIXES) and is_target(name)}
    given = {field: column for field, column in columns.items() if is_target(field)}
    findings = {name: name for name in given.get("labels", "").split("|") if name}
    fields = {**own, **given}
    findings |= {field.removeprefix("label:"): c for field, c in fields.items() if field.startswith("label:") and c}
    groups = {field.removeprefix("group:"): c for field, c in fields.items() if field.startswith("group:") and c}
    frame: Literal["file", "mm"] = "mm" if given.get("boxes_mm") else "file"
    boxes = given.get("boxes_mm") or given.get("boxes", "")
    side = BoxTable.find(boxes, table, folder)
    value = given.get("value", "")
    for column in (*findings.values(), *groups.values(), value, "" if side else boxes):
        if column and column not in header:
            raise UserError(f"{table.name} has no column {column!r}: it has {', '.join(header)}")
    return Targets(table.name, findings, value, "" if side else boxes, side, frame, groups)


def finding(text: str | None, where: str) -> int:
    """1, 0 or -1 (unknown) of a cell.

    Raises:
        UserError: none of the words for them.
    """
    word = (text or "").strip().lower()
    word = word.removesuffix(".0") if re.fullmatch(r"-?\d+\.0", word) else word
    if word in _UNKNOWN:
        return -1
    if word in _YES or word in _NO:
        return int(word in _YES)
    raise UserError(f"{where}: {text!r} is no finding: expected 1, 0, or -1 (or nothing) where it is not known")


def number_of(text: str | None, where: str) -> float | None:
    """The number of a cell; None where it is empty.

    Raises:
        UserError: no finite number.
    """
    word = (text or "").strip()
    if word != "-1" and word.lower() in _UNKNOWN:
        return None
    try:
        found = float(word)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise UserError(f"{where}: {text!r} is no number; leave the cell empty where it is not known")
    return found


def spacing_of(text: str | None, where: str) -> tuple[float, ...]:
    """Mm per voxel along x, y(, z), or one number for all, of a cell such as ``0.5`` or ``0.5 0.5 2``; none if empty.

    Raises:
        UserError: something else.
    """
    word = (text or "").strip()
    if word.lower() in _UNKNOWN:
        return ()
    try:
        found = tuple(float(number) for number in re.split(r"[\s,;x]+", word.strip("[()] ")))
    except ValueError:
        found = ()
    if not 1 <= len(found) <= 3 or not all(0 < step < math.inf for step in found):
        raise UserError(
            f"{where}: {text!r} is no spacing: expected mm per voxel along x, y(, z) such as 0.5 or 0.5 0.5 2; "
            "leave the column out with columns={'spacing': ''}"
        )
    return found


def boxes_of(text: str | None, where: str) -> list[Line] | None:
    """The boxes of a cell: ``[[x, y, w, h, class], ...]``, in volumes ``[x, y, z, w, h, d, class]``, or as objects.

    ``[]`` says that the image has none; of an empty cell nothing is known, which is None.

    Raises:
        UserError: no JSON, or no boxes.
    """
    if not (text or "").strip():
        return None
    try:
        content = json.loads(text or "")
    except ValueError:
        raise UserError(f"{where}: {text!r} is not JSON: expected boxes such as [[x, y, w, h, class]]") from None
    if not isinstance(content, list):
        raise UserError(f"{where}: expected a list of boxes such as [[x, y, w, h, class]]")
    return [box_line(entry, where) for entry in content]


def group_of(name: str, text: str) -> str:
    """The subgroup of a cell: its word; of an age the ten years around it; empty where it is not known."""
    word = text.strip()
    if word.lower() in _UNKNOWN:
        return ""
    if not re.fullmatch(r"ages?|age[_ ].*|.*[_ ]age", name.lower()):
        return word
    try:
        years = float(word.rstrip("+Yy"))
    except ValueError:
        return word
    low = int(years // 10 * 10)
    return "90+" if low >= 90 else f"{low}-{low + 9}"
