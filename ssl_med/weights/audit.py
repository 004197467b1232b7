"""What became of every tensor when weights were loaded, and how much of the backbone that is."""

import difflib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ssl_med.files import write_json

Status = Literal["loaded", "adapted", "missing"]


@dataclass(frozen=True)
class Row:
    """One tensor of the backbone.

    Attributes:
        name: of the backbone.
        status: taken as it was, changed to fit, or not found.
        source: the name it had; empty if it had none.
        how: what was changed.
        parameters: numbers in it; 0 for buffers.
        flops: operations of one forward pass it takes part in, see :func:`ssl_med.weights.cost.flops_by_parameter`.
    """

    name: str
    status: Status
    source: str = ""
    how: str = ""
    parameters: int = 0
    flops: float = 0.0


@dataclass
class Audit:
    """What became of each tensor of the backbone and of the source.

    Attributes:
        source: name of the file or folder.
        sha256: of its content.
        layout: whose names it has, in words.
        part: which of its containers and prefixes was taken.
        others: models in it that were not.
        rows: one per tensor of the backbone.
        unexpected: the source's name -> why it found no place; only what was asked to be dropped, after a success.
        left: the source's name -> why it was left out on purpose: heads, decoders.
        notes: what else a person should know.
    """

    source: str
    sha256: str = ""
    layout: str = ""
    part: str = ""
    others: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    unexpected: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def named(self, status: Status) -> list[str]:
        """Names of the backbone's tensors of one status."""
        return [row.name for row in self.rows if row.status == status]

    @property
    def loaded(self) -> list[str]:
        """Names taken as they were."""
        return self.named("loaded")

    @property
    def adapted(self) -> dict[str, str]:
        """Names that were changed to fit, and how."""
        return {row.name: row.how for row in self.rows if row.status == "adapted"}

    @property
    def missing(self) -> list[str]:
        """Names that found no source."""
        return self.named("missing")

    @property
    def share(self) -> float:
        """Part of the backbone's parameters that was loaded or adapted, 0 to 1."""
        return _share((row.parameters, row.status) for row in self.rows)

    @property
    def flop_share(self) -> float:
        """The same, every parameter weighed by the operations it takes part in."""
        return _share((row.flops, row.status) for row in self.rows)

    def nearest(self, limit: int = 5) -> list[str]:
        """Names without a source beside the nearest names of the source without a place."""
        lines = []
        for name in self.missing[:limit]:
            close = difflib.get_close_matches(name, [*self.unexpected, *self.left], n=1, cutoff=0.5)
            lines.append(f"missing {name}" + (f" (nearest in the source: {close[0]})" if close else ""))
        return lines

    def as_data(self) -> dict[str, Any]:
        """Plain data, for the run's ``weights.json``."""
        counts = {status: len(self.named(status)) for status in ("loaded", "adapted", "missing")}
        shares = {"share_of_parameters": self.share, "share_of_flops": self.flop_share}
        return {**asdict(self), "counts": counts, **shares}

    def save(self, path: str | Path) -> None:
        """Write :meth:`as_data` as JSON."""
        write_json(Path(path), self.as_data())

    def __str__(self) -> str:
        counts = ", ".join(f"{status} {len(self.named(status))}" for status in ("loaded", "adapted", "missing"))
        of = f" ({self.part})" if self.part else ""
        lines = [f"weights of {self.source}{of}, {self.layout}"]
        lines.append(
            f"{counts}, unexpected {len(self.unexpected)}, left out {len(self.left)}: "
            f"{self.share:.1%} of the parameters, {self.flop_share:.1%} of the FLOPs"
        )
        lines += [f"  note: {note}" for note in self.notes]
        if self.others:
            lines.append(f"  also in the source: {', '.join(self.others)} (part=... takes another)")
        lines += [f"  adapted     {name}: {how}" for name, how in self._grouped()]
        lines += [f"  missing     {name}" for name in self.missing]
        return "\n".join([*lines, *[f"  unexpected  {name}: {why}" for name, why in self.unexpected.items()]])

    def _grouped(self) -> Iterable[tuple[str, str]]:
        """Adapted tensors; blocks that were all changed alike take one line."""
        alike: dict[tuple[str, str], list[str]] = {}
        for name, how in self.adapted.items():
            pattern = ".".join("*" if part.isdigit() else part for part in name.split("."))
            alike.setdefault((pattern, how), []).append(name)
        for (pattern, how), names in alike.items():
            yield (f"{pattern} ({len(names)})" if len(names) > 1 else names[0]), how


def _share(weighed: Iterable[tuple[float, str]]) -> float:
    pairs = list(weighed)
    total = sum(weight for weight, _ in pairs)
    return sum(weight for weight, status in pairs if status != "missing") / total if total else 0.0
