"""``metrics.jsonl`` as series: what was logged, and how much of it was not a number."""

import json
import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

Points = list[tuple[float, float]]
"""(step, value) in the order of the steps."""

RANDOM_SUFFIX = "_random"


@dataclass(frozen=True)
class Metrics:
    """The scalars of a run.

    Attributes:
        series: finite values of each key; a step that was logged twice (after a resume) keeps its last value.
        not_finite: how many values of each key were NaN, infinite or null.
        broken_lines: lines that are not a JSON object with a step.
    """

    series: dict[str, Points] = field(default_factory=dict)
    not_finite: dict[str, int] = field(default_factory=dict)
    broken_lines: int = 0

    def last(self, key: str) -> float | None:
        """The last finite value of a key; None where there is none."""
        return self.series[key][-1][1] if self.series.get(key) else None

    def keys(self, prefix: str) -> list[str]:
        """Keys under a prefix, the scores of random weights left out."""
        return sorted(key for key in self.series if key.startswith(prefix) and not key.endswith(RANDOM_SUFFIX))


def read_metrics(file: Path) -> Metrics:
    """Read a file of JSON lines; a line cut off by a crash is counted and skipped."""
    values: dict[str, dict[float, float]] = defaultdict(dict)
    not_finite: Counter[str] = Counter()
    broken = 0
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if not line.strip():
                continue
            entry = _parse(line)
            if entry is None:
                broken += 1
                continue
            step = float(entry.pop("step"))
            for key, value in entry.items():
                number = as_number(value)
                if number is None and not _is_missing_number(value):
                    continue
                if number is None:
                    not_finite[key] += 1
                else:
                    values[key][step] = number
    return Metrics({key: sorted(points.items()) for key, points in values.items()}, dict(not_finite), broken)


def _parse(line: str) -> dict | None:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        return None
    return entry if isinstance(entry, dict) and as_number(entry.get("step")) is not None else None


def as_number(value: object) -> float | None:
    """A finite number as a float; None for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def _is_missing_number(value: object) -> bool:
    return value is None or isinstance(value, float) or str(value).lower() in {"nan", "inf", "-inf", "infinity"}


def smooth(points: Points) -> Points:
    """Exponential moving average over about a twenty-fifth of the points, without the pull of a start value."""
    decay = 1.0 - 1.0 / max(3.0, len(points) / 25.0)
    total = weight = 0.0
    result = []
    for step, value in points:
        total = decay * total + (1.0 - decay) * value
        weight = decay * weight + (1.0 - decay)
        result.append((step, total / weight))
    return result


def thin(points: Points, most: int = 400) -> Points:
    """At most about ``most`` points: of each stretch the lowest and the highest, so that no spike is hidden."""
    if len(points) <= most:
        return points
    stretch = math.ceil(2 * len(points) / most)
    kept = [points[0]]
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        kept += sorted({min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])})
    return [*kept, points[-1]]
