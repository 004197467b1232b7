"""nnU-Net's own network takes all weights of our checkpoint, by its names, and computes our maps."""

import json

import pytest
import torch
from exports_of import distance, image_of, native
from torch import nn

from ssl_med.backbones import PlainEncoder, ResidualEncoder, UNetEncoder
from ssl_med.card_check import check_folder
from ssl_med.errors import UserError
from ssl_med.exports import read_card
from ssl_med.formats import convert
from ssl_med.weights import load_weights

CROP = [4, 16, 16]
FROZEN = {
    "decoder.stages.0.convs.0": (6, 12, 3, 3, 3),
    "decoder.stages.1.convs.0": (4, 8, 1, 3, 3),
    "encoder.stages.0.blocks.0.conv1": (4, 4, 1, 3, 3),
    "encoder.stages.0.blocks.0.conv2": (4, 4, 1, 3, 3),
    "encoder.stages.1.blocks.0.conv1": (6, 4, 3, 3, 3),
    "encoder.stages.1.blocks.0.conv2": (6, 6, 3, 3, 3),
    "encoder.stages.1.blocks.0.skip.1": (6, 4, 1, 1, 1),
    "encoder.stages.1.blocks.1.conv1": (6, 6, 3, 3, 3),
    "encoder.stages.1.blocks.1.conv2": (6, 6, 3, 3, 3),
    "encoder.stages.2.blocks.0.conv1": (8, 6, 3, 3, 3),
    "encoder.stages.2.blocks.0.conv2": (8, 8, 3, 3, 3),
    "encoder.stages.2.blocks.0.skip.1": (8, 6, 1, 1, 1),
    "encoder.stem.convs.0": (4, 1, 1, 3, 3),
}
"""Convolutions of dynamic_network_architectures 0.4.4 for :func:`small`; shortcuts have no bias."""
FROZEN_PLAIN = {
    "decoder.stages.0.convs.0": (6, 12, 3, 3, 3),
    "decoder.stages.0.convs.1": (6, 6, 3, 3, 3),
    "decoder.stages.1.convs.0": (4, 8, 1, 3, 3),
    "decoder.stages.1.convs.1": (4, 4, 1, 3, 3),
    "encoder.stages.0.0.convs.0": (4, 1, 1, 3, 3),
    "encoder.stages.1.0.convs.0": (6, 4, 3, 3, 3),
    "encoder.stages.1.0.convs.1": (6, 6, 3, 3, 3),
    "encoder.stages.2.0.convs.0": (8, 6, 3, 3, 3),
}
"""The same for :func:`plain`."""
TRANSPOSED = {"decoder.transpconvs.0": (8, 6, 2, 2, 2), "decoder.transpconvs.1": (6, 4, 1, 2, 2)}


def small(**changes) -> ResidualEncoder:
    torch.manual_seed(0)
    kernels, pooling = [[1, 3, 3], [3] * 3, [3] * 3], [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
    settings = {"widths": [4, 6, 8], "blocks": [1, 2, 1], "pooling": pooling, "kernels": kernels}
    return ResidualEncoder(3, **{**settings, **changes})


def plain(**changes) -> PlainEncoder:
    torch.manual_seed(0)
    kernels, pooling = [[1, 3, 3], [3] * 3, [3] * 3], [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
    settings = {"widths": [4, 6, 8], "convolutions": [1, 2, 1], "pooling": pooling, "kernels": kernels}
    return PlainEncoder(3, **{**settings, **changes})


def plain_flat(**changes) -> PlainEncoder:
    torch.manual_seed(0)
    return PlainEncoder(2, 3, [4, 6], **changes)


def flat(**changes) -> ResidualEncoder:
    torch.manual_seed(0)
    return ResidualEncoder(2, 3, [4, 6], 1, **changes)


def written(part: nn.Module, folder, crop=CROP, **facts):
    return convert(native(part, folder / "native", crop, **facts), folder / "nnunet", "nnunet")


def content_of(folder) -> dict:
    return torch.load(folder / "checkpoint_nnunet.pth", weights_only=True)


def frozen_names(layers: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Every name that nnU-Net's standard loader asks for, written down without its code or ours."""
    found: dict[str, tuple[int, ...]] = {}
    for place, shape in layers.items():
        for conv, norm in (("conv", "norm"), ("all_modules.0", "all_modules.1")):
            found[f"{place}.{conv}.weight"] = shape
            found |= {f"{place}.{norm}.{name}": shape[:1] for name in ("weight", "bias")}
            if ".skip." not in place:
                found[f"{place}.{conv}.bias"] = shape[:1]
    found |= {f"decoder.{name}": shape for name, shape in found.items() if name.startswith("encoder.")}
    for place, shape in TRANSPOSED.items():
        found |= {f"{place}.weight": shape, f"{place}.bias": shape[1:2]}
    return found


@pytest.mark.parametrize(("make", "layers"), [(small, FROZEN), (plain, FROZEN_PLAIN)], ids=["resenc", "plain"])
def test_names_and_shapes_are_those_of_nnunet(tmp_path, make, layers):
    weights = content_of(written(make(), tmp_path))["network_weights"]
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == frozen_names(layers)


def network(described: dict, channels: int) -> nn.Module:
    """What nnU-Net builds from a plans file, with its own package."""
    unets = pytest.importorskip(
        "dynamic_network_architectures.architectures.unet", reason="nnU-Net's architectures are not installed"
    )
    arguments = described["arch_kwargs"]
    name = described.get("network_class_name") or described["arch_class_name"]
    places = {"Conv2d": nn.Conv2d, "Conv3d": nn.Conv3d, "LeakyReLU": nn.LeakyReLU}
    places |= {"InstanceNorm2d": nn.InstanceNorm2d, "InstanceNorm3d": nn.InstanceNorm3d}
    named = {key: places[arguments[key].rpartition(".")[-1]] for key in ("conv_op", "norm_op", "nonlin")}
    torch.manual_seed(1)
    return getattr(unets, name.rpartition(".")[-1])(channels, num_classes=3, **{**arguments, **named}).eval()


ALL = {"3d": (small, CROP), "2d": (flat, [16, 16]), "plain_3d": (plain, CROP), "plain_2d": (plain_flat, [16, 16])}


@pytest.mark.parametrize(("make", "crop"), ALL.values(), ids=ALL)
@pytest.mark.parametrize("bias", [True, False])
def test_the_network_of_nnunet_takes_all_of_it(tmp_path, make, crop, bias):
    ours = make(bias=bias).eval()
    folder = written(ours, tmp_path, crop)
    described = json.loads((folder / "architecture.json").read_text())["architecture"]
    theirs = network(described, ours.in_channels)
    weights = content_of(folder)["network_weights"]
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(".seg_layers." in name for name in missing)  # made for the classes of the images, never loaded
    image = image_of(2, ours.in_channels, crop)
    with torch.no_grad():
        for found, expected in zip(theirs.encoder(image), ours(image).maps, strict=True):
            assert distance(found, expected) < 1e-5
        assert theirs(image).shape == (2, 3, *crop)


@pytest.mark.parametrize("make", [small, plain], ids=["resenc", "plain"])
def test_modules_load_strictly_by_the_keys_of_the_plan(tmp_path, make):
    """As nnU-Net does before it fine-tunes: stem and stages are cut out by their prefixes, each loads strictly."""
    content = content_of(written(make(), tmp_path))
    plan, weights = content["nnssl_adaptation_plan"], content["network_weights"]
    theirs = network(plan["architecture_plans"], plan["pretrain_num_input_channels"])
    assert plan["key_to_encoder"] == theirs.key_to_encoder
    assert plan["key_to_stem"] == theirs.key_to_stem
    assert set(plan["keys_to_in_proj"]) == set(theirs.keys_to_in_proj)
    for key in (plan["key_to_encoder"], plan["key_to_stem"]):
        part = {name.removeprefix(f"{key}."): tensor for name, tensor in weights.items() if name.startswith(key)}
        theirs.get_submodule(key).load_state_dict(part, strict=True)
    assert all(f"{key}.weight" in weights for key in plan["keys_to_in_proj"])


def test_the_plan_has_what_nnunet_reads(tmp_path):
    facts = {"fixed_spacing_mm": [3.0, 1.0, 1.0]}
    folder = written(small(), tmp_path, [5, 18, 16], **facts)
    plan = content_of(folder)["nnssl_adaptation_plan"]
    assert plan == json.loads((folder / "adaptation_plan.json").read_text())
    assert set(plan["architecture_plans"]) == {"arch_class_name", "arch_kwargs", "arch_kwargs_requiring_import"}
    assert plan["pretrain_plan"]["configurations"] == {
        "3d_fullres": {"spacing": [3.0, 1.0, 1.0], "patch_size": [5, 18, 16]}
    }
    assert plan["recommended_downstream_patchsize"] == [6, 20, 16]  # what can be halved by strides (2, 4, 4)
    assert plan["pretrain_num_input_channels"] == 1
    assert plan["key_to_lpe"] is None
    assert plan["architecture_kwargs"] == {"n_stages": 3, "kernel_sizes": [[1, 3, 3], [3] * 3, [3] * 3]}
    assert "like_pretrained" in read_card(folder)["client"]["load"]


def test_images_of_many_spacings_are_planned_by_nnunet(tmp_path):
    folder = written(small(), tmp_path)
    assert (
        content_of(folder)["nnssl_adaptation_plan"]["pretrain_plan"]["configurations"]["3d_fullres"]["spacing"] is None
    )
    assert "default_nnunet" in read_card(folder)["client"]["load"]
    assert "spacing" not in json.loads((folder / "architecture.json").read_text())


def test_in_2d_there_is_no_plan(tmp_path):
    folder = written(flat(), tmp_path, [16, 16])
    assert "nnssl_adaptation_plan" not in content_of(folder)
    assert not (folder / "adaptation_plan.json").exists()
    assert "train_pretrained" not in read_card(folder)["client"]["load"]


def test_the_decoder_is_named_as_untrained_and_repeats(tmp_path):
    first, second = written(small(), tmp_path / "a"), written(small(), tmp_path / "b")
    untrained = read_card(first)["client"]["untrained"]
    assert untrained
    assert all(name.startswith("decoder.") for name in untrained)
    one, two = content_of(first)["network_weights"], content_of(second)["network_weights"]
    for name in untrained:
        assert torch.equal(one[name], two[name])


def test_second_names_take_no_room(tmp_path):
    folder = written(small(), tmp_path)
    weights = content_of(folder)["network_weights"]
    assert weights["encoder.stem.convs.0.conv.weight"].data_ptr() == (
        weights["decoder.encoder.stem.convs.0.all_modules.0.weight"].data_ptr()
    )


@pytest.mark.parametrize("make", [small, plain], ids=["resenc", "plain"])
def test_it_comes_back_to_us(tmp_path, make):
    ours = make()
    folder = written(ours, tmp_path)
    back = make()
    audit = load_weights(folder / "checkpoint_nnunet.pth", back)
    assert audit.share == 1.0
    for name, tensor in ours.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor)


@pytest.mark.parametrize("make", [small, plain], ids=["resenc", "plain"])
def test_the_card_check_opens_it(tmp_path, make):
    folder = written(make(), tmp_path)
    assert not [finding for finding in check_folder(folder) if finding.level == "error"]
    assert "```bash" in (folder / "README.md").read_text()


def test_fewer_weights_do_not_open(tmp_path):
    from ssl_med.formats.to_nnunet import opens

    folder = written(small(), tmp_path)
    content = content_of(folder)
    del content["network_weights"]["encoder.stages.1.blocks.1.conv2.conv.weight"]
    torch.save(content, folder / "checkpoint_nnunet.pth")
    with pytest.raises(RuntimeError, match="Missing key"):
        opens(folder)


def test_a_decoder_of_ours_stays_behind(tmp_path):
    from exports_of import FACTS

    from ssl_med.decoders import PyramidDecoder
    from ssl_med.exports import export

    ours = small()
    facts = read_card(native(ours, tmp_path / "alone", CROP))["input"]
    parts = {"backbone": ours, "decoder": PyramidDecoder.for_backbone(ours, [4, 6, 8])}
    source = export(parts, tmp_path / "native", {**FACTS, "input": facts})
    notes = read_card(convert(source, tmp_path / "nnunet", "nnunet"))["client"]["notes"]
    assert any("stays behind" in note for note in notes)


@pytest.mark.parametrize(
    ("backbone", "reason"),
    [
        (UNetEncoder(3, widths=(4, 8)), "UNetEncoder is no encoder of nnU-Net"),
        (ResidualEncoder(3, 1, [4, 6], 1, [[2, 2, 2], [2, 2, 2]]), "full resolution"),
        (ResidualEncoder(3, 1, [4], 1), "two stages or more"),
        (PlainEncoder(3, 1, [4, 6], 1, [[1, 2, 2], [2, 2, 2]]), "full resolution"),
    ],
    ids=["other", "pooled", "single", "plain_pooled"],
)
def test_what_nnunet_cannot_compute_is_refused(tmp_path, backbone, reason):
    with pytest.raises(UserError, match=reason):
        written(backbone, tmp_path)


def test_the_default_is_the_network_of_nnunets_default_plans(tmp_path):
    """Its planner's widths and convolutions per stage, at six stages, so that its own plans need no change."""
    ours = PlainEncoder()
    described = json.loads((written(ours, tmp_path, [32, 32, 32]) / "architecture.json").read_text())["architecture"]
    assert described["network_class_name"].endswith(".PlainConvUNet")
    arguments = described["arch_kwargs"]
    assert arguments["features_per_stage"] == [32, 64, 128, 256, 320, 320]
    assert arguments["n_conv_per_stage"] == [2] * 6
    assert arguments["n_conv_per_stage_decoder"] == [2] * 5
    assert arguments["conv_bias"]
