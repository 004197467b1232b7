"""The box at the top: the result first, then each run in a line of figures, then the warnings."""

from ssl_med.reporting.curves import probe_name
from ssl_med.reporting.labels import verdict_box
from ssl_med.reporting.metrics import RANDOM_SUFFIX, smooth
from ssl_med.reporting.page import Content, Markup, tag
from ssl_med.reporting.reading import Run, mapping
from ssl_med.reporting.sections import steps_of, warnings_of
from ssl_med.reporting.study import study_verdict
from ssl_med.reporting.words import class_name, duration, number, score

_MOST_PROBES = 2


def summary_box(runs: list[Run]) -> Markup:
    """The page in one screen."""
    measured = [run for run in runs if run.table is not None or run.study is not None]
    verdicts = [_named(run, _verdict(run), len(measured) > 1) for run in measured]
    if not verdicts:
        text = "Whether pretraining helps with few labels was not measured here (no label table)."
        verdicts = [tag("p", text, class_="absent")]
    lines = [_line(run, number, len(runs) > 1) for number, run in enumerate(runs, 1)]
    return tag("section", tag("h2", "Summary"), verdicts, lines, _warnings(runs), class_="summary")


def _verdict(run: Run) -> Markup:
    return study_verdict(run.study) if run.study is not None else verdict_box(run.table or {})


def _named(run: Run, box: Markup, many: bool) -> Markup:
    return tag("div", tag("p", run.name, class_="fine"), box) if many else box


def _line(run: Run, place: int, many: bool) -> Markup:
    name = tag("a", run.name, href=f"#run-{place}") if many else title_of(run)
    return tag("div", tag("h3", name, " ", status_pill(run)), tag("div", _tiles(run), class_="tiles"))


def title_of(run: Run) -> str:
    """``MAE``: the task without its package; the folder's name where no task is known."""
    return class_name(run.info["task"]) if run.info.get("task") else run.name


def status_pill(run: Run) -> Markup:
    """Finished, running or whatever the run says of itself."""
    status = str(run.info.get("status", "status not recorded"))
    return tag("span", status, class_="pill" if status == "finished" else "pill open")


def _tiles(run: Run) -> list[Markup]:
    info = run.info
    data = mapping(info.get("data"))
    pairs: list[tuple[str, Content, str | None]] = []
    if steps_of(info):
        pairs.append(("Steps", *_progress(info)))
    if info.get("seconds") is not None:
        pairs.append(("Time", duration(info["seconds"]), info.get("device")))
    if data.get("images") is not None:
        patients = data.get("patients")
        pairs.append(("Images", number(data["images"]), None if patients is None else f"{number(patients)} patients"))
    return [_tile(*pair) for pair in pairs + _metric_tiles(run)]


def _progress(info: dict) -> tuple[str, str | None]:
    done, _, planned = (steps_of(info) or "").partition(" of ")
    return done, f"of {planned}" if planned else None


def _metric_tiles(run: Run) -> list[tuple[str, Content, str | None]]:
    if run.metrics is None:
        return []
    pairs: list[tuple[str, Content, str | None]] = []
    if run.metrics.series.get("loss"):
        average = smooth(run.metrics.series["loss"])
        pairs.append(("Loss", number(average[-1][1]), f"from {number(average[0][1])}"))
    for key in run.metrics.keys("probe/")[:_MOST_PROBES]:
        untrained = run.metrics.last(key + RANDOM_SUFFIX)
        below = "random weights not measured" if untrained is None else f"random weights {score(untrained)}"
        pairs.append((probe_name(key), score(run.metrics.last(key)), below))
    return pairs


def _tile(name: str, value: Content, below: str | None) -> Markup:
    lines = [
        tag("span", name, class_="name"),
        tag("strong", value),
        tag("span", below, class_="below") if below else None,
    ]
    return tag("div", lines, class_="tile")


def _warnings(runs: list[Run]) -> Markup | None:
    many = len(runs) > 1
    found = [f"{run.name}: {text}" if many else text for run in runs for text in warnings_of(run)]
    if not found:
        return None
    return tag("div", tag("h3", "Please note"), tag("ul", [tag("li", text) for text in found]), class_="notes")
