"""What must be done to an image before a model may see it, as plain data that travels with the model."""

from collections.abc import Mapping
from typing import Any

from ssl_med.data.intensity import Scale, Statistics, Windows, scale_of

_UNKNOWN = Statistics(0.0, 1.0, 0.0, 1.0, 0.0, 1.0)
_AXES = {2: "(c, y, x)", 3: "(c, z, y, x)", 4: "(c, t, z, y, x)"}
_PER_IMAGE = {
    "foreground": (
        "per image: low = 0.5th percentile of all voxels; foreground = voxels above the mean of the image; high = "
        "99.5th percentile of the foreground; (clip(voxel, low, high) - mean) / sd, with mean and standard deviation "
        "of the clipped foreground"
    ),
    "unit": (
        "8-bit images: voxel / 255; others per image: (clip(voxel, low, high) - low) / (high - low), with low = 0.5th "
        "percentile of all voxels and high = 99.5th percentile of the voxels above the mean of the image"
    ),
    "voi": (
        "per image: the first window of its DICOM header (centre, width and function, PS3.3 C.11.2.1.2; of a volume "
        "that of the middle slice), to [0, 1]"
    ),
}
_AUTO = {
    "CT": "ct",
    **dict.fromkeys(("CR", "DX", "MG", "PX", "IO", "XA", "RF", "RG", "XR"), "unit"),
    "PT": "suv where the 99.5th percentile of the voxels is at most 100, else foreground",
}


def preprocessing(card: Mapping[str, Any]) -> dict[str, Any]:
    """Axes, orientation, spacing, size, intensity with its numbers, and what the classes are called.

    Args:
        card: of a native export; ``input`` and ``data`` are read.
    """
    facts = card["input"]
    prepared = facts.get("prepared") or {}
    return {
        "axes": _AXES[facts["spatial_dims"]],
        "orientation": (prepared.get("orientation") or "RAS") if facts["spatial_dims"] > 2 else "as stored",
        "channels": facts["channels"],
        "channel_order": "as stored; where intensity is several windows, all windows of the first channel come first",
        "crop": list(facts["crop"]),
        "padding": "smaller images are padded behind with the scaled value of the lowest intensity",
        "spacing_mm": facts.get("fixed_spacing_mm") or prepared.get("spacing"),
        "median_spacing_mm": facts.get("median_spacing_mm"),
        "intensity": _intensity(facts["intensity"], list((card.get("data") or {}).get("modalities", {}))),
        "class_names": list(facts.get("class_names") or []),
    }


def _intensity(policy: str, modalities: list[str]) -> dict[str, Any]:
    if policy != "auto":
        return _rule(policy)
    found = {name: _AUTO.get(name, "unit where voxels are 8-bit, else foreground") for name in modalities}
    used = {rule for text in found.values() for rule in ("ct", "suv", "unit", "foreground") if rule in text.split()}
    return {"rule": "auto", "by_modality": found, "rules": {rule: _rule(rule) for rule in sorted(used)}}


_BENT = "; 1 / (1 + exp(-x)) of that where sigmoid is true"


def _rule(policy: str) -> dict[str, Any]:
    if policy in _PER_IMAGE:
        return {"rule": policy, "formula": _PER_IMAGE[policy]}
    scale = scale_of(policy, "", "float32", _UNKNOWN)
    bent = any(part.sigmoid for part in scale.parts)
    return {
        "rule": policy,
        "formula": "(clip(voxel, low, high) - shift) * factor, one channel for each entry" + _BENT * bent,
        "scales": [_numbers(part) for part in scale.parts],
    }


def _numbers(scale: Scale) -> dict[str, float | bool]:
    straight = {"low": scale.low, "high": scale.high, "shift": scale.shift, "factor": scale.factor}
    return straight | ({"sigmoid": True} if scale.sigmoid else {})


def fixed_scale(card: Mapping[str, Any]) -> Scale | Windows | None:
    """The scale of all images, where the rule has numbers of its own; None where it asks each image."""
    policy, modalities = card["input"]["intensity"], list((card.get("data") or {}).get("modalities", {}))
    if policy == "auto" and modalities == ["CT"]:
        policy = "ct"
    if policy in ("auto", *_PER_IMAGE):
        return None
    return scale_of(policy, "", "float32", _UNKNOWN)
