"""``ssl-med finetune``: a head on a pretrained backbone, few labels, and the same from scratch beside it."""

import copy
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssl_med.config import Config
from ssl_med.errors import UserError
from ssl_med.files import write_json

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

    With ``compare`` the same architecture is trained from random weights too, with the same schedule, labels and seeds;
    the table and its verdict say what pretraining bought, whatever the answer.

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

    _refuse_what_is_filled(overrides or {})
    base = load_config(config, "finetune", overrides)
    _check_labels(str(data), base, labels)
    leak = _check_leak(str(data), base, init, allow_overlap)
    facts = {"kind": "comparison", "task": base["task"]["class_path"], "started": time.strftime("%Y-%m-%dT%H:%M:%S")}
    write_json(Path(out) / "run.json", {**facts, "status": "running"})
    rows = []
    for seed in range(seeds):
        for arm in ARMS if compare else ARMS[:1]:
            plan = arm_config(base, str(data), str(init), arm, labels, seed)
            folder = Path(out) / f"{arm}_labels={'all' if labels is None else labels}_seed={seed}"
            rows.append(_run_one(plan, str(data), folder, arm, seed, resume, overwrite))
            table = summarise(rows) | {"overlap": leak}
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


def _refuse_what_is_filled(overrides: Mapping[str, Any]) -> None:
    for key in overrides:
        for name, option in _FILLED.items():
            if key == name or key.startswith(f"{name}."):
                raise UserError(f"--{key} is set by finetune itself; use {option}")


def _check_labels(data: str, base: Config, labels: int | float | None) -> None:
    """Refuse a store without labelled images to train or to test on before anything is trained."""
    from ssl_med.data.module import StoreData

    module = StoreData(**{**base.get("data", {}), "crop": 1, "folder": data, "labels": labels})
    for split in ("train", "test"):
        module.rows(split)


def _check_leak(data: str, base: Config, init: str | Path, allow: bool) -> dict[str, Any]:
    """Refuse, or tell, that test patients or images were in the pretraining; returns the counts."""
    from ssl_med.data.module import StoreData
    from ssl_med.data.overlap import check_overlap

    module = StoreData(**{**base.get("data", {}), "crop": 1, "folder": data})
    found = check_overlap(init, module.rows("test"), module.store.facts["key"], allow)
    for sentence in found.sentences():
        print(sentence, flush=True)
    return found.facts()


def arm_config(base: Config, data: str, init: str, arm: str, labels: int | float | None, seed: int) -> Config:
    """The config of one run: backbone from the export, classes and window from the data, labels and seed filled in."""
    from ssl_med.data.intensity import channels_of
    from ssl_med.data.store import Store
    from ssl_med.exports import find_export, read_card

    config, store, card = copy.deepcopy(base), Store(data), read_card(init)
    seen = (card["input"]["spatial_dims"], card["input"]["channels"])
    section = config.setdefault("data", {})
    section.setdefault("intensity", card["input"]["intensity"])
    channels = channels_of(section["intensity"], store.channels)
    if seen != (store.spatial_dims, channels):
        raise UserError(
            f"{init} was pretrained on {seen[0]}D images with {seen[1]} channels, "
            f"{data} gives {store.spatial_dims}D with {channels} (data.intensity: {section['intensity']})"
        )
    task = config["task"].setdefault("init_args", {})
    weights = {"folder": str(find_export(init)), "weights": arm == "pretrained"}
    task["backbone"] = {"class_path": "ssl_med.exports.load_backbone", "init_args": weights}
    if _takes_decoder(config["task"].get("class_path", ""), card):
        task.setdefault("decoder", {"class_path": "ssl_med.exports.load_decoder", "init_args": weights})
    section.setdefault("crop", card["input"]["crop"])
    section |= {"labels": labels, "labels_seed": seed}
    crop = section["crop"]
    task.setdefault("window", [crop] * store.spatial_dims if isinstance(crop, int) else crop)
    task.setdefault("classes", _class_count(store, section.get("targets")))
    config["seed"] = seed
    return config


def _takes_decoder(class_path: str, card: Mapping[str, Any]) -> bool:
    """Whether the export has a decoder that this task starts from; ``--task.decoder null`` takes a new one."""
    part = card["parts"].get("decoder", {}).get("class_path", "")
    return part.rpartition(".")[2] == "PyramidDecoder" and class_path.rpartition(".")[2] == "Segment"


def _class_count(store: Any, targets: str | None) -> int:
    if targets == "mask":
        return 1 + max(value for row in store.rows for value in row.mask_values)  # rows with masks were found before
    return max(len(store.class_names), 1 + int(store.rows.column("label").max()))


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
        write_json(scored, test_scores(folder, plan, data))
    result = json.loads(scored.read_text())
    return {"arm": arm, "seed": seed, **result}


def test_scores(folder: Path, plan: Config, data: str) -> dict[str, Any]:
    """Scores of a finished run on the test split, for the set and for every case."""
    from ssl_med.data.module import StoreData
    from ssl_med.evaluate import best_device, evaluate
    from ssl_med.exports import load_task

    task = load_task(str(folder)).to(best_device())
    module = StoreData(folder=data, **plan["data"])
    multiple = task.backbone.multiple()  # pyright: ignore
    scores, cases = evaluate(task, module.whole("test", multiple))
    print(f"{folder.name}: test {task.metric} {scores[task.metric]:.4f}", flush=True)
    patients = len({row.patient for row in module.rows("train")})
    lists = {name: values if isinstance(values, list) else values.tolist() for name, values in cases.items()}
    return {"labels": patients, "metric": task.metric, "scores": scores, "cases": lists}


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
        side = "above" if mean > 0 else "below"
        told = "too few to say that pretraining helps or harms"
        return f"Pretrained {words} is {abs(mean):.3f} {side} scratch in one run each: {told}."
    interval = f"({mean:+.3f}, 95 % interval {low:+.3f} to {high:+.3f} over {count} seeds)"
    if low > 0:
        return f"Pretraining helped: {words} {interval}."
    if high < 0:
        return f"Pretraining did harm: {words} {interval}."
    return f"Pretraining did not help measurably: {words} {interval}."


def to_text(table: dict[str, Any]) -> str:
    """The table for a terminal."""
    lines = [f"{'arm':12} {'labels':>6} {table['metric']:>18} {'spread':>8} {'n':>3}   ({table['unit']})"]
    for row in table["summary"]:
        lines.append(f"{row['arm']:12} {row['labels']:>6} {row['mean']:18.4f} {row['spread']:8.4f} {row['n']:>3}")
    return "\n".join([*lines, table.get("verdict", "")]).rstrip()
