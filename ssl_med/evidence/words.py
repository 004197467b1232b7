"""What a study shows, in words that say no more than the numbers do, and as Markdown and CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from math import isinf
from typing import Any

from ssl_med.evidence.planning import FROZEN, KNN, LONGER, PRETRAINED, SCRATCH

_NAMES = {
    PRETRAINED: "pretraining",
    LONGER: "training from scratch for longer",
    SCRATCH: "training from scratch with the same schedule",
}


def verdict(found: Mapping[str, Any]) -> str:
    """One sentence: what pretraining bought against the same schedule from scratch."""
    entries = _pair(found, PRETRAINED, SCRATCH)
    if not entries:
        return "Pretrained and scratch have no run in common: nothing can be said yet."
    metric = _words(found["metric"])
    raised = [entry for entry in entries if entry["shown"] and entry["mean"] > 0]
    lowered = [entry for entry in entries if entry["shown"] and entry["mean"] < 0]
    if not raised and not lowered:
        return (
            f"No difference in {metric} between pretraining and the same schedule from scratch was shown "
            f"at {_labels(entries)} ({_span(entries)})."
        )
    parts = []
    if raised:
        parts.append(f"raised {metric} at {_labels(raised)} ({_span(raised)})")
    if lowered:
        parts.append(f"lowered {metric} at {_labels(lowered)} ({_span(lowered)})")
    open_ = [entry for entry in entries if not entry["shown"]]
    rest = f"; no difference was shown at {_labels(open_)}" if open_ else ""
    hint = "" if found.get("higher_is_better", True) else f" (less {metric} is better)"
    return f"Pretraining {' and '.join(parts)} against the same schedule from scratch{hint}{rest}."


def paragraph(found: Mapping[str, Any]) -> list[str]:
    """The sentences of the study: the verdict, the ratio, the longer schedule, frozen features, how sure one can be."""
    lines = [verdict(found), *_ratio(found), *_longer(found), *_controls(found), _basis(found)]
    return [line for line in lines if line]


def _ratio(found: Mapping[str, Any]) -> list[str]:
    entries = [e for e in found["efficiency"] if (e["arm"], e["baseline"]) == (PRETRAINED, SCRATCH)]
    told = [f"{e['says']} at {e['labels']} (95 % interval {e['interval']})" for e in entries]
    if not told:
        return []
    lines = [
        "Labels that scratch needs to reach what pretraining reaches, over the labels given: "
        f"{'; '.join(told)}. A bound (> or <) means that the answer lies outside of what was measured."
    ]
    flat = [str(e["labels"]) for e in entries if e["low"] == e["high"] and isinf(e["low"])]
    if flat:
        lines.append(
            f"The interval of this ratio at {', '.join(flat)} has no width because all resamples, or all but a few, "
            "lie beyond what was measured."
        )
    return lines


def _longer(found: Mapping[str, Any]) -> list[str]:
    entries = _pair(found, PRETRAINED, LONGER)
    if not entries:
        return []
    kept, lost = _shown(found, entries)
    told = []
    if kept:
        told.append(f"Pretraining is better than scratch with a longer schedule at {_labels(kept)} ({_span(kept)}).")
    if lost:
        told.append(f"Scratch with a longer schedule is better at {_labels(lost)} ({_span(lost)}).")
    return told or [
        f"Against scratch with a longer schedule no difference was shown at {_labels(entries)} ({_span(entries)}): "
        "what pretraining saves there is fine-tuning steps, if anything."
    ]


def _controls(found: Mapping[str, Any]) -> list[str]:
    lines = []
    for arm, name in ((FROZEN, "A head on the frozen features"), (KNN, "A nearest-neighbour vote on the features")):
        entries = _pair(found, arm, f"{arm}_random")
        if not entries:
            continue
        better, worse = _shown(found, entries)
        parts = [f"beats random weights at {_labels(better)} ({_span(better)})"] if better else []
        parts += [f"is worse than random weights at {_labels(worse)} ({_span(worse)})"] if worse else []
        said = " and ".join(parts) or f"is not shown to differ from random weights ({_span(entries)})"
        lines.append(f"{name} {said}.")
    return lines


def _basis(found: Mapping[str, Any]) -> str:
    entries = _pair(found, PRETRAINED, SCRATCH) or found["arms"]
    runs, groups = min(e["runs"] for e in entries), min(e["groups"] for e in entries)
    few = " Fewer than three draws cannot show how much depends on which patients are labelled." if groups < 3 else ""
    return (
        f"Scored on {_cases(found)}, "
        f"{runs} runs of each arm in {groups} groups (draws of patients, or seeds of a single draw) at every number of "
        "labels; a difference is called shown where its "
        f"95 % interval excludes zero and the paired test stays below 0.05 after Holm's correction.{few}"
    )


def _cases(found: Mapping[str, Any]) -> str:
    if found.get("unit") == "patient":
        return f"{found['test_patients']} test patients, each the mean over the own images"
    return f"{found['test_cases']} images of {found['test_patients']} test patients"


def _pair(found: Mapping[str, Any], arm: str, baseline: str) -> list[dict[str, Any]]:
    return [e for e in found["comparisons"] if (e["arm"], e["baseline"]) == (arm, baseline)]


def _shown(
    found: Mapping[str, Any], entries: Sequence[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The shown differences in favour of the first arm, and those against it."""
    sign = 1 if found.get("higher_is_better", True) else -1
    gains = [(sign * entry["mean"] > 0, entry) for entry in entries if entry["shown"]]
    return [entry for gain, entry in gains if gain], [entry for gain, entry in gains if not gain]


def _labels(entries: Sequence[Mapping[str, Any]]) -> str:
    names = [str(entry["labels"]) for entry in entries]
    counted = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"{counted} labelled patient{'' if names == ['1'] else 's'}"


def _span(entries: Sequence[Mapping[str, Any]]) -> str:
    told = [f"{e['mean']:+.3f} [{e['low']:+.3f}, {e['high']:+.3f}]" for e in entries]
    return "; ".join(told)


def _words(name: str) -> str:
    return name.replace("_", " ")


def markdown(found: Mapping[str, Any]) -> str:
    """The whole study on a page."""
    arms = list(dict.fromkeys(entry["arm"] for entry in found["arms"]))
    cells = {(e["labels"], e["arm"]): f"{e['mean']:.3f} [{e['low']:.3f}, {e['high']:.3f}]" for e in found["arms"]}
    scores = [[n, *(cells.get((n, arm), "not run") for arm in arms)] for n in found["labels"]]
    parts = [
        f"# Label curve: {_words(found['metric'])}",
        "\n\n".join(found["paragraph"]),
        f"## {_words(found['metric']).capitalize()} by labelled patients, mean and 95 % interval",
        grid(["labels", *arms], scores),
        "## Paired differences",
        grid(["arm", "minus", "labels", "difference", "95 % interval", "p", "p (Holm)"], _differences(found)),
    ]
    if found["efficiency"]:
        lines = [[e["arm"], e["baseline"], e["labels"], e["says"], e["interval"]] for e in found["efficiency"]]
        head = ["arm", "baseline", "labels given", "ratio", "95 % interval"]
        parts += ["## Label-efficiency ratio", grid(head, lines)]
    for title, name in (("Leakage", "leakage"), ("Compute", "compute_words"), ("Notes", "notes")):
        if found.get(name):
            parts += [f"## {title}", "\n".join(f"- {line}" for line in found[name])]
    return "\n\n".join(parts) + "\n"


def _differences(found: Mapping[str, Any]) -> list[list[Any]]:
    return [
        [
            *(e["arm"], e["baseline"], e["labels"], f"{e['mean']:+.3f}", f"{e['low']:+.3f} to {e['high']:+.3f}"),
            *(f"{e['p']:.4f}", f"{e['p_holm']:.4f}"),
        ]
        for e in found["comparisons"]
    ]


def grid(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)


def to_csv(lines: Sequence[Mapping[str, Any]]) -> str:
    """Lines with the same names as CSV; empty for none."""
    if not lines:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
