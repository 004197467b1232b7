"""timm loads our folders and files, and answers with our features."""

import json

import pytest
import timm
import torch
from exports_of import distance, image_of, native

from ssl_med.backbones import TimmBackbone, UNetEncoder
from ssl_med.errors import UserError
from ssl_med.exports import read_card
from ssl_med.formats import convert

LAYOUTS = [
    {},
    {"class_token": False},
    {"positions": "none"},
    {"positions": "learned", "grid": (4, 4)},
    {"positions": "learned", "grid": (2, 4), "layer_scale": 0.1},
    {"registers": 3, "layer_scale": 0.5},
    {"patch": (4, 8), "mlp_ratio": 2.5},
    {"norm_eps": 1e-3, "layer_scale": 0.3},
    {"pooling": "class", "registers": 2},
    {"image_mean": [0.5, 0.1], "image_std": [0.2, 2.0]},
]


@pytest.mark.parametrize("changes", LAYOUTS, ids=str)
def test_a_vit_in_a_local_folder_and_by_name(tmp_path, tiny_vit, changes):
    vit, crop = tiny_vit(2, in_channels=2, **changes), [16, 24]
    folder = convert(native(vit, tmp_path / "native", crop), tmp_path / "timm", "timm")
    image = image_of(3, 2, crop)
    with torch.no_grad():
        ours, encoded = vit(image).pooled, vit.encode(vit.tokenize(image))
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        assert distance(ours, model(image)) < 1e-5
        assert distance(encoded, model.forward_features(image)) < 1e-5
        config = json.loads((folder / "config.json").read_text())
        file = str(folder / "model.safetensors")
        named = timm.create_model(config["architecture"], checkpoint_path=file, **config["model_args"]).eval()
        assert distance(ours, named(image)) < 1e-5
    assert read_card(folder)["client"]["untrained"] == []


def test_a_preset_needs_no_more_than_its_name(tmp_path):
    from ssl_med.backbones import ViT

    vit, crop = ViT(2, size="tiny", in_channels=3, depth=12), [224, 224]
    folder = convert(native(vit, tmp_path / "native", crop), tmp_path / "timm", "timm")
    model = timm.create_model("vit_tiny_patch16_224", checkpoint_path=str(folder / "model.safetensors"), num_classes=0)
    with torch.no_grad():
        image = image_of(1, 3, crop)
        assert distance(vit(image).pooled, model.eval().forward_features(image)[:, 1:].mean(1)) < 1e-5


def test_the_config_says_what_the_hub_needs(tmp_path, tiny_vit):
    folder = convert(native(tiny_vit(2), tmp_path / "native", [16, 16]), tmp_path / "timm", "timm")
    config = json.loads((folder / "config.json").read_text())
    pretrained = config["pretrained_cfg"]
    assert config["architecture"] == "vit_base_patch16_224"
    assert (pretrained["input_size"], pretrained["mean"], pretrained["std"]) == ([1, 16, 16], [0.0], [1.0])
    scales = config["preprocessing"]["intensity"]["scales"]
    assert scales == [{"low": -1000.0, "high": 1000.0, "shift": -1000.0, "factor": 0.0005}]
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "model.safetensors", "card.json", "README.md"}
    assert "library_name: timm" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "size", "untrained"),
    [("resnet18", None, 0), ("convnext_atto", None, 2), ("vit_tiny_patch16_224", 32, 2)],
)
def test_models_of_timm_go_home(tmp_path, name, size, untrained):
    torch.manual_seed(0)
    backbone, crop = TimmBackbone(name, in_channels=1, image_size=size), [32, 32]
    folder = convert(native(backbone, tmp_path / "native", crop), tmp_path / "timm", "timm")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, features_only=True).eval()
    image = image_of(2, 1, crop)
    with torch.no_grad():
        for ours, theirs in zip(backbone(image).maps, model(image), strict=True):
            assert distance(ours, theirs) < 1e-5
    assert len(read_card(folder)["client"]["untrained"]) == untrained


@pytest.mark.parametrize(
    ("axes", "changes", "reason"),
    [
        (3, {}, "2D, this one has 3 axes"),
        (2, {"positions": "rotary"}, "rotary"),
        (2, {"position_unit": "mm"}, "in mm"),
    ],
)
def test_what_timm_cannot_compute_is_refused(tmp_path, tiny_vit, axes, changes, reason):
    source = native(tiny_vit(axes, **changes), tmp_path / "native", [16] * axes)
    with pytest.raises(UserError, match=reason):
        convert(source, tmp_path / "timm", "timm")
    assert not (tmp_path / "timm").exists()


def test_positions_in_mm_fit_where_the_spacing_is_fixed(tmp_path, tiny_vit):
    vit, crop = tiny_vit(2, position_unit="mm", reference_mm=8.0), [16, 16]
    source = native(vit, tmp_path / "native", crop, fixed_spacing_mm=[1.5, 0.5])
    model = timm.create_model(f"local-dir:{convert(source, tmp_path / 'timm', 'timm')}", pretrained=True).eval()
    image = image_of(2, 1, crop)
    with torch.no_grad():
        assert distance(vit(image, torch.tensor([[1.5, 0.5]] * 2)).pooled, model(image)) < 1e-5


def test_other_encoders_and_other_names_are_refused(tmp_path):
    source = native(UNetEncoder(2, widths=(4, 8)), tmp_path / "native", [16, 16])
    with pytest.raises(UserError, match="UNetEncoder is no model of timm"):
        convert(source, tmp_path / "timm", "timm")
    with pytest.raises(UserError, match="expected native or one of timm, monai"):
        convert(source, tmp_path / "timm", "keras")
    with pytest.raises(UserError, match="is not empty"):
        convert(source, source, "timm")
