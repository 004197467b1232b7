"""``ssl-med export``: the parts of a run worth keeping, in a folder of their own, for us or for another library."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any


def export(
    run: str | Path,
    out: str | Path,
    checkpoint: str | Path | None = None,
    to: str = "native",
    license: str | None = None,
    data_license: str | None = None,
) -> Path:
    """Write the backbone (or the fine-tuned task) of a run with its card.

    Args:
        run: folder of a run, finished or not; for another library a native export will do.
        out: folder of the export.
        checkpoint: which checkpoint; by default the weights a fine-tuning chose on its validation images
            (``checkpoints/best-val.ckpt``), else the newest whole one.
        to: format; ``native`` is loaded by ``ssl_med.load_backbone`` and ``ssl_med.load_task``, the others are
            ``ssl_med.formats.CLIENTS``.
        license: terms of the weights, such as ``CC-BY-4.0``.
        data_license: terms of the data they were trained on.

    Returns:
        The folder.

    Raises:
        UserError: no run, no checkpoint, a folder that is not empty, or a model that the library cannot compute.
    """
    from ssl_med.errors import UserError

    run, out = Path(run), Path(out)
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; give another folder")
    terms = {"weights": license, "data": data_license}
    if to == "native":
        if _is_export(run):
            raise UserError(f"{run} is a native export already")
        written = _native(run, out, checkpoint, terms)
    else:
        written = _converted(run, out, checkpoint, to, terms)
    print(f"exported: {written}")
    return written


def _converted(run: Path, out: Path, checkpoint: str | Path | None, to: str, terms: dict[str, str | None]) -> Path:
    from ssl_med.errors import UserError
    from ssl_med.formats import CLIENTS, convert

    if to not in CLIENTS:
        raise UserError(f"--to {to}: expected native or one of {', '.join(CLIENTS)}")
    if _is_export(run):
        return convert(run, out, to, {name: text for name, text in terms.items() if text})
    with tempfile.TemporaryDirectory() as between:
        native = _native(run, Path(between) / "native", checkpoint, terms)
        if not (native / "card.json").is_file():
            names = " and ".join(sorted(folder.name for folder in native.iterdir()))
            raise UserError(
                f"{run} leaves {names}: export them with --to native first, then one of them with --to {to}"
            )
        return convert(native, out, to)


def _is_export(run: Path) -> bool:
    """An export, or the folder that this verb made it in."""
    return not (run / "run.json").is_file() and any(any(run.glob(place)) for place in ("card.json", "*/card.json"))


def _native(run: Path, out: Path, checkpoint: str | Path | None, terms: dict[str, str | None]) -> Path:
    import yaml

    from ssl_med.callbacks import AtomicCheckpointIO
    from ssl_med.data.manifest import locks_in
    from ssl_med.data.sections import data_of
    from ssl_med.errors import UserError
    from ssl_med.fit import build_parser, built_of
    from ssl_med.run_data import export_task

    if not (run / "run.json").is_file():
        raise UserError(f"{run} holds no run of ssl-med (run.json is missing)")
    path = Path(checkpoint) if checkpoint else _chosen(run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    task = built_of(build_parser(), config).task
    saved = AtomicCheckpointIO().load_checkpoint(path)
    task.load_state_dict({name.removeprefix("task."): tensor for name, tensor in saved["state_dict"].items()})
    facts = json.loads((run / "run.json").read_text())
    if saved["global_step"] != facts["steps"]:
        facts |= {"steps": saved["global_step"], "planned_steps": facts["steps"]}
    written = export_task(task, data_of(config["data"]), out, facts)
    for folder in written:
        for lock in locks_in(run):  # which images it has seen, so that a later test on them is noticed
            shutil.copyfile(lock, folder / lock.name)
        _stated(folder, terms, _of_run(run, config, facts))
    return written[0] if len(written) == 1 else out


def _chosen(run: Path) -> Path:
    """The weights that a run ends with: the best on validation where it looked, else the newest whole ones."""
    from ssl_med.callbacks import newest_whole
    from ssl_med.callbacks.checkpoint_io import is_whole
    from ssl_med.callbacks.validation import BEST
    from ssl_med.errors import UserError

    best = run / "checkpoints" / BEST
    if best.is_file():
        if not is_whole(best):
            raise UserError(f"{best} is damaged; name the weights to export: --checkpoint")
        return best
    path = newest_whole(run / "checkpoints")
    if path is None:
        raise UserError(f"{run} has no whole checkpoint yet")
    return path


def _stated(folder: Path, terms: dict[str, str | None], more: dict[str, Any]) -> Path:
    """Add facts and terms to the card of a folder, and seal it anew."""
    from ssl_med.model_card import licence, seal

    card = json.loads((folder / "card.json").read_text())
    said = {name: text for name, text in terms.items() if text}
    return seal(folder, {**card, **more, "licence": {**licence(), **card.get("licence", {}), **said}})


def _of_run(run: Path, config: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """What only the folder of a run tells: recipe, compute, results, and what to cite."""
    from ssl_med.model_card import citation
    from ssl_med.reporting.redact import hide_places

    hours = facts.get("seconds", 0.0) / 3600
    compute = {name: facts[name] for name in ("device", "precision", "steps") if name in facts}
    return {
        "recipe": hide_places(config),
        "compute": {**compute, "hours": round(hours, 4), "versions": facts.get("versions", {})},
        "results": _results(run, facts["steps"]),
        "citation": citation(facts.get("task", "")),
    }


def _results(run: Path, step: int) -> dict[str, Any]:
    """The last health and probe numbers up to a step, and what a comparison found, with its interval."""
    found: dict[str, Any] = {}
    lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").is_file() else []
    for line in lines:
        values = json.loads(line)
        if values.get("step", 0) > step:
            continue
        found |= {name: value for name, value in values.items() if name.startswith(("health/", "probe/", "val/"))}
    for table in (run / "table.json", run.parent / "table.json"):
        if table.is_file():
            content = json.loads(table.read_text())
            found |= {name: content[name] for name in ("metric", "difference", "verdict") if name in content}
            break
    return found
