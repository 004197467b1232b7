"""To nnU-Net v2: one checkpoint with a plan for ``nnUNetv2_train_pretrained``, which ``-pretrained_weights`` takes too.

nnU-Net lives in an environment of its own, so nothing of it is needed to write or to check the file.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssl_med.backbones import Backbone
from ssl_med.files import write_json
from ssl_med.formats.base import Written, backbone_of, refuse
from ssl_med.formats.nnunet_network import (
    IMPORTED,
    NETWORKS,
    Encoder,
    Network,
    architecture,
    decoder_state,
    encoder_from,
    encoder_state,
    network_of,
    with_second_names,
)
from ssl_med.formats.preprocessing import preprocessing

NEEDS = ()
CHECKPOINT, PLAN, ARCHITECTURE = "checkpoint_nnunet.pth", "adaptation_plan.json", "architecture.json"

_PRETRAINED = """\
# plans and preprocesses for this architecture, then fine-tunes (nnU-Net's main branch of 2026; release 2.8.1 lacks it)
nnUNetv2_extract_fingerprint -d ID && nnUNetv2_plan_experiment -d ID
nnUNetv2_preprocess_like_nnssl -d ID -n NAME -pc FOLDER/checkpoint_nnunet.pth -am {mode}
nnUNetv2_train_pretrained ID 3d_fullres FOLD -p ptPlans__NAME____...

"""
_WEIGHTS = """\
# with any plans whose configuration has the `architecture` of architecture.json, best with its `patch_size`
nnUNetv2_train ID {configuration} FOLD -p PLANS -pretrained_weights FOLDER/checkpoint_nnunet.pth"""


def write(part: nn.Module, card: Mapping[str, Any], folder: Path) -> Written:
    """Write ``checkpoint_nnunet.pth`` (plain tensors and data), ``architecture.json``, ``adaptation_plan.json``."""
    backbone, notes = backbone_of(part)
    encoder, network = _checked(backbone)
    patch, spacing = _patch(encoder, card), _spacing(encoder, card)
    decoder = decoder_state(encoder, network)
    checkpoint: dict[str, Any] = {
        "network_weights": with_second_names({**encoder_state(encoder), **decoder}),
        "citations": _citations(card),
    }
    folder.mkdir(parents=True, exist_ok=True)
    if encoder.spatial_dims == 3:
        plan = adaptation_plan(encoder, network, patch, spacing, list(card["input"]["crop"]))
        checkpoint["nnssl_adaptation_plan"] = plan
        write_json(folder / PLAN, plan)
    torch.save(checkpoint, folder / CHECKPOINT)
    write_json(folder / ARCHITECTURE, _configuration(encoder, network, patch, spacing))
    load = _WEIGHTS.format(configuration="3d_fullres" if encoder.spatial_dims == 3 else "2d")
    if encoder.spatial_dims == 3:
        load = _PRETRAINED.format(mode="like_pretrained" if spacing else "default_nnunet") + load
    notes += _notes(encoder, card)
    return Written("nnunet", network.name.rpartition(".")[-1], load, notes, sorted(decoder), language="bash")


def _checked(backbone: Backbone) -> tuple[Encoder, Network]:
    """The backbone and its network, if nnU-Net has one that can hold it."""
    network = network_of(backbone)
    if network is None or not isinstance(backbone, Encoder):
        name, ours = type(backbone).__name__, " or ".join(f"ssl_med.backbones.{n.encoder.__name__}" for n in NETWORKS)
        refuse("nnunet", [f"{name} is no encoder of nnU-Net; pretrain {ours} for it"])
        raise AssertionError
    reasons = []
    if any(step != 1 for step in backbone.pooling[0]):
        reasons.append(f"nnU-Net segments at full resolution, the first stage pools by {backbone.pooling[0]}")
    if len(backbone.widths) < 2:
        reasons.append("a U-Net has two stages or more, this encoder has one")
    refuse("nnunet", reasons)
    return backbone, network


def adaptation_plan(
    encoder: Encoder, network: Network, patch: list[int], spacing: list[float] | None, crop: list[int]
) -> dict[str, Any]:
    """Where which weights are, and for what network and images: what nnU-Net reads before it fine-tunes.

    Args:
        encoder: in 3D.
        network: of nnU-Net around it.
        patch: voxels along each axis that are recommended for fine-tuning.
        spacing: mm along each axis (z, y, x); None where images kept their own.
        crop: voxels along each axis in pretraining.
    """
    arguments = architecture(encoder, network)
    return {
        "architecture_plans": {
            "arch_class_name": network.name,
            "arch_kwargs": arguments,
            "arch_kwargs_requiring_import": list(IMPORTED),
        },
        "architecture_kwargs": {name: arguments[name] for name in ("n_stages", "kernel_sizes")},
        "pretrain_plan": {"configurations": {"3d_fullres": {"spacing": spacing, "patch_size": crop}}},
        "pretrain_num_input_channels": encoder.in_channels,
        "recommended_downstream_patchsize": patch,
        "key_to_encoder": "encoder.stages",
        "key_to_stem": network.stem,
        "keys_to_in_proj": [f"{network.first}.conv", f"{network.first}.all_modules.0"],
        "key_to_lpe": None,
    }


def _configuration(encoder: Encoder, network: Network, patch: list[int], spacing: list[float] | None) -> dict[str, Any]:
    """What a configuration of a plans file must say to fit; ``spacing`` is said where there was one."""
    described = {
        "network_class_name": network.name,
        "arch_kwargs": architecture(encoder, network),
        "_kw_requires_import": IMPORTED,
    }
    return {"patch_size": patch, **({"spacing": spacing} if spacing else {}), "architecture": described}


def _patch(encoder: Encoder, card: Mapping[str, Any]) -> list[int]:
    """The crop of the pretraining, each axis rounded up to what the U-Net can halve and double back."""
    return [-(-size // step) * step for size, step in zip(card["input"]["crop"], encoder.strides[-1], strict=True)]


def _spacing(encoder: Encoder, card: Mapping[str, Any]) -> list[float] | None:
    found = preprocessing(card)["spacing_mm"]
    return [float(found)] * encoder.spatial_dims if isinstance(found, int | float) else found


def _citations(card: Mapping[str, Any]) -> list[dict[str, Any]]:
    """In the form that nnU-Net prints when it fine-tunes."""
    name = str(card["training"].get("task", "")).rpartition(".")[-1]
    papers = list(card.get("citation") or [])
    return [{"type": "Pretraining", "name": name, "apa_citations": papers}] if papers else []


def _notes(encoder: Encoder, card: Mapping[str, Any]) -> list[str]:
    notes = [
        "Pretrained is the encoder. The decoder is nnU-Net's with He's random weights (seed 0): its standard loader "
        "asks for one, `nnUNetv2_train_pretrained` leaves it out.",
        f"Input was scaled by `{preprocessing(card)['intensity']['rule']}`; "
        "`nnUNetv2_preprocess_like_nnssl` takes z-scores of each image.",
        'Axes are (z, y, x) of RAS: `"overwrite_image_reader_writer": "NibabelIOWithReorient"` in dataset.json gives '
        "the same.",
    ]
    if "decoder" in card["parts"]:
        notes.insert(1, "The decoder of the pretraining is another network than nnU-Net's and stays behind.")
    if encoder.in_channels > 1:
        notes.append(
            f"It takes {encoder.in_channels} channels, and so must the images: nnU-Net repeats single ones only."
        )
    return notes


def opens(folder: Path) -> None:
    """Fill the encoder that the folder describes, strictly, from a file of plain tensors."""
    content = torch.load(folder / CHECKPOINT, map_location="cpu", weights_only=True)
    described = json.loads((folder / ARCHITECTURE).read_text())["architecture"]
    network = next(n for n in NETWORKS if n.name == described["network_class_name"])
    weights = {name: tensor for name, tensor in content["network_weights"].items() if ".all_modules." not in name}
    encoder = encoder_from(network, described["arch_kwargs"], weights[f"{network.first}.conv.weight"].shape[1])
    own = {name.removeprefix("encoder."): tensor for name, tensor in weights.items() if name.startswith("encoder.")}
    encoder.load_state_dict(own, strict=True)
