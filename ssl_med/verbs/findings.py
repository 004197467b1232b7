"""From the finished runs of a study to its files: tables, picture, words."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ssl_med.errors import UserError
from ssl_med.evidence.analysis import Result, Study, analyse, cost, finite_only
from ssl_med.evidence.patients import first_images, of_patients
from ssl_med.evidence.scores import Score, Values, recomputed, score_of
from ssl_med.files import write_json, write_whole
from ssl_med.verbs.study import Work, read_scored

_STRUCTURE, _LOST = re.compile(r"dice_\d+"), 0.1
_ENOUGH_DRAWS = 5
_TOLERANCE = 1e-3
"""Largest difference between a score worked out from cases and the one its task recorded (32-bit sums differ)."""


def write_findings(
    out: Path,
    works: Sequence[Work],
    module: Any,
    metric: str | None,
    resamples: int | None,
    groups: str | None,
    init: str,
    extras: Mapping[str, Any],
    unit: Literal["image", "patient"] = "image",
) -> dict[str, Any]:
    """Analyse finished runs and write everything that a person looks at; ``curve.json`` comes last.

    Args:
        out: folder of the study.
        works: all done.
        module: the labelled data.
        metric: score to compare; the task's own if None.
        resamples: of the bootstrap; by default as many as the score allows.
        groups: table of subgroups, if any.
        init: of the pretrained arm.
        extras: ``notes``, ``leakage`` and ``floors``.
        unit: what a case is.

    Returns:
        What was found.
    """
    from ssl_med.evidence.subgroups import subgroup_table
    from ssl_med.evidence.words import paragraph, verdict

    runs = _read(works)
    rows = _test_rows(module, runs)
    results = [Result(job, _values(run, rows)) for job, run in runs]
    if unit == "patient":
        rows, results = _by_patient(rows, results)
    name = metric or _own_metric(runs)
    patients = np.array([row.patient for row in rows])
    study = Study(results, patients, name, _score(works, runs, name), resamples)
    found = {**analyse(study), "unit": unit, **extras, **_compute(runs, init)}
    found["notes"] = [*found["notes"], *cost(study), *few_draws(runs), *_other_sources(runs), *lost_structures(runs)]
    found |= {"verdict": verdict(found), "paragraph": paragraph(found)}
    found["subgroups"] = subgroup_table(study, _columns(module, rows, groups))
    _write(out, found, _lines(works, study))
    return found


def _write(out: Path, found: Mapping[str, Any], runs: list[dict[str, Any]]) -> None:
    """The files of a study."""
    from ssl_med.evidence.figure import draw_curve
    from ssl_med.evidence.words import markdown, to_csv

    tables = {"curve": found["arms"], "runs": runs} | {part: found[part] for part in ("comparisons", "subgroups")}
    for stem, lines in tables.items():
        write_whole(out / f"{stem}.csv", to_csv(lines))
    write_whole(out / "curve.md", markdown(found))
    draw_curve(found, out / "curve")
    write_json(out / "curve.json", finite_only(found))


def _own_metric(runs: Sequence[tuple[Any, Mapping[str, Any]]]) -> str:
    """The score of the task; votes alone name none."""
    return next((run["metric"] for _, run in runs if "metric" in run), "balanced_accuracy")


def _read(works: Sequence[Work]) -> list[tuple[Any, dict[str, Any]]]:
    pairs = [(job, folder) for work in works for job, folder in zip(work.jobs, work.folders, strict=True)]
    held = {folder: read_scored(folder) for _, folder in pairs}
    return [(job, held[folder]) for job, folder in pairs]


def _test_rows(module: Any, runs: Sequence[tuple[Any, Mapping[str, Any]]]) -> list[Any]:
    """The test images in the order of the first run.

    Raises:
        UserError: a run was tested on other images.
    """
    ids = runs[0][1]["cases"]["id"]
    rows = {row.id: row for row in module.rows("test")}
    for job, run in runs:
        if sorted(run["cases"]["id"]) != sorted(rows):
            raise UserError(
                f"{job} was tested on other images than the test split holds now; begin anew in another --out"
            )
    return [rows[name] for name in ids]


def _values(run: Mapping[str, Any], rows: Sequence[Any]) -> dict[str, np.ndarray]:
    place = {name: number for number, name in enumerate(run["cases"]["id"])}
    order = [place[row.id] for row in rows]
    return {name: np.asarray(value)[order] for name, value in run["cases"].items() if name != "id"}


def _by_patient(rows: Sequence[Any], results: Sequence[Result]) -> tuple[list[Any], list[Result]]:
    """One row and one case for each patient."""
    patients = [row.patient for row in rows]
    merged = [Result(result.job, of_patients(result.values, patients)) for result in results]
    return [rows[number] for number in first_images(patients)], merged


def _score(works: Sequence[Work], runs: Sequence[tuple[Any, Mapping[str, Any]]], metric: str) -> Score:
    """The fast score where it gives what the task recorded for every run, else the task's own on repeated cases.

    Raises:
        UserError: the task knows no such score.
    """
    recorded = [run for _, run in runs if run["scores"]]
    for run in recorded:
        if metric not in run["scores"]:
            raise UserError(f"--metric {metric}: the task gives {', '.join(run['scores'])}")
    fast = score_of(metric)
    if fast is not None and all(_agrees(fast, run, metric) for run in recorded):
        return fast
    task = _task(works)

    def summarise(values: Values) -> dict[str, float]:
        import torch

        return task.summarise({name: torch.as_tensor(value) for name, value in values.items()})

    return recomputed(summarise, metric)


def _agrees(score: Score, run: Mapping[str, Any], metric: str) -> bool:
    values = {name: np.asarray(value) for name, value in run["cases"].items() if name != "id"}
    try:
        found = score(values, np.ones((1, len(run["cases"]["id"]))))[0]
    except KeyError:  # the task keeps other facts about its cases under this metric's name
        return False
    return bool(np.isclose(found, run["scores"][metric], atol=_TOLERANCE, equal_nan=True))


def _task(works: Sequence[Work]) -> Any:
    """The task of the study with random weights: it only summarises."""
    from ssl_med.fit import resolve, settle
    from ssl_med.recipe import instantiate

    trained = next((work for work in works if work.steps), None)
    if trained is None:
        raise UserError("--metric: only votes were run; choose accuracy, balanced_accuracy or auroc")
    from ssl_med.data.module import StoreData

    resolved, parser = resolve(trained.plan, trained.data)
    settle(resolved, StoreData(**resolved["data"]))
    return instantiate(parser, resolved).task.eval()


def _columns(module: Any, rows: Sequence[Any], groups: str | None) -> dict[str, list[str]]:
    from ssl_med.verbs.groups import groups_of_rows, groups_of_table

    columns = groups_of_rows(module.store, rows, module.targets)
    return columns | (groups_of_table(groups, module.store, rows) if groups else {})


def _compute(runs: Sequence[tuple[Any, Mapping[str, Any]]], init: str) -> dict[str, Any]:
    """What the arms and the pretraining took, as numbers and in words."""
    from ssl_med.exports import read_card
    from ssl_med.reporting.words import duration

    lines, words = [], []
    training = read_card(init).get("training", {})
    if training.get("seconds") is not None:
        words.append(f"pretraining: {duration(training['seconds'])}, {training.get('steps')} steps")
    for arm in dict.fromkeys(job.arm for job, _ in runs):
        own = [run for job, run in runs if job.arm == arm]
        seconds, steps = sum(run["seconds"] for run in own), sum(run["steps"] for run in own)
        device = ", ".join(sorted({str(run["device"]) for run in own if run.get("device")})) or "cpu"
        lines.append({"arm": arm, "runs": len(own), "seconds": seconds, "steps": steps, "device": device})
        words.append(f"{arm}: {len(own)} runs, {duration(seconds)}, {steps:,} steps in all, on {device}")
    return {"compute": lines, "compute_words": words, "pretraining": training}


def few_draws(runs: Sequence[tuple[Any, Mapping[str, Any]]]) -> list[str]:
    """What few draws cannot tell. With ten, one set of docs/evidence lost a difference that three had shown."""
    draws = len({job.draw for job, _ in runs})
    if draws >= _ENOUGH_DRAWS:
        return []
    return [
        f"labelled cases were drawn {draws} time{'s' * (draws > 1)}: how much depends on which cases are labelled is "
        "known poorly, and a small difference may come or go with more (--draws 10)"
    ]


def _other_sources(runs: Sequence[tuple[Any, Mapping[str, Any]]]) -> list[str]:
    from ssl_med.verbs.study import sources

    other = sum(run.get("sources") != sources() for _, run in runs)
    if not other:
        return []
    return [f"{other} of {len(runs)} runs were made by other source code of the same version; they were kept"]


def lost_structures(runs: Sequence[tuple[Any, Mapping[str, Any]]]) -> list[str]:
    """Runs that found next to nothing of a structure: their mean says less than that it happened."""
    lost = [
        f"{job} ({name} {value:.2f})"
        for job, run in runs
        for name, value in run["scores"].items()
        if _STRUCTURE.fullmatch(name) and value < _LOST
    ]
    if not lost:
        return []
    more = f" and {len(lost) - 4} more" if len(lost) > 4 else ""
    return [
        f"structures that a run lost (Dice below {_LOST}): {'; '.join(lost[:4])}{more}. They count like all others. "
        "Short trainings lose structures: try more steps, of smaller batches if time is short"
    ]


def _lines(works: Sequence[Work], study: Study) -> list[dict[str, Any]]:
    """Each run with its score, its time and the name of its folder."""
    lines = []
    for work in works:
        for job, folder in zip(work.jobs, work.folders, strict=True):
            run, cell = read_scored(folder), [(job.draw, job.seed)]
            score = float(study.scores(job.arm, job.labels, cell)[0, 0])
            head = {"arm": job.arm, "labels": job.labels, "draw": job.draw, "seed": job.seed}
            lines.append({**head, study.metric: score, "seconds": run["seconds"], "run": folder.name})
    return lines
