"""MONAI loads our bundles strictly, and answers with our features."""

import json

import monai.networks.nets as nets
import nibabel
import numpy as np
import pytest
import torch
from exports_of import distance, image_of, native
from monai.bundle.config_parser import ConfigParser
from monai.bundle.scripts import load

from ssl_med.backbones import MonaiBackbone, UNetEncoder
from ssl_med.data.intensity import Scale
from ssl_med.errors import UserError
from ssl_med.exports import read_card
from ssl_med.formats import convert

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*network_def.*"),
    pytest.mark.filterwarnings("ignore:.*trust.*"),
    pytest.mark.filterwarnings("ignore:.*meshgrid.*"),
    pytest.mark.filterwarnings("ignore:.*nvImageCodec.*"),
]
METADATA = {
    "version": str,
    "monai_version": str,
    "pytorch_version": str,
    "numpy_version": str,
    "required_packages_version": dict,
    "task": str,
    "description": str,
    "authors": str,
    "copyright": str,
    "network_data_format": dict,
}
"""What MONAI's bundle specification asks of metadata.json."""
TENSOR = {
    "type": str,
    "format": str,
    "num_channels": int,
    "spatial_shape": list,
    "dtype": str,
    "value_range": list,
    "is_patch_data": bool,
    "channel_def": dict,
}


def parsed(folder) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(folder / "configs" / "inference.json")
    return parser


def weights_of(folder) -> dict:
    return torch.load(folder / "models" / "model.pt", weights_only=True)


LAYOUTS = [
    (3, {}, [8, 12, 16]),
    (3, {"class_token": False, "patch": (2, 4, 4), "layer_scale": 0.3}, [8, 16, 16]),
    (2, {"positions": "learned", "grid": (4, 4)}, [16, 16]),
    (2, {"class_token": False, "positions": "none", "norm_eps": 1e-5, "in_channels": 2}, [16, 24]),
]


@pytest.mark.parametrize(("axes", "changes", "crop"), LAYOUTS, ids=str)
def test_a_vit_loads_strictly(tmp_path, tiny_vit, axes, changes, crop):
    vit = tiny_vit(axes, **changes)
    folder = convert(native(vit, tmp_path / "native", crop), tmp_path / "bundle", "monai")
    network = parsed(folder).get_parsed_content("network_def")
    assert type(network) is nets.ViT
    network.load_state_dict(weights_of(folder), strict=True)
    image = image_of(2, vit.in_channels, crop)
    with torch.no_grad():
        first, hidden = network.eval()(image)
        encoded, features = vit.encode(vit.tokenize(image)), vit(image)
        normed = network.norm(hidden[-1])
        assert distance(encoded, normed) < 1e-5
        assert distance(features.pooled, normed[:, vit.prefix :].mean(1)) < 1e-5
        assert distance(encoded[:, 0] if vit.class_token else encoded, first) < 1e-5


def test_the_bundle_loader_of_monai_takes_it(tmp_path, tiny_vit):
    vit, crop = tiny_vit(3, class_token=False), [8, 8, 8]
    folder = convert(native(vit, tmp_path / "native", crop), tmp_path / "bundle", "monai")
    with pytest.warns(UserWarning, match="trust"):  # a config may hold code; ours holds none
        network = load("bundle", bundle_dir=tmp_path, workflow_type="inference", device="cpu")
    image = image_of(2, 1, crop)
    with torch.no_grad():
        assert distance(vit(image).pooled, network.eval()(image)[0].mean(1)) < 1e-5
    assert "$" not in (folder / "configs" / "inference.json").read_text()


def test_the_encoder_of_unetr_takes_it(tmp_path, tiny_vit):
    vit, crop = tiny_vit(3, class_token=False, patch=16), [16, 16, 32]
    folder = convert(native(vit, tmp_path / "native", crop), tmp_path / "bundle", "monai")
    size = {"feature_size": 4, "hidden_size": 24, "mlp_dim": 96, "num_heads": 2}
    network = nets.UNETR(1, 2, crop, **size, qkv_bias=True).eval()
    network.vit.blocks = network.vit.blocks[:2]  # UNETR always has 12 blocks, this ViT has 2
    network.vit.load_state_dict(weights_of(folder), strict=True)
    image = image_of(1, 1, crop)
    with torch.no_grad():
        assert distance(vit(image).pooled, network.vit(image)[0].mean(1)) < 1e-5


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize(
    ("name", "width", "more", "encoder"),
    [
        ("SwinUNETR", 12, {}, ("swinViT.",)),
        ("SwinUNETR", 12, {"swin_v2": True}, ("swinViT.",)),
        ("SegResNet", 8, {}, ("convInit.", "down_layers.")),
        ("DynUNet", 4, {}, ("input_block.", "downsamples.", "bottleneck.")),
    ],
)
def test_encoders_of_monai_go_home(tmp_path, name, width, more, encoder, axes):
    torch.manual_seed(0)
    backbone, crop = MonaiBackbone(name, axes, width=width, **more), [32] * axes
    folder = convert(native(backbone, tmp_path / "native", crop), tmp_path / "bundle", "monai")
    network = parsed(folder).get_parsed_content("network_def").eval()
    assert type(network).__name__ == name
    network.load_state_dict(weights_of(folder), strict=True)
    untrained = read_card(folder)["client"]["untrained"]
    assert not [key for key in untrained if key.startswith(encoder)]
    assert all(key.startswith(encoder) for key in set(network.state_dict()) - set(untrained))
    image = image_of(1, 1, crop)
    with torch.no_grad():
        for ours, theirs in zip(backbone(image).maps, maps_of(network, image), strict=True):
            assert distance(ours, theirs) < 1e-5


def maps_of(network, image) -> list:
    """The encoder's maps, computed with MONAI's own modules."""
    if isinstance(network, nets.SwinUNETR):
        return network.swinViT(image)
    if isinstance(network, nets.SegResNet):
        return network.encode(image)[1]
    maps = [network.input_block(image)]
    for stage in (*network.downsamples, network.bottleneck):
        maps.append(stage(maps[-1]))
    return maps


def test_metadata_has_what_monai_asks_for(tmp_path, tiny_vit):
    folder = convert(native(tiny_vit(3), tmp_path / "native", [8, 8, 8]), tmp_path / "bundle", "monai")
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    assert {name: type(metadata[name]) for name in METADATA} == METADATA
    tensors = [*metadata["network_data_format"]["inputs"].values()]
    tensors += metadata["network_data_format"]["outputs"].values()
    for tensor in tensors:
        assert {name: type(tensor[name]) for name in TENSOR} == TENSOR
    assert tensors[0]["modality"] == "CT"
    assert metadata["preprocessing"]["crop"] == [8, 8, 8]


def test_its_transforms_give_our_input(tmp_path, tiny_vit):
    """A file turned and scaled by MONAI's transforms is the array of our reader, scaled by our rule."""
    from ssl_med.data.index import find_images
    from ssl_med.data.readers import read

    folder = convert(native(tiny_vit(3), tmp_path / "native", [8, 8, 8]), tmp_path / "bundle", "monai")
    voxels = np.random.default_rng(0).integers(-2000, 2000, (8, 10, 12)).astype(np.int16)
    scans = tmp_path / "scans"
    scans.mkdir()
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-1, 2, 1.5, 1])), scans / "a.nii.gz")
    found = parsed(folder).get_parsed_content("preprocessing")(str(scans / "a.nii.gz"))
    image = read(next(iter(find_images(scans))))
    wanted = Scale(-1000.0, 1000.0, -1000.0, 1 / 2000)(image.array)
    assert distance(torch.from_numpy(wanted), torch.as_tensor(np.asarray(found))) < 1e-6


@pytest.mark.parametrize(
    ("changes", "reason"), [({"registers": 2}, "no registers"), ({"positions": "rotary"}, "rotary")]
)
def test_what_monai_cannot_compute_is_refused(tmp_path, tiny_vit, changes, reason):
    with pytest.raises(UserError, match=reason):
        convert(native(tiny_vit(3, **changes), tmp_path / "native", [8] * 3), tmp_path / "bundle", "monai")


def test_other_encoders_are_refused(tmp_path):
    source = native(UNetEncoder(3, widths=(4, 8)), tmp_path / "native", [16] * 3)
    with pytest.raises(UserError, match="UNetEncoder is no network of MONAI"):
        convert(source, tmp_path / "bundle", "monai")
