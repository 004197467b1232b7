"""One static HTML page per run: no network, no script, nothing that was not measured."""

from pathlib import Path

from ssl_med.reporting.figures import progress_png
from ssl_med.reporting.labels import labels_section
from ssl_med.reporting.page import Markup, document, join, tag
from ssl_med.reporting.reading import Run, find_runs
from ssl_med.reporting.sections import (
    absent_parts,
    config_section,
    curves_section,
    exports_section,
    pictures_section,
    run_section,
)
from ssl_med.reporting.study import study_section
from ssl_med.reporting.summary import status_pill, summary_box, title_of

__all__ = ["progress_png", "report"]


def report(run: str | Path, out: str | Path | None = None) -> Path:
    """Write a report on one run, or on all runs in a folder.

    Args:
        run: folder of a run, or a folder that holds the folders of several.
        out: file to write; ``RUN/report.html`` where it is left out.

    Returns:
        The file that was written.

    Raises:
        UserError: the folder is absent or holds no run.
    """
    folder = Path(run)
    runs = find_runs(folder)
    file = Path(out) if out is not None else folder / "report.html"
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(file.name + ".part")
    unfinished.write_text(page(folder.resolve().name, runs), encoding="utf-8")
    unfinished.replace(file)  # a reader never sees half a page
    return file


def page(name: str, runs: list[Run]) -> str:
    """The HTML of a report."""
    title = f"Report on {name}"
    header = tag("header", tag("p", "ssl_med", class_="brand"), tag("h1", title))
    chapters = [_chapter(run, place) for place, run in enumerate(runs, 1)]
    return document(title, [header, summary_box(runs), chapters, _reading_aid(), _footer(runs)])


def _chapter(run: Run, place: int) -> Markup:
    name = run.name if title_of(run) == run.name else f"{run.name}: {title_of(run)}"
    absent = absent_parts(run)
    return tag(
        "section",
        tag("h2", name, " ", status_pill(run)),
        _part("Results with few labels", labels_section(run.table)) if run.table is not None else None,
        _part("Label curve", study_section(run.study, run.study_image)) if run.study is not None else None,
        _part("Curves", curves_section(run.metrics)) if run.metrics else None,
        _part("Pictures", pictures_section(run.pictures)) if run.pictures else None,
        _part("Exports", exports_section(run.exports)) if run.exports else None,
        _part("What was run", run_section(run.info)) if run.info else None,
        config_section(run.config) if run.config else None,
        _part("Not in this run", tag("ul", [tag("li", text) for text in absent], class_="absent")) if absent else None,
        id=f"run-{place}",
    )


def _part(title: str, content: Markup) -> Markup:
    return join(tag("h3", title), content)


_TERMS = (
    (
        "Pretraining",
        "Learning from images without labels; its product is a backbone, the part that describes an image.",
    ),
    ("Loss", "What the training minimises. Its value cannot be compared between tasks."),
    ("Probe", "A simple classifier on the frozen features. It matters how far it lies above random weights."),
    ("Random weights", "The same backbone before any training: the level that costs nothing."),
    ("Scratch", "The same network trained on the same labels without pretraining: the fair opponent."),
    ("Spread", "How much the score moves when only the random seed changes."),
    ("Interval", "Where the true difference plausibly lies. If it holds zero, no difference was shown."),
)


def _reading_aid() -> Markup:
    terms = [tag("div", tag("dt", name), tag("dd", text)) for name, text in _TERMS]
    return tag("section", tag("h2", "How to read this page"), tag("dl", terms, class_="terms"))


def _footer(runs: list[Run]) -> Markup:
    versions = sorted({str(run.info["version"]) for run in runs if run.info.get("version")})
    trained = f" Trained with ssl_med {', '.join(versions)}." if versions else ""
    text = f"All numbers are as recorded in the run folder.{trained} For research; not a medical device."
    return tag("footer", text)
