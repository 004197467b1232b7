"""The dot plot of a label table: every seed visible, the mean as a bar."""

from dataclasses import dataclass

from ssl_med.reporting.curves import BOTTOM, LEFT, RIGHT, TOP, axes, drawing
from ssl_med.reporting.page import Markup, tag
from ssl_med.reporting.scales import Scale, fitted
from ssl_med.reporting.words import number, score

_ARM_GAP, _SEED_GAP, _HALF_BAR, _RADIUS = 30.0, 7.0, 10.0, 4.0


@dataclass(frozen=True)
class Group:
    """All seeds of one arm at one number of labels; ``mean`` may be absent."""

    arm: str
    labels: float | str
    scores: list[float]
    mean: float | None


def dot_plot(groups: list[Group], metric: str, arms: list[str], labels: list) -> Markup | None:
    """A figure: number of labels across, score up, one colour and one shape per arm."""
    values = [value for group in groups for value in group.scores]
    values += [group.mean for group in groups if group.mean is not None]
    if not values:
        return None
    up = fitted(values, BOTTOM, TOP)
    slot = (RIGHT - LEFT) / len(labels)
    gap = min(_ARM_GAP, 0.8 * slot / len(arms))
    drawn: list = [axes(up), _labels_axis(labels, slot)]
    for group in groups:
        middle = LEFT + slot * (labels.index(group.labels) + 0.5)
        number_of_arm = arms.index(group.arm)
        drawn.append(_group(group, middle + gap * (number_of_arm - (len(arms) - 1) / 2), number_of_arm, up, gap))
    picture = drawing(f"Dot plot of {metric} by number of labels, one dot per seed", drawn)
    caption = "One mark per seed; the bar is the mean."
    return tag("figure", tag("h4", f"{metric} by number of labels"), _legend(arms), picture, tag("figcaption", caption))


def _labels_axis(labels: list, slot: float) -> list[Markup]:
    base = tag("line", x1=LEFT, x2=RIGHT, y1=BOTTOM, y2=BOTTOM, class_="axis")
    places = [LEFT + slot * (index + 0.5) for index in range(len(labels))]
    pairs = zip(places, labels, strict=True)
    names = [tag("text", number(label), x=f"{x:.1f}", y=BOTTOM + 17, class_="tick middle") for x, label in pairs]
    title = tag("text", "labelled images for training", x=(LEFT + RIGHT) / 2, y=BOTTOM + 33, class_="tick middle")
    return [base, *names, title]


def _group(group: Group, middle: float, arm: int, up: Scale, gap: float) -> Markup:
    count = len(group.scores)
    step = min(_SEED_GAP, 0.7 * gap / max(count, 1))
    places = [middle + step * (index - (count - 1) / 2) for index in range(count)]
    parts = [mark(arm, x, up(value)) for x, value in zip(places, group.scores, strict=True)]
    if group.mean is not None:
        place, half = f"{up(group.mean):.1f}", min(_HALF_BAR, gap / 2 - 1)
        parts.append(tag("line", x1=middle - half, x2=middle + half, y1=place, y2=place, class_=f"mean arm-{arm % 4}"))
    name = f"{group.arm}, {number(group.labels)} labels: {', '.join(score(value) for value in group.scores)}"
    return tag("g", tag("title", name), parts)


def mark(arm: int, x: float, y: float) -> Markup:
    """Circle, square, diamond or triangle: an arm is told by its shape as well as by its colour."""
    r, look = _RADIUS, f"mark arm-{arm % 4}"
    if arm % 4 == 0:
        return tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=r, class_=look)
    if arm % 4 == 1:
        return tag("rect", x=f"{x - r:.1f}", y=f"{y - r:.1f}", width=2 * r, height=2 * r, class_=look)
    corners = [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)] if arm % 4 == 2 else [(0, -1.3), (1.2, 1), (-1.2, 1)]
    return tag("polygon", points=" ".join(f"{x + r * a:.1f},{y + r * b:.1f}" for a, b in corners), class_=look)


def _legend(arms: list[str]) -> Markup:
    swatch = [tag("svg", mark(index, 7, 7), viewBox="0 0 14 14", class_="swatch") for index in range(len(arms))]
    return tag("p", [tag("span", swatch[index], arm) for index, arm in enumerate(arms)], class_="legend")
