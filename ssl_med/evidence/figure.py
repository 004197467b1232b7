"""The picture of a study: every arm over the number of labels, with its interval as a band."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssl_med.evidence.planning import FROZEN, FROZEN_CONTROL, KNN, KNN_CONTROL, LONGER, PRETRAINED, SCRATCH

_LOOKS = {
    PRETRAINED: ("#0b5cad", "-", "o"),
    SCRATCH: ("#b8500f", "-", "s"),
    LONGER: ("#b8500f", "--", "D"),
    FROZEN: ("#17784f", "-", "^"),
    FROZEN_CONTROL: ("#17784f", ":", "v"),
    KNN: ("#7a4aa0", "-", "P"),
    KNN_CONTROL: ("#7a4aa0", ":", "X"),
}
_OTHERS = ("#8a6100", "#0f7c86", "#a3196b", "#4b5563")
_BANDED = (PRETRAINED, SCRATCH)


def draw_curve(found: Mapping[str, Any], stem: Path) -> list[Path]:
    """Write ``STEM.png`` and ``STEM.svg``, each whole or not at all.

    Args:
        found: what the study shows, see :func:`ssl_med.evidence.analysis.analyse`, and ``floors`` (name -> value).
        stem: path without suffix.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # without pyplot there is no global state to clean up
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    arms = list(dict.fromkeys(entry["arm"] for entry in found["arms"]))
    for place, arm in enumerate(arms):
        _draw_arm(axes, [e for e in found["arms"] if e["arm"] == arm], arm, place)
    for name, value in found.get("floors", {}).items():
        axes.axhline(value, color="#6b7280", linestyle=(0, (1, 2)), linewidth=1.2, label=f"floor: {_plain(name)}")
    _dress(axes, found)
    files = []
    with matplotlib.rc_context({"svg.hashsalt": "ssl_med"}):  # the same study gives the same file
        for suffix in ("png", "svg"):
            target = stem.with_suffix(f".{suffix}")
            unfinished = target.with_name(f".{target.name}")
            figure.savefig(unfinished, format=suffix, dpi=130, metadata={"Date": None} if suffix == "svg" else None)
            files.append(unfinished.replace(target))
    return files


def _draw_arm(axes: Any, entries: list[Mapping[str, Any]], arm: str, place: int) -> None:
    colour, line, mark = _LOOKS.get(arm, (_OTHERS[place % len(_OTHERS)], "-.", "*"))
    labels = [entry["labels"] for entry in entries]
    axes.plot(labels, [e["mean"] for e in entries], color=colour, linestyle=line, marker=mark, label=_plain(arm))
    lows, highs = [e["low"] for e in entries], [e["high"] for e in entries]
    if arm in _BANDED:
        axes.fill_between(labels, lows, highs, color=colour, alpha=0.15, linewidth=0)


def _dress(axes: Any, found: Mapping[str, Any]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(found["labels"], [str(n) for n in found["labels"]])
    axes.minorticks_off()
    axes.set_xlabel("labelled patients for training (log scale)")
    axes.set_ylabel(_plain(found["metric"].replace("_", " ")))
    title = f"{found['test_patients']} test patients; bands: 95 % intervals over patients and draws"
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # matplotlib would read a formula between two dollar signs


def draw_points(places: Any, groups: Sequence[str], title: str, axes_names: Sequence[str], target: Path) -> Path:
    """A scatter of feature vectors, coloured by group; more than twelve groups share the last colour.

    Args:
        places: (n, 2).
        groups: of each point.
        title: what the groups are.
        axes_names: what the two axes are.
        target: PNG or SVG, by its suffix.
    """
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes, named = figure.subplots(), np.array(groups, dtype=object)
    counted = sorted(set(groups), key=lambda group: (-groups.count(group), group))
    colours = colormaps["Paired"].colors  # pyright: ignore[reportAttributeAccessIssue]
    for place, group in enumerate(counted[:11]):
        of_group = places[named == group]
        colour = colours[(2 * place + 1) % 12 - place // 6]  # the strong colours first, then the pale ones
        axes.scatter(*of_group.T, s=12, color=colour, label=_plain(f"{group} ({len(of_group)})"))
    if len(counted) > 11:
        rest = places[~np.isin(named, counted[:11])]
        axes.scatter(*rest.T, s=12, color="#9ca3af", label=f"{len(counted) - 11} others ({len(rest)})")
    axes.set_xlabel(axes_names[0])
    axes.set_ylabel(axes_names[1])
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title=_plain(title), frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}")
    figure.savefig(unfinished, format=target.suffix[1:], dpi=130)
    return unfinished.replace(target)
