"""The crossed bootstrap: test patients on one side, draws of training patients on the other.

What is resampled: test patients with replacement, each with all images; and, independently, d - 1 of the d draws of
training patients with replacement, each with all its seeds. A resample is shared by all arms and numbers of labels, so
all differences are paired. Crossing the two is Owen's pigeonhole bootstrap (arXiv 0712.1111), which errs on the safe
side; d - 1 instead of d makes the variance from the draws unbiased (Rao and Wu, JASA 83(401), 1988), which matters at
three draws. With a single draw its seeds take the place of the draws; with a single run only patients are resampled.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ssl_med.evidence.scores import Score, Values


@dataclass(frozen=True)
class Resamples:
    """Weights of every resample; the first one is what was observed.

    Attributes:
        patients: (1 + b, patients), how often each test patient is in.
        groups: (1 + b, groups), weight of each group of runs, summing to 1.
    """

    patients: np.ndarray
    groups: np.ndarray

    @classmethod
    def draw(cls, patients: int, groups: int, count: int, seed: int = 0) -> "Resamples":
        """Resamples for so many patients and groups of runs.

        Args:
            patients: in the test.
            groups: draws, or seeds of a single draw.
            count: resamples.
            seed: of all of them.
        """
        rng = np.random.default_rng((seed, 11))
        chosen = rng.multinomial(patients, np.full(patients, 1 / patients), count)
        shares = np.full((count, groups), 1 / groups)
        if groups > 1:
            shares = rng.multinomial(groups - 1, np.full(groups, 1 / groups), count) / (groups - 1)
        return cls(
            np.concatenate([np.ones((1, patients)), chosen]),
            np.concatenate([np.full((1, groups), 1 / groups), shares]),
        )

    def select(self, patients: np.ndarray) -> "Resamples":
        """The same resamples seen by a part of the patients (true where a patient is kept)."""
        return Resamples(self.patients * patients, self.groups)


def groups_of(cells: Sequence[tuple[int, int]]) -> np.ndarray:
    """The group of each run (draw, seed): its draw, or its seed where there is one draw only."""
    draws = np.array([draw for draw, _ in cells])
    seeds = np.array([seed for _, seed in cells])
    return np.unique(draws if len(np.unique(draws)) > 1 else seeds, return_inverse=True)[1]


def run_scores(score: Score, values: Values, patients: np.ndarray, resamples: Resamples) -> np.ndarray:
    """Score of one run in every resample of patients, (1 + b,).

    Args:
        score: of a set of cases.
        values: of the cases of this run.
        patients: number of the patient of each case.
        resamples: of the study.
    """
    return score(values, resamples.patients[:, patients])


def mean_over_runs(scores: np.ndarray, groups: np.ndarray, resamples: Resamples) -> np.ndarray:
    """Mean over runs under the weights of their groups, (1 + b,): each draw counts the same, whatever its seeds.

    Args:
        scores: (1 + b, runs).
        groups: of each run.
        resamples: of the study.
    """
    size = np.bincount(groups, minlength=resamples.groups.shape[1])
    return (scores * resamples.groups[:, groups] / size[groups]).sum(1)


def group_means(scores: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Observed mean of each group of runs."""
    return np.array([scores[groups == group].mean() for group in np.unique(groups)])
