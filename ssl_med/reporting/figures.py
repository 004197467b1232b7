"""``progress.png``: loss and probes of a run in one picture, written at the end of every training."""

from pathlib import Path
from typing import Any

from ssl_med.errors import UserError
from ssl_med.reporting.curves import probe_name
from ssl_med.reporting.metrics import RANDOM_SUFFIX, Metrics, read_metrics, smooth

_BLUE, _GREY = "#0b5cad", "#6b7280"


def progress_png(run: str | Path) -> Path:
    """Draw the loss and every probe of a run into ``RUN/progress.png``.

    Args:
        run: folder with ``metrics.jsonl``.

    Returns:
        The file that was written.

    Raises:
        UserError: nothing was logged in the folder.
    """
    folder = Path(run)
    if not (folder / "metrics.jsonl").is_file():
        raise UserError(f"progress: '{folder.name}' holds no metrics.jsonl; give the folder of a run")
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # without pyplot there is no global state to clean up
    from matplotlib.figure import Figure

    metrics = read_metrics(folder / "metrics.jsonl")
    probes = metrics.keys("probe/")
    figure = Figure(figsize=(5.2 * (1 + len(probes)), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 1 + len(probes), squeeze=False)[0]
    _draw_loss(axes[0], metrics)
    for key, place in zip(probes, axes[1:], strict=True):
        _draw_probe(place, metrics, key)
    unfinished = folder / "progress.png.part"
    figure.savefig(unfinished, format="png", dpi=110)
    return unfinished.replace(folder / "progress.png")


def _draw_loss(axes: Any, metrics: Metrics) -> None:
    points = metrics.series.get("loss", [])
    _dress(axes, "Loss" if points else "Loss: no finite value was logged")
    if points:
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=_BLUE, alpha=0.25, linewidth=1, label="every value")
        axes.plot(steps, [value for _, value in smooth(points)], color=_BLUE, linewidth=2, label="moving average")
        axes.legend(frameon=False)


def _draw_probe(axes: Any, metrics: Metrics, key: str) -> None:
    _dress(axes, _plain(probe_name(key)))
    steps, values = zip(*metrics.series[key], strict=True)
    axes.plot(steps, values, color=_BLUE, linewidth=2, marker="o", markersize=3, label="pretrained")
    untrained = metrics.last(key + RANDOM_SUFFIX)
    if untrained is not None:
        axes.axhline(untrained, color=_GREY, linestyle="--", label="random weights")
    axes.legend(frameon=False)


def _dress(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left")
    axes.set_xlabel("step")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # matplotlib would read a formula between two dollar signs
