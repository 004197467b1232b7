"""``ssl-med predict``: a fine-tuned model on files it has never seen."""

from pathlib import Path
from typing import Any


def predict(model: str | Path, data: str | Path, out: str | Path) -> Path:
    """Predict every image of a folder (or one file).

    Label maps are written on the source's own grid, as NIfTI for volumes and PNG for images, under the source's name;
    class probabilities go into ``predictions.csv``.

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

    card, task = read_card(model), load_task(str(model)).to(best_device())
    if grid := _other_grid(card):
        raise UserError(f"{model} was trained on {grid}, and predict keeps each image's own grid: fine-tune without it")
    data, out = Path(data), Path(out)
    records = list(find_images(data)) if data.exists() else []
    if not records:
        raise UserError(f"{data}: no image found")
    out.mkdir(parents=True, exist_ok=True)
    done, lines, written = 0, [], set()
    for record in records:
        try:
            image = _admitted(record, card)
        except Unreadable as error:
            print(f"  not predicted: {record.name}: {error}")
            continue
        found, space = _predict_one(task, card, image), image.array.shape[1:]
        done += 1
        if found.ndim == 1:
            lines.append([record.name, *[f"{p:.6f}" for p in found]])
        else:
            _write_map(found[(0, *[slice(n) for n in space])], record, image, out, written)
    if not done:
        raise UserError(f"{data}: none of the {len(records)} images can be predicted")
    if lines:
        _write_table(lines, card["input"]["class_names"], out / "predictions.csv")
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
    from ssl_med.data.readers import read
    from ssl_med.data.record import Unreadable

    image, facts = read(record), card["input"]
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
    """Probabilities (k,) or label map (1, \\*space), padded behind, of one image as its reader gave it."""
    import numpy as np
    import torch

    from ssl_med.data.intensity import scale_of, statistics
    from ssl_med.evaluate import best_device, to_device

    facts = card["input"]
    scale = scale_of(facts["intensity"], image.modality, image.array.dtype.name, statistics(image.array))
    sizes = zip(image.array.shape[1:], facts["crop"], task.backbone.multiple(), strict=True)
    wanted = [-(-max(size, low) // multiple) * multiple for size, low, multiple in sizes]
    rest = [(0, 0), *[(0, w - s) for w, s in zip(wanted, image.array.shape[1:], strict=True)]]
    batch: Any = {
        "image": torch.from_numpy(np.pad(scale(image.array), rest, constant_values=scale.background))[None],
        "spacing": torch.tensor([image.spacing], dtype=torch.float32),
    }
    with torch.no_grad():
        return task.predict(to_device(batch, best_device()))[0].cpu().numpy()


def _write_map(labels: Any, record: Any, image: Any, out: Path, written: set[Path]) -> None:
    """One label map under the source's name, on the source's grid."""
    import nibabel
    import numpy as np

    from ssl_med.data.readers.nifti import restore

    labels = labels.astype(np.uint8)
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


def _write_table(lines: list[list[str]], class_names: list[str], path: Path) -> None:
    import csv

    names = class_names or [str(i) for i in range(len(lines[0]) - 1)]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["image", *names], *lines])
