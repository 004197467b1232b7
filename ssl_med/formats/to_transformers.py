"""To transformers: a folder for ``AutoModel.from_pretrained``, as ViT, Dinov2 or Dinov2WithRegisters."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_med.backbones import ViT
from ssl_med.files import write_json
from ssl_med.formats.base import Written, backbone_of, refuse
from ssl_med.formats.completed import completed
from ssl_med.formats.preprocessing import fixed_scale, preprocessing
from ssl_med.formats.vit_layout import image_space, misfits, plain_state, with_prefix_rows

NEEDS = ("transformers",)

_LOAD = """from transformers import AutoModel

model = AutoModel.from_pretrained("FOLDER")
tokens = model(pixel_values=image).last_hidden_state
pooled = {pooled}  # the feature of ssl_med; pooler_output is the class token"""


def write(part: nn.Module, card: Mapping[str, Any], folder: Path) -> Written:
    """Write ``config.json``, ``model.safetensors`` and ``preprocessor_config.json``."""
    backbone, notes = backbone_of(part)
    if not isinstance(backbone, ViT):
        refuse("transformers", [f"{type(backbone).__name__} is none of its vision transformers"])
        raise AssertionError
    space, spacing = image_space(card["input"])
    refuse("transformers", [*misfits(backbone, space, spacing), *_unlike(backbone, space)])
    kind = _kind(backbone)
    model = _empty(kind, backbone, space)
    completed(model, _named(plain_state(backbone, space, spacing), backbone, kind))
    model.save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", _preprocessor(card))
    write_json(folder / "preprocessing.json", preprocessing(card))
    notes += ["`pooler_output` is the normalised class token."]
    if fixed_scale(card) is None:
        notes += ["The image processor leaves intensities alone: scale them by the rule in `preprocessing.json`."]
    pooled = "tokens[:, 0]" if backbone.pooling == "class" else f"tokens[:, {backbone.prefix}:].mean(1)"
    load = _LOAD.format(pooled=pooled)
    return Written("transformers", f"{kind}Model", load, notes, front={"library_name": "transformers"})


def _unlike(vit: ViT, space: list[int]) -> list[str]:
    """What keeps a ViT from being any of the three classes."""
    reasons = []
    if vit.spatial_dims != 2:
        reasons.append(f"its vision transformers are 2D, this one has {vit.spatial_dims} axes")
    if not vit.class_token:
        reasons.append("its vision transformers always have a class token, this one has none")
    if _kind(vit) != "ViT" and (len(set(space)) > 1 or len(set(vit.patch)) > 1):
        reasons.append(f"{_kind(vit)} takes the table of positions for a square, the image is {tuple(space)}")
    if _kind(vit) != "ViT" and vit.mlp_ratio != int(vit.mlp_ratio):
        reasons.append(f"{_kind(vit)} needs a whole mlp_ratio, this is {vit.mlp_ratio}")
    return reasons


def _kind(vit: ViT) -> str:
    if vit.registers:
        return "Dinov2WithRegisters"
    return "ViT" if vit.layer_scale is None else "Dinov2"


def _empty(kind: str, vit: ViT, space: list[int]) -> Any:
    import transformers

    settings: dict[str, Any] = {
        "hidden_size": vit.embed_dim,
        "num_hidden_layers": vit.depth,
        "num_attention_heads": vit.heads,
        "image_size": space[0] if len(set(space)) == 1 else space,
        "patch_size": vit.patch[0] if len(set(vit.patch)) == 1 else list(vit.patch),
        "num_channels": vit.in_channels,
        "layer_norm_eps": vit.norm_eps,
    }
    if kind == "ViT":
        settings |= {"intermediate_size": int(vit.embed_dim * vit.mlp_ratio), "pooler_act": "linear"}
    else:
        settings |= {"mlp_ratio": int(vit.mlp_ratio)}
    if vit.registers:
        settings["num_register_tokens"] = vit.registers
    with torch.random.fork_rng(devices=[]):
        config = getattr(transformers, f"{kind}Config")(**settings)
        return getattr(transformers, f"{kind}Model")(config).eval()


_COMMON = {
    "cls_token": "embeddings.cls_token",
    "reg_token": "embeddings.register_tokens",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_IN_BLOCK = {
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}
_NORMS = {"ViT": ("layernorm_before", "layernorm_after")}
_BLOCKS = {"ViT": "layers"}


def _named(state: dict[str, Tensor], vit: ViT, kind: str) -> dict[str, Tensor]:
    """Weights under the names of a class, every one of which is set: nothing stays random."""
    state = {**state, "pos_embed": with_prefix_rows(state["pos_embed"], 1)}  # registers have no row in either class
    found = {}
    for name, tensor in state.items():
        if name in _COMMON:
            found[_COMMON[name]] = tensor
        else:
            found.update(_of_block(name, tensor, kind))
    if kind == "ViT":  # a pooler that hands the class token on
        found |= {"pooler.dense.weight": torch.eye(vit.embed_dim), "pooler.dense.bias": torch.zeros(vit.embed_dim)}
        return found
    ones, mask = torch.ones(vit.embed_dim), torch.zeros(1, vit.embed_dim)
    scales = [f"encoder.layer.{i}.layer_scale{j}.lambda1" for i in range(vit.depth) for j in (1, 2)]
    return {"embeddings.mask_token": mask, **dict.fromkeys(scales, ones), **found}


def _of_block(name: str, tensor: Tensor, kind: str) -> dict[str, Tensor]:
    """One tensor of a block; queries, keys and values are three layers there."""
    _, number, rest = name.split(".", 2)
    before = f"{_BLOCKS.get(kind, 'encoder.layer')}.{number}"
    if rest.startswith("attn.qkv."):
        last, parts = rest.removeprefix("attn.qkv."), tensor.chunk(3)
        return {f"{before}.attention.{q}_proj.{last}": p.clone() for q, p in zip("qkv", parts, strict=True)}
    first, second = _NORMS.get(kind, ("norm1", "norm2"))
    for ours, theirs in {**_IN_BLOCK, "norm1": first, "norm2": second}.items():
        if rest.startswith(ours):
            return {f"{before}.{theirs}{rest.removeprefix(ours)}": tensor}
    raise KeyError(name)


def _preprocessor(card: Mapping[str, Any]) -> dict[str, Any]:
    """For BitImageProcessor: a crop from the centre at the image's own resolution, as in training."""
    height, width = card["input"]["crop"]
    eight_bit = card["input"]["intensity"] == "unit"
    return {
        "image_processor_type": "BitImageProcessor",
        "do_resize": False,
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_convert_rgb": card["input"]["channels"] == 3,
        "do_rescale": eight_bit,
        "rescale_factor": 1 / 255,
        "do_normalize": False,
    }


def opens(folder: Path) -> None:
    """Load what lies in a folder, as its client does."""
    from transformers import AutoModel

    AutoModel.from_pretrained(folder, local_files_only=True)
