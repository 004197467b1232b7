"""``ssl-med finetune``: a head on a pretrained backbone, few labels, and the same from scratch beside it."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssl_med.config import Config
from ssl_med.files import write_json
from ssl_med.verbs.arms import (
    SCRATCH_TRAINED,
    arm_config,
    check_leak,
    labelled_data,
    refuse_what_is_filled,
    scores_on_test,
    tell_twins,
)

ARMS = ("pretrained", "scratch")


def finetune(
    config: str,
    data: str | Path,
    init: str | Path,
    out: str | Path,
    labels: int | float | None = None,
    seeds: int = 1,
    compare: bool = False,
    overrides: Mapping[str, Any] | None = None,
    resume: str = "auto",
    overwrite: bool = False,
    allow_overlap: bool = False,
) -> dict[str, Any]:
    """Fine-tune an exported backbone on labelled images and score it on the test split.

    With ``compare`` the same architecture is trained from random weights too, with the same steps, rates, labels and
    seeds, but without what only protects good weights (layer-wise decay of the rate, frozen beginnings); the table and
    its verdict say what pretraining bought, whatever the answer.

    Args:
        config: short name (``segment_3d``) or path of a YAML file.
        data: the store.
        init: run or export folder with the backbone.
        out: folder; each arm, number of labels and seed gets a run inside.
        labels: labelled patients to train on: a number, a share below 1, or all. Seed s draws subset s.
        seeds: number of repetitions.
        compare: train the scratch arm too.
        overrides: settings by dotted name.
        resume, overwrite: as for ``pretrain``; finished runs are kept and not repeated.
        allow_overlap: only tell which test patients or images the pretraining has seen, instead of stopping.

    Returns:
        The table, also in ``out/table.json``.
    """
    from ssl_med.config import load_config
    from ssl_med.reporting import report

    refuse_what_is_filled(overrides or {}, _FILLED, "finetune")
    base = load_config(config, "finetune", overrides)
    module = labelled_data(str(data), base, labels)
    leak, copies = check_leak(module, init, allow_overlap).facts(), tell_twins(module)
    facts = {"kind": "comparison", "task": base["task"]["class_path"], "started": time.strftime("%Y-%m-%dT%H:%M:%S")}
    write_json(Path(out) / "run.json", {**facts, "status": "running"})
    rows = []
    for seed in range(seeds):
        for arm in ARMS if compare else ARMS[:1]:
            plan = arm_config(base, str(data), str(init), arm, labels, seed)
            folder = Path(out) / f"{arm}_labels={'all' if labels is None else labels}_seed={seed}"
            rows.append(_run_one(plan, str(data), folder, arm, seed, resume, overwrite))
            table = summarise(rows) | {"overlap": leak, "notes": [SCRATCH_TRAINED] * compare + copies}
            write_json(Path(out) / "table.json", table)
    write_json(Path(out) / "run.json", {**facts, "status": "finished"})
    print(f"{to_text(table)}\nreport: {report(out)}")
    return table


_FILLED = {
    "seed": "--seeds",
    "data.labels": "--labels",
    "data.labels_seed": "--seeds",
    "data.folder": "--data",
    "task.backbone": "--init",
    "task.init_args.backbone": "--init",
}
"""Settings that the verb fills in itself, and the options they come from."""


def _run_one(
    plan: Config, data: str, folder: Path, arm: str, seed: int, resume: str, overwrite: bool
) -> dict[str, Any]:
    """Train and test one arm, or read what it scored before."""
    from ssl_med.fit import fit
    from ssl_med.run_folder import is_finished

    if overwrite or not is_finished(folder, plan):
        fit("finetune", plan, data, folder, resume, overwrite)  # pyright: ignore[reportArgumentType]
    scored = folder / "test.json"
    if overwrite or not scored.exists():
        write_json(scored, scores_on_test(folder, plan, data))
    result = json.loads(scored.read_text())
    return {"arm": arm, "seed": seed, **result}


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows of runs to a table with means, spreads, the paired difference and a sentence."""
    import numpy as np

    metric = rows[0]["metric"]
    table: dict[str, Any] = {
        "metric": metric,
        "higher_is_better": True,
        "unit": f"{len(rows[0]['cases']['id'])} test images",
    }
    table["rows"] = [{k: row[k] for k in ("arm", "labels", "seed", "scores")} for row in rows]
    scores = {arm: np.array([r["scores"][metric] for r in rows if r["arm"] == arm]) for arm in ARMS}
    table["summary"] = [
        {"arm": arm, "labels": rows[0]["labels"], "mean": float(s.mean()), "spread": _spread(s), "n": len(s)}
        for arm, s in scores.items()
        if len(s)
    ]
    count = min(len(s) for s in scores.values())
    if count:
        paired = scores["pretrained"][:count] - scores["scratch"][:count]
        low, high = t_interval(paired)
        table["difference"] = {"mean": float(paired.mean()), "low": low, "high": high, "n": count}
        table["verdict"] = verdict(metric, float(paired.mean()), low, high, count)
    return table


def _spread(values: Any) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def t_interval(paired: Any) -> tuple[float | None, float | None]:
    """95 % Student interval of the mean of paired differences over seeds; none for fewer than two."""
    from scipy.stats import t

    if len(paired) < 2:
        return None, None
    half = float(t.ppf(0.975, len(paired) - 1)) * _spread(paired) / len(paired) ** 0.5
    return float(paired.mean()) - half, float(paired.mean()) + half


def verdict(metric: str, mean: float, low: float | None, high: float | None, count: int) -> str:
    """What a difference means, in a sentence that says no more than the numbers do."""
    words = metric.replace("_", " ")
    if low is None or high is None:
        side = f"{abs(mean):.3f} {'above' if mean > 0 else 'below'}" if mean else "the same as"
        told = "too few to say that pretraining helps or harms"
        return f"Pretrained {words} is {side} scratch in one run each: {told}."
    interval = f"({mean:+.3f}, 95 % interval {low:+.3f} to {high:+.3f} over {count} seeds) on these test images"
    advice = "whether it does so for new patients is told by ssl-med curve"
    if low > 0:
        return f"Pretraining helped: {words} {interval}; {advice}."
    if high < 0:
        return f"Pretraining did harm: {words} {interval}; {advice}."
    return f"Pretraining did not help measurably: {words} {interval}; {advice}."


def to_text(table: dict[str, Any]) -> str:
    """The table for a terminal."""
    lines = [f"{'arm':12} {'labels':>6} {table['metric']:>18} {'spread':>8} {'n':>3}   ({table['unit']})"]
    for row in table["summary"]:
        lines.append(f"{row['arm']:12} {row['labels']:>6} {row['mean']:18.4f} {row['spread']:8.4f} {row['n']:>3}")
    return "\n".join([*lines, table.get("verdict", ""), *table.get("notes", [])]).rstrip()
