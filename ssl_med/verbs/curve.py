"""``ssl-med curve``: what pretraining buys at every number of labels, with the evidence for it."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ssl_med.config import Config
from ssl_med.errors import UserError
from ssl_med.evidence.planning import ARMS, DEFAULT_LABELS, FROZEN, FROZEN_CONTROL, KNN, KNN_CONTROL, Job
from ssl_med.files import write_json
from ssl_med.verbs.arms import (
    SCRATCH_TRAINED,
    Arm,
    check_leak,
    foreign_arm,
    labelled_data,
    refuse_what_is_filled,
    run_config,
    timm_arm,
)
from ssl_med.verbs.study import Clock, Work, content_key, data_key, run_all, without_places

_FILLED = {
    "seed": "--draws and --seeds",
    "data.labels": "--labels",
    "data.labels_seed": "--draws",
    "data.folder": "--data",
    "task.backbone": "--init",
    "task.init_args.backbone": "--init",
    "task.frozen": "--arms frozen",
    "task.init_args.frozen": "--arms frozen",
}


def curve(
    config: str,
    data: str | Path,
    init: str | Path,
    out: str | Path,
    labels: str = ",".join(DEFAULT_LABELS),
    draws: int = 3,
    seeds: int = 2,
    arms: str = ",".join(ARMS),
    arm: Sequence[str] = (),
    longer: float = 3.0,
    processes: int = 1,
    floor: Sequence[str] = (),
    groups: str | None = None,
    metric: str | None = None,
    unit: Literal["image", "patient"] = "image",
    resamples: int | None = None,
    dry_run: bool = False,
    keep_models: bool = False,
    allow_overlap: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Fine-tune at several numbers of labelled patients in several arms, and say what the differences are worth.

    Runs are named by their content and never repeated; the command goes on where it stopped.

    Args:
        config: short name or path of a fine-tuning config; its steps hold at every number of labels.
        data: the store.
        init: run or export folder with the pretrained backbone.
        out: folder of the study.
        labels: numbers (``25``) or shares (``10%``, ``0.1``) of labelled patients, with commas.
        draws: nested series of labelled patients.
        seeds: repetitions of each.
        arms: which of pretrained, scratch, scratch_longer, frozen, knn.
        arm: further ones, ``NAME=EXPORT``, ``NAME=WEIGHTS`` of somebody else for the same architecture, or
            ``NAME=timm:NETWORK[:WEIGHTS]``, a network of timm with these weights or random ones.
        longer: factor on the steps of scratch_longer.
        processes: runs at a time.
        floor: ``NAME=VALUE``, lines in the picture.
        groups: CSV with a column ``id``, ``patient`` or ``image``, and columns of groups.
        metric: score to compare; the task's own by default.
        unit: what a test case is; ``patient`` averages the probabilities or scores over the images of each patient.
        resamples: of the bootstrap; 2000 by default, 200 for a score that the task works out anew for each.
        dry_run: only tell what would be run.
        keep_models: keep the checkpoints and the weights of every run.
        allow_overlap: only tell which test images pretraining has seen.
        overrides: settings of the config by dotted name.

    Returns:
        What the study shows, also in ``out/curve.json``; for a dry run, the number of runs and of those left.
    """
    from ssl_med.config import load_config

    refuse_what_is_filled(overrides or {}, _FILLED, "curve")
    base = load_config(config, "finetune", overrides)
    if processes < 1 or (resamples is not None and resamples < 2):
        raise UserError(f"--processes {processes} --resamples {resamples}: at least one process and two resamples")
    floors = {name: _value(name, text) for name, text in _pairs(floor, "--floor").items()}
    module = labelled_data(str(data), base)
    asked = [name.strip() for name in arms.split(",")]
    notes, chosen = _arms(asked, _pairs(arm, "--arm"), str(init), longer, module.targets)
    leakage = _leakage(module, [found for found in chosen if found.weights], allow_overlap)
    works, told = _works(base, module, chosen, labels.split(","), draws, seeds, Path(out))
    notes += told
    for sentence in notes:
        print(sentence, flush=True)
    if dry_run:
        return _tell(works, processes)
    facts = {"kind": "curve", "task": base["task"]["class_path"], "started": time.strftime("%Y-%m-%dT%H:%M:%S")}
    write_json(Path(out) / "run.json", {**facts, "status": "running"})
    run_all(works, processes, keep_models, _Progress(works))
    from ssl_med.verbs.findings import write_findings

    extras = {"notes": notes, "leakage": leakage, "floors": floors}
    found = write_findings(Path(out), works, module, metric, resamples, groups, str(init), extras, unit)
    write_json(Path(out) / "run.json", {**facts, "status": "finished"})
    from ssl_med.reporting import report

    print("\n" + "\n".join(found["paragraph"]) + f"\nreport: {report(out)}", flush=True)
    return found


def _pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    for text in texts:
        if not all(text.partition("=")):
            raise UserError(f"{option} {text!r}: write NAME=VALUE")
    pairs = [(name, value) for name, _, value in (text.partition("=") for text in texts)]
    twice = [name for number, (name, _) in enumerate(pairs) if name in dict(pairs[:number])]
    if twice:
        raise UserError(f"{option} {twice[0]}: this name is given twice")
    return dict(pairs)


def _value(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"--floor {name}={text}: the value must be a number") from None


def _arms(
    asked: Sequence[str], extra: Mapping[str, str], init: str, longer: float, targets: str | None
) -> tuple[list[str], list[Arm]]:
    """The arms by name with their controls, and a sentence for each that cannot be run."""
    unknown = [name for name in asked if name not in ARMS]
    if unknown:
        raise UserError(f"--arms: there is no {unknown[0]!r}; valid: {', '.join(ARMS)}")
    taken = set(extra) & {*ARMS, FROZEN_CONTROL, KNN_CONTROL}
    if taken:
        raise UserError(f"--arm {min(taken)}: this name is taken; give another")
    notes = []
    if KNN in asked and targets != "label":
        notes.append("knn is left out: it needs one class per image")
        asked = [name for name in asked if name != KNN]
    if any(name.startswith("scratch") for name in asked):
        notes.append(SCRATCH_TRAINED)
    of_name = {
        "pretrained": [Arm("pretrained", init)],
        "scratch": [Arm("scratch", init, weights=False, layer_decay=1.0)],
        "scratch_longer": [Arm("scratch_longer", init, weights=False, longer=longer, layer_decay=1.0)],
        FROZEN: [Arm(FROZEN, init, frozen=True), Arm(f"{FROZEN}_random", init, weights=False, frozen=True)],
        KNN: [Arm(KNN, init), Arm(f"{KNN}_random", init, weights=False)],
    }
    chosen = [found for name in ARMS if name in asked for found in of_name[name]]
    for name, source in extra.items():
        found, said = _other(name, source, init)
        chosen, notes = [*chosen, found], [*notes, *said]
    if not chosen:
        raise UserError(f"--arms {','.join(asked)}: no arm is left to run ({'; '.join(notes)})")
    return notes, chosen


def _other(name: str, source: str, init: str) -> tuple[Arm, list[str]]:
    """An export of our own, a network of timm, or weights for the architecture of ``init``.

    Weights are those of somebody else, or of an export that was made for another library.

    Raises:
        UserError: several exports in one folder, or weights that do not fit.
    """
    from ssl_med.exports import exports_in, read_card
    from ssl_med.verbs.timm_arm import PREFIX

    if source.startswith(PREFIX):
        arm, said = timm_arm(name, source, init)
        return arm, [said]
    if exports_in(source) and not read_card(source).get("client"):
        return Arm(name, source), []
    arm, said = foreign_arm(name, source, init)
    return arm, [said]


def _leakage(module: Any, arms: Sequence[Arm], allow: bool) -> list[str]:
    """Sentences on what the test shares with each pretraining and with the labelled training and validation images."""
    from ssl_med.data.overlap import Members, overlap

    lines = [f"{arm.name}: what these weights have seen is not known" for arm in arms if arm.like]
    for source in dict.fromkeys(arm.source for arm in arms if not arm.like):
        names = ", ".join(arm.name for arm in arms if arm.source == source)
        lines += [f"{names}: {sentence}" for sentence in check_leak(module, source, allow).sentences()]
    key, test = module.store.facts["key"], module.rows("test")
    for split in ("train", "val"):
        if split in module.store.rows.distinct("split"):
            rows = module.store.rows.where(split=split)
            found = overlap(Members.of_rows(rows, key), Members.of_rows(test, key))
            told = [sentence.replace("the pretraining", split) for sentence in found.sentences()]
            told = [f"{split}: {sentence.replace('a pretraining', f'a {split}')}" for sentence in told]
            if found and not allow:
                advice = "prepare the store with other splits, or say --allow_overlap to list them only"
                raise UserError(f"{'; '.join(told)}: {advice}")
            lines += told
    return lines


def _works(
    base: Config, module: Any, arms: Sequence[Arm], asked: Sequence[str], draws: int, seeds: int, out: Path
) -> tuple[list[Work], list[str]]:
    """Everything to be done, and what a person should know about it."""
    from ssl_med.evidence.planning import label_counts, plan_jobs

    rows = module.rows("train")
    least = len(rows.distinct("label")) if module.targets == "label" else 1
    counts, notes = label_counts(asked, len(rows.distinct("patient")), least)
    jobs = plan_jobs([arm.name for arm in arms], counts, draws, seeds)
    notes += _missing_classes(module, counts, draws) if module.targets == "label" else []
    store = data_key(module.store)
    works = []
    for arm in arms:
        own = [job for job in jobs if job.arm == arm.name]
        make = _votes if arm.name in (KNN, KNN_CONTROL) else _trainings
        works += make(base, str(module.folder), arm, own, store, out / "runs")
    order = {job: place for place, job in enumerate(jobs)}
    return sorted(works, key=lambda work: order[work.jobs[0]]), notes


def _missing_classes(module: Any, counts: Sequence[int], draws: int) -> list[str]:
    from ssl_med.data.subsets import labelled_subset

    rows, notes = module.rows("train"), []
    classes = len(rows.distinct("label"))
    for count in counts:
        seen = [len({row.label for row in labelled_subset(rows, count, draw)}) for draw in range(draws)]
        if min(seen) < classes:
            notes.append(f"{count} labelled patients show {min(seen)} to {max(seen)} of the {classes} classes")
    return notes


def _trainings(base: Config, data: str, arm: Arm, jobs: Sequence[Job], store: str, runs: Path) -> list[Work]:
    """One training each; the config is resolved once per arm, since only labels, draw and seed differ."""
    from ssl_med import __version__
    from ssl_med.fit import resolve

    plans = [run_config(base, data, arm, job.labels, job.draw, job.training_seed) for job in jobs]
    resolved, _ = resolve(plans[0], data)
    watch, _ = resolved.pop("watch"), resolved.pop("seed")
    for name in ("folder", "labels", "labels_seed", "num_workers", "prefetch"):
        resolved["data"].pop(name, None)
    if "seed" not in base.get("data", {}):
        del resolved["data"]["seed"]
    for name in ("devices", "num_nodes"):
        resolved["trainer"].pop(name, None)
    content = {"config": without_places(resolved), "data": store, "version": __version__}
    content["validate"] = watch["validate"]  # chooses whose weights are tested; nothing else that is watched does
    if watch["patience"] is not None:
        content["patience"] = watch["patience"]
    works = []
    for job, plan in zip(jobs, plans, strict=True):
        key = content_key({**content, "labels": job.labels, "draw": job.draw, "seed": job.training_seed})
        works.append(Work((job,), (runs / key,), plan, data, plan["trainer"]["max_steps"]))
    return works


def _votes(base: Config, data: str, arm: Arm, jobs: Sequence[Job], store: str, runs: Path) -> list[Work]:
    """Votes share their features: of all runs for trained weights, of all numbers of labels for random ones."""
    from ssl_med import __version__

    plan = run_config(base, data, arm, None, 0, 0)
    section = {name: value for name, value in plan["data"].items() if name not in ("labels", "labels_seed")}
    used = {name: section.get(name) for name in ("crop", "crop_mm", "intensity", "targets")}
    backbone = without_places(plan["task"]["init_args"]["backbone"])
    content = {"votes": used, "backbone": backbone, "data": store, "version": __version__}
    shared: dict[int, list[Job]] = {}
    for job in jobs:
        shared.setdefault(0 if arm.weights else job.training_seed, []).append(job)
    works = []
    for seed, group in shared.items():
        keys = [content_key({**content, "labels": job.labels, "draw": job.draw, "seed": seed}) for job in group]
        wanted = {"data": section, "classes": plan["task"]["init_args"]["classes"]}
        folders = tuple(runs / key for key in keys)
        works.append(Work(tuple(group), folders, wanted, data, 0, (arm.source, arm.weights)))
    return works


class _Progress:
    """A line after each piece of work, with the time that the rest takes."""

    def __init__(self, works: Sequence[Work]) -> None:
        self.total, self.done = len(works), sum(work.done for work in works)
        if self.done:
            print(f"{self.done} of {self.total} pieces of work are done already", flush=True)

    def __call__(self, work: Work, seconds: float, clock: Clock) -> None:
        from ssl_med.reporting.words import duration

        self.done += 1
        left = clock.seconds_left()
        rest = f"; about {duration(left)} left" if left is not None and clock.left else ""
        print(f"{self.done} of {self.total}  {_name(work)}  {duration(seconds)}{rest}", flush=True)


def _name(work: Work) -> str:
    first, *others = work.jobs
    return f"{first} and {len(others)} more votes" if others else str(first)


def _tell(works: Sequence[Work], processes: int) -> dict[str, Any]:
    """Print what would be run."""
    from ssl_med.reporting.words import duration

    for work in works:
        steps = f"{work.steps} steps" if work.steps else "votes"
        print(f"{'done' if work.done else 'to do'}  {_name(work)}  {steps}", flush=True)
    clock = Clock(works, processes)
    left, steps = clock.seconds_left(), sum(work.steps for work in clock.left)
    rest = f"about {duration(left)} with {processes} at a time" if left is not None else "no run to estimate from yet"
    print(f"{len(works)} pieces of work, {len(clock.left)} to do, {steps:,} optimiser steps: {rest}", flush=True)
    return {"works": len(works), "left": len(clock.left), "steps": steps, "seconds": left}
