"""From finished runs to what they show: scores with intervals, paired differences, tests, label-efficiency ratios."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ssl_med.evidence.paired import exchange_test, weighings
from ssl_med.evidence.planning import LONGER, SCRATCH, Comparison, comparisons
from ssl_med.evidence.progress import Progress
from ssl_med.evidence.ratios import ratios
from ssl_med.evidence.scores import less_is_better
from ssl_med.evidence.statistics import holm
from ssl_med.evidence.study import RESAMPLES, Result, Study

__all__ = ["Result", "Study", "analyse", "arm_means", "compare", "cost", "finite_only"]
_SIGNIFICANT = 0.05


def analyse(study: Study) -> dict[str, Any]:
    """Everything that a study shows, as plain data: ``arms``, ``comparisons``, ``efficiency``."""
    pairs = comparisons(study.arms)
    study.progress = Progress("analysis", _weighings(study, pairs))
    compared = [entry for pair in pairs for entry in compare(study, pair)]
    found = {
        "metric": study.metric,
        "higher_is_better": not less_is_better(study.metric),
        "labels": study.labels,
        "test_patients": study.patient_count,
        "test_cases": len(study.codes),
        "resamples": study.resample_count,
        "arms": [entry for arm in study.arms for entry in arm_means(study, arm)],
        "comparisons": compared,
        "efficiency": [entry for pair in pairs if pair.baseline in (SCRATCH, LONGER) for entry in ratios(study, pair)],
    }
    study.progress.close()
    study.progress = None
    return found


def arm_means(study: Study, arm: str) -> list[dict[str, Any]]:
    """One arm's score at each number of labels, with intervals."""
    found = []
    for labels in study.labels:
        cells = study.common([arm], labels)
        if cells:
            scores = study.scores(arm, labels, cells)
            found.append({"arm": arm, "labels": labels, **study.estimate(scores, cells)})
    return found


def compare(study: Study, pair: Comparison, tested: bool = True) -> list[dict[str, Any]]:
    """Paired differences of two arms at each number of labels, with intervals and tests, adjusted over the numbers.

    Args:
        study: with runs of both arms.
        pair: who minus whom.
        tested: with p values and the BCa interval, which take the longest.
    """
    found = []
    for labels in study.labels:
        cells = study.common([pair.arm, pair.baseline], labels)
        if not cells:
            continue
        difference = study.scores(pair.arm, labels, cells) - study.scores(pair.baseline, labels, cells)
        entry = {**asdict(pair), "labels": labels, **study.estimate(difference, cells, True)}
        found.append({**entry, **exchange_test(study, pair, labels, cells, difference)} if tested else entry)
    if tested:
        adjusted = holm(np.array([entry["p"] for entry in found]))
        for entry, value in zip(found, adjusted, strict=True):
            entry["p_holm"] = float(value)
            entry["shown"] = bool(value < _SIGNIFICANT and (entry["low"] > 0 or entry["high"] < 0))
    return found


def cost(study: Study) -> list[str]:
    """What was looked at less often because each look takes long; empty where nothing was."""
    if not study.slow or study.resample_count >= RESAMPLES:
        return []
    return [
        f"{study.metric} has no fast form, the task works it out anew for every resample: {study.resample_count} "
        f"resamples instead of {RESAMPLES}, fewer random exchanges in the tests, and intervals that are less exact "
        "(--resamples N for more)"
    ]


def _weighings(study: Study, pairs: Sequence[Comparison]) -> int:
    """How often the cases of a run are weighed in all."""
    runs = sum(len(cells) for cells in study.cells.values())
    compared = {arm for pair in pairs for arm in (pair.arm, pair.baseline)}
    without = sum(len(cells) for (arm, _), cells in study.cells.items() if arm in compared)
    exchanged = sum(weighings(study, pair, labels) for pair in pairs for labels in study.labels)
    return runs * (1 + study.resample_count) + without * study.left_out_count + exchanged


def finite_only(value: Any) -> Any:
    """The same data for JSON: what is not a finite number becomes null."""
    if isinstance(value, Mapping):
        return {name: finite_only(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_only(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
