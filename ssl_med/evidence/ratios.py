"""The label-efficiency ratios of a study, with the two sources of variance that their intervals need."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ssl_med.evidence.efficiency import Sources, label_efficiency
from ssl_med.evidence.planning import Comparison
from ssl_med.evidence.resampling import groups_of, mean_over_runs
from ssl_med.evidence.scores import less_is_better
from ssl_med.evidence.study import Study


def ratios(study: Study, pair: Comparison) -> list[dict[str, Any]]:
    """Label-efficiency ratios of a pair at each number of labels, over the draws and seeds that all points share."""
    labels = [n for n in study.labels if study.common([pair.arm, pair.baseline], n)]
    if not labels:
        return []
    cells = sorted(set.intersection(*[set(study.common([pair.arm, pair.baseline], n)) for n in labels]))
    if not cells:
        return []
    sign = -1.0 if less_is_better(study.metric) else 1.0
    own, base = ([sign * part for part in _curves(study, arm, labels, cells)] for arm in (pair.arm, pair.baseline))
    sources = Sources((base[1], own[1]), study.patient_count, (base[2], own[2]), int(groups_of(cells).max()) + 1)
    found = label_efficiency(np.array(labels, float), base[0], own[0], sources)
    return [
        {**asdict(pair), "labels": given, **asdict(ratio), "says": ratio.text(), "interval": ratio.interval()}
        for given, ratio in zip(labels, found, strict=True)
    ]


def _curves(study: Study, arm: str, labels: Sequence[int], cells: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """Mean scores over runs, all points in the same resamples: of both (1 + b, points), of patients, of runs."""
    groups = groups_of(cells)
    drawn = study.drawn(int(groups.max()) + 1)
    scores = [study.scores(arm, n, cells) for n in labels]
    return [
        np.stack([mean_over_runs(part, groups, drawn) for part in scores], 1),
        np.stack([part[1:].mean(1) for part in scores], 1),
        np.stack([mean_over_runs(np.broadcast_to(part[0], part.shape), groups, drawn)[1:] for part in scores], 1),
    ]
