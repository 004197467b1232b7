"""The label table: what pretraining is worth when labels are few, shown alike whether it helped or not."""

import statistics
from typing import Any

from ssl_med.reporting.dots import Group, dot_plot
from ssl_med.reporting.metrics import as_number
from ssl_med.reporting.page import Markup, details, join, table, tag
from ssl_med.reporting.reading import mapping
from ssl_med.reporting.words import number, score, signed

BETTER, NO_DIFFERENCE, WORSE = "Better with pretraining", "No clear difference", "Worse with pretraining"
NOT_COMPUTED = "Effect not computed"


def effect(label_table: dict[str, Any]) -> str:
    """What the interval of the difference (pretrained minus scratch) says, whatever the verdict sentence is."""
    difference = mapping(label_table.get("difference"))
    low, high = as_number(difference.get("low")), as_number(difference.get("high"))
    if low is None or high is None:
        return NOT_COMPUTED
    if not label_table.get("higher_is_better", True):
        low, high = -high, -low
    return BETTER if low > 0 else (WORSE if high < 0 else NO_DIFFERENCE)


def verdict_box(label_table: dict[str, Any]) -> Markup:
    """The result in one box; its size and place do not depend on the result."""
    found = effect(label_table)
    sentence = label_table.get("verdict") or "The label table holds no verdict."
    looks = {BETTER: "better", WORSE: "worse"}
    badge = tag("p", found, class_="badge")
    return tag("div", badge, tag("p", sentence), _interval(label_table), class_=f"verdict {looks.get(found, 'open')}")


def _interval(label_table: dict[str, Any]) -> Markup:
    difference = mapping(label_table.get("difference"))
    if as_number(difference.get("mean")) is None:
        return tag("p", "No difference between the arms was recorded.", class_="fine")
    direction = "higher" if label_table.get("higher_is_better", True) else "lower"
    ends = f"{signed(difference.get('low'))} to {signed(difference.get('high'))}"
    text = (
        f"Difference pretrained minus scratch in {_metric(label_table)}: {signed(difference['mean'])}, interval {ends}"
    )
    count = f", n = {number(difference['n'])}" if "n" in difference else ""
    unit = f", scored on {label_table['unit']}" if label_table.get("unit") else ""
    return tag("p", f"{text}{count}{unit}; {direction} is better.", class_="fine")


def labels_section(label_table: dict[str, Any]) -> Markup:
    """Dot plot, table of means, and every single score behind a click."""
    rows = _rows(label_table)
    groups = _groups(label_table, rows)
    arms, labels = _order(group.arm for group in groups), _sorted(group.labels for group in groups)
    if not groups:
        return tag("p", "The label table holds no rows.", class_="absent")
    plot = dot_plot(groups, _metric(label_table), arms, labels)
    summary = _mean_table(label_table, rows, arms, labels)
    parts = tag("div", plot, tag("div", summary, _rejected(label_table, rows)), class_="pair")
    return join(parts, details("Every score of every seed", _all_scores(rows)))


def _metric(label_table: dict[str, Any]) -> str:
    return str(label_table.get("metric", "score"))


def _rows(label_table: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in label_table.get("rows") or [] if isinstance(row, dict) and {"arm", "labels"} <= row.keys()]


def _summary(label_table: dict[str, Any], rows: list[dict[str, Any]]) -> dict[tuple, dict[str, Any]]:
    """(arm, labels) -> mean, spread, n; worked out from the rows where the file has no summary."""
    given = [entry for entry in label_table.get("summary") or [] if isinstance(entry, dict)]
    if given:
        return {(str(entry.get("arm")), entry.get("labels")): entry for entry in given}
    cells: dict[tuple, list[float]] = {}
    for row in rows:
        value = _score_of(row, _metric(label_table))
        if value is not None:
            cells.setdefault((str(row["arm"]), row["labels"]), []).append(value)
    return {cell: _statistics(values) for cell, values in cells.items()}


def _statistics(values: list[float]) -> dict[str, Any]:
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "spread": spread, "n": len(values)}


def _score_of(row: dict[str, Any], metric: str) -> float | None:
    return as_number(mapping(row.get("scores")).get(metric))


def _groups(label_table: dict[str, Any], rows: list[dict[str, Any]]) -> list[Group]:
    means = _summary(label_table, rows)
    cells = dict.fromkeys([*((str(row["arm"]), row["labels"]) for row in rows), *means])
    metric = _metric(label_table)
    groups = []
    for arm, labels in cells:
        own = [_score_of(row, metric) for row in rows if (str(row["arm"]), row["labels"]) == (arm, labels)]
        mean = as_number(means.get((arm, labels), {}).get("mean"))
        groups.append(Group(arm, labels, [value for value in own if value is not None], mean))
    return groups


def _order(arms) -> list[str]:
    return sorted(set(arms), key=lambda arm: ({"pretrained": 0, "scratch": 1}.get(arm, 2), arm))


def _sorted(labels) -> list:
    return sorted(set(labels), key=lambda value: (as_number(value) is None, as_number(value) or 0.0, str(value)))


def _mean_table(label_table: dict[str, Any], rows: list[dict[str, Any]], arms: list[str], labels: list) -> Markup:
    means = _summary(label_table, rows)
    counts = {entry.get("n") for entry in means.values()}
    common = counts.pop() if len(counts) == 1 else None
    body = [[number(label), *(_cell(means.get((arm, label)), common is None) for arm in arms)] for label in labels]
    seeds = "seeds (number of seeds)" if common is None else f"{number(common)} seeds"
    source = "" if label_table.get("summary") else " Worked out for this page from the single scores."
    caption = f"Mean {_metric(label_table)} \N{PLUS-MINUS SIGN} spread over {seeds}.{source}"
    return table(["Labels", *arms], body, caption)


def _cell(entry: dict[str, Any] | None, with_count: bool) -> str:
    if entry is None:
        return "not measured"
    spread = as_number(entry.get("spread"))
    sides = f" \N{PLUS-MINUS SIGN} {spread:.3f}" if spread is not None else ""
    count = f" ({number(entry['n'])})" if with_count and "n" in entry else ""
    return f"{score(entry.get('mean'))}{sides}{count}"


def _rejected(label_table: dict[str, Any], rows: list[dict[str, Any]]) -> Markup | None:
    count = sum(_score_of(row, _metric(label_table)) is None for row in rows)
    text = f"{count} of {len(rows)} rows have no finite {_metric(label_table)}; they are in no dot of the plot."
    return tag("p", text, class_="warning") if count else None


def _all_scores(rows: list[dict[str, Any]]) -> Markup:
    names = list(dict.fromkeys(name for row in rows for name in mapping(row.get("scores"))))
    body = []
    for row in rows:
        scores = mapping(row.get("scores"))
        cells = [score(scores[name]) if name in scores else "not measured" for name in names]
        body.append([str(row["arm"]), number(row["labels"]), str(row.get("seed", "not recorded")), *cells])
    return table(["Arm", "Labels", "Seed", *names], body)
