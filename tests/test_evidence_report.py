"""The section of a study in a report: the same place for every result, and no chapter for the runs inside."""

import json

import pytest

from ssl_med.reporting import report
from ssl_med.reporting.labels import BETTER, NO_DIFFERENCE, NOT_COMPUTED, WORSE
from ssl_med.reporting.study import study_effect


def study(shown: list[bool], means: list[float]) -> dict:
    entries = [
        {
            **{"arm": "pretrained", "baseline": "scratch", "labels": 5 * (n + 1), "mean": mean, "runs": 6},
            **{"low": mean - 0.1, "high": mean + 0.1, "p": 0.01, "p_holm": 0.02, "shown": is_shown},
        }
        for n, (is_shown, mean) in enumerate(zip(shown, means, strict=True))
    ]
    ratio = {"arm": "pretrained", "baseline": "scratch", "labels": 5, "says": "> 4", "interval": "2.1 to > 4"}
    return {
        "metric": "dice",
        "labels": [5, 10],
        "arms": [{"arm": "pretrained", "labels": 5, "mean": 0.71, "low": 0.6, "high": None}],
        "comparisons": entries,
        "efficiency": [ratio],
        "subgroups": [
            {"column": "<b>site</b>", "group": "a", "patients": 4, "arm": "scratch", "labels": 5, "mean": 0.5}
        ],
        "verdict": "The plain sentence.",
        "paragraph": ["The plain sentence.", "Another."],
        "leakage": ["train: nothing is shared"],
    }


@pytest.mark.parametrize(
    ("shown", "means", "expected", "look"),
    [
        ([True, False], [0.2, -0.2], BETTER, "better"),
        ([True, True], [-0.2, -0.1], WORSE, "worse"),
        ([False, False], [0.2, 0.1], NO_DIFFERENCE, "open"),
        ([True, True], [0.2, -0.2], NO_DIFFERENCE, "open"),
        ([], [], NOT_COMPUTED, "open"),
    ],
)
def test_every_verdict_of_a_study_stands_in_the_same_place(tmp_path, shown, means, expected, look):
    (tmp_path / "curve.json").write_text(json.dumps(study(shown, means)))
    assert study_effect(study(shown, means)) == expected
    page = report(tmp_path).read_text()
    box = f'<h2>Summary</h2><div class="verdict {look}"><p class="badge">{expected}</p><p>The plain sentence.</p>'
    assert box in page


def test_the_section_holds_every_part_and_escapes_what_is_foreign(tmp_path):
    (tmp_path / "curve.json").write_text(json.dumps(study([True], [0.2])))
    (tmp_path / "run.json").write_text(json.dumps({"kind": "curve", "status": "finished"}))
    inside = tmp_path / "runs" / "0123"
    inside.mkdir(parents=True)
    (inside / "run.json").write_text(json.dumps({"kind": "finetune", "status": "finished"}))
    page = report(tmp_path).read_text()
    for expected in ("2.1 to &gt; 4", "0.600 to not a number", "Another.", "train: nothing is shared", "no curve.png"):
        assert expected in page, expected
    assert "not run" in page  # pretrained with 10 labels
    assert "<b>site" not in page
    assert "0123" not in page
    assert "Not in this run" not in page
