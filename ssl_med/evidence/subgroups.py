"""Scores within groups of test cases: who is served worse. Few patients give wide intervals, and a warning."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ssl_med.evidence.analysis import Study, arm_means, compare
from ssl_med.evidence.planning import PRETRAINED, SCRATCH, Comparison
from ssl_med.evidence.progress import Progress

FEW = 10
"""Fewer test patients than this and a group comes with a warning."""


def subgroup_table(study: Study, columns: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Lines for each group of each column: the pretrained arm, scratch and their difference at each number of labels.

    Args:
        study: of all test cases.
        columns: name -> group of each test case, empty where unknown.
    """
    arms = [arm for arm in (PRETRAINED, SCRATCH) if arm in study.arms]
    parts = [(column, group) for column, groups in columns.items() for group in sorted({g for g in groups if g})]
    runs = sum(len(cells) for (arm, _), cells in study.cells.items() if arm in arms)
    progress, lines = Progress("subgroups", len(parts) * runs * (1 + study.resample_count)), []
    for column, group in parts:
        lines += _lines(study, arms, column, group, np.array(columns[column], dtype=object) == group, progress)
    progress.close()
    return lines


def _lines(
    study: Study, arms: Sequence[str], column: str, group: str, keep: np.ndarray, progress: Progress
) -> list[dict[str, Any]]:
    part = Study(study.results, study.patients, study.metric, study.score, study.resamples, keep, progress)
    found = [entry for arm in arms for entry in arm_means(part, arm)]
    if len(arms) == 2:
        pair = Comparison(PRETRAINED, SCRATCH)
        found += [{**entry, "arm": "difference"} for entry in compare(part, pair, tested=False)]
    few = f"fewer than {FEW} patients" if part.patient_count < FEW else ""
    head = {"column": column, "group": group, "patients": part.patient_count, "cases": int(keep.sum())}
    chosen = ("arm", "labels", "mean", "low", "high")
    return [{**head, **{name: entry[name] for name in chosen}, "warning": few} for entry in found]


def bands(values: Sequence[float | None], count: int = 3, unit: str = "") -> list[str]:
    """Numbers to bands that hold about the same number of cases, named by their edges; empty where unknown.

    Args:
        values: one per case.
        count: bands.
        unit: written behind the edges.
    """
    known = np.array([value for value in values if value is not None], float)
    if len(np.unique(known)) < 2:
        return ["" for _ in values]
    edges = np.unique(np.quantile(known, np.linspace(0, 1, count + 1)))
    names = [
        f"{n} of {len(edges) - 1}: {low:.4g} to {high:.4g}{unit}"
        for n, (low, high) in enumerate(pairwise(edges.tolist()), 1)
    ]
    places = np.searchsorted(edges[1:-1], [np.nan if value is None else value for value in values], side="right")
    return ["" if value is None else names[place] for value, place in zip(values, places, strict=True)]
