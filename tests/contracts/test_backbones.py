"""What every backbone promises, in 2D and 3D."""

import inspect
import warnings

import pytest
import torch
from torch import nn

from ssl_med.backbones import (
    Backbone,
    GenesisEncoder,
    MonaiBackbone,
    PlainEncoder,
    ResidualEncoder,
    SharedViT,
    TimmBackbone,
    UNetEncoder,
    ViT,
)
from ssl_med.recipe import build, recipe

SLAB = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
FLAT = [[1, 3, 3], [3, 3, 3], [3, 3, 3]]
TINY = {"embed_dim": 24, "depth": 2, "heads": 2}
CASES = {
    "vit_2d": (ViT, {"spatial_dims": 2, "patch": 8, "in_channels": 2, "registers": 1, **TINY, "depth": 3}, (16, 24)),
    "vit_3d": (ViT, {"spatial_dims": 3, "patch": [2, 8, 8], "layer_scale": 0.1, "taps": 1, **TINY}, (4, 16, 24)),
    "vit_4d": (ViT, {"spatial_dims": 4, "patch": [1, 4, 4, 4], **TINY}, (2, 4, 8, 4)),
    "vit_rotary": (ViT, {"spatial_dims": 3, "patch": 4, "positions": "rotary", **TINY}, (8, 4, 12)),
    "vit_learned": (ViT, {"spatial_dims": 2, "patch": 4, "positions": "learned", "grid": [2, 2], **TINY}, (8, 12)),
    "vit_mm": (ViT, {"spatial_dims": 3, "patch": 4, "position_unit": "mm", "class_token": False, **TINY}, (8, 4, 12)),
    "shared_vit": (SharedViT, {"patch_2d": 4, "patch_3d": [2, 4, 4], "in_channels": 2, **TINY}, (4, 8, 12)),
    "unet_2d": (UNetEncoder, {"spatial_dims": 2, "in_channels": 2, "widths": [4, 8, 12]}, (16, 24)),
    "unet_3d": (UNetEncoder, {"spatial_dims": 3, "widths": [4, 8, 12], "pooling": SLAB}, (4, 8, 16)),
    "unet_batch_norm": (UNetEncoder, {"spatial_dims": 2, "widths": [4, 8], "blocks": 1, "norm": "batch"}, (8, 12)),
    "timm_resnet": (TimmBackbone, {"name": "resnet18", "in_channels": 1}, (64, 96)),
    "timm_vit": (TimmBackbone, {"name": "vit_tiny_patch16_224", "image_size": 32}, (32, 32)),
    "timm_swin": (TimmBackbone, {"name": "swin_tiny_patch4_window7_224", "image_size": 64}, (64, 64)),
    "segresnet_2d": (MonaiBackbone, {"name": "SegResNet", "spatial_dims": 2, "width": 8}, (16, 24)),
    "segresnet_3d": (MonaiBackbone, {"name": "SegResNet", "spatial_dims": 3, "width": 8}, (16, 8, 16)),
    "dynunet_2d": (MonaiBackbone, {"name": "DynUNet", "spatial_dims": 2, "width": 16}, (16, 24)),
    "dynunet_3d": (MonaiBackbone, {"name": "DynUNet", "spatial_dims": 3, "width": 4, "in_channels": 2}, (16, 8, 16)),
    "residual_2d": (ResidualEncoder, {"spatial_dims": 2, "widths": [4, 8], "blocks": [1, 2]}, (8, 12)),
    "residual_3d": (
        ResidualEncoder,
        {"spatial_dims": 3, "in_channels": 2, "widths": [4, 6, 8], "blocks": 1, "pooling": SLAB, "kernels": FLAT},
        (4, 8, 16),
    ),
    "plain_2d": (
        PlainEncoder,
        {"spatial_dims": 2, "in_channels": 2, "widths": [4, 8], "convolutions": [1, 3]},
        (8, 12),
    ),
    "plain_3d": (PlainEncoder, {"widths": [4, 6, 8], "pooling": SLAB, "kernels": FLAT, "bias": False}, (4, 8, 16)),
    "genesis": (GenesisEncoder, {"width": 2}, (16, 8, 16)),
    "swinunetr_v2": (
        MonaiBackbone,
        {"name": "SwinUNETR", "spatial_dims": 3, "width": 12, "swin_v2": True},
        (32, 32, 32),
    ),
    "swinunetr_2d": (MonaiBackbone, {"name": "SwinUNETR", "spatial_dims": 2, "width": 12}, (64, 32)),
    "swinunetr_3d": (MonaiBackbone, {"name": "SwinUNETR", "spatial_dims": 3, "width": 12}, (32, 32, 32)),
}

Example = tuple[Backbone, torch.Tensor, torch.Tensor]


def concrete(cls: type) -> set[type]:
    """All subclasses of the library, at any depth, that can be built."""
    found = {cls} if not inspect.isabstract(cls) and cls.__module__.startswith("ssl_med.") else set()
    return found.union(*[concrete(child) for child in cls.__subclasses__()])


@pytest.fixture(scope="module", params=CASES, ids=str)
def example(request: pytest.FixtureRequest) -> Example:
    """A backbone, a batch of two images, and their spacing; built once, in evaluation mode."""
    cls, settings, space = CASES[request.param]
    torch.manual_seed(0)
    backbone = cls(**settings).eval()
    with torch.no_grad():
        for parameter in backbone.parameters():  # a branch that begins at zero would hide what is behind it
            if not parameter.any():
                parameter.normal_(std=0.1)
    return backbone, torch.randn(2, backbone.in_channels, *space), torch.full((2, len(space)), 2.0)


def test_every_class_is_tried() -> None:
    assert {cls for cls, _, _ in CASES.values()} == concrete(Backbone)


def test_features_have_the_promised_shapes(example: Example) -> None:
    backbone, image, spacing = example
    with torch.no_grad():
        features = backbone(image, spacing)
    assert features.pooled.shape == (2, backbone.embed_dim)
    assert len(features.maps) == len(backbone.channels) == len(backbone.strides)
    for found, channels, stride in zip(features.maps, backbone.channels, backbone.strides, strict=True):
        grid = tuple(size // s for size, s in zip(image.shape[2:], stride, strict=True))
        assert found.shape == (2, channels, *grid)
    assert image.ndim - 2 == backbone.spatial_dims
    for fine, coarse in zip(backbone.strides, backbone.strides[1:], strict=False):
        assert all(a <= b for a, b in zip(fine, coarse, strict=True))
    assert all(size % m == 0 for size, m in zip(image.shape[2:], backbone.multiple(), strict=True))


def test_smallest_size_works(example: Example) -> None:
    """An image of ``multiple()`` voxels is one cell of the coarsest map; normalisers want two cells."""
    backbone, _, spacing = example
    if getattr(backbone, "image_size", None):
        pytest.skip("this backbone is made for one size of images")
    first, *others = backbone.multiple()
    with torch.no_grad():
        features = backbone(torch.randn(2, backbone.in_channels, 2 * first, *others), spacing)
    assert features.maps[-1].shape[2:] == (2, *[1] * len(others))


def test_every_parameter_gets_a_gradient(example: Example) -> None:
    backbone, image, spacing = example
    backbone.zero_grad()
    torch.manual_seed(1)
    kinds = [(image, spacing)]
    if isinstance(backbone, SharedViT):  # what volumes do not need, images do
        kinds.append((image[:, :, 0], spacing[:, 1:]))
    for kind in kinds:
        features = backbone(*kind)
        total = sum((part * torch.randn_like(part)).sum() for part in (features.pooled, *features.maps))
        total.backward()
    without = [name for name, p in backbone.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    backbone.zero_grad()
    assert without == []


def test_recipe_and_state_rebuild_it(example: Example) -> None:
    backbone, image, spacing = example
    twin = build(recipe(backbone), Backbone).eval()
    missing, unexpected = twin.load_state_dict(backbone.state_dict())
    assert not missing
    assert not unexpected
    with torch.no_grad():
        ours, theirs = backbone(image, spacing), twin(image, spacing)
    assert torch.equal(ours.pooled, theirs.pooled)
    assert all(torch.equal(a, b) for a, b in zip(ours.maps, theirs.maps, strict=True))


def test_no_strided_convolution_of_one_voxel_on_few_channels(example: Example) -> None:
    """Its backward pass in oneDNN writes past its memory on processors with AVX2 alone (oneDNN issue 6035)."""
    convolutions = [m for m in example[0].modules() if isinstance(m, nn.Conv2d)]  # not of volumes
    risky = [m for m in convolutions if set(m.kernel_size) == {1} and set(m.stride) != {1} and m.in_channels < 16]
    assert risky == []


def test_layers_hold_each_parameter_once(example: Example) -> None:
    backbone = example[0]
    grouped = [id(p) for layer in backbone.layers() for p in layer]
    assert sorted(grouped) == sorted(id(p) for p in backbone.parameters())
    assert all(backbone.layers())


def test_bf16_is_finite_and_near(example: Example) -> None:
    backbone, image, spacing = example
    with torch.no_grad():
        full = backbone(image, spacing).pooled
        with torch.autocast("cpu", dtype=torch.bfloat16), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of layers that autocast keeps in float32
            half = backbone(image, spacing).pooled
    assert torch.isfinite(half).all()
    assert (half.float() - full).norm() < 0.1 * full.norm()


def test_evaluation_is_deterministic_and_per_image(example: Example) -> None:
    backbone, image, spacing = example
    with torch.no_grad():
        first, second, alone = backbone(image, spacing), backbone(image, spacing), backbone(image[1:], spacing[1:])
    assert torch.equal(first.pooled, second.pooled)
    assert torch.allclose(first.pooled[1:], alone.pooled, atol=1e-5)
