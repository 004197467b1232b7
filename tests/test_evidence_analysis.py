"""From runs to findings: known effects are found, equal arms give a null result, plans are as asked."""

import numpy as np
import pytest

from ssl_med.errors import UserError
from ssl_med.evidence.analysis import Result, Study, analyse, arm_means, compare, finite_only
from ssl_med.evidence.neighbours import nearest, principal_axes, retrieval, vote
from ssl_med.evidence.planning import Comparison, Job, comparisons, label_counts, plan_jobs
from ssl_med.evidence.scores import recomputed, score_of
from ssl_med.evidence.subgroups import bands, subgroup_table
from ssl_med.evidence.words import markdown, paragraph, to_csv, verdict
from ssl_med.reporting.labels import BETTER, WORSE
from ssl_med.reporting.study import study_effect

PATIENTS, IMAGES = 30, 2
LABELS = (5, 10, 20, 40)


def made(chance: dict, draws: int = 3, seeds: int = 2, same: bool = False) -> list[Result]:
    """Right and wrong answers; ``chance``: arm -> chance of a right one at each number of labels."""
    count, results = PATIENTS * IMAGES, []
    label = np.arange(count) % 2
    for job in plan_jobs(list(chance), LABELS, draws, seeds):
        arm = 0 if same else list(chance).index(job.arm)
        rng = np.random.default_rng((arm, job.labels, job.draw, job.seed))
        right = rng.random(count) < chance[job.arm][LABELS.index(job.labels)]
        sure = np.where(right, 0.5 + rng.random(count) / 2, rng.random(count) / 2)
        probability = np.stack([np.where(label == k, sure, 1 - sure) for k in (0, 1)], 1)
        results.append(Result(job, {"probability": probability, "label": label}))
    return results


def study_of(results, metric="balanced_accuracy", resamples=300, keep=None) -> Study:
    return Study(results, np.repeat(np.arange(PATIENTS), IMAGES), metric, score_of(metric), resamples, keep)


def told(results, **changes) -> dict:
    found = analyse(study_of(results, **changes)) | {"notes": [], "floors": {}}
    return found | {"paragraph": paragraph(found)}


def test_a_large_effect_is_found_and_named_with_its_ratio():
    found = told(made({"pretrained": (0.8, 0.9, 0.95, 0.97), "scratch": (0.55, 0.6, 0.8, 0.9)}))
    entries = {e["labels"]: e for e in found["comparisons"]}
    assert entries[5]["shown"]
    assert entries[5]["low"] > 0
    assert entries[5]["p_holm"] < 0.01
    assert found["paragraph"][0].startswith("Pretraining raised balanced accuracy at 5, 10")
    ratio = found["efficiency"][0]
    assert ratio["labels"] == 5
    assert 3 < ratio["value"] < 6  # scratch reaches 0.8 with 20
    text = markdown(found)
    assert "| pretrained | scratch | 5 | +0." in text
    assert "## Label-efficiency ratio" in text


def test_equal_arms_give_a_null_result_and_say_so():
    found = told(made({"pretrained": (0.6, 0.7, 0.8, 0.9), "scratch": (0.6, 0.7, 0.8, 0.9)}, same=True))
    for entry in found["comparisons"]:
        assert (entry["mean"], entry["low"], entry["high"], entry["p_holm"]) == (0, 0, 0, 1)
        assert not entry["shown"]
    assert verdict(found).startswith("No difference in balanced accuracy")
    assert "was shown at 5, 10, 20 and 40 labelled patients" in verdict(found)
    assert {entry["says"] for entry in found["efficiency"]} == {"1"}


def test_harm_is_said_as_plainly_as_a_gain():
    found = told(made({"pretrained": (0.5, 0.5, 0.5, 0.5), "scratch": (0.9, 0.9, 0.9, 0.9)}))
    assert verdict(found).startswith("Pretraining lowered balanced accuracy at 5, 10, 20 and 40 labelled patients")


def test_means_are_plain_means_over_runs_and_differences_are_paired():
    results = made({"pretrained": (0.8,) * 4, "scratch": (0.6,) * 4})
    study, score = study_of(results), score_of("balanced_accuracy")
    plain = {
        arm: [score(r.values, np.ones((1, 60)))[0] for r in results if (r.job.arm, r.job.labels) == (arm, 10)]
        for arm in ("pretrained", "scratch")
    }
    assert arm_means(study, "scratch")[1]["mean"] == pytest.approx(np.mean(plain["scratch"]))
    entry = compare(study, Comparison("pretrained", "scratch"))[1]
    assert entry["mean"] == pytest.approx(np.mean(plain["pretrained"]) - np.mean(plain["scratch"]))
    assert (entry["runs"], entry["groups"], entry["labels"]) == (6, 3, 10)
    assert entry["bca_low"] == pytest.approx(entry["percentile_low"], abs=0.06)


def test_the_fast_and_the_general_test_agree():
    """Balanced accuracy as a sum over patients, and recomputed from exchanged predictions."""
    results = [r for r in made({"pretrained": (0.75,) * 4, "scratch": (0.6,) * 4}, 2, 1) if r.job.labels == 5]
    fast = compare(study_of(results), Comparison("pretrained", "scratch"))[0]["p"]
    slow_score = recomputed(
        lambda v: {"other": score_of("balanced_accuracy")(v, np.ones((1, len(v["label"]))))[0]}, "other"
    )
    slow = Study(results, np.repeat(np.arange(PATIENTS), IMAGES), "other", slow_score, 20)
    assert compare(slow, Comparison("pretrained", "scratch"))[0]["p"] == pytest.approx(fast, abs=0.03)
    ranked = compare(study_of(results, "auroc", 50), Comparison("pretrained", "scratch"))[0]
    assert 0 < ranked["p"] <= 1


def of_tasks(name: str, own: np.ndarray, other: np.ndarray) -> dict:
    """A study of one run in each arm under a score that the task works out from ``found`` of each case."""
    label = np.arange(len(own)) % 3
    same = np.eye(3)[(label + 1) % 3]  # the likeliest class is wrong in every case of both arms
    results = [
        Result(Job(arm, labels, 0, 0), {"probability": same, "label": label, "found": found + labels / 1000})
        for labels in (5, 10)
        for arm, found in (("pretrained", own), ("scratch", other))
    ]
    score = recomputed(lambda values: {name: float(values["found"].mean())}, name)
    return analyse(Study(results, np.arange(len(own)), name, score, 60)) | {"notes": [], "floors": {}}


def test_the_test_looks_at_the_score_of_the_task_and_not_at_another_of_its_name():
    """Grades have an accuracy of their own (the median), which the likeliest class says nothing about."""
    found = of_tasks("accuracy", np.ones(20), np.zeros(20))
    for entry in found["comparisons"]:
        assert entry["mean"] == pytest.approx(1)
        assert entry["p"] < 0.01
        assert entry["shown"]


@pytest.mark.parametrize("name", ["mean_absolute_error", "calibration_error", "brier", "hd95_1", "extra_2"])
def test_less_of_an_error_is_better(name):
    noise = np.random.default_rng(0).normal(0, 0.01, 20)
    found = of_tasks(name, 0.9 + noise, 0.1 + noise[::-1])
    assert not found["higher_is_better"]
    assert study_effect(found) == WORSE
    assert verdict(found).startswith(f"Pretraining raised {name.replace('_', ' ')} at 5 and 10")
    assert f"(less {name.replace('_', ' ')} is better)" in verdict(found)
    assert [entry["value"] for entry in found["efficiency"]] == [-np.inf, -np.inf]  # scratch is better with the fewest
    assert study_effect(of_tasks(name, 0.1 + noise, 0.9 + noise[::-1])) == BETTER


def test_a_longer_schedule_that_wins_somewhere_is_told_beside_the_gain():
    found = told(made({"pretrained": (0.9, 0.9, 0.5, 0.5), "scratch_longer": (0.5, 0.5, 0.9, 0.9)}))
    text = " ".join(found["paragraph"])
    assert "Pretraining is better than scratch with a longer schedule at 5 and 10 labelled patients" in text
    assert "Scratch with a longer schedule is better at 20 and 40 labelled patients" in text


def test_runs_of_one_arm_only_are_left_out_of_the_difference():
    results = made({"pretrained": (0.9,) * 4, "scratch": (0.6,) * 4}, 2, 1)
    cut = [r for r in results if not (r.job.arm == "scratch" and r.job.draw == 1)]
    entry = compare(study_of(cut), Comparison("pretrained", "scratch"), tested=False)[0]
    assert (entry["runs"], arm_means(study_of(cut), "pretrained")[0]["runs"]) == (1, 2)
    with pytest.raises(UserError, match="no run is finished"):
        study_of([])


def test_subgroups_are_scored_on_their_own_cases_and_small_ones_warned_of():
    results = made({"pretrained": (0.9,) * 4, "scratch": (0.6,) * 4}, 2, 1)
    site = ["small" if place < 8 else "large" for place in range(PATIENTS * IMAGES)]
    lines = subgroup_table(study_of(results), {"site": site})
    small = [line for line in lines if line["group"] == "small"]
    assert {line["warning"] for line in small} == {"fewer than 10 patients"}
    assert {line["warning"] for line in lines if line["group"] == "large"} == {""}
    assert {(line["patients"], line["cases"]) for line in small} == {(4, 8)}
    keep = np.array(site) == "small"
    expected = [
        score_of("balanced_accuracy")({n: v[keep] for n, v in r.values.items()}, np.ones((1, 8)))[0]
        for r in results
        if (r.job.arm, r.job.labels) == ("pretrained", 5)
    ]
    assert small[0]["arm"] == "pretrained"
    assert small[0]["mean"] == pytest.approx(np.mean(expected))
    assert {line["arm"] for line in lines} == {"pretrained", "scratch", "difference"}
    assert to_csv(lines).splitlines()[0].startswith("column,group,patients,cases,arm,labels,mean,low,high,warning")
    assert to_csv([]) == ""


def test_bands_hold_about_the_same_number():
    named = bands([*range(30), None], 3, " ml")
    assert named[0] == "1 of 3: 0 to 9.667 ml"
    assert [named.count(name) for name in dict.fromkeys(named)] == [10, 10, 10, 1]
    assert bands([2.0, 2.0]) == ["", ""]


def test_label_counts_are_by_patient_and_drop_what_is_too_few():
    counts, notes = label_counts(["1%", "5%", "0.1", "25", "all"], 100, 5)
    assert counts == [5, 10, 25, 100]
    assert notes == ["1% of 100 patients is 1, the task needs 5: left out"]
    counts, notes = label_counts(["25%", "5", "100%"], 20)
    assert counts == [5, 20]
    assert "run once" in notes[0]
    for wrong, said in (
        (["x"], "no number"),
        (["0"], "no number"),
        (["200%"], "no number"),
        (["30"], "has 20"),
        (["1%"], "none"),
    ):
        with pytest.raises(UserError, match=said):
            label_counts(wrong, 20, 2)


def test_no_two_runs_of_an_arm_share_a_seed():
    jobs = plan_jobs(["pretrained", "scratch"], [5, 10], 3, 2)
    assert len(jobs) == len(set(jobs)) == 24
    assert len({job.training_seed for job in jobs}) == 6
    assert {job.training_seed for job in jobs if job.draw == 2} == {2000, 2001}
    with pytest.raises(UserError, match="at least one"):
        plan_jobs(["scratch"], [5], 0, 1)


def test_comparisons_are_those_that_can_be_made():
    every = ["pretrained", "scratch", "scratch_longer", "frozen", "frozen_random", "knn", "knn_random", "imagenet"]
    assert [(c.arm, c.baseline) for c in comparisons(every)] == [
        *(("pretrained", "scratch"), ("pretrained", "scratch_longer")),
        *(("imagenet", "scratch"), ("pretrained", "imagenet"), ("frozen", "frozen_random"), ("knn", "knn_random")),
    ]
    assert comparisons(["pretrained", "frozen"]) == []
    assert Job("scratch", 5, 1, 0).training_seed == 1000


def test_what_is_not_finite_becomes_null():
    assert finite_only({"a": [1.0, float("inf")], "b": (float("nan"), "x")}) == {"a": [1.0, None], "b": [None, "x"]}


def test_neighbours_votes_and_precision_by_hand():
    features = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1], [1, 0.2]])
    places, similarity = nearest(features, features, 2, same=True)
    assert places[0].tolist() == [1, 4]
    assert similarity[0, 0] == pytest.approx(1 / 1.01**0.5)
    found = retrieval(features, [0, 0, 1, 1, -1], 1)
    assert found["precision"] == {0: (1.0, 1), 1: (1.0, 2)}  # the nearest of image 1 has no label
    shares = vote(features[:4], np.array([0, 0, 1, 1]), features[4:], 3, count=3)
    near = np.sort(similarity_of(features[:4], features[4]))[::-1][:3]
    weight = np.exp(near / 0.07)
    assert shares[0] == pytest.approx([weight[:2].sum() / weight.sum(), weight[2] / weight.sum(), 0])


def similarity_of(bank, one):
    return bank @ one / np.linalg.norm(bank, axis=1) / np.linalg.norm(one)


def test_principal_axes_agree_with_sklearn():
    from sklearn.decomposition import PCA

    features = np.random.default_rng(0).normal(0, [3, 2, 1, 0.1], (50, 4))
    places, shares = principal_axes(features)
    theirs = PCA(2).fit(features)
    assert shares == pytest.approx(theirs.explained_variance_ratio_)
    assert np.abs(places) == pytest.approx(np.abs(theirs.transform(features)))
