"""To timm: a folder for ``timm.create_model("local-dir:FOLDER")``, ready for the hub, whose weights fit by name too."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_med.backbones import TimmBackbone, ViT
from ssl_med.files import write_json
from ssl_med.formats.base import Written, backbone_of, refuse
from ssl_med.formats.completed import completed, seeded
from ssl_med.formats.preprocessing import preprocessing
from ssl_med.formats.vit_layout import (
    fold_layer_scale,
    image_space,
    misfits,
    plain_state,
    with_epsilon,
    with_prefix_rows,
)
from ssl_med.presets import PRESETS

NEEDS = ("timm",)

_NAMED = {"tiny": 16, "small": 16, "base": 16, "large": 16, "huge": 14}
"""timm's ``vit_SIZE_patchN_224``: which patch each is registered with; all settings are given beside the name."""

_EPSILON = 1e-6
"""Of the norms of timm's ViTs."""

_LOAD = """import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True{more})
# the same by name and file:
model = timm.create_model("{name}", checkpoint_path="FOLDER/model.safetensors", {arguments})"""


def write(part: nn.Module, card: Mapping[str, Any], folder: Path) -> Written:
    """Write ``model.safetensors`` and ``config.json`` in the layout of timm's hub."""
    backbone, notes = backbone_of(part)
    if isinstance(backbone, ViT):
        name, arguments = _architecture(backbone, card)
        model, state = _create(name, arguments), _vit_state(backbone, card)
        untrained = completed(model, state)
        pooled = "the class token" if backbone.pooling == "class" else "the mean of the patch tokens"
        notes += [f"The output is our pooled feature: {pooled}, normalised."]
        more = {}
    elif isinstance(backbone, TimmBackbone):
        name, arguments = backbone.name, _timm_arguments(backbone)
        model = seeded(lambda: _create(name, arguments))
        untrained = completed(model, _original_names(backbone, model))
        notes += ["Our maps are those of `features_only=True`."]
        more = {"features_only": True}
    else:
        refuse("timm", [f"{type(backbone).__name__} is no model of timm"])
        raise AssertionError
    _save(model, name, arguments, card, folder)
    shown = ", ".join(f"{key}={value!r}" for key, value in (arguments | more).items())
    load = _LOAD.format(more="".join(f", {k}={v!r}" for k, v in more.items()), name=name, arguments=shown)
    return Written("timm", name, load, notes + _intensity_note(card), untrained, {"library_name": "timm"})


def _create(name: str, arguments: dict[str, Any]) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=False, **arguments)


def _architecture(vit: ViT, card: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A registered name, and what must be told beside it."""
    space, spacing = image_space(card["input"])
    axes = [] if vit.spatial_dims == 2 else [f"timm's ViTs are 2D, this one has {vit.spatial_dims} axes"]
    refuse("timm", axes or misfits(vit, space, spacing))
    same = [
        size
        for size in _NAMED
        if all(PRESETS[f"vit_{size}"][key] == getattr(vit, key) for key in ("embed_dim", "depth", "heads"))
    ]
    size = same[0] if same else "base"
    arguments = {
        "in_chans": vit.in_channels,
        "num_classes": 0,
        "img_size": space,
        "patch_size": list(vit.patch),
        "embed_dim": vit.embed_dim,
        "depth": vit.depth,
        "num_heads": vit.heads,
        "mlp_ratio": vit.mlp_ratio,
        "init_values": vit.layer_scale if vit.norm_eps == _EPSILON else None,
        "class_token": vit.class_token,
        "reg_tokens": vit.registers,
        "global_pool": "token" if vit.pooling == "class" else "avg",
        "fc_norm": False,
    }
    return f"vit_{size}_patch{_NAMED[size]}_224", {k: v for k, v in arguments.items() if v is not None}


def _vit_state(vit: ViT, card: Mapping[str, Any]) -> dict[str, Tensor]:
    state = plain_state(vit, *image_space(card["input"]))
    if vit.norm_eps != _EPSILON:
        state = with_epsilon(fold_layer_scale(state), vit.norm_eps, _EPSILON)
    return {**state, "pos_embed": with_prefix_rows(state["pos_embed"], vit.prefix)}


def _timm_arguments(backbone: TimmBackbone) -> dict[str, Any]:
    size = {"img_size": backbone.image_size} if backbone.image_size else {}
    return {"in_chans": backbone.in_channels, "num_classes": 0, **size}


def _original_names(backbone: TimmBackbone, model: nn.Module) -> dict[str, Tensor]:
    """Weights under the names of the whole model; timm's feature extractors call ``stages.0`` ``stages_0``."""
    found = {name.removeprefix("model."): tensor for name, tensor in backbone.model.state_dict().items()}
    names = {}
    for name in model.state_dict():
        for candidate in (name, name.replace(".", "_", 1)):
            if candidate in found:
                names[name] = found.pop(candidate)
                break
    refuse("timm", [f"weights without a place in {backbone.name}: {', '.join(sorted(found)[:5])}"] if found else [])
    return names


def _save(model: nn.Module, name: str, arguments: dict[str, Any], card: Mapping[str, Any], folder: Path) -> None:
    """The hub's two files; voxels come scaled, so timm's own normalisation is the identity."""
    from timm.models import save_for_hf

    channels, space = card["input"]["channels"], list(card["input"]["crop"])
    save_for_hf(model, str(folder), model_args=arguments, safe_serialization=True)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architecture": name, "preprocessing": preprocessing(card)}
    config["pretrained_cfg"] |= {
        "input_size": [channels, *space],
        "mean": [0.0] * channels,
        "std": [1.0] * channels,
        "num_classes": 0,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
    }
    config["pretrained_cfg"].pop("url", None)
    write_json(folder / "config.json", config)


def _intensity_note(card: Mapping[str, Any]) -> list[str]:
    rule = preprocessing(card)["intensity"]["rule"]
    return [
        f"timm's transforms divide 8-bit images by 255 and, here, change no more; the intensity rule of the training "
        f"was `{rule}` (its numbers: `preprocessing` in `config.json`)."
    ]


def opens(folder: Path) -> None:
    """Load what lies in a folder, as its client does."""
    import timm

    with torch.random.fork_rng(devices=[]):
        timm.create_model(f"local-dir:{folder}", pretrained=True)
