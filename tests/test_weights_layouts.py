"""A backbone loaded from elsewhere computes what the source computes: to 1e-5, against the source's own code."""

from argparse import Namespace
from itertools import pairwise

import pytest
import torch
from foreign_models import SMALL, difference, our_vit, shaken, timm_vit, tokens
from torch import nn

from ssl_med.backbones import (
    GenesisEncoder,
    MonaiBackbone,
    PlainEncoder,
    ResidualEncoder,
    TimmBackbone,
    UNetEncoder,
    ViT,
)
from ssl_med.errors import UserError
from ssl_med.weights import load_weights

TIMM = {
    "plain": ({}, {}),
    "no qkv bias": ({"qkv_bias": False}, {}),
    "layer scale": ({"init_values": 0.1}, {"layer_scale": 0.1}),
    "layer scale multiplied in": ({"init_values": 0.1}, {}),
    "layer scale of one": ({}, {"layer_scale": 0.1}),
    "registers": ({"reg_tokens": 2, "no_embed_class": True}, {"registers": 2}),
    "registers with positions": ({"reg_tokens": 2}, {"registers": 2}),
    "no class token": ({"class_token": False, "global_pool": "avg", "fc_norm": False}, {"class_token": False}),
}


@pytest.mark.parametrize("case", TIMM)
def test_timm_vit(case: str) -> None:
    model, vit = timm_vit(**TIMM[case][0]), our_vit(**TIMM[case][1])
    audit = load_weights(model.state_dict(), vit)
    image = torch.randn(2, 3, 32, 32)
    assert difference(tokens(vit, image), model.forward_features(image)) < 1e-5
    assert audit.share == 1.0
    assert not audit.missing
    assert not audit.unexpected


def mae(state: dict) -> dict:
    decoder = {"decoder_embed.weight": torch.zeros(2, 2), "decoder_blocks.0.norm1.weight": torch.zeros(2)}
    return {"model": {**state, **decoder, "mask_token": torch.zeros(1, 1, 2)}, "args": Namespace(lr=1), "epoch": 3}


def dino(state: dict) -> dict:
    noise = {name: torch.zeros_like(value) for name, value in state.items()}
    head = {"head.mlp.0.weight": torch.zeros(2, 2), "head.last_layer.weight_g": torch.zeros(2, 1)}
    student = {f"module.backbone.{n}": v for n, v in noise.items()} | {f"module.{n}": v for n, v in head.items()}
    return {"student": student, "teacher": {f"backbone.{n}": v for n, v in state.items()} | head, "epoch": 9}


def moco(state: dict) -> dict:
    noise = {f"module.momentum_encoder.{n}": torch.zeros_like(v) for n, v in state.items()}
    base = {f"module.base_encoder.{n}": v for n, v in state.items()}
    head = {"module.base_encoder.head.0.weight": torch.zeros(2, 2), "module.predictor.0.weight": torch.zeros(2, 2)}
    return {"arch": "vit_small", "state_dict": {**noise, **base, **head}}


def dinov2_trained(state: dict) -> dict:
    """A teacher of a sharded training: blocks in chunks, registers and mask token under their own names."""
    renamed = {}
    for name, value in state.items():
        name = name.replace("blocks.0.", "blocks.0.0.").replace("blocks.1.", "blocks.1.1.")
        renamed[f"backbone.{name.replace('reg_token', 'register_tokens')}"] = value
    return {"teacher": {**renamed, "backbone.mask_token": torch.zeros(1, 48), "dino_head.mlp.0.weight": torch.ones(1)}}


WRAPPED = {
    "mae": mae,
    "dino": dino,
    "moco": moco,
    "compiled": lambda s: {f"module._orig_mod.{n}": v for n, v in s.items()},
}


@pytest.mark.parametrize("case", WRAPPED)
def test_official_wrappers_of_timm_names(case: str) -> None:
    model, vit = timm_vit(), our_vit()
    audit = load_weights(WRAPPED[case](model.state_dict()), vit)
    image = torch.randn(2, 3, 32, 32)
    assert difference(tokens(vit, image), model.forward_features(image)) < 1e-5
    assert not audit.unexpected
    if case == "dino":
        assert audit.part == "teacher.backbone"
        assert audit.others == ["student.backbone"]


def test_part_takes_the_other_model() -> None:
    vit = our_vit()
    load_weights(dino(timm_vit().state_dict()), vit, part="student")
    assert not vit.blocks[0].attn.qkv.weight.any()
    with pytest.raises(UserError, match=r"part 'ema'.*it has: .*teacher.backbone"):
        load_weights(dino(timm_vit().state_dict()), vit, part="ema")


def test_dinov2_of_its_own_code_with_registers_and_chunks() -> None:
    """Its class token has a row in the position table, its registers have none."""
    model = timm_vit(reg_tokens=2, init_values=0.1, no_embed_class=True)
    state = model.state_dict()
    row = torch.randn(1, 1, 48)
    state["cls_token"], state["pos_embed"] = state["cls_token"] - row, torch.cat([row, state["pos_embed"]], 1)
    vit = our_vit(registers=2, layer_scale=0.1)
    audit = load_weights(dinov2_trained(state), vit)
    image = torch.randn(2, 3, 32, 32)
    assert difference(tokens(vit, image), model.forward_features(image)) < 1e-5
    assert "DINOv2" in audit.layout
    assert audit.adapted["cls_token"] == "its row of the position table added"


def test_volumes_of_dinov2_code() -> None:
    """3DINO's layout: a 3D convolution, a cube of positions; checked against our own 3D ViT."""
    ours = shaken(our_vit((2, 2, 2), 1))
    state = ours.state_dict()
    kernel = state["patch_embed.proj.weight"].reshape(48, 8, 8, 8, 1).permute(0, 4, 1, 2, 3)
    row = torch.randn(1, 1, 48)
    table = torch.cat([row, state["pos_embed"]], 1)
    foreign = {**state, "patch_embed.proj.weight": kernel, "pos_embed": table, "cls_token": state["cls_token"] - row}
    vit = our_vit((2, 2, 2), 1)
    load_weights(dinov2_trained(foreign), vit)
    image = torch.randn(1, 1, 16, 16, 16)
    assert difference(tokens(vit, image), tokens(ours, image)) < 1e-5


def test_gated_mlps_are_refused() -> None:
    state = timm_vit().state_dict()
    state["blocks.0.mlp.w12.weight"] = torch.zeros(4, 4)
    with pytest.raises(UserError, match="SwiGLU"):
        load_weights(state, our_vit())


def hugging_face(name: str, **changes) -> nn.Module:
    import transformers

    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192}
    config = getattr(transformers, f"{name}Config")(**sizes, image_size=32, patch_size=8, **changes)
    torch.manual_seed(0)
    return shaken(getattr(transformers, f"{name}Model")(config))


@pytest.mark.parametrize("where", ["memory", "folder"])
@pytest.mark.parametrize("name", ["ViT", "ViTMAE", "Dinov2", "Dinov2WithRegisters"])
def test_hugging_face(name: str, where: str, tmp_path) -> None:
    model = hugging_face(name, **({"mask_ratio": 0.0} if name == "ViTMAE" else {}))
    dinov2 = name.startswith("Dinov2")
    settings = {"layer_scale": 0.1} if dinov2 else {"norm_eps": 1e-12}
    vit = our_vit(**settings, registers=4 if "Registers" in name else 0)
    source = model.state_dict()
    if where == "folder":
        model.save_pretrained(tmp_path)
        source = tmp_path
    audit = load_weights(source, vit)
    image = torch.randn(2, 3, 32, 32)
    noise = {"noise": torch.arange(16.0).expand(2, -1)} if name == "ViTMAE" else {}  # keeps the order of the patches
    with torch.no_grad():
        expected = model(image, **noise).last_hidden_state
    assert difference(tokens(vit, image), expected) < 1e-5
    assert audit.share == 1.0
    assert "fused" in audit.adapted["blocks.1.attn.qkv.weight"]
    assert not any("norms of the source" in note for note in audit.notes)


def test_what_a_config_says_about_heads_and_norms_is_compared(tmp_path) -> None:
    hugging_face("ViT").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="4 attention heads, the backbone 6"):
        load_weights(tmp_path, our_vit(heads=6))
    audit = load_weights(tmp_path, our_vit())
    assert any("norm_eps=1e-12 gives equal features" in note for note in audit.notes)


@pytest.mark.parametrize("projection", ["conv", "perceptron"])
@pytest.mark.parametrize("classes", [False, True])
def test_monai_vit(projection: str, classes: bool) -> None:
    from monai.networks.nets.vit import ViT as Theirs

    size = {"hidden_size": 48, "mlp_dim": 192, "num_layers": 2, "num_heads": 4}
    model = shaken(Theirs(1, (16, 16, 24), (8, 8, 8), **size, proj_type=projection, classification=classes))
    vit = our_vit((2, 2, 3), 1, class_token=classes, norm_eps=1e-5)
    audit = load_weights({f"vit.{name}": value for name, value in model.state_dict().items()}, vit)  # as in UNETR
    image = torch.randn(2, 1, 16, 16, 24)
    if classes:
        del model.classification_head
    with torch.no_grad():
        assert difference(tokens(vit, image), model(image)[0]) < 1e-5
    assert audit.share == 1.0
    assert set(audit.left.values()) <= {"no part of the encoder", "a norm that MONAI's blocks own but do not use"}


def test_monai_vit_of_volumes_in_the_other_order_of_axes() -> None:
    from monai.networks.nets.vit import ViT as Theirs

    size = {"hidden_size": 48, "mlp_dim": 192, "num_layers": 2, "num_heads": 4}
    model = shaken(Theirs(1, (16, 16, 24), (8, 8, 8), **size))
    vit = our_vit((3, 2, 2), 1, class_token=False, norm_eps=1e-5)
    load_weights(model.state_dict(), vit, axes="reversed", grid=(2, 2, 3))
    image = torch.randn(2, 1, 24, 16, 16)
    with torch.no_grad():
        expected = model(image.permute(0, 1, 4, 3, 2))[0].mean(1)
    assert difference(vit(image).pooled, expected) < 1e-5


def swin(axes: int, v2: bool) -> nn.Module:
    """In 2D for speed, where names and order are the same."""
    from monai.networks.nets.swin_unetr import SwinUNETR

    torch.manual_seed(0)
    return shaken(SwinUNETR(1, 2, feature_size=12, use_v2=v2, spatial_dims=axes))


@pytest.mark.parametrize(("version", "axes"), [("v1", 3), ("v2", 2), ("module", 2), ("voco", 2), ("old names", 2)])
def test_monai_swin(version: str, axes: int) -> None:
    v2 = version in ("v2", "voco")
    model = swin(axes, v2)
    state = model.state_dict()
    if version == "module":
        state = {f"module.{name}": value for name, value in model.swinViT.state_dict().items()}
    if version == "old names":
        state = {name.replace("swinViT", "swin_vit").replace("linear", "fc"): v for name, v in state.items()}
    if version == "voco":
        state = {"state_dict": {f"module.backbone.{name}": value for name, value in state.items()}}
    backbone = MonaiBackbone("SwinUNETR", axes, 1, 12, swin_v2=v2).eval()
    audit = load_weights(state, backbone)
    image = torch.randn(1, 1, *[32] * axes)
    with torch.no_grad():
        for found, expected in zip(backbone(image).maps, model.swinViT(image), strict=True):
            assert difference(found, expected) < 1e-5
    assert audit.share == 1.0


def test_swin_v2_in_v1_is_refused() -> None:
    state = swin(2, v2=True).state_dict()
    with pytest.raises(UserError, match=r"swin_v2=True"):
        load_weights(state, MonaiBackbone("SwinUNETR", 2, 1, 12))
    with pytest.raises(UserError, match="windows of a SwinUNETR"):
        load_weights(state, MonaiBackbone("SwinUNETR", 2, 1, 12, swin_v2=True), axes="reversed")


@pytest.mark.parametrize("library", ["timm", "torchvision"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_resnet(library: str, wrapped: bool) -> None:
    import timm
    import torchvision

    torch.manual_seed(0)
    model = shaken(timm.create_model("resnet18") if library == "timm" else torchvision.models.resnet18())
    state = model.state_dict()
    if wrapped:  # MoCo v3
        state = {"state_dict": {f"module.base_encoder.{name}": value for name, value in state.items()}}
    backbone = TimmBackbone("resnet18").eval()
    audit = load_weights(state, backbone)
    model.to(memory_format=torch.channels_last)  # as ours: another order of sums shows in features of thousands
    image = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        x = model.maxpool((model.act1 if library == "timm" else model.relu)(model.bn1(model.conv1(image))))
        expected = model.layer4(model.layer3(model.layer2(model.layer1(x))))
        assert difference(backbone(image).maps[-1], expected) < 1e-5
    assert audit.share == audit.flop_share == 1.0
    assert set(audit.left) == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize("name", ["convnext_atto", "vit_tiny_patch16_224"])
def test_other_models_of_timm_in_the_feature_wrapper(name: str) -> None:
    import timm

    size = {"img_size": 32} if name.startswith("vit") else {}
    model = shaken(timm.create_model(name, num_classes=3, **size))
    backbone = TimmBackbone(name, image_size=size.get("img_size")).eval()
    assert load_weights(model.state_dict(), backbone).share == 1.0
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = model.forward_intermediates(image, intermediates_only=True, norm=False)[-1]
        assert difference(backbone(image).maps[-1], expected) < 1e-5


def nnunet(name: str = "ResidualEncoderUNet", **changes) -> nn.Module:
    """A class that nnU-Net builds, from its own package, which wants an older timm than we do."""
    unets = pytest.importorskip(
        "dynamic_network_architectures.architectures.unet", reason="nnU-Net's architectures are not installed"
    )
    settings = {
        "features_per_stage": [4, 6, 8],
        "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        "n_blocks_per_stage" if name == "ResidualEncoderUNet" else "n_conv_per_stage": [1, 2, 1],
        **changes,
    }
    common = {"conv_bias": True, "norm_op": nn.InstanceNorm3d, "norm_op_kwargs": {"eps": 1e-5, "affine": True}}
    common |= {"nonlin": nn.LeakyReLU, "nonlin_kwargs": {"inplace": True}, "n_conv_per_stage_decoder": [1, 1]}
    torch.manual_seed(0)
    return shaken(getattr(unets, name)(1, 3, conv_op=nn.Conv3d, num_classes=2, **settings, **common))


@pytest.mark.parametrize(
    ("name", "home"),
    [("ResidualEncoderUNet", ResidualEncoder), ("PlainConvUNet", PlainEncoder)],
    ids=["resenc", "plain"],
)
@pytest.mark.parametrize("axes", ["same", "reversed"])
def test_unets_of_nnunet(axes: str, name: str, home: type) -> None:
    model = nnunet(name)
    plan = {"architecture_plans": {"arch_class_name": "ResEncL"}, "key_to_encoder": "encoder.stages"}
    weights = {"network_weights": model.state_dict(), "nnssl_adaptation_plan": plan}
    turn = slice(None, None, -1 if axes == "reversed" else 1)
    kernels, pooling = [[1, 3, 3][turn], [3] * 3, [3] * 3], [[1, 1, 1], [1, 2, 2][turn], [2, 2, 2]]
    ours = home(3, 1, [4, 6, 8], [1, 2, 1], pooling, kernels).eval()
    audit = load_weights(weights, ours, axes=axes)
    image = torch.randn(2, 1, 4, 16, 16)
    shown = image.permute(0, 1, 4, 3, 2) if axes == "reversed" else image
    with torch.no_grad():
        model.encoder.return_skips = True
        for found, expected in zip(ours(shown).maps, model.encoder(image), strict=True):
            found = found.permute(0, 1, 4, 3, 2) if axes == "reversed" else found
            assert difference(found, expected) < 1e-5
    assert audit.share == audit.flop_share == 1.0
    assert audit.part == "network_weights.encoder"


def test_adaptation_plan_is_read(tmp_path) -> None:
    plan = {"architecture_plans": {"arch_class_name": "ResEncL"}, "recommended_downstream_patchsize": [160, 160, 160]}
    ours = ResidualEncoder(3, 1, [4, 6], [1, 1])
    state = {f"encoder.{name}": value for name, value in ours.state_dict().items()}
    torch.save({"network_weights": state, "nnssl_adaptation_plan": plan}, tmp_path / "checkpoint_final.pth")
    audit = load_weights(tmp_path / "checkpoint_final.pth", ResidualEncoder(3, 1, [4, 6], [1, 1]))
    assert "adaptation plan: pretrained as ResEncL" in audit.notes
    assert "adaptation plan: recommended_downstream_patchsize [160, 160, 160]" in audit.notes


class GenesisStage(nn.Module):
    """A stage of the original as its description has it: convolution, norm by the batch's moments, ReLU, twice."""

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.ops = nn.Sequential(*[self._unit(a, b) for a, b in pairwise(channels)])

    @staticmethod
    def _unit(inside: int, outside: int) -> nn.Module:
        unit = nn.Module()
        unit.conv1, unit.bn1 = nn.Conv3d(inside, outside, 3, padding=1), nn.BatchNorm3d(outside)
        return unit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for unit in self.ops:
            x = unit.conv1(x)
            x = nn.functional.batch_norm(x, None, None, unit.bn1.weight, unit.bn1.bias, training=True).relu()
        return x


def test_models_genesis() -> None:
    channels = {
        "down_tr64": [1, 4, 8],
        "down_tr128": [8, 8, 16],
        "down_tr256": [16, 16, 32],
        "down_tr512": [32, 32, 64],
    }
    model = shaken(nn.ModuleDict({name: GenesisStage(sizes) for name, sizes in channels.items()}))
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    state["module.up_tr256.up_conv.weight"] = torch.zeros(1)
    ours = GenesisEncoder(1, 4).eval()
    audit = load_weights({"epoch": 1, "state_dict": state}, ours)
    image = torch.randn(1, 1, 16, 16, 16)
    x, expected = image, []
    with torch.no_grad():
        for number, stage in enumerate(model.values()):
            x = stage(nn.functional.max_pool3d(x, 2) if number else x)
            expected.append(x)
        for found, wanted in zip(ours(image).maps, expected, strict=True):
            assert difference(found, wanted) < 1e-5
    assert audit.share == 1.0
    assert audit.left["up_tr256.up_conv.weight"] == "no part of the encoder"


def test_our_own_exports_and_other_backbones() -> None:
    for make in (lambda: UNetEncoder(2, 1, [4, 6]), lambda: our_vit(positions="rotary")):
        first, second = make(), make()
        audit = load_weights(shaken(first, 3).state_dict(), second)
        assert len(audit.loaded) == len(first.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


HOMES = {
    "a ResNet": (
        lambda: TimmBackbone("resnet18").model.state_dict(),
        "ssl_med.backbones.TimmBackbone, not UNetEncoder",
    ),
    "a ViT": (lambda: timm_vit().state_dict(), "ssl_med.backbones.ViT, not UNetEncoder"),
    "Primus": (lambda: {"encoder.eva.blocks.0.norm1.weight": torch.zeros(1)}, "take the ResEnc variant"),
    "a plain U-Net": (
        lambda: {"encoder.stages.0.0.convs.0.conv.weight": torch.zeros(1)},
        "home is ssl_med.backbones.PlainEncoder",
    ),
    "of no known layout": (lambda: {"alpha.weight": torch.zeros(1)}, "alpha.weight"),
}


@pytest.mark.parametrize("what", HOMES)
def test_what_has_no_place_is_told_where_to_go(what: str) -> None:
    state, hint = HOMES[what]
    with pytest.raises(UserError, match=what) as refusal:
        load_weights(state(), UNetEncoder(2, 1, [4, 6]))
    assert hint in str(refusal.value)


def test_bigger_and_smaller_models_are_refused() -> None:
    with pytest.raises(UserError, match="no such block or part"):
        load_weights(timm_vit(depth=3).state_dict(), our_vit())
    with pytest.raises(UserError, match="weights cover"):
        load_weights(timm_vit(depth=1).state_dict(), our_vit())
    with pytest.raises(UserError, match="does not fit"):
        load_weights(timm_vit().state_dict(), our_vit(embed_dim=24), at_least=0.0)


def test_vit_of_beit_has_biases_of_its_own() -> None:
    state = timm_vit().state_dict()
    expected = {}
    for block in range(2):
        query, _, value = state.pop(f"blocks.{block}.attn.qkv.bias").chunk(3)
        expected[block] = torch.cat([query, torch.zeros_like(query), value])
        state |= {f"blocks.{block}.attn.q_bias": query, f"blocks.{block}.attn.v_bias": value}
    vit = our_vit()
    load_weights(state, vit)
    assert all(torch.equal(vit.blocks[b].attn.qkv.bias, expected[b]) for b in expected)


def test_vit_class_is_kept() -> None:
    assert isinstance(our_vit(), ViT)
    assert SMALL["embed_dim"] == our_vit().embed_dim
