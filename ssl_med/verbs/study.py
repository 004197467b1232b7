"""Carrying out the runs of a study: named by their content, never done twice, several at a time."""

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ssl_med.config import Config
from ssl_med.evidence.planning import Job
from ssl_med.files import write_json
from ssl_med.verbs.arms import FOREIGN

SCORED = "test.json"
"""The file that a run writes last: a run that has it is finished."""


@dataclass(frozen=True)
class Work:
    """Something to carry out: a training, or the votes of one set of features at several numbers of labels.

    Attributes:
        jobs: what it answers.
        folders: where each answer goes.
        plan: config of the training; of the data, for votes.
        data: the store.
        steps: optimiser steps, 0 for votes.
        features: for votes, who made the features: export folder, and whether its weights are used.
    """

    jobs: tuple[Job, ...]
    folders: tuple[Path, ...]
    plan: Config
    data: str
    steps: int
    features: tuple[str, bool] | None = None

    @property
    def done(self) -> bool:
        """Every answer is there."""
        return all((folder / SCORED).is_file() for folder in self.folders)


def carry_out(work: Work, keep_models: bool = False) -> float:
    """Do one piece of work unless it is done; the library's own words go to the log of the run.

    Args:
        work: to do.
        keep_models: keep checkpoints and exports; otherwise only what was measured stays.

    Returns:
        Seconds of training, over all goes.
    """
    if not work.done:
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            if work.features is not None:
                _vote(work)
            else:
                _train(work)
    for folder in work.folders:
        if not keep_models:
            for name in ("checkpoints", "exports"):
                shutil.rmtree(folder / name, ignore_errors=True)
    return sum(read_scored(folder)["seconds"] for folder in work.folders)


def read_scored(folder: Path) -> dict[str, Any]:
    """What a finished run scored."""
    return json.loads((folder / SCORED).read_text())


def _train(work: Work) -> None:
    from ssl_med.fit import fit
    from ssl_med.run_folder import is_finished
    from ssl_med.verbs.arms import scores_on_test

    folder = work.folders[0]
    if not (is_finished(folder, work.plan) and list(folder.glob("exports/*/card.json"))):
        fit("finetune", work.plan, work.data, folder, "auto", overwrite=is_finished(folder, work.plan))
    state, scored = json.loads((folder / "run.json").read_text()), scores_on_test(folder, work.plan, work.data)
    facts = {name: state.get(name) for name in ("seconds", "device", "precision", "versions")}
    write_json(folder / SCORED, {**scored, **facts, "steps": work.steps, "sources": sources()})


def _vote(work: Work) -> None:
    """Nearest-neighbour votes of all draws and numbers of labels from features that are computed once."""
    import numpy as np

    from ssl_med.data.module import StoreData
    from ssl_med.data.subsets import labelled_subset
    from ssl_med.evidence.neighbours import vote

    began = time.monotonic()
    module = StoreData(folder=work.data, **{**work.plan["data"], "labels": None})
    train, test = (_features(work, module, split) for split in ("train", "test"))
    rows, classes = module.rows("train"), work.plan["classes"]
    place = {name: number for number, name in enumerate(train[1])}
    spent = (time.monotonic() - began) / len(work.jobs)
    for job, folder in zip(work.jobs, work.folders, strict=True):
        chosen = np.array([place[row.id] for row in labelled_subset(rows, job.labels, job.draw)])
        shares = vote(train[0][chosen], train[2][chosen], test[0], classes)
        cases = {"id": test[1], "probability": shares.tolist(), "label": test[2].tolist()}
        facts = {"labels": job.labels, "seconds": spent, "steps": 0, "sources": sources(), "scores": {}}
        write_json(folder / SCORED, {**facts, "cases": cases})


def _features(work: Work, module: Any, split: str) -> tuple[Any, list[str], Any]:
    from ssl_med.evaluate import best_device, embed_images, random_twin
    from ssl_med.exports import load_backbone

    assert work.features is not None
    source, weights = work.features
    backbone = load_backbone(source).to(best_device())
    backbone = (backbone if weights else random_twin(backbone, work.jobs[0].training_seed)).eval()
    return embed_images(backbone, module.whole(split, backbone.multiple()), module.crop)


def content_key(parts: Mapping[str, Any]) -> str:
    """Name of a run: a hash of everything that decides its result."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def data_key(store: Any) -> str:
    """Hash of a store by content: voxels, masks, targets, splits and who belongs together, not where it lies."""
    import numpy as np

    rows, digest = store.rows, hashlib.sha256()
    patients = np.unique(rows.column("patient"), return_inverse=True)[1]
    first = {code: place for place, code in reversed(list(enumerate(patients.tolist())))}
    for place, row in enumerate(rows):
        owner = first[int(patients[place])]
        said = [
            row.sha256,
            row.mask_seal,
            row.split,
            row.label,
            row.labels,
            row.boxes,
            getattr(row, "value", None),
            owner,
        ]
        digest.update(json.dumps(said).encode())
    facts = {name: store.facts.get(name) for name in ("spacing", "orientation", "painted", "class_names")}
    return hashlib.sha256(digest.digest() + json.dumps(facts, default=str).encode()).hexdigest()


def without_places(config: Any) -> Any:
    """A config with every exported part and every file named by its content instead of its place."""
    from ssl_med.exports import read_card

    if isinstance(config, Mapping):
        made, given = str(config.get("class_path", "")), config.get("init_args") or {}
        if made == FOREIGN:
            return {**without_places({**given, "source": ""}), "sha256": _content(Path(given["source"]))}
        if made.startswith("ssl_med.exports.load_") and "folder" in given:
            part = read_card(given["folder"])["parts"][made.rpartition("load_")[2].replace("vit", "backbone")]
            recipe = [part["class_path"], part["init_args"]]
            return {"part": recipe, "sha256": part["sha256"] if given.get("weights", True) else "random"}
        return {name: without_places(value) for name, value in config.items()}
    if isinstance(config, list | tuple):
        return [without_places(value) for value in config]
    return _content(Path(config)) if isinstance(config, str) and Path(config).is_file() else config


def _content(path: Path) -> str:
    """Hash of a file, or of all files in a folder; of the name where there is no such place."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes() if file.is_file() else str(file).encode())
    return digest.hexdigest()


@cache
def sources() -> str:
    """Hash over the code of the installed packages: tells runs of one version apart in a checkout."""
    digest = hashlib.sha256()
    root = Path(__file__).parent.parent.parent
    for package in ("ssl_med", "finetune"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


class Clock:
    """How long the rest takes, from the runs that are finished.

    Args:
        works: all of the study.
        processes: how many run at a time.
    """

    def __init__(self, works: Sequence[Work], processes: int) -> None:
        self.processes = processes
        self.left = [work for work in works if not work.done]
        self.spent: dict[str, tuple[float, int]] = {}
        for work in works:
            if work.done and work.steps:
                self.add(work, read_scored(work.folders[0])["seconds"])

    def add(self, work: Work, seconds: float) -> None:
        """Note a run that is finished."""
        before = self.spent.get(work.jobs[0].arm, (0.0, 0))
        self.spent[work.jobs[0].arm] = (before[0] + seconds, before[1] + work.steps)

    def seconds_left(self) -> float | None:
        """Estimate; None before the first training is finished."""
        total = (sum(s for s, _ in self.spent.values()), sum(n for _, n in self.spent.values()))
        if total[1] == 0:
            return None
        paces = {arm: s / n for arm, (s, n) in self.spent.items() if n}
        rest = sum(work.steps * paces.get(work.jobs[0].arm, total[0] / total[1]) for work in self.left)
        return rest / self.processes


def run_all(
    works: Sequence[Work], processes: int, keep_models: bool, say: Callable[[Work, float, Clock], None]
) -> None:
    """Carry out what is not done yet, in order, ``processes`` at a time.

    Args:
        works: all of the study.
        processes: each gets its share of the cores.
        keep_models: see :func:`carry_out`.
        say: called after each with its seconds.
    """
    clock = Clock(works, processes)
    for work, seconds in _one_by_one(clock, keep_models) if processes == 1 else _in_pool(clock, keep_models):
        clock.left.remove(work)
        if work.steps:
            clock.add(work, seconds)
        say(work, seconds, clock)


def _one_by_one(clock: Clock, keep_models: bool) -> Iterator[tuple[Work, float]]:
    for work in list(clock.left):
        yield work, carry_out(work, keep_models)


def _in_pool(clock: Clock, keep_models: bool) -> Iterator[tuple[Work, float]]:
    import multiprocessing

    threads = max(1, (os.cpu_count() or 1) // clock.processes)
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ |= dict.fromkeys(before, str(threads))  # read by the processes when they load their libraries
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(clock.processes, context, _begin, (threads, list(sys.path)))
    try:
        pending = {pool.submit(carry_out, work, keep_models): work for work in clock.left}
        while pending:
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                yield pending.pop(future), future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


def _begin(threads: int, paths: list[str]) -> None:
    """In each process: its threads, and an end with the process that started it, however that one ends."""
    import multiprocessing
    import threading

    import torch

    sys.path[:] = paths
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()

    def leave() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)  # a killed study must not leave runs that hold their folders

    threading.Thread(target=leave, daemon=True).start()
