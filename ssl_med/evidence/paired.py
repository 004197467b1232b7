"""Tests of the paired difference of two arms: exchange of the arms within patients, and the BCa interval."""

from collections.abc import Sequence

import numpy as np

from ssl_med.evidence.planning import Comparison
from ssl_med.evidence.resampling import groups_of, mean_over_runs
from ssl_med.evidence.scores import Values, contributions
from ssl_med.evidence.statistics import EXACT_PATIENTS, bca, sign_flip, swap_test
from ssl_med.evidence.study import Study

FLIPS, FLIPS_OF_RANKS, FLIPS_OF_SLOW_SCORES = 9999, 999, 199
_EXACT_OF_SLOW_SCORES = 7
_ROWS = 256
"""Exchanges that are looked at together."""


def exchange_test(
    study: Study, pair: Comparison, labels: int, cells: Sequence[tuple[int, int]], difference: np.ndarray
) -> dict[str, float]:
    """p value and BCa interval of a difference.

    Args:
        study: of the runs.
        pair: who minus whom.
        labels: number of them.
        cells: draw and seed of each run.
        difference: of each run in each resample of patients, (1 + b, runs).
    """
    groups = groups_of(cells)
    share = _shares(groups)
    values = mean_over_runs(difference, groups, study.drawn(int(groups.max()) + 1))
    without = study.left_out(pair.arm, labels, cells) - study.left_out(pair.baseline, labels, cells)
    interval = bca(values[1:], float(values[0]), without @ share)
    both = [(study.cells[pair.arm, labels][cell], study.cells[pair.baseline, labels][cell]) for cell in cells]
    return {"p": _p_value(study, both, share), "bca_low": interval.low, "bca_high": interval.high}


def weighings(study: Study, pair: Comparison, labels: int) -> int:
    """How many weightings of cases the exchanges of a pair take: none where patients add up."""
    cells = study.common([pair.arm, pair.baseline], labels)
    if not cells or (
        not study.slow and contributions(study.metric, study.cells[pair.arm, labels][cells[0]]) is not None
    ):
        return 0
    flips, exact = _flips(study)
    return 2 * len(cells) * (2**study.patient_count if study.patient_count <= exact else flips)


def _shares(groups: np.ndarray) -> np.ndarray:
    """What each run counts in the mean."""
    return 1 / (int(groups.max()) + 1) / np.bincount(groups)[groups]


def _flips(study: Study) -> tuple[int, int]:
    """Random exchanges, and up to how many patients all are looked at."""
    return (FLIPS_OF_SLOW_SCORES, _EXACT_OF_SLOW_SCORES) if study.slow else (FLIPS_OF_RANKS, EXACT_PATIENTS)


def _p_value(study: Study, both: Sequence[tuple[Values, Values]], share: np.ndarray) -> float:
    rng = np.random.default_rng((0, 12))
    added = _patient_differences(study, both, share)
    if added is not None:
        return sign_flip(added, rng, FLIPS)
    woven = [_woven(a, b) for a, b in both]

    def difference(signs: np.ndarray) -> np.ndarray:
        found = np.empty(len(signs))
        for first in range(0, len(signs), _ROWS):
            rows = slice(first, first + _ROWS)
            kept = signs[rows][:, study.codes] > 0
            own, other = (np.stack([a, ~a], 2).reshape(len(a), -1).astype(float) for a in (kept, ~kept))
            found[rows] = np.stack([study.weighed(v, own) - study.weighed(v, other) for v in woven], 1) @ share
        return found

    return swap_test(difference, study.patient_count, rng, *_flips(study))


def _woven(own: Values, other: Values) -> dict[str, np.ndarray]:
    """The cases of both arms in turns: an exchange of arms is then a choice of cases, in the order of the cases."""
    return {name: np.stack([own[name], other[name]], 1).reshape(-1, *own[name].shape[1:]) for name in own}


def _patient_differences(study: Study, both: Sequence[tuple[Values, Values]], share: np.ndarray) -> np.ndarray | None:
    """What each patient adds to the difference; None where the score is no sum over cases."""
    total = np.zeros(len(study.codes))
    for weight, (a, b) in zip(share, both, strict=True):
        same = all(np.array_equal(_missing(a[name]), _missing(b[name])) for name in a)
        parts = [contributions(study.metric, values) for values in (a, b)] if same else [None, None]
        if not all(_adds_up(study, *pair) for pair in zip(parts, (a, b), strict=True)):
            return None
        total += weight * np.subtract(*parts)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return np.bincount(study.codes, total, study.patient_count)


def _adds_up(study: Study, parts: np.ndarray | None, values: Values) -> bool:
    """The parts sum to the score of the study, which may be the task's own of the same name."""
    if parts is None:
        return False
    return bool(np.isclose(parts.sum(), study.score(values, np.ones((1, len(study.codes))))[0], atol=1e-6))


def _missing(value: np.ndarray) -> np.ndarray:
    return np.isnan(value) if value.dtype.kind == "f" else np.zeros(value.shape, bool)
