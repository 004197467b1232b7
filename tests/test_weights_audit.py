"""The audit accounts for every tensor, weighs what is missing, and changes nothing where it refuses."""

import json

import pytest
import torch
from foreign_models import our_vit, timm_vit

from ssl_med.backbones import TimmBackbone, UNetEncoder, ViT
from ssl_med.errors import UserError
from ssl_med.weights import load_weights
from ssl_med.weights.cost import flops_by_parameter


def holed(*prefixes: str) -> dict:
    return {name: value for name, value in timm_vit().state_dict().items() if not name.startswith(prefixes)}


def test_every_tensor_of_both_sides_is_named() -> None:
    state = timm_vit().state_dict() | {"head.weight": torch.zeros(5, 48), "strange": torch.zeros(1)}
    state["norm.bias"] = torch.zeros(7)
    vit = our_vit(registers=1)
    audit = load_weights(state, vit, drop=["strange", "norm.*"])
    own = set(vit.state_dict())
    assert set(audit.loaded) | set(audit.adapted) | set(audit.missing) == own == {row.name for row in audit.rows}
    assert len(audit.loaded) + len(audit.adapted) + len(audit.missing) == len(own)
    assert set(audit.missing) == {"reg_token", "norm.bias"}
    assert audit.unexpected == {"norm.bias": "(7,) does not fit (48,)", "strange": "the backbone has no such part"}
    assert audit.left == {"head.weight": "no part of the encoder"}
    total = sum(p.numel() for p in vit.parameters())
    assert audit.share == pytest.approx(1 - (48 + 48) / total)
    for name in ("patch_embed.proj.weight", "reg_token", "norm.bias", "strange"):
        assert name in str(audit)


def test_too_little_is_refused_with_the_nearest_names_and_nothing_changes() -> None:
    state = holed("blocks.1.")
    state |= {"blocks.1.attn.qvk.weight": torch.zeros(1)}
    vit = our_vit()
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    with pytest.raises(UserError, match=r"weights cover \d\d\.\d% of the backbone, at least 95% is asked") as refusal:
        load_weights(state, vit)
    assert "missing blocks.1.attn.qkv.weight (nearest in the source: blocks.1.attn.qvk.weight)" in str(refusal.value)
    assert all(torch.equal(value, before[name]) for name, value in vit.state_dict().items())
    assert load_weights(holed("blocks.1."), vit, at_least=0.4).share < 0.95
    assert not torch.equal(vit.norm.weight, before["norm.weight"])


def test_an_unknown_part_is_refused_even_if_small() -> None:
    """One scale too many is another network, though it is nothing of the parameters."""
    with pytest.raises(UserError, match=r"1 parts of the source.*blocks.0.attn.q_norm.weight"):
        load_weights(timm_vit(qk_norm=False).state_dict() | {"blocks.0.attn.q_norm.weight": torch.ones(12)}, our_vit())


def test_flops_of_a_vit_by_hand() -> None:
    vit, tokens, width = ViT(2, 8, 3, embed_dim=48, depth=2, heads=4), 4, 48
    found = flops_by_parameter(vit)
    embedding = 2 * tokens * (3 * 64) * width
    weight = vit.patch_embed.proj.weight.numel()
    assert found["patch_embed.proj.weight"] == pytest.approx(embedding * weight / (weight + width))
    qkv = 2 * (tokens + 1) * width * 3 * width  # with the class token
    assert found["blocks.1.attn.qkv.weight"] + found["blocks.1.attn.qkv.bias"] == pytest.approx(qkv)
    block = 2 * (tokens + 1) * 12 * width * width
    assert sum(found.values()) == pytest.approx(embedding + 2 * block)
    assert found["norm.weight"] == found["cls_token"] == 0.0


def test_flops_of_convolutions_by_hand() -> None:
    unet = UNetEncoder(2, 1, [2, 4], blocks=1)
    found = flops_by_parameter(unet)  # an image of 4 x 4
    assert found["stages.0.0.conv1.weight"] == 2 * 16 * 9 * 1 * 2
    assert found["stages.1.0.conv1.weight"] == 2 * 4 * 9 * 2 * 4
    assert found["stages.1.0.shortcut.weight"] == 2 * 4 * 2 * 4
    assert unet.training


def test_flops_of_other_libraries_are_all_of_some_parameter() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from ssl_med.weights.cost import example_image

    backbone = TimmBackbone("resnet18").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone(example_image(backbone))
    assert sum(flops_by_parameter(backbone).values()) == pytest.approx(counter.get_total_flops())


def test_share_of_flops_is_not_the_share_of_parameters() -> None:
    """Positions are many parameters and no operations."""
    vit = our_vit((16, 16))
    state = {name: value for name, value in vit.state_dict().items() if name != "pos_embed"}
    audit = load_weights(state, vit, at_least=0.5)
    assert audit.share < 0.9
    assert audit.flop_share == 1.0


def test_json_holds_all_of_it(tmp_path) -> None:
    audit = load_weights(timm_vit().state_dict(), our_vit(registers=1))
    audit.save(tmp_path / "weights.json")
    data = json.loads((tmp_path / "weights.json").read_text())
    assert data["counts"]["missing"] == 1
    assert data["share_of_parameters"] == audit.share
    assert {row["name"]: row["status"] for row in data["rows"]} == {row.name: row.status for row in audit.rows}
    assert next(row for row in data["rows"] if row["name"] == "norm.weight")["flops"] == 0.0


def test_table_groups_what_was_changed_alike() -> None:
    text = str(load_weights(timm_vit(qkv_bias=False).state_dict(), our_vit()))
    assert "blocks.*.attn.qkv.bias (2): zero: the source has no such bias" in text
    assert "100.0% of the parameters, 100.0% of the FLOPs" in text
