"""A label-efficiency study: the picture, the differences and what they are worth, shown alike whatever the answer."""

from pathlib import Path
from typing import Any

from ssl_med.reporting.labels import BETTER, NO_DIFFERENCE, NOT_COMPUTED, WORSE
from ssl_med.reporting.metrics import as_number
from ssl_med.reporting.page import Markup, details, join, picture, table, tag
from ssl_med.reporting.words import number, score, signed


def study_verdict(study: dict[str, Any]) -> Markup:
    """The result in one box; its size and place do not depend on the result."""
    looks = {BETTER: "better", WORSE: "worse"}
    found = study_effect(study)
    sentence = study.get("verdict") or "The study holds no verdict."
    return tag("div", tag("p", found, class_="badge"), tag("p", sentence), class_=f"verdict {looks.get(found, 'open')}")


def study_effect(study: dict[str, Any]) -> str:
    """Better or worse where every shown difference points that way, none where they point both ways or nothing is."""
    main = [e for e in _entries(study, "comparisons") if (e.get("arm"), e.get("baseline")) == ("pretrained", "scratch")]
    if not main:
        return NOT_COMPUTED
    sign = 1 if study.get("higher_is_better", True) else -1
    signs = {sign * (as_number(entry.get("mean")) or 0.0) > 0 for entry in main if entry.get("shown")}
    if len(signs) != 1:
        return NO_DIFFERENCE
    return BETTER if signs.pop() else WORSE


def study_section(study: dict[str, Any], image: Path | None) -> Markup:
    """Words, picture, scores, differences, ratios, subgroups, leakage and compute.

    Args:
        study: ``curve.json``.
        image: ``curve.png``, if it is there.
    """
    sentences = [tag("p", line) for line in study.get("paragraph") or []]
    return join(
        sentences,
        _picture(image),
        _scores(study),
        details("Paired differences, with intervals and tests", _differences(study)),
        _ratios(study),
        _subgroups(study),
        _list("Leakage", study.get("leakage")),
        _list("Compute", study.get("compute_words")),
        _list("Notes", study.get("notes")),
    )


def _entries(study: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [entry for entry in study.get(name) or [] if isinstance(entry, dict)]


def _picture(image: Path | None) -> Markup | None:
    if image is None:
        return tag("p", "There is no curve.png in this folder.", class_="absent")
    try:
        return tag("figure", picture(image, "Score of each arm by number of labelled patients"), class_="panel")
    except ValueError as error:
        return tag("p", f"{error}, so it is not shown.", class_="warning")


def _ends(entry: dict[str, Any], write: Any) -> str:
    return f"{write(entry.get('low'))} to {write(entry.get('high'))}"


def _scores(study: dict[str, Any]) -> Markup:
    cells = {(e.get("labels"), str(e.get("arm"))): e for e in _entries(study, "arms")}
    arms = list(dict.fromkeys(arm for _, arm in cells))
    body = [
        [number(labels), *(_score(cells.get((labels, arm))) for arm in arms)] for labels in study.get("labels") or []
    ]
    caption = f"Mean {study.get('metric', 'score')} and 95 % interval by labelled patients"
    return table(["Labels", *arms], body, caption)


def _score(entry: dict[str, Any] | None) -> str:
    return "not run" if entry is None else f"{score(entry.get('mean'))} ({_ends(entry, score)})"


def _differences(study: dict[str, Any]) -> Markup:
    body = [
        [
            f"{entry.get('arm')} minus {entry.get('baseline')}",
            number(entry.get("labels")),
            signed(entry.get("mean")),
            _ends(entry, signed),
            *(number(entry.get(name)) for name in ("p", "p_holm", "runs")),
        ]
        for entry in _entries(study, "comparisons")
    ]
    return table(["Arms", "Labels", "Difference", "95 % interval", "p", "p (Holm)", "Runs each"], body)


def _ratios(study: dict[str, Any]) -> Markup | None:
    body = [
        [
            f"{e.get('arm')} over {e.get('baseline')}",
            number(e.get("labels")),
            str(e.get("says")),
            str(e.get("interval")),
        ]
        for e in _entries(study, "efficiency")
    ]
    caption = "Labels that the second arm needs to reach what the first reaches, over the labels given"
    return table(["Arms", "Labels given", "Ratio", "95 % interval"], body, caption) if body else None


def _subgroups(study: dict[str, Any]) -> Markup | None:
    body = [
        [
            *(f"{entry.get('column')}: {entry.get('group')}", number(entry.get("patients")), str(entry.get("arm"))),
            *(
                number(entry.get("labels")),
                score(entry.get("mean")),
                _ends(entry, score),
                str(entry.get("warning") or ""),
            ),
        ]
        for entry in _entries(study, "subgroups")
    ]
    head = ["Group", "Patients", "Arm", "Labels", "Mean", "95 % interval", ""]
    return details(f"Subgroups of the test images ({len(body)} lines)", table(head, body)) if body else None


def _list(title: str, lines: Any) -> Markup | None:
    texts = [str(line) for line in lines] if isinstance(lines, list) else []
    if not texts:
        return None
    return tag("div", tag("h4", title), tag("ul", [tag("li", text) for text in texts]))
