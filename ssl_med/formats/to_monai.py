"""To MONAI: a bundle without expressions whose ``models/model.pt`` loads strictly into MONAI's own class."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_med.backbones import Backbone, MonaiBackbone, ViT
from ssl_med.formats.base import Written, backbone_of, refuse
from ssl_med.formats.completed import completed, seeded
from ssl_med.formats.monai_bundle import write_bundle
from ssl_med.formats.vit_layout import fold_layer_scale, image_space, misfits, plain_state, with_epsilon

NEEDS = ("monai",)

_EPSILON = 1e-5
"""Of MONAI's layer norms."""

_LOAD = """import torch
from monai.networks.nets import {name}

network = {name}({arguments})
network.load_state_dict(torch.load("FOLDER/models/model.pt", weights_only=True), strict=True)"""


def write(part: nn.Module, card: Mapping[str, Any], folder: Path) -> Written:
    """Write the bundle: ``models/model.pt`` (plain tensors), ``configs/metadata.json``, ``configs/inference.json``."""
    backbone, notes = backbone_of(part)
    name, arguments = _definition(backbone, card)
    network = seeded(lambda: build_network(name, arguments))
    untrained = completed(network, _state(backbone, card))
    definition = {"_target_": f"monai.networks.nets.{name}", **arguments}
    write_bundle(folder, network, definition, card, _output(backbone, card["input"]["crop"]))
    notes += _notes(backbone)
    load = _LOAD.format(name=name, arguments=", ".join(f"{key}={value!r}" for key, value in arguments.items()))
    return Written("monai", name, load, notes, untrained, {"library_name": "monai"})


def build_network(name: str, arguments: dict[str, Any]) -> nn.Module:
    """A network of ``monai.networks.nets``."""
    import monai.networks.nets as nets

    return getattr(nets, name)(**arguments).eval()


def _definition(backbone: Backbone, card: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Which class of MONAI computes this backbone, and its arguments."""
    if isinstance(backbone, ViT):
        return "ViT", _vit_arguments(backbone, card)
    if not isinstance(backbone, MonaiBackbone):
        refuse("monai", [f"{type(backbone).__name__} is no network of MONAI"])
        raise AssertionError
    channels: dict[str, Any] = {"spatial_dims": backbone.spatial_dims, "in_channels": backbone.in_channels}
    if backbone.name == "SwinUNETR":
        size = {"out_channels": 1, "feature_size": backbone.width, "use_v2": backbone.swin_v2}
        return "SwinUNETR", {**channels, **size}
    if backbone.name == "SegResNet":
        return "SegResNet", {**channels, "init_filters": backbone.width, "out_channels": 1}
    steps, filters = [1, 2, 2, 2], [backbone.width * 2**i for i in range(4)]
    shape = {"kernel_size": [3] * 4, "strides": steps, "upsample_kernel_size": steps[1:]}
    return "DynUNet", {**channels, "out_channels": 1, **shape, "filters": filters, "res_block": True}


def _vit_arguments(vit: ViT, card: Mapping[str, Any]) -> dict[str, Any]:
    space, spacing = image_space(card["input"])
    reasons = misfits(vit, space, spacing)
    if vit.spatial_dims not in (2, 3):
        reasons.append(f"MONAI's ViT is 2D or 3D, this one has {vit.spatial_dims} axes")
    if vit.registers:
        reasons.append("MONAI's ViT has no registers")
    refuse("monai", reasons)
    head = {"classification": True, "num_classes": vit.embed_dim, "post_activation": "none"} if vit.class_token else {}
    return {
        "in_channels": vit.in_channels,
        "img_size": space,
        "patch_size": list(vit.patch),
        "hidden_size": vit.embed_dim,
        "mlp_dim": int(vit.embed_dim * vit.mlp_ratio),
        "num_layers": vit.depth,
        "num_heads": vit.heads,
        "spatial_dims": vit.spatial_dims,
        "qkv_bias": True,
        **head,
    }


def _output(backbone: Backbone, crop: list[int]) -> list[int]:
    """Shape of the first answer of MONAI's network for one image."""
    if not isinstance(backbone, ViT):
        return [1, *crop]
    tokens = [math.prod(size // p for size, p in zip(crop, backbone.patch, strict=True))]
    return [*([] if backbone.class_token else tokens), backbone.embed_dim]


def _state(backbone: Backbone, card: Mapping[str, Any]) -> dict[str, Tensor]:
    if isinstance(backbone, ViT):
        return _vit_state(backbone, card)
    found = backbone.network.state_dict()  # pyright: ignore
    if backbone.name == "SwinUNETR":
        return {f"swinViT.{name}": tensor for name, tensor in found.items()}
    if backbone.name == "SegResNet":
        return found
    last = len(backbone.network) - 1  # pyright: ignore
    places = {0: "input_block", last: "bottleneck", **{i: f"downsamples.{i - 1}" for i in range(1, last)}}
    return {_placed(name, places): tensor for name, tensor in found.items()}


def _placed(name: str, places: dict[int, str]) -> str:
    number, rest = name.split(".", 1)
    return f"{places[int(number)]}.{rest}"


_NAMES = {
    "patch_embed.proj": "patch_embedding.patch_embeddings",
    "pos_embed": "patch_embedding.position_embeddings",
    "attn.proj": "attn.out_proj",
    "mlp.fc1": "mlp.linear1",
    "mlp.fc2": "mlp.linear2",
}


def _vit_state(vit: ViT, card: Mapping[str, Any]) -> dict[str, Tensor]:
    """MONAI's names, its epsilon, and no layer scale."""
    state = fold_layer_scale(plain_state(vit, *image_space(card["input"])))
    found = {}
    for name, tensor in with_epsilon(state, vit.norm_eps, _EPSILON).items():
        for ours, theirs in _NAMES.items():
            name = name.replace(ours, theirs)
        found[name] = tensor
    if vit.class_token:  # a head that hands the class token on
        found["classification_head.weight"] = torch.eye(vit.embed_dim)
        found["classification_head.bias"] = torch.zeros(vit.embed_dim)
    return found


def _notes(backbone: Backbone) -> list[str]:
    if not isinstance(backbone, ViT):
        encoder = {
            "SwinUNETR": "`swinViT.`",
            "SegResNet": "`convInit.` and `down_layers.`",
            "DynUNet": "`input_block.`, `downsamples.` and `bottleneck.`",
        }
        name = str(backbone.name)
        return [f"Pretrained is the encoder, {encoder[name]}; the rest is what MONAI's constructor gives (seed 0)."]
    scale = (_EPSILON / backbone.norm_eps) ** 0.5
    notes = [
        f"Inside, tokens are {scale:.3f} times ours, which makes up for the epsilon of MONAI's norms; after the last "
        "norm they are equal."
    ]
    if backbone.class_token:
        notes += [
            "The first output is the normalised class token. UNETR has no class token: these weights do not fit it."
        ]
    else:
        notes += ["Fits UNETR(qkv_bias=True, ...) too: `unetr.vit.load_state_dict(state, strict=True)`."]
    return notes


def opens(folder: Path) -> None:
    """Load what lies in a folder, as its client does."""
    from monai.bundle.config_parser import ConfigParser

    parser = ConfigParser()
    parser.read_config(folder / "configs" / "inference.json")
    state = torch.load(folder / "models" / "model.pt", map_location="cpu", weights_only=True)
    seeded(lambda: parser.get_parsed_content("network_def")).load_state_dict(state, strict=True)
