"""Curves over the steps of a run as inline SVG, which follows the light or dark colours of the page."""

from dataclasses import dataclass

from ssl_med.reporting.metrics import RANDOM_SUFFIX, Metrics, Points, smooth, thin
from ssl_med.reporting.page import Content, Markup, tag
from ssl_med.reporting.scales import Scale, fitted
from ssl_med.reporting.words import class_name, number

WIDTH, HEIGHT = 440, 236
LEFT, RIGHT, TOP, BOTTOM = 52, 420, 12, 200
_FEW_POINTS = 30  # below this every measurement gets a dot of its own


@dataclass(frozen=True)
class Curve:
    """One line of a chart; ``look`` is a class of the style sheet: ``main``, ``raw`` or ``second``."""

    points: Points
    label: str
    look: str = "main"


def chart(
    title: str, curves: list[Curve], caption: Content = None, reference: tuple[float, str] | None = None
) -> Markup:
    """A figure with curves and, where given, a dashed level with its name."""
    values = [value for curve in curves for _, value in curve.points]
    values += [reference[0]] if reference else []
    steps = [step for curve in curves for step, _ in curve.points]
    across = Scale(min(0.0, *steps), max(1.0, *steps), LEFT, RIGHT)  # one axis for all charts of a run
    up = fitted(values, BOTTOM, TOP, may_bend=True)
    drawn = [axes(up), _steps_axis(across), [_line(curve, across, up) for curve in curves]]
    if reference:
        drawn.append(_level(up(reference[0]), f"{reference[1]} {number(reference[0])}"))
    note = " (logarithmic axis)" if up.logarithmic else ""
    picture = drawing(f"Chart of {title} over the training steps", drawn)
    return tag("figure", tag("h4", title + note), _legend(curves), picture, _caption(caption), class_="chart")


def drawing(description: str, content: Content, height: int = HEIGHT) -> Markup:
    """An SVG element of the common width."""
    return tag("svg", content, viewBox=f"0 0 {WIDTH} {height}", role="img", aria_label=description)


def axes(up: Scale) -> list[Markup]:
    """Horizontal grid lines with their values."""
    parts = []
    for tick in up.ticks():
        place = f"{up(tick):.1f}"
        parts.append(tag("line", x1=LEFT, x2=RIGHT, y1=place, y2=place, class_="grid"))
        parts.append(tag("text", number(tick), x=LEFT - 7, y=f"{up(tick) + 4:.1f}", class_="tick end"))
    return parts


def _steps_axis(across: Scale) -> list[Markup]:
    ticks = [tick for tick in across.ticks(4) if tick.is_integer()]
    labels = [tag("text", number(tick), x=f"{across(tick):.1f}", y=BOTTOM + 17, class_="tick middle") for tick in ticks]
    base = tag("line", x1=LEFT, x2=RIGHT, y1=BOTTOM, y2=BOTTOM, class_="axis")
    return [base, *labels, tag("text", "step", x=(LEFT + RIGHT) / 2, y=BOTTOM + 33, class_="tick middle")]


def _line(curve: Curve, across: Scale, up: Scale) -> list[Markup]:
    places = [(f"{across(step):.1f}", f"{up(value):.1f}") for step, value in thin(curve.points)]
    parts = [tag("polyline", points=" ".join(f"{x},{y}" for x, y in places), class_=f"line {curve.look}")]
    if len(places) <= _FEW_POINTS and curve.look != "raw":
        parts += [tag("circle", cx=x, cy=y, r=2.6, class_=f"dot {curve.look}") for x, y in places]
    return parts


def _level(place: float, label: str) -> list[Markup]:
    above = place - 5 if place > TOP + 16 else place + 14
    return [
        tag("line", x1=LEFT, x2=RIGHT, y1=f"{place:.1f}", y2=f"{place:.1f}", class_="level"),
        tag("text", label, x=RIGHT - 2, y=f"{above:.1f}", class_="tick end level-name"),
    ]


def _legend(curves: list[Curve]) -> Markup | None:
    if len(curves) < 2:
        return None
    keys = [tag("span", tag("i", class_=curve.look), curve.label) for curve in curves]
    return tag("p", keys, class_="legend")


def _caption(caption: Content) -> Markup | None:
    return tag("figcaption", caption) if caption is not None else None


def loss_chart(metrics: Metrics) -> Markup | None:
    """The loss: every logged value faint, the moving average strong."""
    points = metrics.series.get("loss")
    if not points:
        return None
    average = smooth(points)
    caption = (
        f"From {number(average[0][1])} to {number(average[-1][1])} (moving average). "
        "A falling loss alone is no proof: judge by probes or by scores on test images."
    )
    return chart("Loss", [Curve(points, "every value", "raw"), Curve(average, "moving average")], caption)


def probe_chart(metrics: Metrics, key: str) -> Markup:
    """One probe with the score of random weights as its reference."""
    points, untrained = metrics.series[key], metrics.last(key + RANDOM_SUFFIX)
    reference = (untrained, "random weights") if untrained is not None else None
    return chart(probe_name(key), [Curve(points, key)], probe_sentence(metrics, key), reference)


def probe_name(key: str) -> str:
    """``probe/knn`` as a title."""
    short = key.split("/", 1)[-1]
    return {"knn": "kNN probe", "linear": "Linear probe"}.get(short, f"Probe {short}")


def probe_sentence(metrics: Metrics, key: str) -> str:
    """Last score of a probe against random weights, whichever is higher."""
    last, untrained = metrics.last(key), metrics.last(key + RANDOM_SUFFIX)
    if last is None:
        return f"{probe_name(key)}: no score was recorded."
    if untrained is None:
        return f"{probe_name(key)}: {last:.3f} at the end; random weights were not measured, so it cannot be judged."
    side = "the same as" if last == untrained else ("above" if last > untrained else "below")
    return f"{probe_name(key)}: {last:.3f} at the end, {side} random weights ({untrained:.3f})."


_PLAIN = {
    "health/feature_spread": ("Feature spread", "About 1 is healthy; near 0 all images look alike to the backbone."),
    "health/effective_rank": (
        "Effective rank",
        "Number of directions that the features use; a fall towards 1 is a collapse.",
    ),
    "lr": ("Learning rate", None),
}


def plain_chart(metrics: Metrics, key: str) -> Markup:
    """Any other scalar under a readable title."""
    title, caption = _PLAIN.get(key, (key, None))
    return chart(title, [Curve(metrics.series[key], class_name(key))], caption)
