"""From finished runs to what they show: scores with intervals, paired differences, tests, label-efficiency ratios."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ssl_med.errors import UserError
from ssl_med.evidence.efficiency import label_efficiency
from ssl_med.evidence.planning import LONGER, SCRATCH, Comparison, Job, comparisons
from ssl_med.evidence.resampling import Resamples, group_means, groups_of, mean_over_runs, run_scores
from ssl_med.evidence.scores import Score, Values, contributions, less_is_better, score_of
from ssl_med.evidence.statistics import Spread, bca, holm, percentile, sign_flip, swap_test, widened

FLIPS, FLIPS_OF_SLOW_SCORES = 9999, 999
_SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Result:
    """What one run scored on the test split.

    Attributes:
        job: which run.
        values: what is known of each test case, name -> (n, ...); the cases of all runs are the same, in one order.
    """

    job: Job
    values: Values


@dataclass
class Study:
    """Finished runs of several arms on one test split, and the resamples that all questions to them share.

    Args:
        results: of the runs.
        patients: patient of each test case, any labels.
        metric: name of the score.
        score: of a set of cases under weights.
        resamples: number of bootstrap resamples.
        keep: which cases count, (n,); all by default.

    Raises:
        UserError: there are no runs.
    """

    results: Sequence[Result]
    patients: np.ndarray
    metric: str
    score: Score
    resamples: int = 2000
    keep: np.ndarray | None = None
    cells: dict[tuple[str, int], dict[tuple[int, int], Values]] = field(init=False)

    def __post_init__(self) -> None:
        if not self.results:
            raise UserError("no run is finished yet: there is nothing to analyse")
        kept = np.ones(len(self.patients), bool) if self.keep is None else self.keep
        self.codes = np.unique(self.patients[kept], return_inverse=True)[1]
        self.patient_count = int(self.codes.max()) + 1
        self.cells = {}
        for result in self.results:
            values = {name: np.asarray(value)[kept] for name, value in result.values.items()}
            job = result.job
            self.cells.setdefault((job.arm, job.labels), {})[(job.draw, job.seed)] = values
        self._scores: dict[tuple[str, int, int, int], np.ndarray] = {}
        self._drawn: dict[int, Resamples] = {}

    @property
    def arms(self) -> list[str]:
        """Arms with a run, in the order of the runs."""
        return list(dict.fromkeys(result.job.arm for result in self.results))

    @property
    def labels(self) -> list[int]:
        """Numbers of labels with a run, rising."""
        return sorted({result.job.labels for result in self.results})

    def common(self, arms: Sequence[str], labels: int) -> list[tuple[int, int]]:
        """Draws and seeds that all these arms have at this number of labels."""
        found = [set(self.cells.get((arm, labels), {})) for arm in arms]
        return sorted(set.intersection(*found))

    def drawn(self, groups: int) -> Resamples:
        """The resamples for so many groups of runs; the patients in them are the same for any number."""
        if groups not in self._drawn:
            self._drawn[groups] = Resamples.draw(self.patient_count, groups, self.resamples)
        return self._drawn[groups]

    def scores(self, arm: str, labels: int, cells: Sequence[tuple[int, int]]) -> np.ndarray:
        """Score of each run in each resample of patients, (1 + b, runs)."""
        for draw, seed in cells:
            if (arm, labels, draw, seed) not in self._scores:
                values = self.cells[arm, labels][draw, seed]
                found = run_scores(self.score, values, self.codes, self.drawn(1))
                self._scores[arm, labels, draw, seed] = found
        return np.stack([self._scores[arm, labels, draw, seed] for draw, seed in cells], 1)

    def estimate(self, scores: np.ndarray, cells: Sequence[tuple[int, int]], least: float = 0.0) -> dict[str, float]:
        """Mean over runs with its interval.

        Args:
            scores: of each run in each resample, or differences of scores, (1 + b, runs).
            cells: draw and seed of each run.
            least: smallest possible value where scores are shares: 0, and -1 for their differences.
        """
        groups = groups_of(cells)
        count = int(groups.max()) + 1
        values = mean_over_runs(scores, groups, self.drawn(count))
        of_groups = group_means(scores[0], groups)
        over_patients = scores[1:].mean(1)
        finite = over_patients[np.isfinite(over_patients)]
        spread = Spread(
            float(finite.var(ddof=1)) if len(finite) > 1 else 0.0,
            self.patient_count,
            float(of_groups.var(ddof=1) / count) if count > 1 else 0.0,
            count,
        )
        low, high = widened(values[1:], float(values[0]), spread)
        if score_of(self.metric) is not None:  # a share; a score that is not known here may have any size
            low, high = np.clip([low, high], least, 1.0).tolist()
        plain = percentile(values[1:])
        return {
            "mean": float(values[0]),
            "low": low,
            "high": high,
            "percentile_low": plain.low,
            "percentile_high": plain.high,
            "spread": float(scores[0].std(ddof=1)) if len(cells) > 1 else 0.0,
            "runs": len(cells),
            "groups": count,
        }


def analyse(study: Study) -> dict[str, Any]:
    """Everything that a study shows, as plain data: ``arms``, ``comparisons``, ``efficiency``."""
    pairs = comparisons(study.arms)
    compared = [entry for pair in pairs for entry in compare(study, pair)]
    return {
        "metric": study.metric,
        "higher_is_better": not less_is_better(study.metric),
        "labels": study.labels,
        "test_patients": study.patient_count,
        "test_cases": len(study.codes),
        "resamples": study.resamples,
        "arms": [entry for arm in study.arms for entry in arm_means(study, arm)],
        "comparisons": compared,
        "efficiency": [entry for pair in pairs if pair.baseline in (SCRATCH, LONGER) for entry in _ratios(study, pair)],
    }


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
        entry = {**asdict(pair), "labels": labels, **study.estimate(difference, cells, -1.0)}
        found.append({**entry, **_tests(study, pair, labels, cells, difference)} if tested else entry)
    if tested:
        adjusted = holm(np.array([entry["p"] for entry in found]))
        for entry, value in zip(found, adjusted, strict=True):
            entry["p_holm"] = float(value)
            entry["shown"] = bool(value < _SIGNIFICANT and (entry["low"] > 0 or entry["high"] < 0))
    return found


def _tests(
    study: Study, pair: Comparison, labels: int, cells: Sequence[tuple[int, int]], difference: np.ndarray
) -> dict[str, float]:
    groups = groups_of(cells)
    share = 1 / (int(groups.max()) + 1) / np.bincount(groups)[groups]
    both = [(study.cells[pair.arm, labels][cell], study.cells[pair.baseline, labels][cell]) for cell in cells]
    values = mean_over_runs(difference, groups, study.drawn(int(groups.max()) + 1))
    interval = bca(values[1:], float(values[0]), _left_out(study, both, share))
    return {"p": _p_value(study, both, share), "bca_low": interval.low, "bca_high": interval.high}


def _left_out(study: Study, both: Sequence[tuple[Values, Values]], share: np.ndarray) -> np.ndarray:
    """The difference with one test patient left out each, (patients,)."""
    weights = (1.0 - np.eye(study.patient_count))[:, study.codes]
    parts = [study.score(a, weights) - study.score(b, weights) for a, b in both]
    return np.stack(parts, 1) @ share


def _p_value(study: Study, both: Sequence[tuple[Values, Values]], share: np.ndarray) -> float:
    rng = np.random.default_rng((0, 12))
    added = _patient_differences(study, both, share)
    if added is not None:
        return sign_flip(added, rng, FLIPS)
    ones = np.ones((1, len(study.codes)))

    def difference(signs: np.ndarray) -> np.ndarray:
        found = np.empty(len(signs))
        for row, sign in enumerate(signs):
            kept = sign[study.codes] > 0
            parts = [study.score(_mixed(kept, a, b), ones) - study.score(_mixed(kept, b, a), ones) for a, b in both]
            found[row] = np.concatenate(parts) @ share
        return found

    return swap_test(difference, study.patient_count, rng, FLIPS_OF_SLOW_SCORES)


def _mixed(kept: np.ndarray, own: Values, other: Values) -> dict[str, np.ndarray]:
    """The cases of one arm, with those of the exchanged patients taken from the other."""
    return {name: np.where(kept.reshape(-1, *[1] * (own[name].ndim - 1)), own[name], other[name]) for name in own}


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


def _ratios(study: Study, pair: Comparison) -> list[dict[str, Any]]:
    """Label-efficiency ratios of a pair at each number of labels, over the draws and seeds that all points share."""
    labels = [n for n in study.labels if study.common([pair.arm, pair.baseline], n)]
    if not labels:
        return []
    cells = sorted(set.intersection(*[set(study.common([pair.arm, pair.baseline], n)) for n in labels]))
    if not cells:
        return []
    sign = -1.0 if less_is_better(study.metric) else 1.0
    curves = {arm: sign * _curve(study, arm, labels, cells) for arm in (pair.arm, pair.baseline)}
    ratios = label_efficiency(np.array(labels, float), curves[pair.baseline], curves[pair.arm])
    return [
        {**asdict(pair), "labels": given, **asdict(ratio), "says": ratio.text(), "interval": ratio.interval()}
        for given, ratio in zip(labels, ratios, strict=True)
    ]


def _curve(study: Study, arm: str, labels: Sequence[int], cells: Sequence[tuple[int, int]]) -> np.ndarray:
    """Mean scores over runs, (1 + b, points), all points in the same resamples."""
    groups = groups_of(cells)
    drawn = study.drawn(int(groups.max()) + 1)
    return np.stack([mean_over_runs(study.scores(arm, n, cells), groups, drawn) for n in labels], 1)


def finite_only(value: Any) -> Any:
    """The same data for JSON: what is not a finite number becomes null."""
    if isinstance(value, Mapping):
        return {name: finite_only(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_only(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
