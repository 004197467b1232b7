"""The parts of a run's chapter, from what is known to what was run; a part that is absent is named at the end."""

from pathlib import Path
from typing import Any

from ssl_med.reporting import curves
from ssl_med.reporting.metrics import Metrics
from ssl_med.reporting.page import Markup, details, escape, facts, join, picture, table, tag
from ssl_med.reporting.reading import Export, Run, mapping
from ssl_med.reporting.words import amount, class_name, duration, file_size, moment, number

_MOST_CHARTS = 12
_MOST_PICTURES = 8


def warnings_of(run: Run) -> list[str]:
    """Everything a reader must know before trusting the numbers."""
    notes = run.info.get("notes") or []
    found = [str(note) for note in (notes if isinstance(notes, list) else [notes])] + run.problems
    if run.metrics is not None:
        counts = sorted(run.metrics.not_finite.items())
        found += [f"Values of {key} that were not finite and are in no curve: {count}." for key, count in counts]
        if run.metrics.broken_lines:
            found.append(f"Lines of metrics.jsonl that could not be read: {run.metrics.broken_lines}.")
    for export in run.exports:
        problems = [export.problem, *(part.problem for part in export.parts)]
        found += [f"Export {export.name}: {problem}" for problem in problems if problem]
    return found


def curves_section(metrics: Metrics) -> Markup:
    """Loss, probes against random weights, health, validation, learning rate."""
    charts = [curves.loss_chart(metrics)] + [curves.probe_chart(metrics, key) for key in metrics.keys("probe/")]
    validation = metrics.keys("val/")
    room = max(0, _MOST_CHARTS - len(charts))
    plain = [*metrics.keys("health/"), *validation[:room], *(["lr"] if "lr" in metrics.series else [])]
    charts += [curves.plain_chart(metrics, key) for key in plain]
    left = (
        f"{len(validation) - room} more validation scores are in the table below." if len(validation) > room else None
    )
    return join(
        tag("div", charts, class_="charts"),
        tag("p", left, class_="fine") if left else None,
        details("First, last, lowest and highest value of every metric", _range_table(metrics)),
    )


def _range_table(metrics: Metrics) -> Markup:
    rows = []
    for key in sorted(metrics.series):
        values = [value for _, value in metrics.series[key]]
        ends = [number(value) for value in (values[0], values[-1], min(values), max(values))]
        rows.append([key, *ends, number(len(values))])
    return table(["Metric", "First", "Last", "Lowest", "Highest", "Count"], rows)


def pictures_section(pictures: list[Path]) -> Markup:
    """The last panel large, the first one for comparison, a few between them behind a click."""
    between = pictures[1:-1]
    stride = max(1, -(-len(between) // _MOST_PICTURES))
    shown = between[::stride]
    last = _panel(pictures[-1], "Last")
    first = _panel(pictures[0], "First, for comparison") if len(pictures) > 1 else None
    parts = [tag("div", last, first, class_="panels" if first else "panels single")]
    if shown:
        title = f"{len(shown)} of the {len(between)} panels between them"
        parts.append(details(title, [_panel(file, "Panel") for file in shown]))
    return join(parts)


def _panel(file: Path, name: str) -> Markup:
    step = file.stem.rsplit("=", 1)[-1]
    title = f"{name}: step {int(step):,}" if step.isdigit() else f"{name}: {file.stem}"
    try:
        image = picture(file, f"Reconstruction panel, {title}")
    except ValueError as error:
        return tag("p", f"{error}, so it is not shown.", class_="warning")
    return tag("figure", tag("h4", title), image, class_="panel")


def exports_section(exports: list[Export]) -> Markup:
    """Exported backbones with what identifies them."""
    rows = []
    for export in exports:
        for part in export.parts:
            classes = ", ".join(class_name(name) for name in part.classes) or "not in the card"
            sha256 = tag("code", part.sha256 or "absent")
            rows.append([export.name, part.name, classes, file_size(part.size), sha256])
    return table(["Name", "Part", "Built from", "Size", "SHA-256 of the file"], rows)


def run_section(info: dict[str, Any]) -> Markup:
    """What was run, on what, with which versions."""
    return tag("div", _facts("Training", _training(info)), _facts("Data", _data(info)), class_="pair")


def _facts(title: str, pairs: list[tuple[str, Any]]) -> Markup:
    known = [(name, value) for name, value in pairs if value not in (None, "", {})]
    missing = [name.lower() for name, value in pairs if value in (None, "", {})]
    absent = tag("p", f"Not recorded: {', '.join(missing)}.", class_="absent") if missing else None
    return tag("div", tag("h4", title), facts(known), absent)


def _training(info: dict[str, Any]) -> list[tuple[str, Any]]:
    parameters = mapping(info.get("parameters"))
    counts = ", ".join(f"{part} {amount(count)}" for part, count in parameters.items())
    versions = ", ".join(f"{name} {version}" for name, version in mapping(info.get("versions")).items())
    started, seconds = info.get("started"), info.get("seconds")
    return [
        ("Task", info.get("task")),
        ("Backbone", info.get("backbone")),
        ("Parameters", counts),
        ("Steps", steps_of(info)),
        ("Time", None if seconds is None else duration(seconds)),
        ("Device", info.get("device")),
        ("Precision", info.get("precision")),
        ("Seed", None if info.get("seed") is None else str(info["seed"])),
        ("Started", None if started is None else moment(started)),
        ("ssl_med", info.get("version")),
        ("Other versions", versions),
    ]


def steps_of(info: dict[str, Any]) -> str | None:
    """How far the run is: ``2,000 of 2,000``."""
    step, steps = info.get("step"), info.get("steps")
    if step is None or steps is None:
        known = step if step is not None else steps
        return None if known is None else number(known)
    return f"{number(step)} of {number(steps)}"


def _data(info: dict[str, Any]) -> list[tuple[str, Any]]:
    data = mapping(info.get("data"))
    modalities = ", ".join(f"{name} {number(count)}" for name, count in mapping(data.get("modalities")).items())
    dimensions = data.get("spatial_dims")
    return [
        ("Images", None if data.get("images") is None else number(data["images"])),
        ("Patients", None if data.get("patients") is None else number(data["patients"])),
        ("Dimensions", None if dimensions is None else f"{dimensions}D"),
        ("Channels", None if data.get("channels") is None else number(data["channels"])),
        ("Modalities", modalities),
        ("Fingerprint", tag("code", data["fingerprint"]) if data.get("fingerprint") else None),
    ]


def config_section(config: str) -> Markup:
    """The whole resolved config, without places of this machine."""
    shown = Markup(escape(config))
    return details("Resolved configuration (places on the disk are hidden)", tag("pre", tag("code", shown)))


_PARTS = {
    "metrics": "No metrics.jsonl: there are no curves.",
    "pictures": "No pictures in plots/: what the task does to an image cannot be seen here.",
    "table": "No table.json: the worth of the weights with few labels was not measured in this run.",
    "exports": "No exports: there are no weights to hand on.",
    "info": "No readable run.json: what was run is not known.",
    "config": "No readable config.yaml: the settings are not known.",
}


def absent_parts(run: Run) -> list[str]:
    """A plain sentence for every part that the folder does not hold; a table over several runs needs no other part."""
    if run.info.get("kind") in ("comparison", "curve"):
        return []
    missing = [sentence for part, sentence in _PARTS.items() if not getattr(run, part)]
    if run.metrics is not None and not run.is_finetune and not run.metrics.keys("probe/"):
        missing.append("No probe was logged: whether the features became useful cannot be told from this run.")
    return missing
