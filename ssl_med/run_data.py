"""What a run asks of its data, one store or several: do they fit, are they the same still, what is said of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ssl_med.backbones import Backbone
from ssl_med.backbones.shared_vit import SharedViT, of_rank
from ssl_med.data.alternating import AlternatingData
from ssl_med.data.manifest import fingerprint, lock_name, read_lock
from ssl_med.data.module import StoreData
from ssl_med.data.moments import CROPS, image_moments
from ssl_med.data.several import SeveralStores
from ssl_med.errors import UserError
from ssl_med.exports import export
from ssl_med.recipe import arguments, locate
from ssl_med.tasks import Choice, PretextTask, SupervisedTask, Task

Data = StoreData | SeveralStores


def lock_data(module: Data, folder: Path) -> None:
    """Write which images a run uses, one file for each store; a run that goes on must find the same ones.

    Raises:
        UserError: a store has been prepared again with other images since the run began.
    """
    for number, part in enumerate(module.parts):
        rows, lock = part.rows("train"), folder / lock_name(number)
        if not lock.is_file():
            part.store.lock(folder, rows, number)
        elif read_lock(lock)[1]["fingerprint"] != fingerprint(rows):
            raise UserError(
                f"{part.folder} has other training images than when the run in {folder} began, so positions in the "
                "order mean other images now; begin anew with --overwrite, or give another --out"
            )


def targets_of(module: StoreData) -> np.ndarray | None:
    """Classes, findings or numbers of the labelled training images, see :class:`ssl_med.tasks.Plan`."""
    rows = module.rows("train")
    if module.targets in ("label", "value"):
        return rows.column(module.targets)
    return np.array([row.labels for row in rows]) if module.targets == "labels" else None


def backbone_of(task: Task) -> Backbone:
    """The backbone that a task trains."""
    backbone = task.exports()["backbone"] if isinstance(task, PretextTask) else getattr(task, "backbone", None)
    if not isinstance(backbone, Backbone):
        raise UserError(f"{type(task).__name__} has no part named backbone")
    return backbone


def check_fit(backbone: Backbone, module: Data) -> None:
    """Refuse data that the backbone cannot take.

    Raises:
        UserError: other axes or channels, or a crop that is no multiple of the patch or the coarsest stride.
    """
    name = type(backbone).__name__
    for part in module.parts:
        axes, one = part.store.spatial_dims, of_rank(backbone, part.store.spatial_dims)
        if (one.spatial_dims, one.in_channels) != (axes, part.channels):
            raise UserError(
                f"backbone: {name} takes {one.spatial_dims}D images with {one.in_channels} channels, "
                f"{part.folder} gives {axes}D with {part.channels} (data.intensity: {part.intensity})"
            )
        if any(size % step for size, step in zip(part.crop, one.multiple(), strict=True)):
            raise UserError(f"data.crop: {part.crop} must be a multiple of {list(one.multiple())} for {name}")


def trainer_settings(settings: Mapping[str, Any], module: Data) -> dict[str, Any]:
    """Those of the config; where several kinds of batches come in turn, a step leaves some weights without gradient."""
    found = dict(settings)
    many = found.get("devices") not in (1, "1", [0]) or (found.get("num_nodes") or 1) > 1
    if isinstance(module, AlternatingData) and many and found.get("strategy") in ("auto", "ddp", None):
        found["strategy"] = "ddp_find_unused_parameters_true"
    return found


def standardise(place: dict[str, Any], module: Data, run: Path | None = None) -> dict[str, Choice]:
    """Fill in what the images look like, in place, where a backbone asks for it and nobody has said.

    Args:
        place: section ``task`` of resolved settings.
        module: the images, of which :data:`ssl_med.data.moments.CROPS` crops are looked at.
        run: folder of a run that may have begun: it goes on with what was measured then.

    Returns:
        What was filled in, with its reason.
    """
    backbone = place["init_args"].get("backbone")
    if not isinstance(backbone, dict) or "image_mean" not in arguments(locate(backbone["class_path"], "task.backbone")):
        return {}
    settings = backbone.setdefault("init_args", {})
    if settings.get("image_mean") is not None or settings.get("image_std") is not None:
        return {}
    begun = _begun_with(run)
    mean, std = (begun.get("image_mean"), begun.get("image_std")) if begun else image_moments(module.parts)
    if mean is None:  # it began without
        return {}
    settings |= {"image_mean": mean, "image_std": std}
    looked = f"of {CROPS} training crops{' of each store' if len(module.parts) > 1 else ''}"
    why = "around zero the tokens of different images differ most"
    return {
        "backbone.image_mean": Choice(mean, f"mean {looked}; {why}"),
        "backbone.image_std": Choice(std, f"standard deviation {looked}"),
    }


def _begun_with(run: Path | None) -> dict[str, Any]:
    """Settings of the backbone of a run that has begun; nothing without one."""
    file = None if run is None else run / "config.yaml"
    saved = yaml.safe_load(file.read_text()) if file is not None and file.is_file() else None
    task = saved.get("task") if isinstance(saved, dict) else None
    backbone = (task or {}).get("init_args", {}).get("backbone")
    return backbone.get("init_args") or {} if isinstance(backbone, dict) else {}


_TRAINING = (
    *("task", "steps", "planned_steps", "batch_size", "seed", "device", "threads", "precision", "seconds", "version"),
    "init_from",
)
"""What a card says of a training."""


def export_task(task: Task, module: Data, folder: Path, facts: dict[str, Any]) -> list[Path]:
    """Write what a task leaves: a backbone (and more) after pretraining, the whole task after fine-tuning.

    What was trained on images and volumes leaves two ordinary backbones, ``backbone_2d`` and ``backbone_3d``.
    """
    training = {name: facts[name] for name in _TRAINING if facts.get(name) is not None}
    first = module.parts[0]

    def card(part: StoreData) -> dict[str, Any]:
        return {"input": input_facts(part), "training": training, "data": facts["data"]}

    task.eval()
    if isinstance(task, SupervisedTask):
        return [export({"task": task.merged()}, folder / "task", card(first))]
    if not isinstance(task, PretextTask):
        return []
    parts = task.exports()
    backbone, kinds = parts["backbone"], {part.store.spatial_dims: part for part in reversed(module.parts)}
    if not isinstance(backbone, SharedViT):
        return [export(parts, folder / "backbone", card(first))]
    return [
        export({"backbone": backbone.rank(axes)}, folder / f"backbone_{axes}d", card(part))
        for axes, part in sorted(kinds.items())
    ]


def input_facts(module: StoreData) -> dict[str, Any]:
    """What an image must look like to be understood: axes, channels, crop, intensity rule, spacing seen in training."""
    spacing = module.spacing or np.quantile(module.rows("train").lengths("spacing"), 0.5, 0, method="lower").tolist()
    return {
        "spatial_dims": module.store.spatial_dims,
        "channels": module.channels,
        "crop": module.crop,
        "intensity": module.intensity,
        "median_spacing_mm": [round(s, 4) for s in spacing],
        "fixed_spacing_mm": module.spacing,
        "prepared": {name: module.store.facts.get(name) for name in ("spacing", "orientation", "order")},
        "class_names": module.store.class_names,
        "finding_names": module.store.facts.get("finding_names") or [],
        "box_names": module.store.facts.get("box_names") or [],
    }
