"""Finished runs of several arms on one test split, scored in resamples that all questions to them share."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ssl_med.errors import UserError
from ssl_med.evidence.planning import Job
from ssl_med.evidence.progress import Progress
from ssl_med.evidence.resampling import Resamples, group_means, groups_of, mean_over_runs, run_scores
from ssl_med.evidence.scores import Recomputed, Score, Values, limits
from ssl_med.evidence.statistics import Spread, percentile, widened

RESAMPLES, RESAMPLES_OF_SLOW_SCORES = 2000, 200
LEFT_OUT_OF_SLOW_SCORES = 50
"""Patients are left out in so many groups at most where each costs a summary by the task."""
_ROWS = 512


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
        resamples: number of bootstrap resamples; by default 2000, and 200 for a score that the task recomputes.
        keep: which cases count, (n,); all by default.
        progress: told of each weighting of the cases of a run.

    Raises:
        UserError: there are no runs.
    """

    results: Sequence[Result]
    patients: np.ndarray
    metric: str
    score: Score
    resamples: int | None = None
    keep: np.ndarray | None = None
    progress: Progress | None = None
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
        self._without: dict[tuple[str, int, int, int], np.ndarray] = {}
        self._drawn: dict[int, Resamples] = {}

    @property
    def slow(self) -> bool:
        """Each weighting of the cases costs a summary by the task."""
        return isinstance(self.score, Recomputed)

    @property
    def resample_count(self) -> int:
        """Bootstrap resamples."""
        if self.resamples is not None:
            return self.resamples
        return RESAMPLES_OF_SLOW_SCORES if self.slow else RESAMPLES

    @property
    def left_out_count(self) -> int:
        """How many jackknife values there are: one for each patient, or for each group of them."""
        return min(self.patient_count, LEFT_OUT_OF_SLOW_SCORES) if self.slow else self.patient_count

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
            self._drawn[groups] = Resamples.draw(self.patient_count, groups, self.resample_count)
        return self._drawn[groups]

    def weighed(self, values: Values, weights: np.ndarray) -> np.ndarray:
        """The score of cases under weights (b, n), (b,); the progress is told."""
        found, rows = [], 1 if self.slow else _ROWS
        for first in range(0, len(weights), rows):
            found.append(self.score(values, weights[first : first + rows]))
            if self.progress is not None:
                self.progress.step(len(found[-1]))
        return np.concatenate(found)

    def scores(self, arm: str, labels: int, cells: Sequence[tuple[int, int]]) -> np.ndarray:
        """Score of each run in each resample of patients, (1 + b, runs)."""
        for draw, seed in cells:
            if (arm, labels, draw, seed) not in self._scores:
                values = self.cells[arm, labels][draw, seed]
                found = run_scores(self.weighed, values, self.codes, self.drawn(1))
                self._scores[arm, labels, draw, seed] = found
        return np.stack([self._scores[arm, labels, draw, seed] for draw, seed in cells], 1)

    def left_out(self, arm: str, labels: int, cells: Sequence[tuple[int, int]]) -> np.ndarray:
        """Score of each run without one test patient each, or without one group of them, (left_out_count, runs)."""
        order = np.random.default_rng(0).permutation(self.patient_count)
        group = np.empty(self.patient_count, int)
        group[order] = np.arange(self.patient_count) % self.left_out_count
        for draw, seed in cells:
            if (arm, labels, draw, seed) not in self._without:
                values = self.cells[arm, labels][draw, seed]
                weights = (np.arange(self.left_out_count)[:, None] != group[self.codes]).astype(float)
                self._without[arm, labels, draw, seed] = self.weighed(values, weights)
        return np.stack([self._without[arm, labels, draw, seed] for draw, seed in cells], 1)

    def estimate(
        self, scores: np.ndarray, cells: Sequence[tuple[int, int]], difference: bool = False
    ) -> dict[str, float]:
        """Mean over runs with its interval.

        Args:
            scores: of each run in each resample, or differences of scores, (1 + b, runs).
            cells: draw and seed of each run.
            difference: they are differences, whose limits are wider.
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
        least, most = limits(self.metric)
        low, high = np.clip([low, high], *((least - most, most - least) if difference else (least, most))).tolist()
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
