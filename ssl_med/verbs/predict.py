"""``ssl-med predict``: a fine-tuned model on files it has never seen."""

from pathlib import Path
from typing import Any


def predict(model: str | Path, data: str | Path, out: str | Path) -> Path:
    """Predict every image of a folder (or one file).

    Label maps are written on the source's own grid, as NIfTI for volumes (also of NRRD, MetaImage and DICOM sources: in
    RAS order, at the same world coordinates) and PNG for images, under the source's name; probabilities of classes,
    grades or findings, or the number itself (``value``), go into ``predictions.csv``. Boxes go into ``boxes.csv``, a
    line each, in voxels as the source's file counts them and in mm of its world; an image in which none was found has a
    line without numbers. Where the model was trained on another grid (``prepare --spacing``, ``--orientation``,
    ``data.crop_mm``), images are brought to it as they were for training, and every voxel of the source takes the label
    of the nearest voxel there.

    Args:
        model: run or export folder of a fine-tuning.
        data: folder of scans, or one file.
        out: folder of the predictions.

    Returns:
        The folder.

    Raises:
        UserError: no image found, or none that the model can take.
    """
    from ssl_med.data.index import find_images
    from ssl_med.data.record import Unreadable
    from ssl_med.errors import UserError
    from ssl_med.evaluate import best_device
    from ssl_med.exports import load_task, read_card
    from ssl_med.verbs.found_boxes import write_boxes

    card, task = read_card(model), load_task(str(model)).to(best_device())
    if grid := _other_grid(card):
        print(f"the model was trained on {grid}: label maps are brought back to the source's grid by nearest voxel")
    data, out = Path(data), Path(out)
    records = list(find_images(data)) if data.exists() else []
    if not records:
        raise UserError(f"{data}: no image found")
    out.mkdir(parents=True, exist_ok=True)
    done, lines, boxes, written = 0, [], [], set()
    for record in records:
        try:
            image = _admitted(record, card)
            found = _predict_one(task, card, image)
        except Unreadable as error:
            print(f"  not predicted: {record.name}: {error}")
            continue
        done += 1
        if found.ndim == 1:
            lines.append([record.name, *[f"{p:.6f}" for p in found]])
        elif found.ndim == 2:
            boxes.append((record.name, found))
        else:
            _write_map(found[0], record, image, out, written)
    if not done:
        raise UserError(f"{data}: none of the {len(records)} images can be predicted")
    if lines:
        _write_table(lines, _column_names(task.answers, card["input"], len(lines[0]) - 1), out / "predictions.csv")
    if boxes:
        write_boxes(boxes, card["input"].get("box_names") or [], out / "boxes.csv")
    print(f"predicted {done} of {len(records)} images: {out}")
    return out


def _other_grid(card: dict[str, Any]) -> str:
    """The grid that images were brought to for training, in words; empty where they kept their own."""
    facts = card["input"]
    prepared = facts.get("prepared") or {}
    if fixed := facts.get("fixed_spacing_mm"):
        return f"crops of {fixed} mm per voxel (data.crop_mm)"
    if prepared.get("spacing"):
        return f"images resampled to {prepared['spacing']} mm (prepare --spacing)"
    if prepared.get("orientation") not in (None, "RAS"):
        return f"images turned to {prepared['orientation']} (prepare --orientation)"
    return ""


def _admitted(record: Any, card: dict[str, Any]) -> Any:
    """The image of a record, with its modality settled; Unreadable where the model cannot take it."""
    from dataclasses import replace

    from ssl_med.data.intensity import channels_of
    from ssl_med.data.kinds import as_grey, is_grey
    from ssl_med.data.readers import read
    from ssl_med.data.record import Unreadable

    image, facts = read(record), card["input"]
    if facts["channels"] == channels_of(facts["intensity"], 1) and is_grey(image):
        image = as_grey(image)
    axes, channels = image.array.ndim - 1, image.array.shape[0]
    if (axes, channels_of(facts["intensity"], channels)) != (facts["spatial_dims"], facts["channels"]):
        raise Unreadable(f"{axes}D with {channels} channels is not what the model was trained on")
    modality = _modality(image.modality, card)
    if modality is None:
        raise Unreadable("its modality is unknown, and the model was trained on several with CT")
    return replace(image, modality=modality)


def _modality(found: str, card: dict[str, Any]) -> str | None:
    """What the file says, else the only modality of the training; None where a guess could scale CT wrongly."""
    trained = list(card["data"]["modalities"])
    if found or (len(trained) > 1 and "CT" not in trained):
        return found
    return trained[0] if len(trained) == 1 else None


def _predict_one(task: Any, card: dict[str, Any], image: Any) -> Any:
    """Probabilities (k,), boxes (m, 4n + 2) or label map (1, \\*space) of one image, on the grid of its reader."""
    import torch

    from ssl_med.data.settings import regrid
    from ssl_med.evaluate import best_device, to_device
    from ssl_med.verbs.found_boxes import on_source

    kept = regrid(image, _settings(card))
    batch, shown = _batch_of(task, card, kept, image.modality)
    with torch.no_grad():
        found = task.predict(to_device(batch, best_device()))[0].cpu().numpy()
    if found.ndim == 1:
        return found
    spacing = tuple(batch["spacing"][0].tolist())
    if found.ndim == 2:
        return on_source(found, shown, spacing, image, kept)
    found = found[(slice(None), *map(slice, shown))]
    return _brought_back(found, spacing, image, kept, _settings(card))


def _batch_of(task: Any, card: dict[str, Any], kept: Any, modality: str) -> tuple[Any, list[int]]:
    """A whole image as it was shown in training, and how many voxels of it are not padding."""
    import numpy as np
    import torch

    from ssl_med.data.crops import straight_region, whole_region
    from ssl_med.data.filling import fill_image
    from ssl_med.data.intensity import channels_of, scale_of, statistics

    facts, space, own = card["input"], list(kept.array.shape[1:]), list(kept.spacing)
    found = statistics(kept.array)
    scale = scale_of(facts["intensity"], modality, kept.array.dtype.name, found, kept.window)
    spacing = facts.get("fixed_spacing_mm") or own
    shown = np.ceil(np.array(space) * own / np.array(spacing) - 1e-6).astype(int).tolist()
    sizes = zip(shown, facts["crop"], task.backbone.multiple(), strict=True)
    size = [-(-max(length, low) // multiple) * multiple for length, low, multiple in sizes]
    if facts.get("fixed_spacing_mm"):
        region = whole_region(space, own, size, spacing)
    else:
        region = straight_region(space, own, [0] * len(size), size)
    picture = torch.empty(1, channels_of(facts["intensity"], len(kept.array)), *size)
    fill_image(picture[0].numpy(), kept.array, region, scale)
    return {"image": picture, "spacing": torch.tensor([spacing], dtype=torch.float32)}, shown


def _brought_back(labels: Any, spacing: tuple[float, ...], image: Any, kept: Any, settings: Any) -> Any:
    """Labels (1, \\*space) with voxels of ``spacing`` on the grid of the source."""
    from ssl_med.data.resample import from_orientation, nearest_onto

    labels, own = nearest_onto(labels, spacing, kept.array.shape[1:], kept.spacing), kept.spacing
    if settings.orientation != "RAS" and image.affine is not None and labels.ndim == 4:
        labels = from_orientation(labels, settings.orientation)
        own = tuple(new or old for new, old in zip(settings.spacing or image.spacing, image.spacing, strict=True))
    return nearest_onto(labels, own, image.array.shape[1:], image.spacing)


def _settings(card: dict[str, Any]) -> Any:
    """How images were brought to the grid of the training's store."""
    from ssl_med.data.settings import Settings

    prepared = card["input"].get("prepared") or {}
    spacing = tuple(float(mm) for mm in prepared.get("spacing") or ())
    return Settings(spacing=spacing, order=prepared.get("order") or 1, orientation=prepared.get("orientation") or "RAS")


def _write_map(labels: Any, record: Any, image: Any, out: Path, written: set[Path]) -> None:
    """One label map under the source's name, on the source's grid, in the smallest unsigned integers that hold it."""
    import nibabel
    import numpy as np

    from ssl_med.data.readers.nifti import restore

    labels = labels.astype(np.min_scalar_type(int(labels.max())))
    target = _target(record.name, out, ".png" if labels.ndim == 2 else ".nii.gz", written)
    target.parent.mkdir(parents=True, exist_ok=True)
    if labels.ndim == 2:
        from PIL import Image as Picture

        Picture.fromarray(labels).save(target)
    elif record.reader == "nifti":
        nibabel.save(restore(labels, record.files[0]), target)
    else:
        affine = np.eye(4) if image.affine is None else image.affine
        nibabel.save(nibabel.Nifti1Image(labels.transpose(2, 1, 0), affine), target)


def _target(name: str, out: Path, suffix: str, written: set[Path]) -> Path:
    """Where the map of a source goes: its name with another suffix, or behind its whole name where that is taken."""
    source, _, item = name.partition("#")
    path, item = out / source, f"_{item.replace('/', '_')}" if item else ""
    stem = Path(path.stem).stem if path.suffix == ".gz" else path.stem
    target = path.with_name(f"{stem}{item}{suffix}")
    if target in written:
        target = path.with_name(f"{path.name}{item}{suffix}")
    written.add(target)
    return target


def _column_names(answers: str, facts: dict[str, Any], count: int) -> list[str]:
    """What each number of a prediction is: a class, a grade, a finding, or the value itself."""
    if answers == "value":
        return ["value"]
    names, kind = facts.get(answers) or [], "finding" if answers == "finding_names" else "class"
    return names if len(names) == count else [f"{kind}_{i}" for i in range(count)]


def _write_table(lines: list[list[str]], names: list[str], path: Path) -> None:
    import csv

    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["image", *names], *lines])
