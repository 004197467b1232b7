"""The folder that MONAI calls a bundle: weights, what they expect, and a config of plain data."""

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssl_med import __version__
from ssl_med.data.intensity import Scale
from ssl_med.files import write_json
from ssl_med.formats.preprocessing import fixed_scale, preprocessing

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"


def write_bundle(
    folder: Path, network: nn.Module, definition: dict[str, Any], card: Mapping[str, Any], output: list[int]
) -> None:
    """Write ``models/model.pt``, ``configs/metadata.json`` and ``configs/inference.json``.

    Args:
        folder: of the bundle.
        network: whose weights are kept.
        definition: of the network, in the grammar of MONAI's configs.
        card: of the native export.
        output: shape of the network's first answer for one image.
    """
    (folder / "models").mkdir(parents=True, exist_ok=True)
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in network.state_dict().items()}
    torch.save(state, folder / "models" / "model.pt")
    name = definition["_target_"].rpartition(".")[-1]
    write_json(folder / "configs" / "metadata.json", _metadata(card, name, output))
    write_json(folder / "configs" / "inference.json", {"network_def": definition, "preprocessing": _transforms(card)})


def _metadata(card: Mapping[str, Any], name: str, shape: list[int]) -> dict[str, Any]:
    facts, licence = preprocessing(card), card.get("licence") or {}
    modality = ", ".join((card.get("data") or {}).get("modalities") or ["unknown"])
    image = {
        "type": "image",
        "format": "magnitude",
        "modality": modality,
        "num_channels": facts["channels"],
        "spatial_shape": facts["crop"],
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
        "channel_def": {str(i): "image" for i in range(facts["channels"])},
    }
    feature = {
        "type": "feature",
        "format": "features",
        "num_channels": shape[0],
        "spatial_shape": shape[1:],
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
        "channel_def": {},
    }
    return {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": f"exported by ssl_med {__version__}"},
        "monai_version": metadata.version("monai"),
        "pytorch_version": metadata.version("torch"),
        "numpy_version": metadata.version("numpy"),
        "required_packages_version": {"nibabel": metadata.version("nibabel")},
        "name": f"{name}, pretrained without labels",
        "task": "Features for fine-tuning",
        "description": f"Weights of {name} from self-supervised pretraining with ssl_med.",
        "authors": "not stated",
        "copyright": f"Weights: {licence.get('weights') or 'not stated'}",
        "data_source": "see README.md",
        "data_type": "see README.md",
        "intended_use": "Research: a starting point for fine-tuning. Not a medical device.",
        "preprocessing": facts,
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": feature}},
    }


def _transforms(card: Mapping[str, Any]) -> dict[str, Any]:
    """MONAI's transforms from a file to our input, as far as they are the same for every image."""
    facts, steps = preprocessing(card), []
    spacing = facts["spacing_mm"]
    steps.append({"_target_": "monai.transforms.LoadImage", "image_only": True, "ensure_channel_first": True})
    if card["input"]["spatial_dims"] == 3:
        axes = {"axcodes": facts["orientation"], "labels": [["L", "R"], ["P", "A"], ["I", "S"]]}
        steps.append({"_target_": "monai.transforms.Orientation", **axes})
        if spacing:
            sizes = [spacing] * 3 if isinstance(spacing, int | float) else list(reversed(spacing))
            steps.append({"_target_": "monai.transforms.Spacing", "pixdim": sizes})
        steps.append({"_target_": "monai.transforms.Transpose", "indices": [0, 3, 2, 1]})
    else:
        steps.append({"_target_": "monai.transforms.Transpose", "indices": [0, 2, 1]})
    scale = fixed_scale(card)
    if isinstance(scale, Scale) and not scale.sigmoid:  # MONAI has no such transform: the metadata tell
        steps.append(_scaled(scale))
    return {"_target_": "monai.transforms.Compose", "transforms": steps}


def _scaled(scale: Scale) -> dict[str, Any]:
    low, high = ((limit - scale.shift) * scale.factor for limit in (scale.low, scale.high))
    limits = {"a_min": scale.low, "a_max": scale.high, "b_min": low, "b_max": high, "clip": True}
    return {"_target_": "monai.transforms.ScaleIntensityRange", **limits}
