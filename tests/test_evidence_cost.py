"""Scores that the task works out anew: fewer resamples, said in the findings, and told while they go on."""

import numpy as np
import pytest

from ssl_med.evidence import progress as telling
from ssl_med.evidence.analysis import Result, Study, analyse, cost
from ssl_med.evidence.planning import Job
from ssl_med.evidence.progress import Progress
from ssl_med.evidence.scores import recomputed
from ssl_med.evidence.words import paragraph


def slow_study(patients: int = 60, resamples: int | None = None, calls: list[int] | None = None) -> Study:
    rng, told = np.random.default_rng(0), [] if calls is None else calls
    results = [
        Result(Job(arm, labels, draw, 0), {"own": rng.normal(better, 1, patients)})
        for draw in range(2)
        for labels in (5, 10)
        for arm, better in (("pretrained", 1.0), ("scratch", 0.0))
    ]

    def summarise(cases):
        told.append(len(cases["own"]))
        return {"median": float(np.median(cases["own"]))}

    return Study(results, np.arange(patients), "median", recomputed(summarise, "median"), resamples)


def test_a_slow_score_has_fewer_resamples_and_says_so():
    calls: list[int] = []
    study = slow_study(calls=calls)
    found = analyse(study)
    assert found["resamples"] == 200
    # 8 runs in 201 resamples and without 50 groups of patients; at 2 numbers of labels 1 + 199 exchanges of 2 runs,
    # in both directions
    assert len(calls) == 8 * (201 + 50) + 2 * (1 + 199) * 2 * 2
    assert "median has no fast form" in cost(study)[0]
    assert "200 resamples instead of 2000" in cost(study)[0]
    assert cost(slow_study(resamples=2000)) == []
    assert all(entry["p"] < 0.05 for entry in found["comparisons"])
    assert all(np.isfinite(entry["bca_low"]) for entry in found["comparisons"])


def test_the_work_that_is_announced_is_the_work_that_is_done(monkeypatch):
    made = []

    class Kept(Progress):
        def __init__(self, title: str, total: int) -> None:
            super().__init__(title, total)
            made.append(self)

    monkeypatch.setattr("ssl_med.evidence.analysis.Progress", Kept)
    analyse(slow_study(30, 20))
    assert made[0].done == pytest.approx(made[0].total, rel=0.02)


def test_a_long_analysis_tells_the_time_that_is_left(monkeypatch, capsys):
    now = iter([0.0, 10.0, 40.0, 50.0])
    monkeypatch.setattr(telling.time, "monotonic", lambda: next(now))
    progress = Progress("analysis", 200)
    progress.step(10)
    progress.step(40)
    progress.step(50)
    progress.close()
    assert capsys.readouterr().err == "analysis: 25%, about 2 min left\n"


@pytest.mark.parametrize(("low", "said"), [(float("inf"), True), (3.0, False)])
def test_an_interval_without_width_is_explained(low, said):
    found = analyse(slow_study(12, 20)) | {"notes": []}
    for entry in found["efficiency"]:
        entry.update(low=low, high=float("inf"))
    assert ("has no width" in " ".join(paragraph(found))) is said
